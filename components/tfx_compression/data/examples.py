"""tf.Examples in TFRecord files: what is in them, as a tf.data pipeline."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_metadata.proto.v0 import schema_pb2

from tfx_compression.errors import DataError

FeatureSpec = Mapping[str, tf.io.FixedLenFeature]


def records(files: Sequence[str]) -> tf.data.Dataset:
    """The serialized tf.Examples of TFRecord files, plain or gzipped by their name."""
    gzipped = [name for name in files if name.endswith(".gz")]
    plain = [name for name in files if not name.endswith(".gz")]
    parts = [
        tf.data.TFRecordDataset(names, compression_type=compression)
        for names, compression in ((plain, ""), (gzipped, "GZIP"))
        if names
    ]
    if not parts:
        return tf.data.Dataset.from_tensors("").take(0)
    return parts[0] if len(parts) == 1 else parts[0].concatenate(parts[1])


def unreadable(place: str, error: tf.errors.OpError) -> DataError:
    """What to raise for files that are no TFRecords."""
    return DataError(
        f"{place} can't be read as TFRecords: {error.message} Remedy: TFRecord files of tf.Examples, whole; those that "
        "are called .gz are gzipped, the others are not."
    )


def require_rows(files: Sequence[str], place: str) -> None:
    """Raises DataError, naming `place`, where there is not one row, or the first file is none of TFRecords."""
    try:
        there = any(True for _ in records(files).take(1))
    except tf.errors.OpError as error:
        raise unreadable(place, error) from error
    if not there:
        raise DataError(
            f"There is not one tf.Example in {place}. Remedy: check the splits of the ExampleGen "
            "(input_config or output_config) and its input files."
        )


def feature_spec(schema: schema_pb2.Schema) -> dict[str, tf.io.FixedLenFeature]:
    """The features of `schema` that have a fixed shape and are always there, as tf.io.parse_example takes them."""
    from tensorflow_transform.tf_metadata import schema_utils

    spec = schema_utils.schema_as_feature_spec(schema).feature_spec
    return {name: feature for name, feature in spec.items() if isinstance(feature, tf.io.FixedLenFeature)}


def label_of(schema: schema_pb2.Schema, inputs: Sequence[str], label_key: str | None) -> str:
    """The name of the label: `label_key`, or the one feature of `schema` that is no model input.

    Raises:
      DataError: where the schema has no such feature, or several that could be it.
    """
    names = [feature.name for feature in schema.feature]
    if label_key is None:
        candidates = [name for name in names if name not in inputs]
        if len(candidates) != 1:
            raise DataError(
                f"The label can't be told from the schema: beside the model's inputs it has {candidates or 'none'}. "
                "Remedy: set label_key to the label's feature."
            )
        return candidates[0]
    if label_key not in names:
        raise DataError(
            f"The label {label_key!r} is not in the schema, whose features are: {', '.join(names) or 'none'}. "
            "Remedy: set label_key to one of them, or use the schema of these examples "
            "(Transform's post_transform_schema for its transformed_examples)."
        )
    return label_key


def labelled(
    files: Sequence[str],
    schema: schema_pb2.Schema,
    inputs: Sequence[str],
    label: str,
    batch_size: int,
    shuffle: bool,
    seed: int | None = None,
    weight: str | None = None,
) -> tf.data.Dataset:
    """Batches of (features, label[, weight]) for a Keras model whose inputs are called `inputs`.

    Args:
      files: TFRecord files of tf.Examples.
      schema: theirs.
      inputs: feature names; the features of a batch are a dict of [batch, …] tensors.
      label: feature name; the label is a [batch, …] tensor, shaped as in the schema.
      batch_size: rows in a batch.
      shuffle: in a buffer of 10,000 rows, in another order each epoch.
      seed: of shuffling; by default TensorFlow's global one.
      weight: feature name of the rows' weights, one number each; none where it is None.

    Raises:
      DataError: where an input of the model is no feature of fixed shape in the schema.
    """
    spec = feature_spec(schema)
    others = [label, *([weight] if weight else [])]
    missing = [name for name in [*inputs, *others] if name not in spec]
    if missing:
        raise DataError(
            f"The model needs {', '.join(missing)}, which the schema has not, or not with a fixed shape; it has: "
            f"{', '.join(spec) or 'none'}. Remedy: pass the examples that the model was trained on "
            "(for a model behind Transform: transform.outputs['transformed_examples'] and ['post_transform_schema']), "
            "or an input_fn in the module file."
        )
    rows = records(files)
    if shuffle:
        rows = rows.shuffle(10_000, seed)

    def split(batch: tf.Tensor) -> tuple[Any, ...]:
        parsed = tf.io.parse_example(batch, {name: spec[name] for name in [*inputs, *others]})
        return {name: parsed[name] for name in inputs}, *_targets(parsed, label, weight)

    return rows.batch(batch_size).map(split, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def _targets(parsed: Mapping[str, tf.Tensor], label: str, weight: str | None) -> tuple[tf.Tensor, ...]:
    """The label and, where there is one, the weight of each row, [batch]."""
    if weight is None:
        return (parsed[label],)
    return parsed[label], tf.reshape(tf.cast(parsed[weight], tf.float32), [-1])


def serialized_and_labels(
    files: Sequence[str],
    schema: schema_pb2.Schema,
    label: str,
    batch_size: int,
    shuffle: bool,
    seed: int | None = None,
    weight: str | None = None,
) -> tf.data.Dataset:
    """Batches of (serialized tf.Examples, label[, weight]), for a signature that parses them itself.

    Args:
      files: TFRecord files of tf.Examples.
      schema: theirs.
      label: feature name; the label is a [batch, …] tensor, shaped as in the schema.
      batch_size: rows in a batch.
      shuffle: in a buffer of 10,000 rows, in another order each epoch.
      seed: of shuffling; by default TensorFlow's global one.
      weight: feature name of the rows' weights, one number each; none where it is None.

    Raises:
      DataError: where the label, or the weight, is no feature of fixed shape in the schema.
    """
    spec = feature_spec(schema)
    wanted = [label, *([weight] if weight else [])]
    for name in wanted:
        if name not in spec:
            raise DataError(
                f"The schema has no feature {name!r} of a fixed shape; it has: {', '.join(spec) or 'none'}. "
                "Remedy: give it a shape in the schema, or an input_fn in the module file."
            )

    def split(batch: tf.Tensor) -> tuple[Any, ...]:
        return batch, *_targets(tf.io.parse_example(batch, {name: spec[name] for name in wanted}), label, weight)

    rows = records(files)
    if shuffle:
        rows = rows.shuffle(10_000, seed)
    return rows.batch(batch_size).map(split)


def columns(rows: Sequence[bytes], features: Mapping[str, tf.TensorSpec]) -> dict[str, np.ndarray]:
    """The features of serialized tf.Examples, [rows, …] each, in the dtype of the feature.

    Args:
      rows: at least one.
      features: [batch, …] tensors, by the feature's name.

    Raises:
      DataError: where a row lacks a feature or has another number of values, or a feature's size is free.
    """
    free = [name for name, spec in features.items() if not spec.shape[1:].is_fully_defined()]
    if free:
        raise DataError(
            f"The model takes any size of {', '.join(free)}, and a tf.Example doesn't say which it has. Remedy: a "
            "serving signature that parses tf.Examples, or inputs of fixed size."
        )
    spec = {
        name: tf.io.FixedLenFeature(tensor.shape[1:], _example_dtype(tensor.dtype)) for name, tensor in features.items()
    }
    try:
        values = tf.io.parse_example(rows, spec)
    except tf.errors.InvalidArgumentError as error:
        raise DataError(f"A tf.Example lacks what the model takes: {one_line(error)}") from error
    return {name: value.numpy().astype(features[name].dtype.as_numpy_dtype) for name, value in values.items()}


def one_line(error: tf.errors.OpError) -> str:
    """TensorFlow's message on one line, as Beam's errors are read by lines."""
    return " ".join(str(error.message).split())


def _example_dtype(dtype: tf.DType) -> tf.DType:
    """The dtype that a tf.Example stores such a tensor as."""
    if dtype.is_integer or dtype.is_bool:
        return tf.int64
    return tf.string if dtype == tf.string else tf.float32
