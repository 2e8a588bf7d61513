"""The process that tries models: `python -m tfx_compression.compressed_evaluator.trial_worker REQUEST`, see `trial`.

It imports no TensorFlow, so that it is there at once.
"""

import json
import sys

import numpy as np

from tfx_compression.models.errors import ModelError
from tfx_compression.models.interpreter import Interpreter, Tensor


def main() -> None:
    """Runs each model once on zeros; prints a JSON object after each: its name, and what was wrong or nothing."""
    request = json.loads(sys.argv[1])
    for name, path in request["paths"].items():
        problem = ""
        try:
            with open(path, "rb") as file:
                model = Interpreter(file.read(), reference_kernels=request["reference_kernels"], trusted=True)
            model.predict({name: _zeros(tensor) for name, tensor in model.inputs.items()})
        except (ModelError, ValueError, RuntimeError) as error:
            problem = str(error)
        sys.stdout.write(json.dumps({name: problem}) + "\n")
        sys.stdout.flush()


def _zeros(tensor: Tensor) -> np.ndarray:
    shape = [1 if size == -1 else size for size in tensor.shape]
    return np.full(shape, b"", object) if tensor.dtype.kind in "OSU" else np.zeros(shape, tensor.dtype)


if __name__ == "__main__":
    main()
