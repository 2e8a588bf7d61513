"""Inputs and outputs that go along with a model, so that a device can see whether it computes the same."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfx_compression.errors import ModelError
from tfx_compression.tflite.interpreter import Interpreter, TensorDetails, dequantize, quantize

FILE = "self_test.npz"
_INPUT, _OUTPUT, _FLOAT = "input/", "output/", "float/"


def make(
    content: bytes, columns: Mapping[str, np.ndarray] | None = None, rows: int = 4, float_content: bytes | None = None
) -> dict[str, np.ndarray]:
    """A few rows, and what the model makes of them.

    Args:
      content: the TFLite model.
      columns: by input, [rows, …] real values; the first ones are taken. Without any, rows are made: numbers drawn
        evenly from 0 to 1 with a fixed seed, which as whole numbers are 0; free sizes are 1.
      rows: how many.
      float_content: the float model, for what it makes of the same rows before they were rounded to the model's types.

    Returns:
      `input/<name>` and `output/<name>`, [rows, …] as a device puts them in and gets them (int8, …);
      `float/<name>`, the float model's outputs.

    Raises:
      ModelError: where an input takes strings, or the model can't run.
    """
    interpreter = Interpreter(content)
    strings = [name for name, tensor in interpreter.inputs.items() if tensor.dtype.kind in "OSU"]
    if strings:
        raise ModelError(f"There is no self-test for inputs that are strings, which {', '.join(strings)} is.")
    if columns is None:
        generator = np.random.default_rng(0)
        real = {name: _made(tensor, rows, generator) for name, tensor in interpreter.inputs.items()}
    else:
        missing = sorted(interpreter.inputs.keys() - columns.keys())
        if missing:
            raise ModelError(f"The rows lack the input {', '.join(missing)}; they have: {', '.join(sorted(columns))}.")
        real = {name: np.asarray(columns[name][:rows]) for name in interpreter.inputs}
    arrays = {
        _INPUT + name: quantize(_shaped(real[name], tensor), tensor) for name, tensor in interpreter.inputs.items()
    }
    arrays |= {_OUTPUT + name: values for name, values in _outputs(interpreter, arrays).items()}
    if float_content is not None:
        arrays |= {_FLOAT + name: values for name, values in Interpreter(float_content).predict(real).items()}
    return arrays


def check(content: bytes, arrays: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Runs the inputs again: by output, the largest difference from what is stored, in real numbers.

    On the machine that made them it is 0. Kernels of another device may round a tie otherwise: a step or two of the
    output's scale.
    """
    interpreter = Interpreter(content)
    found = _outputs(interpreter, arrays)
    return {
        name: _largest(dequantize(found[name], tensor), dequantize(arrays[_OUTPUT + name], tensor))
        for name, tensor in interpreter.outputs.items()
    }


def against_float(content: bytes, arrays: Mapping[str, np.ndarray]) -> dict[str, float | None]:
    """By output, the largest difference between the stored outputs and the float model's, in real numbers.

    It is None where one of them is infinite or NaN and the other isn't the same.
    """
    found = {
        name: _largest(dequantize(arrays[_OUTPUT + name], tensor), arrays[_FLOAT + name])
        for name, tensor in Interpreter(content).outputs.items()
        if _FLOAT + name in arrays
    }
    return {name: difference if np.isfinite(difference) else None for name, difference in found.items()}


def run_signature(content: bytes, name: str) -> None:
    """Runs one of several signatures on zeros.

    Raises:
      ModelError: where it doesn't run.
    """
    import tensorflow as tf
    from ai_edge_litert import interpreter as litert

    library: Any = tf.lite if re.search(rb"Flex[A-Z]", content) else litert
    try:
        runner = library.Interpreter(model_content=content).get_signature_runner(name)
        runner(
            **{
                key: np.zeros([max(1, size) for size in detail["shape"]], detail["dtype"])
                for key, detail in runner.get_input_details().items()
            }
        )
    except (ValueError, RuntimeError, TypeError) as error:
        raise ModelError(f"The signature {name!r} of the TFLite model doesn't run: {error}") from error


def write(path: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes NPZ."""
    with open(path, "wb") as file:
        np.savez_compressed(file, **arrays)


def read(path: str) -> dict[str, np.ndarray]:
    """Reads what `write` wrote."""
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def _outputs(interpreter: Interpreter, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the model returns, as it stores it. Stored values that are made real and back are the same."""
    feeds = {name: dequantize(arrays[_INPUT + name], tensor) for name, tensor in interpreter.inputs.items()}
    return {name: quantize(real, interpreter.outputs[name]) for name, real in interpreter.predict(feeds).items()}


def _made(tensor: TensorDetails, rows: int, generator: np.random.Generator) -> np.ndarray:
    values = generator.uniform(size=(rows, *(max(size, 1) for size in tensor.shape[1:]))).astype(np.float32)
    return values if tensor.scale else values.astype(tensor.dtype)


def _shaped(values: np.ndarray, tensor: TensorDetails) -> np.ndarray:
    """[rows, …] in the shape that the model takes; free sizes are the values' own."""
    if -1 in tensor.shape[1:]:
        return values
    return values.reshape(len(values), *tensor.shape[1:])


def _largest(one: np.ndarray, other: np.ndarray) -> float:
    differs = (one != other) & ~(np.isnan(one.astype(np.float64)) & np.isnan(other.astype(np.float64)))
    return float(np.abs(one[differs].astype(np.float64) - other[differs].astype(np.float64)).max(initial=0.0))
