"""Conversion of a model to TFLite, without a pipeline."""

import os
import re
import tempfile
import time
import warnings
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tfx_compression import worker
from tfx_compression.config import require_config
from tfx_compression.data.batches import as_batches
from tfx_compression.errors import CompressionError, CompressionWarning, DataError, ModelError, WorkerError
from tfx_compression.quiet import quiet_libraries
from tfx_compression.saved_models import feature_signatures
from tfx_compression.tflite.contents import read_contents
from tfx_compression.tflite.features import is_string
from tfx_compression.tflite.interpreter import Interpreter
from tfx_compression.tflite.saved_model_graph import SavedModelGraph
from tfx_compression.tflite_quantizer import conversion_folder, conversion_worker, remedies, self_test, sources
from tfx_compression.tflite_quantizer.calibration import require_finite
from tfx_compression.tflite_quantizer.config import Quantization
from tfx_compression.tflite_quantizer.quantized_model import QuantizedModel
from tfx_compression.tflite_quantizer.rows import RowReader, Rows, Signatures, first_rows
from tfx_compression.tracing import unwrapped_errors


def quantize(
    model: Any, config: Quantization, data: Any = None, *, custom_objects: Mapping[str, Any] | None = None
) -> QuantizedModel:
    """Converts a model to a TFLite flatbuffer, and warns (`CompressionWarning`) of findings that a user should act on.

    Args:
      model: A Keras 2 or Keras 3 model, a result of `prune` or `fine_tune`, or the path of a SavedModel or a Keras
        file. A SavedModel is converted from what its signatures compute after parsing tf.Examples; a Keras model
        without signatures, from its own inputs.
      config: The mode and its calibration.
      data: A dataset of batches of (features, label) or of features, where features is a dict by input name or a
        tensor; or arrays of the same form (`data.batches.as_batches`). Calibrated modes need it and use the first
        `config.calibration.rows` rows; mode `auto` tries precisions on the next `config.auto.rows` rows.
      custom_objects: Classes and functions of a Keras file, by the names in it.

    Raises:
      ModelError: If the model can't be converted or doesn't run on the target.
      DataError: If rows are missing or don't fit the model.
      ConfigError: If the configuration doesn't fit the model.
      WorkerError: If the converter crashes, hangs or needs too much memory.
    """
    require_config(config, Quantization, "config")
    result = _quantize(model, config, data, custom_objects)
    if result.warnings:
        warnings.warn("\n".join(result.warnings), CompressionWarning, stacklevel=2)
    return result


def quantize_saved_model(path: str, config: Quantization, read: RowReader | None = None) -> QuantizedModel:
    """Converts the signatures of a SavedModel.

    Args:
      path: Path of the SavedModel.
      config: The mode and its calibration.
      read: Returns the rows for given signatures. Calibrated modes need it; others compare layers on its rows. It isn't
        called if the model takes strings.

    Raises:
      ModelError: If the model can't be converted or doesn't run on the target.
      DataError: If rows are missing or don't fit the model.
      ConfigError: If the configuration doesn't fit the model.
      WorkerError: If the converter crashes, hangs or needs too much memory.
    """
    started = time.perf_counter()
    signatures = {
        name: feature_signatures.feature_signature(path, name, batch_size=config.batch_size, transform=config.transform)
        for name in config.signatures
    }
    for signature in signatures.values():
        if signature.needs_select_tf_ops and not config.select_tf_ops:
            raise ModelError(
                signature.needs_select_tf_ops, field="Quantization.select_tf_ops", code="needs-select-tf-ops"
            )
    with tempfile.TemporaryDirectory(prefix="tfx-compression-") as folder:
        saved_model = os.path.join(folder, conversion_folder.SAVED_MODEL)
        feature_signatures.save_signatures(signatures, saved_model)
        cut_seconds = time.perf_counter() - started
        calibrates = config.needs_data and not SavedModelGraph(saved_model).is_quantization_aware(config.signatures)
        rows = _read_rows(signatures, config, read, calibrates)
        conversion_folder.write_rows(folder, rows)
        _run_worker(folder, path, config, rows)
        content, record = conversion_folder.read_result(folder)
        test = os.path.join(folder, self_test.FILE)
        arrays = self_test.read(test) if os.path.exists(test) else {}
    notes = tuple(note for signature in signatures.values() for note in signature.notes)
    interpreter = Interpreter(content, xnnpack=False)  # XNNPACK prints a line when it starts.
    record = record.model_copy(
        update={"notes": (*notes, *rows.notes, *record.notes), "seconds": {"cut": cut_seconds, **record.seconds}}
    )
    contents = read_contents(content)
    return QuantizedModel(content, record, arrays, interpreter.inputs, interpreter.outputs, contents)


@unwrapped_errors()
@quiet_libraries()
def _quantize(model: Any, config: Quantization, data: Any, custom_objects: Mapping[str, Any] | None) -> QuantizedModel:
    with tempfile.TemporaryDirectory(prefix="tfx-compression-") as folder:
        copy = os.path.join(folder, "model")
        try:
            path = sources.as_saved_model(model, copy, custom_objects)
            return quantize_saved_model(path, config, None if data is None else first_rows(as_batches(data), config))
        except CompressionError as error:
            error.args = (_with_name(str(error), copy, sources.describe(model)),)
            raise


def _with_name(text: str, copy: str, name: str) -> str:
    """Returns a message with a model's name in place of the path of its temporary copy."""
    path = re.escape(copy)
    text = re.sub(rf"\b([Tt])he (?:model|SavedModel) in {path}\b", lambda match: match[1] + name[1:], text)
    return re.sub(rf"{path}\b", lambda _: name, text)


def _run_worker(folder: str, path: str, config: Quantization, rows: Rows) -> None:
    saved_model = os.path.join(folder, conversion_folder.SAVED_MODEL)
    try:
        worker.run(
            conversion_worker.__name__,
            {"folder": folder, "config": config.to_json(), "strata": dict(rows.strata)},
            task=f"The conversion of {path} in mode {config.mode!r}",
            timeout=config.timeout_seconds,
            max_memory=config.max_memory_bytes,
        )
    except ModelError as error:
        error.args = (str(error).replace(saved_model, path),)
        raise
    except WorkerError as error:
        if config.mode_spec.calibrated_by_converter and SavedModelGraph(saved_model).has_loops(config.signatures):
            raise ModelError(
                f"{error} The model has loops or branches, which TensorFlow's calibrator can crash on. Remedy: mode "
                "'dynamic' or 'float16'; for Keras' recurrent layers, unroll=True.",
                code="loops",
            ) from error
        if error.code == "crashed" and error.step.startswith("running the TFLite model"):
            sized = "batch_size=1 (kernels may fail where the number of rows is free), or " * (
                config.batch_size is None
            )
            raise ModelError(
                f"What the model in {path} becomes in mode {config.mode!r} makes the runtime crash: the process "
                f"{error.reason} while {error.step}. A device would crash, too. "
                f"Remedy: {sized}{remedies.other_modes(config.mode)}.",
                field="Quantization.mode",
                code="crashes-runtime",
            ) from error
        raise


def _read_rows(signatures: Signatures, config: Quantization, read: RowReader | None, calibrates: bool) -> Rows:
    strings = sorted(
        {
            name
            for signature in signatures.values()
            for name, spec in signature.features.items()
            if spec.dtype == tf.string
        }
    )
    if strings and calibrates:
        raise ModelError(
            f"Mode {config.mode!r} can't calibrate on the string features {', '.join(strings)}. Remedy: look them up "
            "before the model, or choose mode 'dynamic'.",
            code="string-input",
        )
    if read is None and calibrates:
        raise DataError(
            f"Quantization mode {config.mode!r} measures activation ranges on data and got none. Remedy: pass examples "
            "(or data), or choose mode 'dynamic' or 'float16'.",
            field="Quantization.mode",
            code="missing-data",
        )
    if read is None or strings:
        return Rows()
    rows = read(signatures)
    for name, values in rows.calibration.items():
        require_finite(name, values)
    if rows.labels is not None and is_string(rows.labels.dtype):
        raise DataError(
            f"The labels are strings ({rows.labels.ravel()[0]!r}, …), which no metric compares with the model's "
            "numbers. Remedy: an auto.label_key whose feature holds numbers, or auto.metric='agreement'.",
            field="AutoPrecision.label_key",
            code="string-labels",
        )
    return rows
