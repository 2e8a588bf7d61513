"""The groups of channels of a network that can be removed."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfx_compression import kernels
from tfx_compression.errors import ModelError
from tfx_compression.keras_models import graph
from tfx_compression.pruning.channel_map import FIXED, ChannelIds, ChannelMap, ChannelRegistry, KeepFn, Unsupported
from tfx_compression.pruning.rules import rule_of

# The parameters of layers with weights that carry channels.
_CHANNEL_ARGUMENTS = frozenset(["inputs", "x", "query", "value", "key", "sequence", "sequences", "initial_state"])


@dataclasses.dataclass(frozen=True)
class Producer:
    """The slices of a kernel that belong to a group's units, along one axis.

    Attributes:
      kernel: name.
      axis: of the kernel.
      units: for each index of the axis, the group's unit that it belongs to, or -1.
      outputs: for each channel that comes out of the layer, its unit or -1; None where no output carries them.
    """

    kernel: str
    axis: int
    units: np.ndarray
    outputs: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class ChannelGroup:
    """Channels that the same layers make: units, each of which is removed as a whole or stays.

    Attributes:
      name: of the first layer that makes them; made unique where a layer's channels fall into several groups.
      kind: `filter`, `neuron` or `head`.
      layers: all that make them.
      roots: [units] the atom that stands for each unit.
      width: channels of one layer that a unit takes (more than one where they are coupled, as in grouped convolutions).
      blocked: why nothing of it can be removed, or empty.
      producers: the kernels that make them.
      scales: the scales of normalisations behind them: the layer's name, and each channel's unit or -1.
    """

    name: str
    kind: str
    layers: tuple[str, ...]
    roots: ChannelIds
    width: int
    blocked: str
    producers: tuple[Producer, ...]
    scales: tuple[tuple[str, np.ndarray], ...]

    @property
    def size(self) -> int:
        """The number of units."""
        return int(self.roots.size)


class DependencyGraph:
    """What can be removed from a functional Keras 2 or Keras 3 model.

    Attributes:
      model: the network.
      groups: by name, in the network's order; blocked ones too.
      unsupported: the layers that have no rule, and why.
      firsts: the layers with kernels that see the network's inputs.
      lasts: the layers with kernels that the outputs come from.

    Raises:
      ModelError: for a subclassed model.
    """

    def __init__(self, model: Any):
        if not graph.is_functional(model):
            raise ModelError(
                f"The model {model.name!r} has no graph of layers, so its channels can't be removed. "
                "Remedy: build it with Sequential or the functional API; technique='weight' prunes any model."
            )
        self.model = model
        leaves = kernels.leaf_layers(model)
        self.names = {id(layer): name for name, layer in leaves.items()}
        self._scales = {id(weight): name for name, layer in leaves.items() for weight in kernels.direct_weights(layer)}
        self._weights = {id(kernel.variable): name for name, kernel in kernels.find_kernels(model).items()}
        self.channels = ChannelRegistry()
        self.unsupported: dict[str, str] = {}
        self._left_alone: dict[int, str] = {}
        self.firsts: list[str] = []
        inputs = [self._fixed(tensor) for tensor in model.inputs]
        outputs, behind = self._trace(model, inputs, [frozenset()] * len(inputs), "")
        for flow in outputs:
            self.channels.block(flow.channel_ids, "is an output of the network")
        used = {key: each.channel_ids for key, each in self.channels.slices.items()} | self.channels.tied
        for (user, _), channel_ids in used.items():
            if user in self._left_alone:
                self.channels.block(channel_ids, self._left_alone[user])
        self.lasts = sorted({name for names in behind for name in names})
        self.groups = self._groups()

    def require_supported(self) -> None:
        """Raises ModelError naming the layers that have no rule (`strict`)."""
        if self.unsupported:
            raise ModelError(
                "The plan is strict, and "
                + "; ".join(f"layer {name!r} {why}" for name, why in self.unsupported.items())
                + ". Remedy: strict=False leaves what they touch alone, or replace these layers.",
                field="PruningPlan.strict",
                code="unsupported-layer",
            )

    def kept(self, choices: Mapping[str, np.ndarray]) -> KeepFn:
        """Which channel_ids stay, where `choices` says of some groups which units do ([units] of bool)."""
        stays = np.ones(self.channels.size, bool)
        for name, choice in choices.items():
            stays[self.groups[name].roots[~np.asarray(choice, bool)]] = False
        return lambda channel_ids: stays[self.channels.roots(channel_ids)]

    def _fixed(self, tensor: Any) -> ChannelMap:
        shape = tuple(tensor.shape)[1:]
        return ChannelMap(np.zeros([1] * len(shape), np.int64), shape)

    def _trace(
        self, model: Any, inputs: Sequence[ChannelMap], behind: Sequence[frozenset[str]], scope: str
    ) -> tuple[list[ChannelMap], list[frozenset[str]]]:
        """Sends flows through a model: what comes out, and the layers with kernels that it came from."""
        flows = dict(zip(map(id, model.inputs), inputs, strict=True))
        sources = dict(zip(map(id, model.inputs), behind, strict=True))
        for call in graph.calls(model):
            came = frozenset().union(*(sources[id(tensor)] for tensor in call.inputs))
            name = f"{scope}{call.layer.name}"
            if graph.is_functional(call.layer):
                given = graph.flat_tensors(next(iter(call.arguments.values())))  # Keras 3 adds masks
                arrived = [flows[id(tensor)] for tensor in given]
                for place, flow in enumerate(arrived):
                    self.channels.tie(call.layer, f"input {place}", flow.channel_ids)
                each = [sources[id(tensor)] for tensor in given]
                outputs, lasts = self._trace(call.layer, arrived, each, f"{name}/")
            else:
                outputs = self._call(call, flows, name)
                if any(id(weight) in self._weights for weight in getattr(call.layer, "weights", ())):
                    if not came and name not in self.firsts:
                        self.firsts.append(name)
                    came = frozenset([name])
                lasts = [came] * len(outputs)
            for tensor, flow, last in zip(call.outputs, outputs, lasts, strict=True):
                flows[id(tensor)], sources[id(tensor)] = flow, last
        results = graph.flat_tensors(model.outputs)
        return [flows[id(tensor)] for tensor in results], [sources[id(tensor)] for tensor in results]

    def _call(self, call: graph.Call, flows: Mapping[int, ChannelMap], name: str) -> list[ChannelMap]:
        shapes = [tuple(tensor.shape)[1:] for tensor in call.outputs]
        try:
            channel_ids = rule_of(call.layer)(self.channels, call.layer, _carriers(call, flows), shapes)
        except Unsupported as why:
            self._leave_alone(call, [flows[id(tensor)] for tensor in call.inputs], name, str(why))
            return [self._fixed(tensor) for tensor in call.outputs]
        return [ChannelMap(each, shape) for each, shape in zip(channel_ids, shapes, strict=True)]

    def _leave_alone(self, call: graph.Call, inputs: Sequence[ChannelMap], name: str, why: str) -> None:
        """Blocks what goes into a layer, here and at other calls, and all that uses its weights."""
        weights: list[Any] = getattr(call.layer, "weights", [])
        makes_channels = any(np.ndim(weight) > 1 for weight in weights)
        if makes_channels or not all(flow.fixed for flow in inputs):
            self.unsupported[name] = why
        for flow in inputs:
            self.channels.block(flow.channel_ids, f"goes into layer {name!r}, which {why}")
        for used in (call.layer, *weights):
            self._left_alone[id(used)] = f"belongs to layer {name!r}, which {why}"

    def _groups(self) -> dict[str, ChannelGroup]:
        """Units by the layers that make them."""
        channels = self.channels
        made_by: dict[int, list[int]] = {}
        for number, source in enumerate(channels.sources):
            for root in np.unique(channels.roots(source.channel_ids)):
                if root != FIXED:
                    made_by.setdefault(int(root), []).append(number)
        reasons: dict[int, str] = {}
        for atom, reason in channels.reasons.items():
            reasons.setdefault(int(channels.roots(np.array(atom))), reason)
        members: dict[tuple[int, ...], list[int]] = {}
        for root in sorted(made_by):
            members.setdefault(tuple(made_by[root]), []).append(root)
        groups: dict[str, ChannelGroup] = {}
        for numbers, roots in members.items():
            group = self._group([channels.sources[number] for number in numbers], np.array(roots), reasons, groups)
            groups[group.name] = group
        return groups

    def _group(
        self, sources: Sequence[Any], roots: ChannelIds, reasons: Mapping[int, str], others: Mapping[str, ChannelGroup]
    ) -> ChannelGroup:
        unit_of = np.full(self.channels.size, -1)
        unit_of[roots] = np.arange(roots.size)

        def units(channel_ids: ChannelIds) -> np.ndarray:
            return unit_of[self.channels.roots(channel_ids)]

        producers = tuple(
            Producer(
                self._weights[id(source.variable)],
                source.axis,
                units(source.channel_ids),
                None if source.outputs is None else units(source.outputs),
            )
            for source in sources
        )
        layers = tuple(dict.fromkeys(self.name_of(source.layer) for source in sources))
        kinds = {source.kind for source in sources}
        kind = "filter" if "filter" in kinds else "head" if "head" in kinds else "neuron"
        name = base = layers[0] if kind != "head" else f"{layers[0]}/heads"
        number = 1
        while name in others:
            number += 1
            name = f"{base}#{number}"
        channels = [producer.units if producer.outputs is None else producer.outputs for producer in producers]
        width = max(int(np.bincount(each[each >= 0]).max()) for each in channels)
        scales = tuple(
            (self._scales[id(scale.variable)], units(scale.channel_ids))
            for scale in self.channels.scales
            if (units(scale.channel_ids) >= 0).any()
        )
        blocked = next((reasons[root] for root in roots.tolist() if root in reasons), "")
        return ChannelGroup(name, kind, layers, roots, width, blocked, producers, scales)

    def name_of(self, layer: Any) -> str:
        """The path of a layer; of one that only holds others (an LSTM its cell), its own."""
        if id(layer) in self.names:
            return self.names[id(layer)]
        inner = next(self.names[id(child)] for child in kernels.sublayers(layer) if id(child) in self.names)
        return inner.rpartition("/")[0]


def _carriers(call: graph.Call, flows: Mapping[int, ChannelMap]) -> list[ChannelMap]:
    """The flows that go into a layer, without masks.

    Raises:
      Unsupported: where the call takes what the rules don't know of.
    """
    carriers = []
    operation = not hasattr(call.layer, "weights")  # of Keras 3
    if operation and any(hasattr(value, "dtype") and np.ndim(value) > 0 for value in vars(call.layer).values()):
        raise Unsupported("combines its input with an array of its own")
    for name, value in call.arguments.items():
        arrived = [flows[id(tensor)] for tensor in graph.flat_tensors(value)]
        if _holds_array(value):
            raise Unsupported("combines its input with an array of its own")
        if "mask" in name:
            if not all(flow.fixed and len(flow.shape) <= 2 for flow in arrived):
                raise Unsupported(f"takes a {name} that differs by channel or head")
        elif arrived and name not in _CHANNEL_ARGUMENTS and getattr(call.layer, "weights", None):
            raise Unsupported(f"takes a tensor as {name!r}")
        else:
            carriers += arrived
    return carriers


def _holds_array(value: Any) -> bool:
    if graph.is_symbolic(value):
        return False
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple) and graph.flat_tensors(value):
        return any(_holds_array(part) for part in value)
    return np.ndim(value) > 0
