"""Checks of a converted model: it runs, suits its target, and is compared with the float model; and the record."""

import importlib.metadata
import os
import re
import time
from collections.abc import Mapping
from typing import Any

from ai_edge_litert.tools import flatbuffer_utils

from tfx_compression import compressed_size, worker
from tfx_compression.errors import ModelError
from tfx_compression.tflite import conversion, flatbuffer
from tfx_compression.tflite.contents import read_contents
from tfx_compression.tflite.features import is_string
from tfx_compression.tflite.interpreter import Interpreter
from tfx_compression.tflite.sample_rows import random_rows, zero_rows
from tfx_compression.tflite_quantizer import calibration, layer_errors, output_errors, remedies, self_test
from tfx_compression.tflite_quantizer.config import Quantization
from tfx_compression.tflite_quantizer.conversion_steps import FREE_SIZE, Conversion
from tfx_compression.tflite_quantizer.devices.judge import judge
from tfx_compression.tflite_quantizer.devices.verdicts import TargetVerdict
from tfx_compression.tflite_quantizer.record import (
    CalibrationRecord,
    InputRange,
    LayerError,
    OutputError,
    QuantizationRecord,
    SignatureRecord,
    TensorRecord,
)
from tfx_compression.tflite_quantizer.result_warnings import find_id_warnings, find_row_warnings, find_warnings
from tfx_compression.tflite_quantizer.rows import Columns
from tfx_compression.version import __version__

_ERROR_ROWS = 32  # that layers are compared on
_OUTPUT_ROWS = 64  # that outputs are compared on
_PACKAGES = ("tensorflow", "litert-quantizer", "ai-edge-litert")


def check(content: bytes, converted: Conversion, folder: str) -> QuantizationRecord:
    """Runs the model, judges it, compares it with the float model, and returns the record.

    Args:
      content: The TFLite file.
      converted: The conversion that made it.
      folder: Folder for the self-test.

    Raises:
      ModelError: If the model doesn't run, here or on its target.
    """
    started = time.perf_counter()
    config = converted.config
    calibrated = config.needs_data and not converted.quantization_aware
    row_warnings = find_row_warnings(converted.rows.calibration) if calibrated else ()
    _run_once(content, converted, row_warnings)
    verdict = _require_target(content, config)
    ranges = _calibration_record(content, converted)
    layers, differences, notes = _compare(content, converted, folder)
    outputs = _compare_outputs(content, converted, layers, row_warnings)
    if converted.quantization_aware and config.mode_spec.quantized:
        notes = ("The model is quantization-aware: it keeps its trained ranges and is not calibrated.", *notes)
    notes = (*converted.notes, *notes)
    contents = read_contents(content)
    seconds = {**converted.seconds, "prove": time.perf_counter() - started}
    return QuantizationRecord(
        config=config,
        versions={"tfx-compression": __version__, **{name: importlib.metadata.version(name) for name in _PACKAGES}},
        seconds=seconds,
        signatures=_signature_records(content),
        ops=contents.ops,
        float_ops=contents.float_ops,
        select_tf_ops=conversion.flex_operators(content),
        bytes=len(content),
        bytes_gzip=compressed_size.gzipped(content),
        bytes_zstd=compressed_size.zstd(content),
        arena_bytes=contents.arena_bytes,
        parameters=sum(weight.size for weight in contents.weights.values()),
        sparsity=contents.sparsity,
        runtime=verdict.runtime,
        calibration=ranges,
        outputs=outputs,
        layers=layers,
        sparse=converted.sparse,
        equalization=converted.pairs,
        auto=converted.auto,
        verdict=verdict,
        notes=notes,
        warnings=find_warnings(config, ranges, converted.auto, contents.float_ops, layers, outputs)
        + row_warnings
        + find_id_warnings(content),
        self_test=differences,
    )


def _run_once(content: bytes, converted: Conversion, row_warnings: tuple[str, ...]) -> None:
    worker.step("running the TFLite model for the first time")
    try:
        rows = converted.sample_rows(content)
        Interpreter(content).predict({name: values[:1] for name, values in rows.items()})
    except ModelError as error:
        if error.code != "not-runnable":
            raise
        mode = converted.config.mode
        raise ModelError(
            f"{''.join(f'{each} ' for each in row_warnings)}The converted model doesn't run, because no kernel takes "
            f"what mode {mode!r} makes of {_failing_operator(content, str(error))}. Remedy: "
            f"{remedies.other_modes(mode)}.",
            field="Quantization.mode",
            code="not-runnable",
        ) from error
    signatures = converted.config.signatures
    for name in signatures if len(signatures) > 1 else ():
        worker.step(f"running the signature {name!r} for the first time")
        try:
            model = Interpreter(content, signature=name)
            model.predict(zero_rows(model.inputs))
        except ModelError as error:
            raise ModelError(
                f"The signature {name!r} of the TFLite model doesn't run: {error}", code="not-runnable"
            ) from error


def _failing_operator(content: bytes, message: str) -> str:
    """Returns the operator that a runtime's message names, with its layer; or else the message."""
    for index, op in re.findall(r"Node number (\d+) \((\w+)\)", message):
        for operator in flatbuffer.operators(flatbuffer.parse(content)):
            if operator.index == int(index) and operator.op == op:
                return f"{operator.op} (layer {operator.layer!r})"
    return f"an operator: {message.rstrip(' .')}"


def _require_target(content: bytes, config: Quantization) -> TargetVerdict:
    verdict = judge(content, config.target, config.max_arena_bytes)
    if not verdict.runs:
        raise ModelError(
            f"The model doesn't run on target {config.target!r}: {' '.join(verdict.problems)}",
            field="Quantization.target",
            code="unsupported-by-target",
        )
    return verdict


def _calibration_record(content: bytes, converted: Conversion) -> CalibrationRecord | None:
    config, rows = converted.config, converted.rows
    if converted.quantization_aware or not config.needs_data:
        return None
    measured: Mapping[str, InputRange] = converted.input_ranges or calibration.input_ranges(rows.calibration)
    ranges = {name: measured[name] for name in measured.keys() & _quantized_inputs(content)}
    outside = calibration.share_outside(ranges, rows.check) if rows.check else {}
    return CalibrationRecord(
        rows=_row_count(rows.calibration),
        method=config.calibration.ranges,
        inputs=tuple(ranges[name].model_copy(update={"outside": outside.get(name)}) for name in sorted(ranges)),
        checked_rows=_row_count(rows.check),
        strata=dict(rows.strata),
    )


def _compare(
    content: bytes, converted: Conversion, folder: str
) -> tuple[tuple[LayerError, ...], dict[str, float | None], tuple[str, ...]]:
    """Writes the self-test; returns each layer's error, the self-test's difference from the float model, and notes."""
    strings = [name for name, tensor in Interpreter(content).inputs.items() if is_string(tensor.dtype)]
    if strings or len(converted.config.signatures) > 1:
        reason = f"the model takes the strings {', '.join(strings)}" if strings else "there are several signatures"
        return (), {}, (f"There is no self-test and no error by layer, because {reason}.",)
    float_model = converted.float_model
    worker.step("comparing with the float model")
    rows = converted.rows.calibration or converted.rows.trial
    notes: tuple[str, ...] = ()
    if not rows:
        notes = ("No data was read: errors by layer and the self-test use random rows between 0 and 1.",)
    arrays = self_test.make(content, rows or None, float_content=float_model)
    self_test.write(os.path.join(folder, self_test.FILE), arrays)
    differences = self_test.differences_from_float(content, arrays)
    if not converted.config.mode_spec.quantized:
        return (), differences, notes
    columns = {name: values[:_ERROR_ROWS] for name, values in (rows or self_test.real_inputs(content, arrays)).items()}
    return layer_errors.compare(converted.reference or float_model, content, columns), differences, notes


def _compare_outputs(
    content: bytes, converted: Conversion, layers: tuple[LayerError, ...], row_warnings: tuple[str, ...]
) -> tuple[OutputError, ...]:
    """Returns each output's error against the float model, after checking it."""
    config = converted.config
    if not config.mode_spec.quantized:
        return ()
    float_model = converted.float_model
    worker.step("comparing outputs with the float model")
    rows = converted.rows.calibration or converted.rows.trial
    outputs: tuple[OutputError, ...] = ()
    for name in config.signatures if len(config.signatures) > 1 else ("",):
        columns = rows or random_rows(Interpreter(content, signature=name or None).inputs, _OUTPUT_ROWS, FREE_SIZE)
        columns = {key: values[:_OUTPUT_ROWS] for key, values in columns.items()}
        outputs += output_errors.compare(float_model, content, columns, name)
    output_errors.require_similar(outputs, layers, config, "rows of the data" if rows else "random rows", row_warnings)
    return outputs


def _quantized_inputs(content: bytes) -> set[str]:
    """Returns the inputs that are quantized, by the application or by the model's first operators."""
    model = flatbuffer.parse(content)
    quantized = {
        place for operator in flatbuffer.operators(model) if operator.op == "QUANTIZE" for place in operator.inputs
    }
    inputs = Interpreter(content).inputs
    return {name for name, tensor in inputs.items() if tensor.scale or tensor.index in quantized}


def _signature_records(content: bytes) -> tuple[SignatureRecord, ...]:
    model = flatbuffer.parse(content)

    def tensors(graph: Any, maps: Any) -> tuple[TensorRecord, ...]:
        return tuple(
            _tensor_record(item.name.decode(), graph.tensors[item.tensorIndex])
            for item in sorted(maps or (), key=lambda item: item.name)
        )

    return tuple(
        SignatureRecord(
            name=signature.signatureKey.decode(),
            inputs=tensors(model.subgraphs[signature.subgraphIndex], signature.inputs),
            outputs=tensors(model.subgraphs[signature.subgraphIndex], signature.outputs),
        )
        for signature in model.signatureDefs or ()
    )


def _tensor_record(name: str, tensor: Any) -> TensorRecord:
    quantization = tensor.quantization
    scaled = quantization is not None and quantization.scale is not None and len(quantization.scale) == 1
    shape = tensor.shapeSignature if tensor.shapeSignature is not None else tensor.shape
    return TensorRecord(
        name=name,
        dtype=flatbuffer_utils.type_to_name(tensor.type).lower(),
        shape=tuple(int(size) for size in (shape if shape is not None else ())),
        scale=float(quantization.scale[0]) if scaled else 0.0,
        zero_point=int(quantization.zeroPoint[0]) if scaled and quantization.zeroPoint is not None else 0,
    )


def _row_count(columns: Columns) -> int:
    return len(next(iter(columns.values()))) if columns else 0
