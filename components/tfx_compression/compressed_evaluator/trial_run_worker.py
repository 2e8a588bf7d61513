"""The process that runs a TFLite model once; see `trial_run`. It imports no TensorFlow, so that it starts fast."""

import sys
from collections.abc import Mapping

from tfx_compression.errors import ModelError
from tfx_compression.tflite.interpreter import Interpreter
from tfx_compression.tflite.sample_rows import zero_rows


def main(request: Mapping[str, bool]) -> str:
    """Runs the model on standard input once on zeros, and returns why it failed; empty if it ran."""
    try:
        model = Interpreter(sys.stdin.buffer.read(), reference_kernels=request["reference_kernels"], trusted=True)
        model.predict(zero_rows(model.inputs))
    except (ModelError, ValueError, RuntimeError) as error:
        return str(error)
    return ""
