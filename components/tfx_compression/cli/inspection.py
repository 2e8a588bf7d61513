"""Describes a model on disk."""

from typing import Any

import tensorflow as tf

from tfx_compression import files, model_handle
from tfx_compression.errors import ModelError
from tfx_compression.model_handle import model_files
from tfx_compression.tflite.contents import read_contents


def describe(path: str) -> dict[str, Any]:
    """Returns a model's kind, bytes and kernels, with its parameters and MACs or, for a TFLite model, its operators.

    Args:
      path: Path of a TFLite model, a SavedModel, a `.keras` or an `.h5` file.

    Raises:
      ModelError: The path holds none of these.
    """
    path = model_files.locate(path)
    size = files.size(path)
    description: dict[str, Any] = {"kind": model_files.model_format(path), "bytes": size.raw, "bytes_gzip": size.gzip}
    if description["kind"] == "tflite":
        with tf.io.gfile.GFile(path, "rb") as file:
            try:
                contents = read_contents(file.read())
            except ModelError as error:
                raise ModelError(f"{path}: {error}", field=error.field, code=error.code) from error
        description |= {"sparsity": contents.sparsity, "ops": contents.ops, "float_ops": contents.float_ops}
        kernels = contents.weights
    else:
        handle = model_handle.load(path)
        description |= {"kind": handle.kind, "notes": list(handle.notes)}
        description |= handle.measure().model_dump(include={"parameters", "sparsity", "macs"})
        kernels = {name: kernel.values for name, kernel in handle.kernels.items()}
    description["layers"] = [
        {"name": name, "size": kernel.size, "sparsity": model_files.sparsity(kernel)}
        for name, kernel in kernels.items()
    ]
    return description
