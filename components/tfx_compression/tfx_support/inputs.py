"""The input artifacts of executors: examples and schemas."""

import functools
import os
from collections.abc import Sequence

import tensorflow as tf
import tensorflow_transform as tft
from tensorflow_metadata.proto.v0 import schema_pb2
from tfx.components.trainer import fn_args_utils
from tfx.components.util import examples_utils, tfxio_utils
from tfx.proto import example_gen_pb2
from tfx.types import artifact, artifact_utils
from tfx.utils import io_utils

from tfx_compression.data.examples import labeled_batches, require_rows, resolve_label
from tfx_compression.errors import DataError, ModelError
from tfx_compression.model_handle import ModelHandle
from tfx_compression.saved_models import feature_signatures
from tfx_compression.tfx_support.artifacts import Artifacts, optional, single
from tfx_compression.tfx_support.user_module import UserModule
from tfx_compression.tracing import unwrapped_errors


def example_pattern(examples: artifact.Artifact, split: str) -> str:
    """Returns the file pattern of a split.

    Raises:
      DataError: The examples don't have the split (code "unknown-split") or aren't tf.Examples ("not-tf-examples").
    """
    splits = artifact_utils.decode_split_names(examples.split_names)
    if split not in splits:
        raise DataError(
            f"The examples in {examples.uri} have no split {split!r}, only: {', '.join(splits) or 'none'}. "
            "Remedy: name one of them, or add the split to the ExampleGen.",
            code="unknown-split",
        )
    payload = examples_utils.get_payload_format(examples)
    if payload != example_gen_pb2.FORMAT_TF_EXAMPLE:
        name = example_gen_pb2.PayloadFormat.Name(payload)
        raise DataError(
            f"The examples in {examples.uri} have the format {name}. Remedy: an ExampleGen of FORMAT_TF_EXAMPLE.",
            code="not-tf-examples",
        )
    return str(io_utils.all_files_pattern(artifact_utils.get_split_uri([examples], split)))


def example_files(examples: artifact.Artifact, split: str) -> list[str]:
    """Returns the files of a split, sorted."""
    return sorted(tf.io.gfile.glob(example_pattern(examples, split)))


def read_schema(inputs: Artifacts, key: str = "schema") -> schema_pb2.Schema:
    """Returns the schema of an input."""
    return io_utils.SchemaReader().read(os.path.join(single(inputs, key).uri, "schema.pbtxt"))


def model_batches(
    handle: ModelHandle,
    input_dict: Artifacts,
    module: UserModule,
    split: str,
    label_key: str | None,
    batch_size: int,
    shuffle: bool,
    seed: int | None = None,
    weight_key: str | None = None,
) -> tf.data.Dataset:
    """Returns batches of (features, label[, weight]) of a split, with the features that a model of any kind takes.

    A SavedModel without Keras layers takes its signature's arguments: features by name or serialized tf.Examples.

    Args:
      handle: The model.
      input_dict: Inputs of the executor: `examples`, `schema` and, optionally, `transform_graph`.
      module: The user's module. Its `input_fn`, if any, makes the batches.
      split: Split of the examples.
      label_key: Feature with the label. None takes it from the schema.
      batch_size: Rows in a batch.
      shuffle: Whether the order differs in each epoch. A user's `input_fn` decides itself.
      seed: Random seed of the shuffling. None uses TensorFlow's global seed.
      weight_key: Feature with the weight of each row. A user's `input_fn` returns the weights itself.

    Raises:
      DataError: The split has no rows, or its features don't fit the model.
    """
    if handle.kind != "saved_model":
        network = handle.network if handle.network is not None else handle.model
        names = list(getattr(network, "input_names", None) or [tensor.name for tensor in network.inputs])
    else:
        specs = next(iter(handle.model.signatures.values())).structured_input_signature[1]
        names = list(specs)
        if len(specs) == 1 and specs[names[0]].dtype == tf.string and not module.function("input_fn"):
            files = _files_with_rows(single(input_dict, "examples"), split)
            schema = read_schema(input_dict)
            parsed = _parsed_features(handle.model.path) if label_key is None else ()
            label = resolve_label(schema, [*parsed, *([weight_key] if weight_key else [])], label_key)
            return labeled_batches(files, schema, None, label, batch_size, shuffle, seed, weight_key)
    return _network_batches(input_dict, module, names, split, label_key, batch_size, shuffle, seed, weight_key)


def _network_batches(
    input_dict: Artifacts,
    module: UserModule,
    names: Sequence[str],
    split: str,
    label_key: str | None,
    batch_size: int,
    shuffle: bool,
    seed: int | None,
    weight_key: str | None,
) -> tf.data.Dataset:
    """Returns batches with the features `names`, from the user's `input_fn` or by the schema. See `model_batches`."""
    examples = single(input_dict, "examples")
    schema = read_schema(input_dict)
    input_fn = module.function("input_fn")
    if input_fn:
        telemetry = ["tfx_compression"]
        accessor = fn_args_utils.DataAccessor(
            tf_dataset_factory=tfxio_utils.get_tf_dataset_factory_from_artifact([examples], telemetry),
            record_batch_factory=tfxio_utils.get_record_batch_factory_from_artifact([examples], telemetry),
            data_view_decode_fn=tfxio_utils.get_data_view_decode_fn_from_artifact([examples], telemetry),
        )
        graph = optional(input_dict, "transform_graph")
        features = tft.TFTransformOutput(graph.uri) if graph is not None else schema
        with unwrapped_errors():
            return input_fn([example_pattern(examples, split)], accessor, features, batch_size)
    files = _files_with_rows(examples, split)
    label = resolve_label(schema, [*names, *([weight_key] if weight_key else [])], label_key)
    return labeled_batches(files, schema, names, label, batch_size, shuffle, seed, weight_key)


def _files_with_rows(examples: artifact.Artifact, split: str) -> list[str]:
    files = example_files(examples, split)
    require_rows(files, f"split {split!r} of {examples.uri}")
    return files


@functools.lru_cache(maxsize=4)  # Callers ask before each epoch, and the answer loads the SavedModel.
def _parsed_features(path: str) -> tuple[str, ...]:
    """Returns the features that the `serving_default` of a SavedModel uses of the tf.Examples it takes."""
    try:
        return tuple(feature_signatures.feature_signature(path).features)
    except ModelError as error:
        raise DataError(
            f"The label can't be found, because the features that the SavedModel in {path} reads are unknown: {error} "
            "Remedy here: set label_key to the feature with the label.",
            field="label_key",
            code="unknown-label",
        ) from error
