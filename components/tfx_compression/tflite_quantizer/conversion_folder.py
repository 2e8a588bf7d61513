"""The folder through which `quantize` and its worker process exchange the model, rows and results."""

import os
from collections.abc import Mapping

import numpy as np

from tfx_compression.tflite_quantizer.record import QuantizationRecord
from tfx_compression.tflite_quantizer.rows import Columns, Rows

SAVED_MODEL, MODEL = "saved_model", "model.tflite"
_RECORD, _LABELS = "record.json", "labels.npy"
_CALIBRATION, _CHECK, _TRIAL = "calibration.npz", "check.npz", "trial.npz"
_PREFIX = "feature/"  # keeps feature names apart from np.savez's own arguments


def write_rows(folder: str, rows: Rows) -> None:
    """Writes the columns and labels of rows."""
    for name, columns in ((_CALIBRATION, rows.calibration), (_CHECK, rows.check), (_TRIAL, rows.trial)):
        if columns:
            arrays = {_PREFIX + key: np.asarray(values) for key, values in columns.items()}
            np.savez(os.path.join(folder, name), **arrays)
    if rows.labels is not None:
        np.save(os.path.join(folder, _LABELS), rows.labels)


def read_rows(folder: str, strata: Mapping[str, int]) -> Rows:
    """Reads what `write_rows` wrote; `strata` comes with the request."""
    labels = os.path.join(folder, _LABELS)
    return Rows(
        calibration=_read_columns(folder, _CALIBRATION),
        check=_read_columns(folder, _CHECK),
        trial=_read_columns(folder, _TRIAL),
        labels=np.load(labels, allow_pickle=False) if os.path.exists(labels) else None,
        strata=strata,
    )


def write_result(folder: str, content: bytes, record: QuantizationRecord) -> None:
    """Writes the TFLite model and its record."""
    with open(os.path.join(folder, MODEL), "wb") as file:
        file.write(content)
    with open(os.path.join(folder, _RECORD), "w") as text:
        text.write(record.model_dump_json(indent=1))


def read_result(folder: str) -> tuple[bytes, QuantizationRecord]:
    """Reads what `write_result` wrote."""
    with open(os.path.join(folder, MODEL), "rb") as file:
        content = file.read()
    with open(os.path.join(folder, _RECORD)) as text:
        return content, QuantizationRecord.merged(text.read(), {})


def _read_columns(folder: str, name: str) -> Columns:
    path = os.path.join(folder, name)
    if not os.path.exists(path):
        return {}
    with np.load(path, allow_pickle=False) as stored:
        return {key.removeprefix(_PREFIX): stored[key] for key in stored.files}
