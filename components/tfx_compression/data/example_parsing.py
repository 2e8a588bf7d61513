"""tf.Examples: which features a graph parses, and serialized tf.Examples from arrays and to arrays."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

from tfx_compression.errors import DataError
from tfx_compression.tf_graphs import walks

PARSE_OP = "ParseExampleV2"  # the operation of tf.io.parse_example
# By feature name, the places of the feature in a graph: each has one tensor, or several for sparse and ragged features.
FeatureTensors = dict[str, list[list[tf.Tensor]]]
Feature: TypeAlias = tf.io.FixedLenFeature | tf.io.FixedLenSequenceFeature | tf.io.VarLenFeature | tf.io.RaggedFeature


def find_parsers(operations: Iterable[tf.Operation]) -> list[tf.Operation]:
    """Returns the operations that parse tf.Examples or other protocol buffers, of any type."""
    return [op for op in operations if op.type.startswith("Parse")]


def parsed_features(parsers: Iterable[tf.Operation]) -> dict[str, Feature]:
    """Returns the features that operations of the type PARSE_OP parse, as tf.io.parse_example takes them.

    Ragged features have no partitions. If the graph computes a default value, `default_value` is its tensor.
    """
    features: dict[str, Feature] = {}
    for parser in parsers:
        sparse, dense, ragged = _keys(parser)
        for key, dtype in zip(sparse, parser.get_attr("sparse_types"), strict=True):
            features[key] = tf.io.VarLenFeature(dtype)
        shapes, defaults = parser.get_attr("dense_shapes"), parser.inputs[5:]
        for key, dtype, shape, default in zip(dense, parser.get_attr("Tdense"), shapes, defaults, strict=True):
            features[key] = _dense_feature(dtype, tf.TensorShape(shape), default)
        for key, dtype in zip(ragged, parser.get_attr("ragged_value_types"), strict=True):
            features[key] = tf.io.RaggedFeature(dtype)
    return features


def parsed_tensors(parsers: Iterable[tf.Operation]) -> FeatureTensors:
    """Returns the tensors that operations of the type PARSE_OP parse; a feature has a place for each operation."""
    tensors: FeatureTensors = {}
    for parser in parsers:
        sparse, dense, ragged = _keys(parser)
        # Outputs are the indices, values and shapes of sparse features, dense features, and the values and row splits
        # of ragged features.
        parts: dict[str, list[tf.Tensor]] = {}
        for key, tensor in zip([*sparse * 3, *dense, *ragged * 2], parser.outputs, strict=True):
            parts.setdefault(key, []).append(tensor)
        for key, place in parts.items():
            tensors.setdefault(key, []).append(place)
    return tensors


def tensor_names(features: FeatureTensors) -> set[str]:
    """Returns the names of all tensors of features."""
    return {tensor.name for places in features.values() for place in places for tensor in place}


def required_features(features: FeatureTensors, ends: Iterable[tf.Tensor], stops: set[str]) -> FeatureTensors:
    """Returns the features that tensors depend on, if the graph starts at certain tensors.

    Args:
      features: The features to choose from.
      ends: The tensors that depend on features.
      stops: Names of the tensors at which the graph starts.
    """
    reached = walks.walk_back(ends, lambda tensor: tensor.name in stops).stops.keys()
    return {name: places for name, places in features.items() if tensor_names({name: places}) & reached}


def has_computed_default(feature: Feature) -> bool:
    """Returns whether the graph computes the default value of a feature."""
    return bool(tf.is_tensor(getattr(feature, "default_value", None)))


def is_optional(feature: Feature) -> bool:
    """Returns whether a tf.Example may lack a feature."""
    return not isinstance(feature, tf.io.FixedLenFeature) or feature.default_value is not None


def serialize(columns: Mapping[str, Sequence[Any]]) -> list[bytes]:
    """Returns a serialized tf.Example for each row.

    Args:
      columns: By feature name, an array of numbers, bools or bytes for each row; None for a row without the feature.
    """
    rows = [tf.train.Example() for _ in next(iter(columns.values()))]
    for name, column in columns.items():
        for row, values in zip(rows, column, strict=True):
            if values is None:
                continue
            feature = row.features.feature[name]
            flat = np.ravel(np.array(values, object) if isinstance(values, bytes) else values)
            if flat.dtype.kind in "OS":
                feature.bytes_list.value.extend(flat)
            elif flat.dtype.kind in "iub":
                feature.int64_list.value.extend(flat.astype(np.int64))  # protobuf takes no bools of NumPy 2
            else:
                feature.float_list.value.extend(flat)
    return [row.SerializeToString() for row in rows]


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


def _keys(parser: tf.Operation) -> tuple[list[str], list[str], list[str]]:
    """Returns the names of the sparse, dense and ragged features that an operation parses."""
    sparse, dense, ragged = ([key.decode() for key in tf.get_static_value(keys)] for keys in parser.inputs[2:5])
    return sparse, dense, ragged


def _dense_feature(dtype: tf.DType, shape: tf.TensorShape, default: tf.Tensor) -> Feature:
    """Returns the feature for an output of a parser; an empty default value means that the feature is required."""
    value = tf.get_static_value(walks.source(default, ("Identity", "Reshape")))
    if shape.rank and shape[0] is None:
        padding = default if value is None else np.ravel(value)[0] if np.size(value) else None
        return tf.io.FixedLenSequenceFeature(shape[1:], dtype, allow_missing=True, default_value=padding)
    if value is not None:
        value = np.reshape(value, shape) if np.size(value) else None
        return tf.io.FixedLenFeature(shape, dtype, value)
    return tf.io.FixedLenFeature(shape, dtype, default)
