"""The files of a SavedModel, written again with other values of its variables.

Nothing else changes: graph, signatures, assets, tables and Keras metadata are copied as they are.
"""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf import trackable_object_graph_pb2

from tfx_compression.errors import ModelError

_OBJECT_GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
_VARIABLES = ("variables", "variables")  # the folder, and the prefix of the checkpoint in it
_FINGERPRINT = "fingerprint.pb"  # of the old values


def save_variables(loaded: Any, source: str, target: str, variables: Mapping[str, tf.Variable]) -> None:
    """Writes a SavedModel again, with the current values of its variables.

    Args:
      loaded: The loaded SavedModel.
      source: Path that it was loaded from.
      target: Path to write to.
      variables: The variables that its checkpoint must hold, by name.

    Raises:
      ModelError: If the target is the source, or the checkpoint lacks a variable.
    """
    if any(same_path(os.path.join(target, part), os.path.join(source, part)) for part in ("", _VARIABLES[0])):
        raise ModelError(
            f"{target} is the SavedModel that is being read. Remedy: save to another path.", code="same-path"
        )
    stored = require_values(loaded, source, variables)
    _copy_files(source, target)
    _write_checkpoint(os.path.join(source, *_VARIABLES), os.path.join(target, *_VARIABLES), stored)


def require_values(loaded: Any, source: str, variables: Mapping[str, tf.Variable]) -> dict[str, tf.Variable]:
    """Returns the loaded variables by their keys in the checkpoint of a SavedModel.

    Args:
      loaded: The loaded SavedModel.
      source: Path that it was loaded from.
      variables: The variables that its checkpoint must hold, by name.

    Raises:
      ModelError: If the checkpoint lacks a variable.
    """
    stored = _stored_variables(loaded, os.path.join(source, *_VARIABLES), variables.values())
    handles = {id(variable.handle) for variable in stored.values()}
    if missing := [name for name, variable in variables.items() if id(variable.handle) not in handles]:
        raise ModelError(
            f"The checkpoint of the SavedModel in {source} has no values of: {', '.join(missing)}. Remedy: "
            "loaded = tf.saved_model.load(path), then tf.saved_model.save(loaded, other_path, "
            "signatures=dict(loaded.signatures)).",
            code="missing-values",
        )
    return stored


def same_path(path: str, other: str) -> bool:
    """Returns whether two paths lead to the same file or folder. Links are followed on local file systems."""
    if "://" in path or "://" in other:
        return os.path.normpath(path) == os.path.normpath(other)
    return os.path.realpath(path) == os.path.realpath(other)


def _stored_variables(loaded: Any, prefix: str, variables: Iterable[tf.Variable]) -> dict[str, tf.Variable]:
    """Returns the loaded variables by their keys in the checkpoint, whose object graph has the shape of `loaded`.

    A checkpoint of TensorFlow 1 has no object graph. Its keys are the names of the variables.
    """
    graph = trackable_object_graph_pb2.TrackableObjectGraph()
    reader = tf.train.load_checkpoint(prefix)
    if not reader.has_tensor(_OBJECT_GRAPH_KEY):
        shapes = reader.get_variable_to_shape_map()
        by_name = {variable.name.split(":")[0]: variable for variable in variables}
        return {name: variable for name, variable in by_name.items() if shapes.get(name) == variable.shape.as_list()}
    graph.ParseFromString(reader.get_tensor(_OBJECT_GRAPH_KEY))
    stored: dict[str, tf.Variable] = {}
    visited: set[int] = set()
    pending = [(0, loaded)]
    while pending:
        node, trackable = pending.pop()
        if node in visited:
            continue
        visited.add(node)
        for attribute in graph.nodes[node].attributes:
            if isinstance(trackable, tf.Variable):
                stored[attribute.checkpoint_key] = trackable
        for child in graph.nodes[node].children:
            inner = trackable._lookup_dependency(child.local_name)
            if inner is not None:
                pending.append((child.node_id, inner))
    return stored


def _copy_files(source: str, target: str) -> None:
    """Copies a SavedModel without the files that hold values or depend on them."""
    for folder, _, names in tf.io.gfile.walk(source):
        inner = os.path.relpath(folder, source)
        copy = target if inner == "." else os.path.join(target, inner)
        tf.io.gfile.makedirs(copy)
        for name in names:
            if inner == _VARIABLES[0] or (inner == "." and (name == _FINGERPRINT or name.endswith(".keras"))):
                continue
            # Copying a file onto itself would empty it.
            if not same_path(os.path.join(folder, name), os.path.join(copy, name)):
                tf.io.gfile.copy(os.path.join(folder, name), os.path.join(copy, name), overwrite=True)


def _write_checkpoint(source: str, target: str, variables: Mapping[str, tf.Variable]) -> None:
    """Writes the checkpoint `source` again as `target`, with the values of the variables under their keys."""
    reader = tf.train.load_checkpoint(source)
    keys = sorted(reader.get_variable_to_dtype_map())
    values = [tf.identity(variables[key]) if key in variables else tf.constant(reader.get_tensor(key)) for key in keys]
    tf.raw_ops.SaveV2(prefix=target, tensor_names=keys, shape_and_slices=[""] * len(keys), tensors=values)
