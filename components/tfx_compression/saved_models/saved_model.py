"""A SavedModel of any origin, without its layers: its kernels are the variables that its signatures multiply with.

Nothing but the variables' values changes: graph, signatures, assets, tables and Keras metadata are copied as they are.
"""

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import trackable_object_graph_pb2

from tfx_compression.errors import ModelError
from tfx_compression.keras_models.keras3 import LOADING_FAILURES
from tfx_compression.keras_models.model_size import (
    LayerSize,
    ModelSize,
    measure_kernel,
    measure_other_weights,
    total_size,
)
from tfx_compression.kernels import Kernel, variable_uses
from tfx_compression.kernels.variable_uses import VariableUse
from tfx_compression.saved_models.feature_signatures import SIGNATURE

_GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
_ADDING = ("AddV2", "Add", "BiasAdd", "Sub")
_SCALING = ("Mul", "RealDiv")
_VARIABLES = ("variables", "variables")  # folder, and the prefix of the checkpoint in it
_FINGERPRINT = "fingerprint.pb"  # of the values that were


@dataclasses.dataclass(frozen=True)
class SavedModel:
    """A SavedModel that is loaded.

    Attributes:
      path: where it was loaded from; saving reads it again.
      loaded: what tf.saved_model.load gave.
    """

    path: str
    loaded: Any

    @property
    def signatures(self) -> dict[str, Any]:
        """The signatures, `serving_default` first."""
        found = dict(self.loaded.signatures)
        return dict(sorted(found.items(), key=lambda item: (item[0] != SIGNATURE, item[0])))

    @functools.cached_property
    def variables(self) -> dict[str, tf.Variable]:
        """The variables that the signatures use, by name, made unique.

        Raises:
          ModelError: where it was loaded for several devices.
        """
        found: dict[int, tf.Variable] = {}
        for signature in self.signatures.values():
            if any(isinstance(variable, tf.distribute.DistributedValues) for variable in signature.variables):
                raise ModelError(
                    f"The SavedModel in {self.path} shows no layers, and is trained on one device only. Remedy: no "
                    "tf.distribute strategy of several, or have Trainer save the Keras model."
                )
            found.update({id(variable.handle): variable for variable in signature.variables})
        named: dict[str, tf.Variable] = {}
        for variable in found.values():
            named[_unique(variable.name.split(":")[0], named)] = variable
        return named

    @functools.cached_property
    def kernels(self) -> dict[str, Kernel]:
        """The kernels of rank 2 or more, by the name of their variable."""
        found = {}
        for name, variable in self.variables.items():
            if (use := self._multiplication(variable)) is not None:
                found[name] = Kernel(name, variable, use.kind, use.input_axes, use.output_axes)  # type: ignore[arg-type]
        return found

    @property
    def left_alone(self) -> tuple[str, ...]:
        """The variables of rank 2 or more that are used otherwise than in a known multiplication, or added, and the
        whole numbers that multiply.
        """
        return tuple(
            name
            for name, variable in self.variables.items()
            if len(variable.shape) >= 2 and name not in self.kernels
            if any(_multiplies(use, variable.dtype) for use in self._uses.get(id(variable.handle), []))
        )

    @functools.cached_property
    def ends(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The first and the last kernels of the first signature, one or more for each of its inputs and outputs.

        First are those that multiply what depends on no other kernel, last those from which an output comes without
        another kernel between, whatever the order in which the graph reads them.
        """
        keys = {id(kernel.variable.handle): name for name, kernel in self.kernels.items()}
        first, last = variable_uses.first_and_last_kernels(next(iter(self.signatures.values())), set(keys))
        return tuple(keys[key] for key in keys if key in first), tuple(keys[key] for key in keys if key in last)

    def measure(self) -> ModelSize:
        """Parameters, zeros and multiply-accumulates of the variables that the signatures use.

        Multiply-accumulates are those of the first signature that uses the variable, `serving_default` before others.
        """
        rows: list[LayerSize] = []
        for name, variable in self.variables.items():
            uses = self._uses.get(id(variable.handle), [])
            if name in self.kernels:
                use = self._multiplication(variable)
                rows.append(measure_kernel(self.kernels[name], use.op if use else "", variable_uses.total_macs(uses)))
            else:
                rows.append(
                    measure_other_weights(name, uses[0].op if uses else "Variable", int(np.prod(variable.shape)))
                )
        size = sum(int(np.prod(kernel.shape)) for kernel in self.kernels.values())
        return total_size(rows, size, (np.asarray(variable.numpy()) for variable in self.variables.values()))

    def save(self, path: str) -> None:
        """Writes the SavedModel with the variables' values as they are now.

        Raises:
          ModelError: for the path that it was loaded from, or a variable that its checkpoint doesn't have.
        """
        if any(same_place(os.path.join(path, part), os.path.join(self.path, part)) for part in ("", _VARIABLES[0])):
            raise ModelError(f"{path} is the SavedModel that is being read. Remedy: save to another path.")
        keys = _checkpoint_keys(self.loaded, os.path.join(self.path, *_VARIABLES))
        stored = {id(variable.handle) for variable in keys.values()}
        if missing := [name for name, variable in self.variables.items() if id(variable.handle) not in stored]:
            raise ModelError(
                f"The checkpoint of the SavedModel in {self.path} has no values of: {', '.join(missing)}. "
                "Remedy: save the model with tf.saved_model.save."
            )
        _copy(self.path, path)
        _write_variables(os.path.join(self.path, *_VARIABLES), os.path.join(path, *_VARIABLES), keys)

    @functools.cached_property
    def _uses(self) -> dict[int, list[VariableUse]]:
        found: dict[int, list[VariableUse]] = {}
        for signature in self.signatures.values():
            for key, uses in variable_uses.find_uses(signature).items():
                found.setdefault(key, uses)
        return found

    def _multiplication(self, variable: tf.Variable) -> VariableUse | None:
        """The use that makes a variable a kernel: one that sums over an axis, before a look-up."""
        if len(variable.shape) < 2 or not variable.dtype.is_floating:
            return None
        known = [use for use in self._uses.get(id(variable.handle), []) if use.kind is not None]
        return max(known, key=lambda use: len(use.input_axes) > 0, default=None)


def load(path: str) -> SavedModel:
    """The SavedModel in a folder.

    Raises:
      ModelError: where there is none, it can't be loaded, or it has no signatures.
    """
    if not tf.saved_model.contains_saved_model(path):
        raise ModelError(f"{path} holds no saved_model.pb: not a SavedModel.")
    try:
        loaded = tf.saved_model.load(path)
    except LOADING_FAILURES as error:
        raise ModelError(
            f"The SavedModel in {path} can't be loaded: {str(error).rstrip(' .')}. "
            "Remedy: write it again, with tf.saved_model.save; its files are damaged."
        ) from error
    if not getattr(loaded, "signatures", None):
        raise ModelError(
            f"The SavedModel in {path} has no signatures, so what it computes can't be seen. "
            f"Remedy: save it with signatures={{{SIGNATURE!r}: …}}."
        )
    return SavedModel(path, loaded)


def same_place(path: str, other: str) -> bool:
    """Whether two paths are of the same file or folder; links are followed where TensorFlow's file system is ours."""
    if "://" in path or "://" in other:
        return os.path.normpath(path) == os.path.normpath(other)
    return os.path.realpath(path) == os.path.realpath(other)


def _multiplies(use: VariableUse, dtype: tf.DType) -> bool:
    if dtype.is_floating:
        return use.op not in _ADDING
    return bool(use.input_axes) or use.op in (*_ADDING, *_SCALING)  # whole numbers also look things up and count


def _unique(name: str, taken: Mapping[str, Any]) -> str:
    if name not in taken:
        return name
    number = 1
    while f"{name}_{number}" in taken:
        number += 1
    return f"{name}_{number}"


def _checkpoint_keys(loaded: Any, prefix: str) -> dict[str, tf.Variable]:
    """The loaded variables by their key in the checkpoint: its graph of objects is walked together with theirs."""
    graph = trackable_object_graph_pb2.TrackableObjectGraph()
    reader = tf.train.load_checkpoint(prefix)
    if not reader.has_tensor(_GRAPH_KEY):
        raise ModelError(
            f"The checkpoint {prefix} was written by TensorFlow 1: it doesn't say which value is of which variable. "
            "Remedy: load the model with tf.saved_model.load and save it with tf.saved_model.save."
        )
    graph.ParseFromString(reader.get_tensor(_GRAPH_KEY))
    found: dict[str, tf.Variable] = {}
    visited: set[int] = set()
    places = [(0, loaded)]
    while places:
        node, thing = places.pop()
        if node in visited:
            continue
        visited.add(node)
        for attribute in graph.nodes[node].attributes:
            if isinstance(thing, tf.Variable):
                found[attribute.checkpoint_key] = thing
        for child in graph.nodes[node].children:
            inner = thing._lookup_dependency(child.local_name)
            if inner is not None:
                places.append((child.node_id, inner))
    return found


def _copy(source: str, target: str) -> None:
    """Copies a folder, without the checkpoint and what else holds values or is made of them."""
    for folder, _, names in tf.io.gfile.walk(source):
        inner = os.path.relpath(folder, source)
        place = target if inner == "." else os.path.join(target, inner)
        tf.io.gfile.makedirs(place)
        for name in names:
            if inner == _VARIABLES[0] or (inner == "." and (name == _FINGERPRINT or name.endswith(".keras"))):
                continue
            if not same_place(os.path.join(folder, name), os.path.join(place, name)):  # a copy onto itself is empty
                tf.io.gfile.copy(os.path.join(folder, name), os.path.join(place, name), overwrite=True)


def _write_variables(source: str, target: str, keys: Mapping[str, tf.Variable]) -> None:
    """Writes the checkpoint `source` again as `target`, with other values under `keys`."""
    reader = tf.train.load_checkpoint(source)
    names = sorted(reader.get_variable_to_dtype_map())
    values = [tf.identity(keys[name]) if name in keys else tf.constant(reader.get_tensor(name)) for name in names]
    tf.raw_ops.SaveV2(prefix=target, tensor_names=names, shape_and_slices=[""] * len(names), tensors=values)
