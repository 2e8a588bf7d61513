"""Which channels of a network belong together: found by sending labels through its graph.

Each layer that makes channels (a convolution's filters, a dense layer's units) gives each of them a channel id. Beside
every tensor flows an array of channel ids: which channel an element comes from. Layers that move elements (Flatten,
Reshape, Permute, Concatenate) move the channel ids the same way; layers that combine channels element by element (Add,
Multiply) unify them; layers with weights note which channel ids index which axis of which weight. What has the same
root in the end must be removed together, and removing it is nothing but deleting indices. Torch-Pruning (Fang et al.
2023, arXiv:2301.12900) finds the same groups by rules for pairs of layers.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

FIXED = 0  # the atom of what is never removed: the network's own inputs, and what comes out of unknown layers

ChannelIds = np.ndarray
KeepFn = Callable[[ChannelIds], np.ndarray]  # channel_ids to whether they stay


@dataclasses.dataclass(frozen=True)
class ChannelMap:
    """A tensor in the graph, without its batch dimension.

    Attributes:
      channel_ids: an array of the tensor's rank, whole along the axes on which they differ and 1 along the others.
      shape: the tensor's; None where it is not fixed.
    """

    channel_ids: ChannelIds
    shape: tuple[int | None, ...]

    @property
    def fixed(self) -> bool:
        """Whether nothing of it can be removed."""
        return not self.channel_ids.any()

    def whole(self) -> ChannelIds:
        """The channel_ids along every axis.

        Raises:
          Unsupported: where the shape is not fixed.
        """
        if None in self.shape:
            raise Unsupported(f"gets a tensor whose shape is not fixed: {self.shape}")
        return np.broadcast_to(self.channel_ids, [int(size or 0) for size in self.shape])


class Unsupported(Exception):  # noqa: N818 - no error: what can't be pruned is left alone
    """A layer whose channels can't be told apart; the message continues “the layer …”."""


@dataclasses.dataclass(frozen=True)
class WeightAxis:
    """An axis of a weight and the atom of each of its indices."""

    variable: Any
    axis: int
    channel_ids: ChannelIds


@dataclasses.dataclass(frozen=True)
class ProducingAxis:
    """Where channels are made: an axis of a kernel, whose slices are the channels' own weights.

    Attributes:
      layer: the layer in whose name they are reported.
      kind: `filter`, `neuron` or `head`.
      variable: the kernel.
      axis: of the kernel.
      channel_ids: of each index of the axis (of an LSTM's, each unit four times).
      outputs: the channel_ids of the layer's output channels, or None where they are not the layer's output.
    """

    layer: Any
    kind: str
    variable: Any
    axis: int
    channel_ids: ChannelIds
    outputs: ChannelIds | None


class ChannelRegistry:
    """What is known of a network's channels; the rules fill it."""

    def __init__(self) -> None:
        self._parents = np.zeros(1, np.int64)
        self._made: dict[tuple[int, str], ChannelIds] = {}
        self.tied: dict[tuple[int, str], ChannelIds] = {}
        self.slices: dict[tuple[int, int], WeightAxis] = {}
        self.sources: list[ProducingAxis] = []
        self.scales: list[WeightAxis] = []
        self.edits: dict[int, dict[str, Callable[[KeepFn], Any]]] = {}
        self.reasons: dict[int, str] = {}

    @property
    def size(self) -> int:
        """The number of channel_ids."""
        return len(self._parents)

    def make(self, layer: Any, count: int, part: str = "") -> ChannelIds:
        """The channel_ids of the `count` channels that a layer makes; the same at every call of the layer."""
        key = (id(layer), part)
        if key not in self._made:
            first = len(self._parents)
            self._parents = np.append(self._parents, np.arange(first, first + count))
            self._made[key] = self._parents[first:].copy()
        return self._made[key]

    def roots(self, channel_ids: ChannelIds) -> ChannelIds:
        """The representative of each atom's unit."""
        channel_ids = np.asarray(channel_ids)
        while True:
            parents = self._parents[channel_ids]
            if np.array_equal(parents, channel_ids):
                return channel_ids
            channel_ids = parents

    def unify(self, one: ChannelIds, other: ChannelIds) -> ChannelIds:
        """Couples channel_ids pair by pair (arrays that broadcast); what meets a fixed one is blocked.

        Returns:
          Of each pair the first, or FIXED where one of the two is.
        """
        one, other = np.broadcast_arrays(one, other)
        first, second = self.roots(one), self.roots(other)
        fixed = (first == FIXED) != (second == FIXED)
        self.block(np.maximum(first, second)[fixed], "is combined with values that stay")
        pairs = np.stack([first, second], -1)[(first != second) & ~fixed]
        for left, right in np.unique(pairs.reshape(-1, 2), axis=0):
            a, b = self.roots(left), self.roots(right)
            self._parents[max(a, b)] = min(a, b)
        return np.where(fixed, FIXED, one)

    def tie(self, layer: Any, part: str, channel_ids: ChannelIds) -> None:
        """Couples what a layer gets here at all its calls."""
        self.unify(self.tied.setdefault((id(layer), part), channel_ids), channel_ids)

    def index(self, variable: Any, axis: int, channel_ids: ChannelIds) -> None:
        """Notes that the indices of a weight's axis belong to `channel_ids`."""
        axis %= len(variable.shape)
        channel_ids = np.broadcast_to(channel_ids, (int(variable.shape[axis]),))
        known = self.slices.setdefault((id(variable), axis), WeightAxis(variable, axis, channel_ids))
        if known.channel_ids is not channel_ids:
            self.unify(known.channel_ids, channel_ids)

    def source(
        self, layer: Any, kind: str, variable: Any, axis: int, channel_ids: ChannelIds, outputs: ChannelIds | None
    ) -> None:
        """Notes a kernel whose slices are the channels' own weights, which it indexes too."""
        axis %= len(variable.shape)
        if (id(variable), axis) not in self.slices:
            self.sources.append(ProducingAxis(layer, kind, variable, axis, channel_ids, outputs))
        self.index(variable, axis, channel_ids)

    def scale(self, variable: Any, channel_ids: ChannelIds) -> None:
        """Notes the scale of a normalisation."""
        if (id(variable), 0) not in self.slices:
            self.scales.append(WeightAxis(variable, 0, channel_ids))
        self.index(variable, 0, channel_ids)

    def edit(self, layer: Any, key: str, value: Callable[[KeepFn], Any]) -> None:
        """Notes a field of a layer's configuration that depends on what stays."""
        self.edits.setdefault(id(layer), {})[key] = value

    def count(self, layer: Any, key: str, channel_ids: ChannelIds) -> None:
        """Notes a field that is the number of channels that stay."""
        self.edit(layer, key, lambda kept: int(kept(channel_ids).sum()))

    def block(self, channel_ids: ChannelIds, reason: str) -> None:
        """Leaves the units of these channel_ids alone; the first reason is reported."""
        for atom in np.unique(channel_ids):
            if atom != FIXED:
                self.reasons.setdefault(int(atom), reason)

    def last_axis(self, flow: ChannelMap) -> ChannelIds:
        """The channel ids along the last axis, whose channels a layer treats alike at every place: they are coupled.

        Raises:
          Unsupported: where the channels lie along another axis.
        """
        size = flow.shape[-1]
        rows = flow.channel_ids.reshape(-1, flow.channel_ids.shape[-1])
        if flow.fixed:
            return np.zeros(size or 1, np.int64)
        if rows.shape[1] != size:
            raise Unsupported("works along the last axis, and the channels lie along another one")
        for row in rows[1:]:
            self.unify(rows[0], row)
        return rows[0]
