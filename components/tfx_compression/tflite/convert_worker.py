"""The worker of `conversion.convert_in_worker`: converts a model and runs the result once."""

import os
from collections.abc import Mapping
from typing import Any

from tfx_compression import worker
from tfx_compression.saved_models.feature_signatures import feature_signature
from tfx_compression.tflite.conversion import MODEL_FILE, ConversionOptions, to_tflite
from tfx_compression.tflite.interpreter import Interpreter
from tfx_compression.tflite.sample_rows import zero_rows


def main(request: Mapping[str, Any]) -> None:
    """Converts the model, runs the result on zeros, and writes it.

    Args:
      request: `source`, the path of the SavedModel; `mode`; `folder`, for the result.
    """
    worker.step("cutting the signature out of the SavedModel")
    saved_model = os.path.join(request["folder"], "saved_model")
    feature_signature(request["source"]).save(saved_model)
    content = to_tflite(saved_model, ConversionOptions(request["mode"]))
    worker.step("running the TFLite model for the first time")
    interpreter = Interpreter(content)
    interpreter.predict(zero_rows(interpreter.inputs))
    with open(os.path.join(request["folder"], MODEL_FILE), "wb") as file:
        file.write(content)
