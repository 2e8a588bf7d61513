"""The warnings of a conversion's record: findings that a user should act on."""

from collections.abc import Mapping, Sequence

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfx_compression.tflite import flatbuffer
from tfx_compression.tflite.modes import ModeSpec
from tfx_compression.tflite_quantizer import remedies
from tfx_compression.tflite_quantizer.config import Quantization
from tfx_compression.tflite_quantizer.record import AutoRecord, CalibrationRecord, LayerError, OutputError

_NOISY_DB = 10.0
_SIMILAR = 0.9  # cosine similarity of an output with the float model's
_FEW_ROWS = 8  # Fewer say little about the ranges of other rows.


def find_warnings(
    config: Quantization,
    calibration: CalibrationRecord | None,
    auto: AutoRecord | None,
    float_ops: Mapping[str, int],
    layers: Sequence[LayerError],
    outputs: Sequence[OutputError] = (),
) -> tuple[str, ...]:
    """Returns all warnings.

    Args:
      config: Configuration of the conversion.
      calibration: Calibration, if there was one.
      auto: Search of mode `auto`, if there was one.
      float_ops: Count of each operator that returns floats.
      layers: Each layer's error against the float model.
      outputs: Each output's error against the float model.
    """
    return (
        *_outputs(config.mode, outputs),
        *_saturation(config, calibration),
        *_metric_drop(config, auto),
        *_floats(config.mode_spec, float_ops),
        *_noise(layers),
    )


def find_row_warnings(columns: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """Returns warnings of calibration rows that show no range: constant inputs, rows that are all the same, few rows.

    Args:
      columns: [rows, …] values by input.
    """
    remedy = "the ranges that were measured say nothing about other data. Remedy: rows that the model will see."
    floats = {name: values for name, values in columns.items() if values.dtype.kind == "f" and values.size}
    constant = {name: values.flat[0] for name, values in floats.items() if (values == values.flat[0]).all()}
    warnings = [f"All calibration values of {name!r} are {value:g}: {remedy}" for name, value in constant.items()]
    rows = max(map(len, columns.values()), default=0)
    if rows > 1 and len(constant) < len(floats) and all((each == each[:1]).all() for each in columns.values()):
        warnings.append(f"The {rows} calibration rows are all the same: {remedy}")
    elif 0 < rows < _FEW_ROWS and not constant:
        warnings.append(
            f"The ranges are measured on {rows} row{'s' if rows > 1 else ''} only, and other rows may exceed them. "
            "Remedy: more rows, 100 or so."
        )
    return tuple(warnings)


def find_id_warnings(content: bytes) -> tuple[str, ...]:
    """Returns warnings of inputs that are quantized although the model casts them to whole numbers, such as token ids.

    Args:
      content: A TFLite file.
    """
    model = flatbuffer.parse(content)
    tensors = model.subgraphs[0].tensors
    integers = (schema.TensorType.INT32, schema.TensorType.INT64)
    quantized = {
        int(place): tensors[place].name.decode()
        for place in model.subgraphs[0].inputs
        if flatbuffer.BITS.get(tensors[place].type, 0) <= 16 and tensors[place].quantization is not None
    }
    warnings = []
    for operator in flatbuffer.operators(model):
        source = operator.inputs[0] if operator.inputs else -1
        if source in quantized and operator.op in ("QUANTIZE", "DEQUANTIZE", "RESHAPE"):
            quantized[operator.outputs[0]] = quantized[source]
        elif source in quantized and operator.op == "CAST" and tensors[operator.outputs[0]].type in integers:
            warnings.append(
                f"The model casts its input {quantized[source]!r} to whole numbers, such as ids, and quantization "
                "rounds them to others. Remedy: io='float32', or an integer input in the signature."
            )
    return tuple(warnings)


def _saturation(config: Quantization, calibration: CalibrationRecord | None) -> list[str]:
    """Warns of inputs whose values in the check split exceed the calibrated range."""
    limit = config.calibration.max_outside
    return [
        f"{seen.outside:.1%} of the values of {seen.input!r} in split {config.calibration.check_split!r} lie outside "
        f"the calibrated range, more than {limit:.1%}: they saturate. Remedy: more calibration.rows, or rows of a "
        "split that resembles them."
        for seen in (calibration.inputs if calibration else ())
        if seen.outside is not None and seen.outside > limit
    ]


def _metric_drop(config: Quantization, auto: AutoRecord | None) -> list[str]:
    """Warns if the search found nothing within its limit."""
    if auto is None or auto.drop <= config.auto.max_drop:
        return []
    return [
        f"No trial drops {auto.metric} by {config.auto.max_drop:g} or less; this model drops it by {auto.drop:g}. "
        "Remedy: equalize='auto', or a larger auto.max_drop."
    ]


def _floats(mode: ModeSpec, float_ops: Mapping[str, int]) -> list[str]:
    """Warns of operators that compute in floats in an integer mode."""
    remaining = {op: count for op, count in float_ops.items() if op not in ("QUANTIZE", "DEQUANTIZE")}
    if not mode.calibrated_by_converter or not remaining:
        return []
    counts = ", ".join(f"{count} {op}" for op, count in remaining.items())
    return [
        f"{counts} compute in floats, because there is no integer kernel, or because the model is quantization-aware "
        "in part only: layers without a range from training stay in floats."
    ]


def _outputs(mode: str, outputs: Sequence[OutputError]) -> list[str]:
    """Warns of outputs that differ much from the float model's."""
    remedy = f"Remedy: {remedies.more_bits(mode)}, or data like what the model will see."
    warnings = []
    for error in outputs:
        centered = error.centered_cosine
        if error.constant:
            difference = f"is the same for all {error.rows} rows, unlike the float model's"
        elif error.cosine is not None and error.cosine < _SIMILAR:
            difference = f"has a cosine similarity of {error.cosine:.3f} with the float model's on {error.rows} rows"
        elif centered is not None and centered < _SIMILAR:
            difference = (
                f"varies little around its mean, and differently: less the float model's mean, it has a cosine "
                f"similarity of {centered:.3f} with the float model's on {error.rows} rows"
            )
        else:
            continue
        warnings.append(f"The output {error.output!r} {difference}. {remedy}")
    return warnings


def _noise(layers: Sequence[LayerError]) -> list[str]:
    """Warns of layers whose outputs differ much from the float model's."""
    noisy = sorted(
        (layer.snr_db, layer.layer) for layer in layers if layer.snr_db is not None and layer.snr_db < _NOISY_DB
    )
    if not noisy:
        return []
    worst, name = noisy[0]
    verb = "has" if len(noisy) == 1 else "have"
    return [
        f"{len(noisy)} of {len(layers)} layers {verb} a signal-to-noise ratio below {_NOISY_DB:.0f} dB, {name!r} the "
        f"lowest ({worst:.1f} dB). Remedy: a higher precision for it (mode 'mixed', or 'auto'), equalize=True, or "
        "other calibration.ranges."
    ]
