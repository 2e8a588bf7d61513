"""The converting process, started by `conversion.convert`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tfx_compression.models import isolated
from tfx_compression.models.conversion import Options, to_tflite
from tfx_compression.models.interpreter import Interpreter
from tfx_compression.models.serving import feature_signature


def main(request: Mapping[str, Any]) -> None:
    """Converts, runs the result once, and writes it.

    Args:
      request: paths. The model to convert is in `saved_model`, with a signature of features; where there is a `source`,
        it is first made there, of the `serving_default` of that SavedModel. `options` are those of `to_tflite`.
    """
    if request["source"]:
        isolated.step("cutting the signature out of the SavedModel")
        feature_signature(request["source"]).save(request["saved_model"])
    with np.load(request["calibration"]) as stored:
        columns = {name.removeprefix("feature/"): stored[name] for name in stored.files}
    options = Options(**{**request["options"], "signatures": tuple(request["options"]["signatures"])})
    content = to_tflite(request["saved_model"], options, columns)
    isolated.step("running the TFLite model for the first time")
    interpreter = Interpreter(content)
    interpreter.predict(
        {
            name: np.zeros([1, *(abs(size) for size in tensor.shape[1:])], tensor.dtype)
            for name, tensor in interpreter.inputs.items()
        }
    )
    with open(request["output"], "wb") as file:
        file.write(content)
