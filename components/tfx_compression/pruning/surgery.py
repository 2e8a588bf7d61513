"""ChannelPruner: the network built anew, its layers narrower, with the weights of the channels that stay."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tfx_compression.errors import ModelError
from tfx_compression.keras_models import clone, graph
from tfx_compression.keras_models.library import keras_library
from tfx_compression.pruning.channel_map import KeepFn
from tfx_compression.pruning.dependency_graph import DependencyGraph


def remove(structure: DependencyGraph, choices: Mapping[str, np.ndarray]) -> Any:
    """The network without the units that `choices` drops.

    Args:
      structure: of the network, which is left as it is.
      choices: by group name, [units] of bool: which stay. Groups that are not named stay whole.

    Returns:
      A new model of the same kind, with the same layer names, inputs and outputs, not compiled.

    Raises:
      ModelError: where a group is blocked or would be left without channels, or a layer can't be built from its
        configuration.
    """
    for name, choice in choices.items():
        group = structure.groups[name]
        if group.blocked and not np.all(choice):
            raise ModelError(
                f"Nothing of the channels of {name!r} can be removed: they are part of what {group.blocked}."
            )
        if not np.any(choice):
            raise ModelError(f"Not one of the channels of {name!r} would be left.")
    return _Rebuilt(structure, structure.kept(choices)).model(structure.model)


def channels_left(structure: DependencyGraph, choices: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """By kernel, the output channels that stay, where some are removed."""
    kept = structure.kept(choices)
    left = {}
    for source in structure.channels.sources:
        stays = kept(source.channel_ids if source.outputs is None else source.outputs)
        if not stays.all():
            name = structure.name_of(source.layer)
            left[name if source.kind != "head" else f"{name}/heads"] = tuple(np.flatnonzero(stays).tolist())
    return left


class _Rebuilt:
    """The layers of a network that are built so far."""

    def __init__(self, structure: DependencyGraph, kept: KeepFn):
        self._edits = structure.channels.edits
        self._kept = kept
        self._layers: dict[int, Any] = {}
        self._slices: dict[int, list[Any]] = {}
        for (variable, _), each in structure.channels.slices.items():
            self._slices.setdefault(variable, []).append(each)

    def model(self, model: Any, inputs: list[Any] | None = None) -> Any:
        """A functional model, built on new inputs (of the old shapes, or like `inputs`)."""
        new_inputs = [
            clone.input_like(old, like.shape, name)
            for old, like, name in zip(model.inputs, inputs or model.inputs, _input_names(model), strict=True)
        ]
        tensors = dict(zip(map(id, model.inputs), new_inputs, strict=True))
        for call in graph.calls(model):
            layer = self._layer(call, tensors)
            args, kwargs = graph.map_tensors((call.args, call.kwargs), lambda tensor: tensors[id(tensor)])
            outputs = graph.flat_tensors(layer(*args, **kwargs))
            tensors.update(zip(map(id, call.outputs), outputs, strict=True))
        built = keras_library(model).Model(
            *(graph.map_tensors(each, lambda tensor: tensors[id(tensor)]) for each in graph.io_structures(model)),
            name=model.name,
        )
        for old in model.layers:
            if id(old) in self._layers:
                self._fill(old, self._layers[id(old)])
        if not model.trainable:
            built.trainable = False
        return built

    def _layer(self, call: graph.Call, tensors: Mapping[int, Any]) -> Any:
        """The new layer for one of the old, the same at every call."""
        layer = call.layer
        if id(layer) not in self._layers:
            if graph.is_functional(layer):
                given = graph.flat_tensors(next(iter(call.arguments.values())))
                new = self.model(layer, [tensors[id(tensor)] for tensor in given])
            elif hasattr(layer, "weights"):
                new = self._configured(layer)
            else:
                new = layer  # an operation of Keras 3, which has no state
            self._layers[id(layer)] = new
        return self._layers[id(layer)]

    def _configured(self, layer: Any) -> Any:
        try:
            return clone.clone_layer(layer, self._config(layer, layer.get_config()))
        except (TypeError, ValueError, NotImplementedError) as error:
            raise ModelError(
                f"Layer {layer.name!r} of the class {type(layer).__name__} can't be built from its configuration: "
                f"{error} Remedy: a get_config() that returns what its constructor takes."
            ) from error

    def _config(self, layer: Any, config: dict[str, Any]) -> dict[str, Any]:
        """A layer's configuration with the sizes that are left; a wrapper's with its inner layers'."""
        edits = {key: value(self._kept) for key, value in self._edits.get(id(layer), {}).items()}
        for field, inner in (("layer", "layer"), ("layer", "forward_layer"), ("backward_layer", "backward_layer")):
            wrapped = getattr(layer, inner, None)
            if isinstance(config.get(field), dict) and wrapped is not None:
                before = {**config[field], **edits.get(field, {})}
                before.pop("build_config", None)  # the shape that Keras 3 would build it for
                edits[field] = {**before, "config": self._config(wrapped, before["config"])}
        return {**config, **edits}

    def _fill(self, old: Any, new: Any) -> None:
        """Copies what stays of a layer's weights, and its other state."""
        if graph.is_functional(old):
            return  # filled when it was built
        clone.copy_trainable(old, new)  # Keras 2 has the weights that are trained first
        for before, after in zip(old.weights, new.weights, strict=True):
            if not hasattr(before, "numpy"):
                continue  # a vocabulary
            values = np.asarray(before.numpy())
            for each in self._slices.get(id(before), ()):
                stays = self._kept(each.channel_ids)
                if not stays.all():
                    values = np.compress(stays, values, each.axis)
            after.assign(values)
        clone.finalize_state(new)


def _input_names(model: Any) -> list[str]:
    names = getattr(model, "input_names", None)
    return list(names) if names else [tensor.name for tensor in model.inputs]
