"""What executors read: examples, schemas, the user's module."""

import functools
import hashlib
import importlib
import importlib.machinery
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import tensorflow as tf
import tensorflow_transform as tft
from tensorflow_metadata.proto.v0 import schema_pb2
from tfx.components.trainer import fn_args_utils
from tfx.components.util import examples_utils, tfxio_utils, udf_utils
from tfx.proto import example_gen_pb2
from tfx.types import artifact, artifact_utils
from tfx.utils import io_utils

from tfx_compression.data.examples import labeled_batches, require_rows, resolve_label
from tfx_compression.errors import DataError, ModelError
from tfx_compression.model_handle import ModelHandle
from tfx_compression.saved_models import feature_signatures
from tfx_compression.tfx_support.artifacts import Artifacts, optional, single


def example_pattern(examples: artifact.Artifact, split: str) -> str:
    """The pattern of a split's files.

    Raises:
      DataError: where the examples have no such split, or hold no tf.Examples.
    """
    splits = artifact_utils.decode_split_names(examples.split_names)
    if split not in splits:
        raise DataError(
            f"The examples in {examples.uri} have no split {split!r}, only: {', '.join(splits) or 'none'}. "
            "Remedy: name one of them, or add it to the ExampleGen's splits."
        )
    payload = examples_utils.get_payload_format(examples)
    if payload != example_gen_pb2.FORMAT_TF_EXAMPLE:
        name = example_gen_pb2.PayloadFormat.Name(payload)
        raise DataError(f"The examples in {examples.uri} are {name}; the components read FORMAT_TF_EXAMPLE.")
    return str(io_utils.all_files_pattern(artifact_utils.get_split_uri([examples], split)))


def example_files(examples: artifact.Artifact, split: str) -> list[str]:
    """A split's files, sorted."""
    return sorted(tf.io.gfile.glob(example_pattern(examples, split)))


def _files_with_rows(examples: artifact.Artifact, split: str) -> list[str]:
    files = example_files(examples, split)
    require_rows(files, f"split {split!r} of {examples.uri}")
    return files


def read_schema(inputs: Artifacts, key: str = "schema") -> schema_pb2.Schema:
    """The schema of an input."""
    return io_utils.SchemaReader().read(os.path.join(single(inputs, key).uri, "schema.pbtxt"))


def model_batches(
    loaded: ModelHandle,
    input_dict: Artifacts,
    module: "UserModule",
    split: str,
    label_key: str | None,
    batch_size: int,
    shuffle: bool,
    seed: int | None = None,
    weight_key: str | None = None,
) -> tf.data.Dataset:
    """Batches of (features, label[, weight]) of a split, as a model of any kind takes them.

    Of a SavedModel without layers, the features are what its signature takes: by name, or serialized tf.Examples. The
    arguments, and errors, are those of `training_batches`.
    """
    if loaded.kind == "saved_model":
        specs = next(iter(loaded.model.signatures.values())).structured_input_signature[1]
        names = list(specs)
        if len(specs) == 1 and specs[names[0]].dtype == tf.string and not module.function("input_fn"):
            files = _files_with_rows(single(input_dict, "examples"), split)
            schema = read_schema(input_dict)
            parsed = _features_of(loaded.model.path) if label_key is None else ()
            label = resolve_label(schema, [*parsed, *([weight_key] if weight_key else [])], label_key)
            return labeled_batches(files, schema, None, label, batch_size, shuffle, seed, weight_key)
    else:
        network = loaded.network if loaded.network is not None else loaded.model
        names = list(getattr(network, "input_names", None) or [tensor.name for tensor in network.inputs])
    return training_batches(
        input_dict, module, names, split, label_key, batch_size, shuffle, seed=seed, weight_key=weight_key
    )


@functools.lru_cache(maxsize=4)  # asked for before each epoch, of a model that is then loaded once more
def _features_of(path: str) -> tuple[str, ...]:
    """The features that a SavedModel's `serving_default` uses of the tf.Examples that it takes."""
    try:
        return tuple(feature_signatures.feature_signature(path).features)
    except ModelError as error:
        raise DataError(
            f"The label can't be told, since what the SavedModel in {path} reads can't: {error} Remedy here: set "
            "label_key to the label's feature."
        ) from error


def training_batches(
    input_dict: Artifacts,
    module: "UserModule",
    names: Sequence[str],
    split: str,
    label_key: str | None,
    batch_size: int,
    shuffle: bool,
    seed: int | None = None,
    weight_key: str | None = None,
) -> tf.data.Dataset:
    """Batches of (features, label[, weight]) of a split, from the user's `input_fn` or the schema.

    Args:
      input_dict: with `examples`, `schema` and, optionally, `transform_graph`.
      module: the user's.
      names: of the network's inputs.
      split: of the examples.
      label_key: the label's feature, or None where the schema tells.
      batch_size: rows in a batch.
      shuffle: in another order each epoch; a user's `input_fn` does as it likes.
      seed: of shuffling; by default TensorFlow's global one.
      weight_key: the feature that weighs the rows; a user's `input_fn` gives the weights itself.

    Raises:
      DataError: where there are no such examples, or they are not what the network takes.
    """
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
        described = tft.TFTransformOutput(graph.uri) if graph is not None else schema
        return input_fn([example_pattern(examples, split)], accessor, described, batch_size)
    files = _files_with_rows(examples, split)
    label = resolve_label(schema, [*names, *([weight_key] if weight_key else [])], label_key)
    return labeled_batches(files, schema, names, label, batch_size, shuffle, seed, weight_key)


class UserModule:
    """The functions of the user's module file, which is installed and imported once.

    Args:
      exec_properties: with `module_path` (a module in a wheel that TFX made) or `module_file`, or neither.
    """

    def __init__(self, exec_properties: Mapping[str, Any]):
        self._module: ModuleType | None = None
        if path := exec_properties.get("module_path"):
            name, wheels = udf_utils.decode_user_module_key(path)
            for wheel in wheels:
                sys.path.insert(0, udf_utils.install_to_temp_directory(io_utils.ensure_local(wheel)))
            # A module of that name may be loaded already, from another component's wheel.
            sys.modules.pop(name, None)
            self._module = importlib.import_module(name)
        elif path := exec_properties.get("module_file"):
            name = f"user_module_{hashlib.sha256(path.encode()).hexdigest()[:8]}"
            loader = importlib.machinery.SourceFileLoader(name, io_utils.ensure_local(path))
            self._module = sys.modules[name] = ModuleType(name)
            self._module.__file__ = loader.path
            loader.exec_module(self._module)

    def function(self, name: str) -> Callable[..., Any] | None:
        """A function of the module, or None where there is none of that name."""
        return getattr(self._module, name, None)

    def custom_objects(self) -> dict[str, Any]:
        """What the module's `custom_objects()` returns: Keras classes and functions by name."""
        function = self.function("custom_objects")
        return dict(function()) if function else {}
