"""The groups of channels of a network that can only be removed together."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfx_compression import kernels
from tfx_compression.errors import ModelError
from tfx_compression.keras_models import graph
from tfx_compression.pruning.channel_map import (
    FIXED,
    ChannelIds,
    ChannelMap,
    ChannelRegistry,
    KeepFn,
    ProducingAxis,
    UnsupportedLayer,
)
from tfx_compression.pruning.channel_rules import rule_of

# The parameters of layers with weights that carry channels.
_CHANNEL_ARGUMENTS = frozenset(["inputs", "x", "query", "value", "key", "sequence", "sequences", "initial_state"])


@dataclasses.dataclass(frozen=True)
class Producer:
    """An axis of a kernel whose slices are the weights of a group's units.

    Attributes:
      kernel: Name of the kernel.
      axis: Axis of the kernel.
      units: The group's unit that each index of the axis belongs to, or -1.
      outputs: The group's unit of each output channel of the layer, or -1; None if no output carries them.
    """

    kernel: str
    axis: int
    units: np.ndarray
    outputs: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class ChannelGroup:
    """Channels that the same layers produce, divided into units that are each kept or removed as a whole.

    Attributes:
      name: Name of the first layer that produces them, made unique if a layer's channels are in several groups.
      kind: `filter`, `neuron` or `head`.
      layers: All layers that produce them.
      roots: Channel id that represents each unit, [units].
      width: Channels of one layer per unit; more than one if they are coupled, as in grouped convolutions.
      blocked: Reason why none of them can be removed; empty if they can.
      inexact: Reason why removing some changes more than their own values; empty if it doesn't.
      producers: Kernels that produce them.
      scales: Scales of the normalizations that follow: the layer's name, and the unit of each channel or -1.
    """

    name: str
    kind: str
    layers: tuple[str, ...]
    roots: ChannelIds
    width: int
    blocked: str
    inexact: str
    producers: tuple[Producer, ...]
    scales: tuple[tuple[str, np.ndarray], ...]

    @property
    def size(self) -> int:
        """The number of units."""
        return int(self.roots.size)


class DependencyGraph:
    """The channels of a functional Keras 2 or Keras 3 model and the groups in which they can be removed.

    Attributes:
      model: The model.
      registry: Its channels.
      groups: The groups by name, in the model's order; blocked groups too.
      unsupported: Reason why a layer has no rule, by name.
      first_layers: Names of the layers with kernels that get the model's inputs.
      last_layers: Names of the layers with kernels that lead to the outputs.

    Raises:
      ModelError: The model is subclassed.
    """

    def __init__(self, model: Any):
        if not graph.is_functional(model):
            raise ModelError(
                f"The model {model.name!r} has no graph of layers, so its channels can't be removed. "
                "Remedy: build it with Sequential or the functional API; technique='weight' prunes any model.",
                code="no-layer-graph",
            )
        self.model = model
        layers = kernels.leaf_layers(model)
        self._names = {id(layer): name for name, layer in layers.items()}
        self._scale_names = {
            id(weight): name for name, layer in layers.items() for weight in kernels.direct_weights(layer)
        }
        self._kernel_names = {id(kernel.variable): name for name, kernel in kernels.find_kernels(model).items()}
        self.registry = ChannelRegistry()
        self.unsupported: dict[str, str] = {}
        self._block_reasons: dict[int, str] = {}  # by id of a layer or weight
        self.first_layers: list[str] = []
        inputs = [_fixed_map(tensor) for tensor in model.inputs]
        outputs, ancestors = self._trace(model, inputs, [frozenset()] * len(inputs), "")
        self._block(outputs)
        self.last_layers = sorted({name for names in ancestors for name in names})
        self.groups = self._find_groups()

    def require_supported(self) -> None:
        """Raises ModelError for layers that have no rule (`PruningPlan.strict`)."""
        if self.unsupported:
            raise ModelError(
                "The plan is strict, and "
                + "; ".join(f"layer {name!r} {reason}" for name, reason in self.unsupported.items())
                + ". Remedy: strict=False leaves the channels that they touch alone, or replace these layers.",
                field="PruningPlan.strict",
                code="unsupported-layer",
            )

    def keep_fn(self, kept: Mapping[str, np.ndarray]) -> KeepFn:
        """Returns the function that tells which channel ids are kept.

        Args:
          kept: The units that are kept, [units] of bool, by group. Groups that are not named are kept.
        """
        keep = np.ones(self.registry.size, bool)
        for name, units in kept.items():
            keep[self.groups[name].roots[~np.asarray(units, bool)]] = False
        return lambda ids: keep[self.registry.roots(ids)]

    def name_of(self, layer: Any) -> str:
        """Returns the path of a layer, also of one that only holds others (an LSTM its cell)."""
        if id(layer) in self._names:
            return self._names[id(layer)]
        inner = next(self._names[id(child)] for child in kernels.sublayers(layer) if id(child) in self._names)
        return inner.rpartition("/")[0]

    def _trace(
        self, model: Any, inputs: Sequence[ChannelMap], ancestors: Sequence[frozenset[str]], scope: str
    ) -> tuple[list[ChannelMap], list[frozenset[str]]]:
        """Propagates channel maps through a model.

        Args:
          model: The model, or a model nested in it.
          inputs: Channel map of each input.
          ancestors: The last layers with kernels before each input.
          scope: Prefix of the layers' names.

        Returns:
          Channel maps and the last layers with kernels of the outputs.
        """
        maps = dict(zip(map(id, model.inputs), inputs, strict=True))
        last = dict(zip(map(id, model.inputs), ancestors, strict=True))
        for call in graph.calls(model):
            before = frozenset().union(*(last[id(tensor)] for tensor in call.inputs))
            name = f"{scope}{call.layer.name}"
            if graph.is_functional(call.layer):
                given = graph.flat_tensors(next(iter(call.arguments.values())))  # Keras 3 adds masks
                given_maps = [maps[id(tensor)] for tensor in given]
                for place, tensor_map in enumerate(given_maps):
                    self.registry.couple_calls(call.layer, f"input {place}", tensor_map.ids)
                given_last = [last[id(tensor)] for tensor in given]
                outputs, after = self._trace(call.layer, given_maps, given_last, f"{name}/")
            else:
                outputs = self._call(call, maps, name)
                if any(id(weight) in self._kernel_names for weight in getattr(call.layer, "weights", ())):
                    if not before and name not in self.first_layers:
                        self.first_layers.append(name)
                    before = frozenset([name])
                after = [before] * len(outputs)
            for tensor, output, layers in zip(call.outputs, outputs, after, strict=True):
                maps[id(tensor)], last[id(tensor)] = output, layers
        results = graph.flat_tensors(model.outputs)
        return [maps[id(tensor)] for tensor in results], [last[id(tensor)] for tensor in results]

    def _call(self, call: graph.Call, maps: Mapping[int, ChannelMap], name: str) -> list[ChannelMap]:
        """Applies the rule of a layer at one of its calls."""
        shapes = [tuple(tensor.shape)[1:] for tensor in call.outputs]
        try:
            ids = rule_of(call.layer)(self.registry, call.layer, _channel_inputs(call, maps), shapes)
        except UnsupportedLayer as reason:
            self._leave_alone(call, [maps[id(tensor)] for tensor in call.inputs], name, str(reason))
            return [_fixed_map(tensor) for tensor in call.outputs]
        return [ChannelMap(each, shape) for each, shape in zip(ids, shapes, strict=True)]

    def _leave_alone(self, call: graph.Call, inputs: Sequence[ChannelMap], name: str, reason: str) -> None:
        """Blocks the inputs of a layer at this and other calls, and everything that uses its weights."""
        weights: list[Any] = getattr(call.layer, "weights", [])
        makes_channels = any(np.ndim(weight) > 1 for weight in weights)
        if makes_channels or not all(tensor.fixed for tensor in inputs):
            self.unsupported[name] = reason
        for tensor in inputs:
            self.registry.block(tensor.ids, f"goes into layer {name!r}, which {reason}")
        for blocked in (call.layer, *weights):
            self._block_reasons[id(blocked)] = f"belongs to layer {name!r}, which {reason}"

    def _block(self, outputs: Sequence[ChannelMap]) -> None:
        """Blocks the network's outputs, and what layers and weights that are left alone use at other calls."""
        for tensor in outputs:
            self.registry.block(tensor.ids, "is an output of the network")
        axes = {key: axis.ids for key, axis in self.registry.weight_axes.items()}
        for (user, _), ids in (axes | self.registry.coupled_calls).items():
            if user in self._block_reasons:
                self.registry.block(ids, self._block_reasons[user])

    def _find_groups(self) -> dict[str, ChannelGroup]:
        """Groups the units by the kernels that produce them."""
        registry = self.registry
        producers_of: dict[int, list[int]] = {}  # numbers of the producing axes, by root
        for number, producer in enumerate(registry.producers):
            for root in np.unique(registry.roots(producer.ids)):
                if root != FIXED:
                    producers_of.setdefault(int(root), []).append(number)
        reasons: dict[int, str] = {}
        for channel, reason in registry.block_reasons.items():
            reasons.setdefault(int(registry.roots(np.array(channel))), reason)
        inexact = {int(registry.roots(np.array(channel))): reason for channel, reason in registry.inexact.items()}
        roots_of: dict[tuple[int, ...], list[int]] = {}
        for root in sorted(producers_of):
            roots_of.setdefault(tuple(producers_of[root]), []).append(root)
        groups: dict[str, ChannelGroup] = {}
        for numbers, roots in roots_of.items():
            axes = [registry.producers[number] for number in numbers]
            group = self._group(axes, np.array(roots), reasons, inexact, groups)
            groups[group.name] = group
        return groups

    def _group(
        self,
        axes: Sequence[ProducingAxis],
        roots: ChannelIds,
        reasons: Mapping[int, str],
        inexact: Mapping[int, str],
        groups: Mapping[str, ChannelGroup],
    ) -> ChannelGroup:
        unit_of = np.full(self.registry.size, -1)
        unit_of[roots] = np.arange(roots.size)

        def units(ids: ChannelIds) -> np.ndarray:
            return unit_of[self.registry.roots(ids)]

        producers = tuple(
            Producer(
                self._kernel_names[id(axis.variable)],
                axis.axis,
                units(axis.ids),
                None if axis.outputs is None else units(axis.outputs),
            )
            for axis in axes
        )
        layers = tuple(dict.fromkeys(self.name_of(axis.layer) for axis in axes))
        kinds = {axis.kind for axis in axes}
        kind = "filter" if "filter" in kinds else "head" if "head" in kinds else "neuron"
        channels = [producer.units if producer.outputs is None else producer.outputs for producer in producers]
        return ChannelGroup(
            name=_unique(layers[0] if kind != "head" else f"{layers[0]}/heads", groups),
            kind=kind,
            layers=layers,
            roots=roots,
            width=max(int(np.bincount(each[each >= 0]).max()) for each in channels),
            blocked=next((reasons[root] for root in roots.tolist() if root in reasons), ""),
            inexact=next((inexact[root] for root in roots.tolist() if root in inexact), ""),
            producers=producers,
            scales=tuple(
                (self._scale_names[id(scale.variable)], units(scale.ids))
                for scale in self.registry.scales
                if (units(scale.ids) >= 0).any()
            ),
        )


def _unique(name: str, taken: Mapping[str, ChannelGroup]) -> str:
    numbered, number = name, 1
    while numbered in taken:
        number += 1
        numbered = f"{name}#{number}"
    return numbered


def _fixed_map(tensor: Any) -> ChannelMap:
    shape = tuple(tensor.shape)[1:]
    return ChannelMap(np.zeros([1] * len(shape), np.int64), shape)


def _channel_inputs(call: graph.Call, maps: Mapping[int, ChannelMap]) -> list[ChannelMap]:
    """Returns the channel maps of a layer's inputs, without masks.

    Raises:
      UnsupportedLayer: The call has arguments that the rules don't handle.
    """
    inputs = []
    is_operation = not hasattr(call.layer, "weights")  # of Keras 3
    if is_operation and any(hasattr(value, "dtype") and np.ndim(value) > 0 for value in vars(call.layer).values()):
        raise UnsupportedLayer("combines its input with an array of its own")
    for name, value in call.arguments.items():
        tensors = [maps[id(tensor)] for tensor in graph.flat_tensors(value)]
        if _holds_array(value):
            raise UnsupportedLayer("combines its input with an array of its own")
        if "mask" in name:
            if not all(tensor.fixed and len(tensor.shape) <= 2 for tensor in tensors):
                raise UnsupportedLayer(f"takes a {name} that differs by channel or head")
        elif tensors and name not in _CHANNEL_ARGUMENTS and getattr(call.layer, "weights", None):
            raise UnsupportedLayer(f"takes a tensor as {name!r}")
        else:
            inputs += tensors
    return inputs


def _holds_array(value: Any) -> bool:
    if graph.is_symbolic(value):
        return False
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple) and graph.flat_tensors(value):
        return any(_holds_array(element) for element in value)
    return np.ndim(value) > 0
