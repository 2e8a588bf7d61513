"""The process that tries a model, which it reads from standard input: see `trial`.

It imports no TensorFlow, so that it is there at once.
"""

import sys

import numpy as np

from tfx_compression.models.errors import ModelError
from tfx_compression.models.interpreter import Interpreter, Tensor


def main() -> None:
    """Runs the model once on zeros, and prints `tried:` and what was wrong."""
    problem = ""
    try:
        content = sys.stdin.buffer.read()
        model = Interpreter(content, reference_kernels="--reference-kernels" in sys.argv, trusted=True)
        model.predict({name: _zeros(tensor) for name, tensor in model.inputs.items()})
    except (ModelError, ValueError, RuntimeError) as error:
        problem = str(error)
    sys.stdout.write(f"tried:{problem}")


def _zeros(tensor: Tensor) -> np.ndarray:
    shape = [1 if size == -1 else size for size in tensor.shape]
    return np.full(shape, b"", object) if tensor.dtype.kind in "OSU" else np.zeros(shape, tensor.dtype)


if __name__ == "__main__":
    main()
