"""Serialized tf.Examples to arrays."""

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from tfx_compression.errors import DataError


def parse_columns(rows: Sequence[bytes], features: Mapping[str, tf.TensorSpec]) -> dict[str, np.ndarray]:
    """Parses features of serialized tf.Examples, all of which must be present.

    Args:
      rows: Serialized tf.Examples, at least one.
      features: By feature name, the [batch, …] tensor that the model takes.

    Returns:
      By feature name, an array of shape [rows, …] in the dtype of the feature.

    Raises:
      DataError: If a row lacks a feature or has another number of values, or the shape of a feature is not fixed.
    """
    free = [name for name, spec in features.items() if not spec.shape[1:].is_fully_defined()]
    if free:
        raise DataError(
            f"The model takes any size of {', '.join(free)}, and a tf.Example doesn't record the size. Remedy: a "
            "serving signature that parses tf.Examples, or inputs of fixed size.",
            code="free-size",
        )
    spec = {
        name: tf.io.FixedLenFeature(tensor.shape[1:], _stored_dtype(tensor.dtype)) for name, tensor in features.items()
    }
    try:
        values = tf.io.parse_example(rows, spec)
    except tf.errors.InvalidArgumentError as error:
        raise DataError(
            f"A tf.Example lacks a feature that the model takes: {one_line(error)}", code="unreadable-row"
        ) from error
    return {name: value.numpy().astype(features[name].dtype.as_numpy_dtype) for name, value in values.items()}


def one_line(error: tf.errors.OpError) -> str:
    """Returns TensorFlow's message on one line, because Beam splits error messages by lines."""
    return " ".join(str(error.message).split())


def _stored_dtype(dtype: tf.DType) -> tf.DType:
    """Returns the dtype in which a tf.Example stores a tensor."""
    if dtype.is_integer or dtype.is_bool:
        return tf.int64
    return tf.string if dtype == tf.string else tf.float32
