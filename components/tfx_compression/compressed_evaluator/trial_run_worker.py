"""The process that runs a TFLite model once; see `trial_run`. It imports no TensorFlow, so that it starts fast."""

import sys
from collections.abc import Mapping

import numpy as np

from tfx_compression.errors import ModelError
from tfx_compression.tflite.interpreter import Interpreter, TensorDetails


def main(request: Mapping[str, bool]) -> str:
    """Runs the model on standard input once on zeros, and returns why it failed; empty if it ran."""
    try:
        model = Interpreter(sys.stdin.buffer.read(), reference_kernels=request["reference_kernels"], trusted=True)
        model.predict({name: _zeros(tensor) for name, tensor in model.inputs.items()})
    except (ModelError, ValueError, RuntimeError) as error:
        return str(error)
    return ""


def _zeros(tensor: TensorDetails) -> np.ndarray:
    shape = [1 if size == -1 else size for size in tensor.shape]
    return np.full(shape, b"", object) if tensor.dtype.kind in "OSU" else np.zeros(shape, tensor.dtype)
