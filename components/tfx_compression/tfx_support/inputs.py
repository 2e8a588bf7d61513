"""What executors read: examples, schemas, the user's module."""

import hashlib
import importlib
import importlib.machinery
import os
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import tensorflow as tf
from tensorflow_metadata.proto.v0 import schema_pb2
from tfx.components.util import examples_utils, udf_utils
from tfx.proto import example_gen_pb2
from tfx.types import artifact, artifact_utils
from tfx.utils import io_utils

from tfx_compression.models.examples import ExamplesError
from tfx_compression.tfx_support.artifacts import Artifacts, single


def example_pattern(examples: artifact.Artifact, split: str) -> str:
    """The pattern of a split's files.

    Raises:
      ExamplesError: where the examples have no such split, or hold no tf.Examples.
    """
    splits = artifact_utils.decode_split_names(examples.split_names)
    if split not in splits:
        raise ExamplesError(
            f"The examples in {examples.uri} have no split {split!r}, only: {', '.join(splits) or 'none'}. "
            "Remedy: name one of them, or add it to the ExampleGen's splits."
        )
    payload = examples_utils.get_payload_format(examples)
    if payload != example_gen_pb2.FORMAT_TF_EXAMPLE:
        name = example_gen_pb2.PayloadFormat.Name(payload)
        raise ExamplesError(f"The examples in {examples.uri} are {name}; the components read FORMAT_TF_EXAMPLE.")
    return str(io_utils.all_files_pattern(artifact_utils.get_split_uri([examples], split)))


def example_files(examples: artifact.Artifact, split: str) -> list[str]:
    """A split's files, sorted."""
    return sorted(tf.io.gfile.glob(example_pattern(examples, split)))


def read_schema(inputs: Artifacts, key: str = "schema") -> schema_pb2.Schema:
    """The schema of an input."""
    return io_utils.SchemaReader().read(os.path.join(single(inputs, key).uri, "schema.pbtxt"))


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
