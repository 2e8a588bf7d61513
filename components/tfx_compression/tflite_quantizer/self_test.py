"""A self-test: inputs and outputs beside a model, so that a device can check that it computes the same."""

from collections.abc import Mapping

import numpy as np

from tfx_compression.errors import DataError, ModelError
from tfx_compression.tflite.features import is_string
from tfx_compression.tflite.interpreter import Interpreter, TensorDetails, dequantize, quantize
from tfx_compression.tflite.sample_rows import random_rows

FILE = "self_test.npz"
_INPUT, _OUTPUT, _FLOAT = "input/", "output/", "float/"


def make(
    content: bytes, columns: Mapping[str, np.ndarray] | None = None, rows: int = 4, float_content: bytes | None = None
) -> dict[str, np.ndarray]:
    """Returns a few rows and the model's outputs for them.

    Args:
      content: The TFLite model.
      columns: [rows, …] real values by input, of which the first are used. None draws rows evenly from 0 to 1 with a
        fixed seed; integers are then 0, and free sizes are 1.
      rows: Number of rows.
      float_content: The float model, whose outputs for the same rows, before quantization of inputs, are added.

    Returns:
      `input/<name>` and `output/<name>`, [rows, …] as a device stores them (int8, …), and `float/<name>`, the float
      model's outputs.

    Raises:
      ModelError: If an input takes strings, or the model can't run.
      DataError: If `columns` lacks an input.
    """
    interpreter = Interpreter(content)
    strings = [name for name, tensor in interpreter.inputs.items() if is_string(tensor.dtype)]
    if strings:
        raise ModelError(
            f"There is no self-test for the string inputs {', '.join(strings)}. Remedy: look strings up before the "
            "model.",
            code="string-input",
        )
    if columns is None:
        real = random_rows(interpreter.inputs, rows)
    else:
        missing = sorted(interpreter.inputs.keys() - columns.keys())
        if missing:
            raise DataError(
                f"The rows lack the inputs {', '.join(missing)}; they have: {', '.join(sorted(columns))}. Remedy: pass "
                "every input.",
                code="missing-feature",
            )
        real = {name: np.asarray(columns[name][:rows]) for name in interpreter.inputs}
    arrays = {
        _INPUT + name: quantize(_reshaped(real[name], tensor), tensor) for name, tensor in interpreter.inputs.items()
    }
    arrays |= {_OUTPUT + name: values for name, values in _stored_outputs(interpreter, arrays).items()}
    if float_content is not None:
        arrays |= {_FLOAT + name: values for name, values in Interpreter(float_content).predict(real).items()}
    return arrays


def check(content: bytes, arrays: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Runs the inputs again and returns, by output, the largest difference from the stored one, in real numbers.

    It is 0 on the machine that made the self-test. Kernels of another device may round ties differently, which makes a
    step or two of the output's scale.
    """
    interpreter = Interpreter(content)
    outputs = _stored_outputs(interpreter, arrays)
    return {
        name: _largest_difference(dequantize(outputs[name], tensor), dequantize(arrays[_OUTPUT + name], tensor))
        for name, tensor in interpreter.outputs.items()
    }


def differences_from_float(content: bytes, arrays: Mapping[str, np.ndarray]) -> dict[str, float | None]:
    """Returns, by output, the largest difference between the stored outputs and the float model's, in real numbers.

    It is None where one of them is infinite or NaN and the other isn't the same.
    """
    differences = {
        name: _largest_difference(dequantize(arrays[_OUTPUT + name], tensor), arrays[_FLOAT + name])
        for name, tensor in Interpreter(content).outputs.items()
        if _FLOAT + name in arrays
    }
    return {name: value if np.isfinite(value) else None for name, value in differences.items()}


def real_inputs(content: bytes, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the inputs of a self-test as real numbers."""
    return _real_inputs(Interpreter(content), arrays)


def write(path: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a self-test as NPZ."""
    with open(path, "wb") as file:
        np.savez_compressed(file, **arrays)


def read(path: str) -> dict[str, np.ndarray]:
    """Reads a self-test."""
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def _real_inputs(interpreter: Interpreter, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: dequantize(arrays[_INPUT + name], tensor) for name, tensor in interpreter.inputs.items()}


def _stored_outputs(interpreter: Interpreter, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the outputs as the model stores them. Converting stored values to real ones and back is exact."""
    outputs = interpreter.predict(_real_inputs(interpreter, arrays))
    return {name: quantize(values, interpreter.outputs[name]) for name, values in outputs.items()}


def _reshaped(values: np.ndarray, tensor: TensorDetails) -> np.ndarray:
    """Returns [rows, …] values in the shape of an input; free sizes are the values' own."""
    if -1 in tensor.shape[1:]:
        return values
    return values.reshape(len(values), *tensor.shape[1:])


def _largest_difference(one: np.ndarray, other: np.ndarray) -> float:
    differs = (one != other) & ~(np.isnan(one.astype(np.float64)) & np.isnan(other.astype(np.float64)))
    return float(np.abs(one[differs].astype(np.float64) - other[differs].astype(np.float64)).max(initial=0.0))
