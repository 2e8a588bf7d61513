"""What any model on disk is made of."""

from typing import Any

import tensorflow as tf

from tfx_compression.models import files, keras2, layers, tflite, weights


def describe(path: str) -> dict[str, Any]:
    """A model in numbers: bytes and kernels; parameters and MACs of a Keras model, operators of a TFLite one.

    Args:
      path: of a TFLite model, a SavedModel with Keras metadata, a `.keras` or `.h5` file.

    Raises:
      ModelError: where it is none of these.
    """
    path = weights.locate(path)
    kind = weights.kind(path)
    size = files.size(path)
    found: dict[str, Any] = {"kind": kind, "bytes": size.raw, "bytes_gzip": size.gzip}
    if kind == "tflite":
        with tf.io.gfile.GFile(path, "rb") as file:
            contents = tflite.contents(file.read())
        found |= {"sparsity": contents.sparsity, "ops": contents.ops, "float_ops": contents.float_ops}
    else:
        measured = layers.measure(keras2.network(keras2.load(path)))
        found |= measured.model_dump(include={"parameters", "sparsity", "macs"})
    found["layers"] = [
        {"name": name, "size": kernel.size, "sparsity": weights.sparsity(kernel)}
        for name, kernel in weights.kernels(path).items()
    ]
    return found
