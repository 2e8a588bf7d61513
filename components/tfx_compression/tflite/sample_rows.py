"""Rows for the inputs of a TFLite model, where there is no data."""

from collections.abc import Mapping

import numpy as np

from tfx_compression.tflite.features import is_string
from tfx_compression.tflite.interpreter import TensorDetails


def zero_rows(inputs: Mapping[str, TensorDetails], rows: int = 1) -> dict[str, np.ndarray]:
    """Returns [rows, …] zeros by input, empty strings for inputs that take strings; free sizes are 1."""
    return {
        name: np.full(_shape(tensor, rows), b"", object)
        if is_string(tensor.dtype)
        else np.zeros(_shape(tensor, rows), tensor.dtype)
        for name, tensor in inputs.items()
    }


def random_rows(inputs: Mapping[str, TensorDetails], rows: int, free_size: int = 1) -> dict[str, np.ndarray]:
    """Returns [rows, …] real values by input, drawn evenly from 0 to 1 with a fixed seed.

    Integers that aren't quantized are 0, booleans are true, and strings are empty.

    Args:
      inputs: Inputs by name.
      rows: Number of rows.
      free_size: Size to use in place of a free one.
    """
    generator = np.random.default_rng(0)
    columns = {}
    for name, tensor in inputs.items():
        shape = _shape(tensor, rows, free_size)
        if is_string(tensor.dtype):
            columns[name] = np.full(shape, b"", object)
            continue
        values = generator.uniform(size=shape).astype(np.float32)
        columns[name] = values if tensor.scale else values.astype(tensor.dtype)
    return columns


def _shape(tensor: TensorDetails, rows: int, free_size: int = 1) -> list[int]:
    return [rows, *(free_size if size < 1 else size for size in tensor.shape[1:])]
