"""The error of each output of a converted model against the float model, on the same rows.

Outputs are compared by cosine similarity, as EasyQuant compares tensors (Wu et al. 2020, arXiv:2006.16669), over all
rows together. Most outputs vary around a mean, and then the cosine of the values themselves is close to 1 even if every
row gets the same result. So the float model's mean over the rows is subtracted from both models' values where the float
model's values vary by a tenth of their size or more. The cosine is then a correlation, which is 0 for a model that
returns one result for all rows.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from tfx_compression.errors import ModelError
from tfx_compression.tflite.interpreter import Interpreter
from tfx_compression.tflite_quantizer.record import LayerError, OutputError

_VARIES = 0.1  # variation of an output, relative to its size, from which on the mean is subtracted
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
    if expected.dtype.kind != "f":  # A class is right or wrong; its number has no direction.
        return error
    size = float(np.linalg.norm(x))
    deviations = np.where(counted, x - x.sum(axis=0) / np.maximum(counted.sum(axis=0), 1), 0.0)
    if centered := bool(np.linalg.norm(deviations) > _VARIES * size):
        x, y = deviations, y - (x - deviations)
    power = np.linalg.norm(x) * np.linalg.norm(y)
    if power:
        cosine: float | None = float(np.vdot(x, y) / power)
    else:  # One of them is all zeros.
        cosine = None if np.linalg.norm(x - y) <= _NEGLIGIBLE * (1.0 + size) else 0.0
    return error.model_copy(update={"cosine": cosine, "centered": centered})


def require_similar(
    outputs: Sequence[OutputError], layers: Sequence[LayerError], min_cosine: float | None, rows: str
) -> None:
    """Checks that each output resembles the float model's.

    Args:
      outputs: Errors of the outputs.
      layers: Errors of the layers, of which the error names the worst.
      min_cosine: `Quantization.min_output_cosine`.
      rows: Description of the rows.

    Raises:
      ModelError: If an output isn't finite where the float model's is, or its cosine is too small.
    """
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
        raise ModelError(
            f"The output {error.output!r} of the TFLite model {difference}, on {error.rows} {rows}.{worst} Remedy: a "
            "mode with more bits ('int8', 'dynamic', 'float16'), data like what the model will see, "
            "calibration.ranges='percentile' or 'mse' against outliers, or min_output_cosine=None to accept it.",
            field="Quantization.min_output_cosine",
            code="output-differs",
        )
