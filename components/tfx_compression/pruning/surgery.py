"""The removal of channels: the network is rebuilt with narrower layers and the weights of the kept channels."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tfx_compression.errors import ModelError
from tfx_compression.keras_models import clone
from tfx_compression.pruning.channel_map import KeepFn, WeightAxis
from tfx_compression.pruning.dependency_graph import DependencyGraph
from tfx_compression.pruning.network_rebuild import NetworkRebuilder


def remove(
    dependencies: DependencyGraph, kept: Mapping[str, np.ndarray], values: Mapping[int, np.ndarray] | None = None
) -> Any:
    """Returns a network without the units that are not kept.

    Args:
      dependencies: Dependency graph of the network, which is left as it is.
      kept: The units to keep, [units] of bool, by group. Groups that are not named keep all.
      values: Values that replace those of variables of the network, in the same shapes, by the variable's id.

    Returns:
      A new model of the same Keras, with the same layer names, inputs and outputs, not compiled.

    Raises:
      ModelError: A group is blocked or would lose all of its channels, or a layer can't be built from its
        configuration.
    """
    for name, units in kept.items():
        group = dependencies.groups[name]
        if group.blocked and not np.all(units):
            raise ModelError(
                f"The channels of {name!r} can't be removed: one of them {group.blocked}. Remedy: keep all of them.",
                code="blocked-channels",
            )
        if not np.any(units):
            raise ModelError(f"None of the channels of {name!r} is kept. Remedy: keep one.", code="no-channels-left")
    surgeon = _Surgeon(dependencies, dependencies.keep_fn(kept), values or {})
    return NetworkRebuilder(surgeon.narrowed, surgeon.fill).rebuild(dependencies.model)


def channels_left(dependencies: DependencyGraph, kept: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """Returns the indices of the output channels that are kept, by layer, for layers that lose some."""
    keep = dependencies.keep_fn(kept)
    left = {}
    for producer in dependencies.registry.producers:
        stays = keep(producer.ids if producer.outputs is None else producer.outputs)
        if not stays.all():
            name = dependencies.name_of(producer.layer)
            left[name if producer.kind != "head" else f"{name}/heads"] = tuple(np.flatnonzero(stays).tolist())
    return left


class _Surgeon:
    """Makes the narrower layers."""

    def __init__(self, dependencies: DependencyGraph, keep: KeepFn, values: Mapping[int, np.ndarray]):
        self._config_edits = dependencies.registry.config_edits
        self._keep = keep
        self._values = values
        self._axes: dict[int, list[WeightAxis]] = {}  # by id of the variable
        for (variable, _), weight_axis in dependencies.registry.weight_axes.items():
            self._axes.setdefault(variable, []).append(weight_axis)

    def narrowed(self, layer: Any) -> Any:
        """Returns a new layer with the kept channels, not built yet."""
        try:
            return clone.clone_layer(layer, self._config(layer, layer.get_config()))
        except (TypeError, ValueError, NotImplementedError) as error:
            raise ModelError(
                f"Layer {layer.name!r} of the class {type(layer).__name__} can't be built from its configuration: "
                f"{str(error).rstrip(' .')}. Remedy: a get_config() that returns the arguments of its constructor.",
                code="layer-not-clonable",
            ) from error

    def fill(self, layer: Any, new: Any) -> None:
        """Gives a built layer the kept weights and the other state of the old one."""
        clone.copy_trainable(layer, new)  # Keras 2 lists trainable weights first
        for old, weight in zip(layer.weights, new.weights, strict=True):
            if not hasattr(old, "numpy"):
                continue  # a vocabulary
            values = self._values.get(id(old), np.asarray(old.numpy()))
            for weight_axis in self._axes.get(id(old), ()):
                stays = self._keep(weight_axis.ids)
                if not stays.all():
                    values = np.compress(stays, values, weight_axis.axis)
            weight.assign(values)
        clone.finalize_state(new)

    def _config(self, layer: Any, config: dict[str, Any]) -> dict[str, Any]:
        """Returns a layer's configuration with the kept sizes, including the configurations of wrapped layers."""
        edits = {field: value(self._keep) for field, value in self._config_edits.get(id(layer), {}).items()}
        for field, inner in (("layer", "layer"), ("layer", "forward_layer"), ("backward_layer", "backward_layer")):
            wrapped = getattr(layer, inner, None)
            if isinstance(config.get(field), dict) and wrapped is not None:
                before = {**config[field], **edits.get(field, {})}
                before.pop("build_config", None)  # the shape that Keras 3 would build it for
                edits[field] = {**before, "config": self._config(wrapped, before["config"])}
        return {**config, **edits}
