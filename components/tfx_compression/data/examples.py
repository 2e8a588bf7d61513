"""TFRecord files of tf.Examples as tf.data pipelines: serialized rows, and batches with their labels."""

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
from tensorflow_metadata.proto.v0 import schema_pb2

from tfx_compression.errors import DataError

FeatureSpec = Mapping[str, tf.io.FixedLenFeature]

_SHUFFLE_BUFFER = 10_000  # rows


def records(files: Sequence[str]) -> tf.data.Dataset:
    """Returns the serialized tf.Examples of TFRecord files; files whose names end in `.gz` are gzipped."""
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


def unreadable_error(place: str, error: tf.errors.OpError) -> DataError:
    """Returns the error to raise for files that are not TFRecords."""
    return DataError(
        f"{place} can't be read as TFRecords: {error.message} Remedy: pass complete TFRecord files of tf.Examples; "
        "only files whose names end in .gz may be gzipped.",
        code="unreadable-examples",
    )


def require_rows(files: Sequence[str], place: str) -> None:
    """Checks that the files hold at least one row.

    Args:
      files: TFRecord files.
      place: Description of the files, for the error message.

    Raises:
      DataError: If there are no rows, or the first file is not a TFRecord file.
    """
    try:
        has_rows = any(True for _ in records(files).take(1))
    except tf.errors.OpError as error:
        raise unreadable_error(place, error) from error
    if not has_rows:
        raise DataError(
            f"There is not one tf.Example in {place}. Remedy: check the splits of the ExampleGen "
            "(input_config or output_config) and its input files.",
            code="no-examples",
        )


def feature_spec(schema: schema_pb2.Schema) -> dict[str, tf.io.FixedLenFeature]:
    """Returns the required features of fixed shape in a schema, as tf.io.parse_example takes them."""
    from tensorflow_transform.tf_metadata import schema_utils

    spec = schema_utils.schema_as_feature_spec(schema).feature_spec
    return {name: feature for name, feature in spec.items() if isinstance(feature, tf.io.FixedLenFeature)}


def resolve_label(schema: schema_pb2.Schema, inputs: Sequence[str], label_key: str | None) -> str:
    """Returns the name of the label: `label_key`, or the only feature of `schema` that is not a model input.

    Raises:
      DataError: If the schema has no such feature, or several that could be the label.
    """
    names = [feature.name for feature in schema.feature]
    if label_key is None:
        candidates = [name for name in names if name not in inputs]
        if len(candidates) != 1:
            raise DataError(
                "The schema doesn't tell which feature is the label. Besides the model's inputs it has: "
                f"{', '.join(candidates) or 'none'}. Remedy: set label_key to the label's feature.",
                field="label_key",
                code="ambiguous-label",
            )
        return candidates[0]
    if label_key not in names:
        raise DataError(
            f"The label {label_key!r} is not in the schema, whose features are: {', '.join(names) or 'none'}. "
            "Remedy: set label_key to one of them, or use the schema of these examples "
            "(Transform's post_transform_schema for its transformed_examples).",
            field="label_key",
            code="unknown-label",
        )
    return label_key


def labeled_batches(
    files: Sequence[str],
    schema: schema_pb2.Schema,
    inputs: Sequence[str] | None,
    label: str,
    batch_size: int,
    shuffle: bool,
    seed: int | None = None,
    weight: str | None = None,
) -> tf.data.Dataset:
    """Returns batches of (features, label) or (features, label, weight).

    The label is a [batch, …] tensor, shaped as in the schema. The weight is a float32 tensor of shape [batch].

    Args:
      files: TFRecord files of tf.Examples.
      schema: Schema of the examples.
      inputs: Names of the features to parse; the features of a batch are then a dict of [batch, …] tensors. None for a
        signature that parses tf.Examples itself; the features are then the serialized tf.Examples, [batch].
      label: Name of the label's feature.
      batch_size: Number of rows in a batch.
      shuffle: Whether to shuffle the rows, anew in each epoch, in a buffer of 10,000 rows.
      seed: Random seed of the shuffling. None for TensorFlow's global seed.
      weight: Name of the feature that holds one weight for each row. None for no weights.

    Raises:
      DataError: If an input, the label or the weight is not a feature of fixed shape in the schema.
    """
    spec = _required_spec(schema, [*(inputs or ()), label, *([weight] if weight else [])])

    def split(rows: tf.Tensor) -> tuple[Any, ...]:
        parsed = tf.io.parse_example(rows, spec)
        features = rows if inputs is None else {name: parsed[name] for name in inputs}
        weights = [] if weight is None else [tf.reshape(tf.cast(parsed[weight], tf.float32), [-1])]
        return features, parsed[label], *weights

    rows = records(files)
    if shuffle:
        rows = rows.shuffle(_SHUFFLE_BUFFER, seed)
    return rows.batch(batch_size).map(split, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def _required_spec(schema: schema_pb2.Schema, names: Sequence[str]) -> dict[str, tf.io.FixedLenFeature]:
    spec = feature_spec(schema)
    if missing := [name for name in names if name not in spec]:
        raise DataError(
            f"The schema has no required features of fixed shape called {', '.join(missing)}. It has: "
            f"{', '.join(spec) or 'none'}. Remedy: pass the examples that the model was trained on (for a model behind "
            "Transform: transform.outputs['transformed_examples'] and ['post_transform_schema']), give the features a "
            "shape in the schema, or write an input_fn in the module file.",
            code="missing-features",
        )
    return {name: spec[name] for name in names}
