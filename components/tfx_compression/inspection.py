"""What any model on disk is made of."""

from typing import Any

import tensorflow as tf

from tfx_compression import files, model_handle
from tfx_compression.model_handle import model_files
from tfx_compression.tflite import flatbuffer


def describe(path: str) -> dict[str, Any]:
    """A model in numbers: its kind, bytes and kernels; parameters and MACs, or operators of a TFLite model.

    Args:
      path: of a TFLite model, a SavedModel, a `.keras` or `.h5` file.

    Raises:
      ModelError: where it is none of these.
    """
    path = model_files.locate(path)
    size = files.size(path)
    found: dict[str, Any] = {"kind": model_files.model_format(path), "bytes": size.raw, "bytes_gzip": size.gzip}
    if found["kind"] == "tflite":
        with tf.io.gfile.GFile(path, "rb") as file:
            contents = flatbuffer.read_contents(file.read())
        found |= {"sparsity": contents.sparsity, "ops": contents.ops, "float_ops": contents.float_ops}
        kernels = contents.weights
    else:
        model = model_handle.load(path)
        found |= {"kind": model.kind, "notes": list(model.notes)}
        found |= model.measure().model_dump(include={"parameters", "sparsity", "macs"})
        kernels = {name: kernel.values for name, kernel in model.kernels.items()}
    found["layers"] = [
        {"name": name, "size": kernel.size, "sparsity": model_files.sparsity(kernel)}
        for name, kernel in kernels.items()
    ]
    return found
