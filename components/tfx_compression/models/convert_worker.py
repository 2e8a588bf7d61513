"""The converting process: `python -m tfx_compression.models.convert_worker REQUEST`, started by `conversion`."""

import json
import sys
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from tfx_compression.models.conversion import Request
from tfx_compression.models.interpreter import Interpreter
from tfx_compression.models.serving import SIGNATURE, feature_signature


def main() -> None:
    """Converts, runs the result once, and writes it."""
    request = Request(**json.loads(sys.argv[1]))
    if request.source:
        feature_signature(request.source).save(request.saved_model)
    with np.load(request.calibration) as stored:
        calibration = {name.removeprefix("feature/"): stored[name] for name in stored.files}
    content = _convert(request, calibration)
    interpreter = Interpreter(content)
    interpreter.predict(
        {
            name: np.zeros([1, *(abs(size) for size in tensor.shape[1:])], tensor.dtype)
            for name, tensor in interpreter.inputs.items()
        }
    )
    with open(request.output, "wb") as file:
        file.write(content)


def _convert(request: Request, calibration: dict[str, np.ndarray]) -> bytes:
    converter = tf.lite.TFLiteConverter.from_saved_model(request.saved_model, signature_keys=[SIGNATURE])
    if request.mode != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if request.mode == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if request.mode == "int8":

        def rows() -> Iterator[dict[str, np.ndarray]]:
            for row in range(len(next(iter(calibration.values())))):
                yield {name: values[row : row + 1] for name, values in calibration.items()}

        converter.representative_dataset = rows
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.dtypes.as_dtype(request.io)
    return bytes(converter.convert())


if __name__ == "__main__":
    main()
