"""The error of each output of a converted model against the float model, on the same rows.

Outputs are compared by cosine similarity, as EasyQuant compares tensors (Wu et al. 2020, arXiv:2006.16669), over all
rows together. Most outputs vary around a mean, and then the cosine of the values themselves is close to 1 even if every
row gets the same result. So the centered cosine is computed as well: the cosine after the float model's mean over the
rows, of each element, is subtracted from both models' values. It is a correlation, which is 0 for a model that returns
one result for all rows.

The cosine that decides whether a conversion fails is the centered one where the float model's values vary by a tenth of
their size or more (norm of the deviations from the mean against the norm of the values), and the plain one otherwise.
An output that varies less may lose its variation by rounding in a sane conversion; that is a warning.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from tfx_compression.errors import ModelError
from tfx_compression.tflite.interpreter import Interpreter
from tfx_compression.tflite_quantizer import remedies
from tfx_compression.tflite_quantizer.config import Quantization
from tfx_compression.tflite_quantizer.record import LayerError, OutputError

_VARIES = 0.1  # variation of an output, relative to its size, from which on the centered cosine decides
_NOISE = 1e-5  # relative to the size: an output that varies less is constant, up to the rounding of float32 sums
_NEGLIGIBLE = 1e-6  # relative to the size: such a difference of an output that is zero or constant is rounding

Columns = Mapping[str, np.ndarray]


def compare(float_content: bytes, content: bytes, columns: Columns, signature: str = "") -> tuple[OutputError, ...]:
    """Returns the error of each output that holds numbers, in the order of their names.

    Args:
      float_content: The float32 model that the other one was made from.
      content: The converted model.
      columns: [rows, …] real values by input.
      signature: Signature of both models; empty is the only one.
    """
    expected = Interpreter(float_content, signature=signature or None).predict(columns)
    actual = Interpreter(content, signature=signature or None).predict(columns)
    return tuple(
        output_error(name, expected[name], actual[name], signature)
        for name in sorted(expected.keys() & actual.keys())
        if expected[name].dtype.kind in "fiub"
    )


def output_error(name: str, expected: np.ndarray, actual: np.ndarray, signature: str = "") -> OutputError:
    """Returns the error of an output.

    Args:
      name: Name of the output.
      expected: [rows, …] values of the float model. Values that aren't finite are left out.
      actual: [rows, …] values of the converted model, as real numbers.
      signature: Name of the signature, where there are several.
    """
    rows = len(expected)
    error = OutputError(signature=signature, output=name, rows=rows, finite=expected.shape == actual.shape)
    if not error.finite:
        return error
    x, y = (values.astype(np.float64).reshape(rows, -1) for values in (expected, actual))
    counted = np.isfinite(x)
    if not np.isfinite(y[counted]).all():
        return error.model_copy(update={"finite": False})
    x, y = np.where(counted, x, 0.0), np.where(counted, y, 0.0)
    error = error.model_copy(update={"max_error": float(np.abs(x - y).max(initial=0.0))})
    size = float(np.linalg.norm(x))
    deviations = np.where(counted, x - x.sum(axis=0) / np.maximum(counted.sum(axis=0), 1), 0.0)
    varies = bool(np.linalg.norm(deviations) > _NOISE * size)
    error = error.model_copy(update={"constant": varies and bool((y == y[:1]).all())})
    if expected.dtype.kind != "f":  # A class is right or wrong; its number has no direction.
        return error
    centered_cosine = _cosine(deviations, y - (x - deviations), size) if varies else None
    centered = bool(np.linalg.norm(deviations) > _VARIES * size)
    cosine = centered_cosine if centered else _cosine(x, y, size)
    return error.model_copy(update={"cosine": cosine, "centered": centered, "centered_cosine": centered_cosine})


def _cosine(x: np.ndarray, y: np.ndarray, size: float) -> float | None:
    """Returns the cosine similarity of all values; None where both are zero, up to rounding of values of a size."""
    power = np.linalg.norm(x) * np.linalg.norm(y)
    if power:
        return float(np.vdot(x, y) / power)
    return None if np.linalg.norm(x - y) <= _NEGLIGIBLE * (1.0 + size) else 0.0


def require_similar(
    outputs: Sequence[OutputError],
    layers: Sequence[LayerError],
    config: Quantization,
    rows: str,
    warnings: Sequence[str] = (),
) -> None:
    """Checks that each output resembles the float model's.

    Args:
      outputs: Errors of the outputs.
      layers: Errors of the layers, of which the error names the worst.
      config: Configuration of the conversion.
      rows: Description of the rows.
      warnings: Warnings of the calibration rows, which the error repeats.

    Raises:
      ModelError: If an output isn't finite where the float model's is, or its cosine is too small.
    """
    min_cosine = config.min_output_cosine
    if min_cosine is None:
        return
    for error in outputs:
        low = error.cosine is not None and error.cosine < min_cosine
        if error.finite and not low:
            continue
        difference = (
            f"has a cosine similarity of {error.cosine:.3f} with the float model's, below min_output_cosine="
            f"{min_cosine:g}, and differs by up to {error.max_error:.3g}"
            if low
            else "has values that aren't finite, or another shape, unlike the float model's"
        )
        noisy = sorted((layer.snr_db, layer.layer) for layer in layers if layer.snr_db is not None)
        worst = f" The noisiest layer is {noisy[0][1]!r} ({noisy[0][0]:.1f} dB)." if noisy else ""
        ranges = "calibration.ranges='percentile' or 'mse' against outliers, " * (
            config.needs_data and config.mode_spec.from_float_model
        )
        raise ModelError(
            f"The output {error.output!r} of the TFLite model {difference}, on {error.rows} {rows}."
            f"{worst} {''.join(f'{each} ' for each in warnings)}Remedy: {remedies.more_bits(config.mode)}, data like "
            f"what the model will see, {ranges}or min_output_cosine=None to accept it.",
            field="Quantization.min_output_cosine",
            code="output-differs",
        )
