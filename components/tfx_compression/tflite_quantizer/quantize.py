"""Conversion of a model to TFLite, without a pipeline."""

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfx_compression import worker
from tfx_compression.errors import ModelError, WorkerError
from tfx_compression.saved_models import feature_signatures
from tfx_compression.saved_models.feature_signatures import FeatureSignature
from tfx_compression.tflite.contents import ModelContents, read_contents
from tfx_compression.tflite.interpreter import Interpreter, TensorDetails
from tfx_compression.tflite.saved_model_graph import SavedModelGraph
from tfx_compression.tflite_quantizer import conversion_worker, self_test, sources
from tfx_compression.tflite_quantizer.calibration import require_finite
from tfx_compression.tflite_quantizer.config import Quantization
from tfx_compression.tflite_quantizer.record import QuantizationRecord

Columns = Mapping[str, np.ndarray]
Signatures = Mapping[str, FeatureSignature]  # by name


@dataclasses.dataclass(frozen=True)
class Rows:
    """What a conversion looks at; columns are [rows, …] values by feature, as the TFLite model takes them.

    Attributes:
      calibration: activation ranges are measured on them, and layers compared with the float model's.
      check: are compared with those ranges.
      trial, labels: mode `auto` measures its metric on them; labels are [rows].
      strata: of the calibration rows, by value of the feature that was stratified by.
      notes: what a user should know of them.
    """

    calibration: Columns = dataclasses.field(default_factory=dict)
    check: Columns = dataclasses.field(default_factory=dict)
    trial: Columns = dataclasses.field(default_factory=dict)
    labels: np.ndarray | None = None
    strata: Mapping[str, int] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Quantized:
    """A TFLite model and what is known of it.

    Attributes:
      content: the file.
      record: how it was made, and what is in it.
      self_test: rows and what the model makes of them, as devices put them in and get them (`self_test.make`).
      inputs, outputs: of `serving_default` or the only signature, by name.
      contents: operators and weights.
    """

    content: bytes
    record: QuantizationRecord
    self_test: Mapping[str, np.ndarray]
    inputs: dict[str, TensorDetails]
    outputs: dict[str, TensorDetails]
    contents: ModelContents

    @property
    def calibration_rows(self) -> int:
        """How many rows the ranges were measured on."""
        return self.record.calibration.rows if self.record.calibration else 0


def quantize(model: Any, config: Quantization, data: tf.data.Dataset | None = None) -> bytes:
    """Converts a model to a TFLite flatbuffer, as `config` says.

    Args:
      model: a Keras 2 or Keras 3 model, or the path of a SavedModel or a Keras file. A SavedModel is converted by what
        its signatures do after parsing tf.Examples; a Keras model without signatures by its own inputs.
      config: the mode, and how it is calibrated.
      data: for the calibrated modes, batches of (features, label) or features, where features is a dict by input name
        or a tensor. The first `config.calibration.rows` rows are calibrated on; mode `auto` tries on the
        `config.auto.rows` rows behind them.

    Raises:
      ModelError: where the model can't be converted, or a mode has no data.
      WorkerError: where the converter crashes, hangs or needs too much memory.
    """
    with tempfile.TemporaryDirectory(prefix="tfx-compression-") as folder:
        path = sources.saved_model_of(model, os.path.join(folder, "model"))
        return quantize_saved_model(path, config, None if data is None else rows_of(data, config)).content


def quantize_saved_model(
    path: str, config: Quantization, read: Callable[[Signatures], Rows] | None = None
) -> Quantized:
    """Converts the signatures of the SavedModel in `path`.

    Args:
      path: of the SavedModel.
      config: the mode, and how it is calibrated.
      read: given the signatures, returns the rows; needed by the calibrated modes, of use to all for the proof. Not
        called where the model takes strings.

    Raises:
      ModelError: where the model can't be converted, or a mode has no data.
      WorkerError: where the converter crashes, hangs or needs too much memory.
    """
    started = time.perf_counter()
    signatures = {
        name: feature_signatures.feature_signature(path, name, batch_size=config.batch_size, transform=config.transform)
        for name in config.signatures
    }
    for signature in signatures.values():
        if signature.needs_select_tf_ops and not config.select_tf_ops:
            raise ModelError(signature.needs_select_tf_ops)
    with tempfile.TemporaryDirectory(prefix="tfx-compression-") as folder:
        saved_model = os.path.join(folder, conversion_worker.SAVED_MODEL)
        feature_signatures.save_signatures(signatures, saved_model)
        cut = time.perf_counter() - started
        needed = config.needs_data and not SavedModelGraph(saved_model).is_quantization_aware(config.signatures)
        rows = _read(signatures, config, read, needed)
        _write(folder, rows)
        try:
            worker.run(
                conversion_worker.__name__,
                {"folder": folder, "config": config.to_json(), "strata": dict(rows.strata)},
                task=f"The conversion of {path} in mode {config.mode!r}",
                timeout=config.timeout_seconds,
                max_memory=config.max_memory_bytes,
            )
        except WorkerError as error:
            if config.mode_spec.calibrated_by_converter and SavedModelGraph(saved_model).has_loops(config.signatures):
                raise ModelError(
                    f"{error} The model has loops or branches, which TensorFlow's calibrator can crash on. Remedy: "
                    "mode 'dynamic' or 'float16'; of Keras' recurrent layers, unroll=True."
                ) from error
            raise
        with open(os.path.join(folder, conversion_worker.MODEL), "rb") as file:
            content = file.read()
        with open(os.path.join(folder, conversion_worker.RECORD)) as text:
            record = QuantizationRecord.merged(text.read(), {})
        test = os.path.join(folder, self_test.FILE)
        arrays = self_test.read(test) if os.path.exists(test) else {}
    notes = tuple(note for signature in signatures.values() for note in signature.notes)
    interpreter = Interpreter(content)
    record = record.model_copy(
        update={"notes": (*notes, *rows.notes, *record.notes), "seconds": {"cut": cut, **record.seconds}}
    )
    return Quantized(content, record, arrays, interpreter.inputs, interpreter.outputs, read_contents(content))


def parsed(signatures: Signatures) -> dict[str, tf.TensorSpec]:
    """What all signatures parse, by feature."""
    found: dict[str, tf.TensorSpec] = {}
    for signature in signatures.values():
        for name, spec in signature.raw_features.items():
            if name in found and (found[name].dtype != spec.dtype or found[name].shape[1:] != spec.shape[1:]):
                raise ModelError(f"Two signatures take {name!r} differently: {found[name]} and {spec}.")
            found[name] = spec
    return found


def columns_of(signatures: Signatures, rows: Sequence[bytes]) -> Columns:
    """What all signatures take, of serialized tf.Examples."""
    parsed(signatures)
    return {name: values for signature in signatures.values() for name, values in signature.read_examples(rows).items()}


def _read(
    signatures: Signatures, config: Quantization, read: Callable[[Signatures], Rows] | None, needed: bool
) -> Rows:
    strings = sorted(
        {name for item in signatures.values() for name, spec in item.features.items() if spec.dtype == tf.string}
    )
    if strings and needed:
        raise ModelError(
            f"Mode {config.mode!r} can't calibrate on the string features {', '.join(strings)}. Remedy: look them "
            "up before the model, or choose mode 'dynamic'."
        )
    if read is None and needed:
        raise ModelError(
            f"Quantization mode {config.mode!r} measures activation ranges on data and got none. "
            "Remedy: pass examples (or data), or choose mode 'dynamic' or 'float16'."
        )
    if read is None or strings:
        return Rows()
    rows = read(signatures)
    for name, values in rows.calibration.items():
        require_finite(name, values)
    return rows


def _write(folder: str, rows: Rows) -> None:
    for name, columns in (
        (conversion_worker.CALIBRATION, rows.calibration),
        (conversion_worker.CHECK, rows.check),
        (conversion_worker.TRIAL, rows.trial),
    ):
        if columns:
            np.savez(
                os.path.join(folder, name), **{f"feature/{key}": np.asarray(value) for key, value in columns.items()}
            )
    if rows.labels is not None:
        if rows.labels.dtype.kind in "OSU":
            raise ModelError(
                f"The labels are strings ({rows.labels.ravel()[0]!r}, …), which no metric compares with the model's "
                "numbers. Remedy: auto.label_key is a feature of numbers, or auto.metric='agreement'."
            )
        np.save(os.path.join(folder, conversion_worker.LABELS), rows.labels)


def rows_of(data: tf.data.Dataset, config: Quantization) -> Callable[[Signatures], Rows]:
    """Reads the first rows of `data`, as `quantize` says: which ones are drawn is the caller's choice, by shuffling."""
    return lambda signatures: _rows(data, signatures, config)


def _rows(data: tf.data.Dataset, signatures: Signatures, config: Quantization) -> Rows:
    if config.calibration.stratify_by is not None:
        raise ModelError(
            f"calibration.stratify_by={config.calibration.stratify_by!r} is of examples in files, as TFLiteQuantizer "
            "reads them; of data, the first rows are taken. Remedy: stratify the data, and stratify_by=None."
        )
    specs = parsed(signatures)
    count = config.calibration.rows
    wanted = count + (config.auto.rows if config.searches else 0)
    features: dict[str, list[np.ndarray]] = {name: [] for name in specs}
    labels = []
    for row in data.unbatch().take(wanted).as_numpy_iterator():
        values = row[0] if isinstance(row, tuple) else row
        if isinstance(row, tuple) and len(row) > 1:
            labels.append(row[1])
        if not isinstance(values, dict):
            if isinstance(values, tuple) or len(specs) != 1:
                raise ModelError(
                    f"The data's features have no names, and the model takes {', '.join(specs)}. Remedy: batches of "
                    "(dict by name, label)."
                )
            values = dict(zip(specs, [values], strict=True))
        missing = [name for name in specs if name not in values]
        if missing:
            raise ModelError(f"The data lacks {', '.join(missing)}; it has: {', '.join(values) or 'nothing'}.")
        for name, spec in specs.items():
            features[name].append(_value(name, values[name], spec))
    columns = {name: _stacked(name, values) for name, values in features.items() if values}
    if not columns:
        raise ModelError("The data to calibrate on is empty.")
    columns = {
        name: values
        for signature in signatures.values()
        for name, values in signature.preprocess({key: columns[key] for key in signature.raw_features}).items()
    }
    trial = {name: values[count:] for name, values in columns.items()} if config.searches else {}
    read = len(next(iter(columns.values())))
    if config.searches and (read <= count or (config.needs_labels and len(labels) < read)):
        raise ModelError(
            f"Mode 'auto' calibrates on the first {count} rows of the data and tries on those behind them: of {read} "
            f"rows {len(labels)} have a label. Remedy: more data of (features, label), fewer calibration.rows, or "
            "auto.metric='agreement', which needs no labels."
        )
    return Rows(
        calibration={name: values[:count] for name, values in columns.items()},
        trial=trial,
        labels=np.asarray(labels[count:]) if config.needs_labels else None,
    )


def _value(name: str, value: Any, spec: tf.TensorSpec) -> np.ndarray:
    """One row's value as the signature takes it, without the batch."""
    shape = spec.shape[1:]
    try:
        found = np.asarray(value, spec.dtype.as_numpy_dtype)
        if shape.is_compatible_with(found.shape):
            return found
        if found.ndim > 1 and [size for size in found.shape if size > 1] != [size for size in shape if size != 1]:
            raise ValueError("another layout")
        return found.reshape(shape)
    except (TypeError, ValueError) as error:
        raise ModelError(f"The data's {name!r} of shape {np.shape(value)} doesn't fit the model's {spec}.") from error


def _stacked(name: str, values: Sequence[np.ndarray]) -> np.ndarray:
    shapes = {value.shape for value in values}
    if len(shapes) > 1:
        raise ModelError(
            f"The data's {name!r} has several shapes, {', '.join(map(str, sorted(shapes)))}; calibration runs on rows "
            "of one. Remedy: resize or pad them to one."
        )
    return np.stack(values)
