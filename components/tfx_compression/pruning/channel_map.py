"""Channel ids: which channels of a network belong together.

Each layer that creates channels (a convolution's filters, a dense layer's units) gives each of them a channel id. Every
tensor has a `ChannelMap`: the id of the channel that each of its elements comes from. Layers that move elements
(Flatten, Reshape, Permute, Concatenate) move the ids in the same way. Layers that combine elements (Add, Multiply)
couple their ids. Layers with weights register which ids index which axis of a weight. Ids with the same root must be
removed together, and removing them only deletes indices. Torch-Pruning (Fang et al. 2023, arXiv:2301.12900) derives the
same groups from rules for pairs of layers.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

FIXED = 0  # id of elements that are never removed: the network's inputs, and the outputs of unknown layers

ChannelIds = np.ndarray
KeepFn = Callable[[ChannelIds], np.ndarray]  # channel ids to whether they are kept


class UnsupportedLayer(Exception):  # noqa: N818 - not an error: the layer's channels are left alone
    """A layer whose channels can't be distinguished. The message continues a sentence about the layer."""


@dataclasses.dataclass(frozen=True)
class ChannelMap:
    """The channel ids of a tensor, without the batch dimension.

    Attributes:
      ids: Array of the tensor's rank; its size is the tensor's along axes on which the ids differ, and 1 along others.
      shape: Shape of the tensor; None for a size that is not fixed.
    """

    ids: ChannelIds
    shape: tuple[int | None, ...]

    @property
    def fixed(self) -> bool:
        """Whether no element can be removed."""
        return not self.ids.any()

    def broadcast(self) -> ChannelIds:
        """Returns the ids in the shape of the tensor.

        Raises:
          UnsupportedLayer: The shape is not fixed.
        """
        if None in self.shape:
            raise UnsupportedLayer(f"gets a tensor whose shape is not fixed: {self.shape}")
        return np.broadcast_to(self.ids, [int(size or 0) for size in self.shape])


@dataclasses.dataclass(frozen=True)
class WeightAxis:
    """An axis of a weight, with the channel id of each index.

    Attributes:
      variable: The weight.
      axis: Its axis.
      ids: Channel id of each index of the axis.
      measured: Whether the weight is a statistic of the data, which no removed unit has set to zero.
    """

    variable: Any
    axis: int
    ids: ChannelIds
    measured: bool = False


@dataclasses.dataclass(frozen=True)
class ConsumingAxis:
    """The input axis of a kernel, which the channels of a tensor index.

    Attributes:
      layer: Layer that multiplies the tensor by the kernel, and adds a bias.
      variable: The kernel.
      axis: Axis of the kernel.
      ids: Channel id of each index along the last axis of the tensor.
      place: Position of the tensor among the inputs of the called layer; None for the state of a recurrent layer.
    """

    layer: Any
    variable: Any
    axis: int
    ids: ChannelIds
    place: int | None


@dataclasses.dataclass(frozen=True)
class ProducingAxis:
    """An axis of a kernel that produces channels: each of its slices holds a channel's own weights.

    Attributes:
      layer: Layer under whose name the channels are reported.
      kind: `filter`, `neuron` or `head`.
      variable: The kernel.
      axis: Axis of the kernel.
      ids: Channel id of each index of the axis (for an LSTM, each unit four times).
      outputs: Channel ids of the layer's outputs; None if the channels are not the layer's output.
    """

    layer: Any
    kind: str
    variable: Any
    axis: int
    ids: ChannelIds
    outputs: ChannelIds | None


class ChannelRegistry:
    """The channels of a network and their couplings, which the rules of the layers register.

    Attributes:
      coupled_calls: Channel ids that a layer gets at all of its calls, by the layer's id and a key.
      weight_axes: Weight axes that channels index, by the variable's id and the axis.
      producers: Axes that produce channels.
      consumers: Input axes of kernels, by the variable's id and the axis.
      scales: Scales of normalizations.
      config_edits: Functions that return a field of a layer's configuration for the kept channels, by the layer's id.
      block_reasons: Reason why a channel is not removed, by channel id.
      inexact: Reason why the removal of a channel changes more than its own values, by channel id.
    """

    def __init__(self) -> None:
        self._parents = np.zeros(1, np.int64)
        self._created: dict[tuple[int, str], ChannelIds] = {}
        self.coupled_calls: dict[tuple[int, str], ChannelIds] = {}
        self.weight_axes: dict[tuple[int, int], WeightAxis] = {}
        self.producers: list[ProducingAxis] = []
        self.consumers: dict[tuple[int, int], ConsumingAxis] = {}
        self.scales: list[WeightAxis] = []
        self.config_edits: dict[int, dict[str, Callable[[KeepFn], Any]]] = {}
        self.block_reasons: dict[int, str] = {}
        self.inexact: dict[int, str] = {}

    @property
    def size(self) -> int:
        """The number of channel ids."""
        return len(self._parents)

    def create(self, layer: Any, count: int, key: str = "") -> ChannelIds:
        """Returns the ids of the `count` channels that a layer creates, the same at every call of the layer.

        Args:
          layer: The layer.
          count: Number of channels.
          key: Name that distinguishes several sets of channels of one layer.
        """
        created = (id(layer), key)
        if created not in self._created:
            first = len(self._parents)
            self._parents = np.append(self._parents, np.arange(first, first + count))
            self._created[created] = self._parents[first:].copy()
        return self._created[created]

    def roots(self, ids: ChannelIds) -> ChannelIds:
        """Returns the id that represents the coupled channels of each id."""
        ids = np.asarray(ids)
        while True:
            parents = self._parents[ids]
            if np.array_equal(parents, ids):
                return ids
            ids = parents

    def couple(self, first: ChannelIds, second: ChannelIds) -> ChannelIds:
        """Couples ids pair by pair; arrays are broadcast. A channel that is paired with a fixed element is blocked.

        Returns:
          The first id of each pair, or FIXED if one of them is.
        """
        first, second = np.broadcast_arrays(first, second)
        first_roots, second_roots = self.roots(first), self.roots(second)
        fixed = (first_roots == FIXED) != (second_roots == FIXED)
        self.block(np.maximum(first_roots, second_roots)[fixed], "is combined with values that stay")
        pairs = np.stack([first_roots, second_roots], -1)[(first_roots != second_roots) & ~fixed]
        for left, right in np.unique(pairs.reshape(-1, 2), axis=0):
            a, b = self.roots(left), self.roots(right)
            self._parents[max(a, b)] = min(a, b)
        return np.where(fixed, FIXED, first)

    def couple_calls(self, layer: Any, key: str, ids: ChannelIds) -> None:
        """Couples the ids that a layer gets at this call with those of its other calls."""
        self.couple(self.coupled_calls.setdefault((id(layer), key), ids), ids)

    def index(self, variable: Any, axis: int, ids: ChannelIds, measured: bool = False) -> None:
        """Registers that channels index an axis of a weight; see `WeightAxis`."""
        axis %= len(variable.shape)
        ids = np.broadcast_to(ids, (int(variable.shape[axis]),))
        known = self.weight_axes.setdefault((id(variable), axis), WeightAxis(variable, axis, ids, measured))
        if known.ids is not ids:
            self.couple(known.ids, ids)

    def consume(
        self,
        layer: Any,
        variable: Any,
        axis: int,
        ids: ChannelIds,
        place: int | None = 0,
        along: ChannelIds | None = None,
    ) -> None:
        """Registers the input axis of a kernel; see `ConsumingAxis`.

        Args:
          layer: The layer.
          variable: The kernel.
          axis: Axis of the kernel.
          ids: Channel id of each index of the axis.
          place: Position of the tensor among the inputs.
          along: Channel id of each index along the last axis of the tensor, if they differ from those of the axis.
        """
        axis %= len(variable.shape)
        along = ids if along is None else along
        self.consumers.setdefault((id(variable), axis), ConsumingAxis(layer, variable, axis, along, place))
        self.index(variable, axis, ids)

    def produce(
        self, layer: Any, kind: str, variable: Any, axis: int, ids: ChannelIds, outputs: ChannelIds | None
    ) -> None:
        """Registers an axis of a kernel that produces channels, and that they index it; see `ProducingAxis`."""
        axis %= len(variable.shape)
        if (id(variable), axis) not in self.weight_axes:
            self.producers.append(ProducingAxis(layer, kind, variable, axis, ids, outputs))
        self.index(variable, axis, ids)

    def add_scale(self, variable: Any, ids: ChannelIds) -> None:
        """Registers the scale of a normalization."""
        if (id(variable), 0) not in self.weight_axes:
            self.scales.append(WeightAxis(variable, 0, ids))
        self.index(variable, 0, ids)

    def edit_config(self, layer: Any, field: str, value: Callable[[KeepFn], Any]) -> None:
        """Registers a field of a layer's configuration that depends on the kept channels."""
        self.config_edits.setdefault(id(layer), {})[field] = value

    def edit_count(self, layer: Any, field: str, ids: ChannelIds) -> None:
        """Registers a field of a layer's configuration that is the number of kept channels."""
        self.edit_config(layer, field, lambda keep: int(keep(ids).sum()))

    def block(self, ids: ChannelIds, reason: str) -> None:
        """Blocks the removal of channels; the first reason is reported."""
        for channel in np.unique(ids):
            if channel != FIXED:
                self.block_reasons.setdefault(int(channel), reason)

    def note_inexact(self, ids: ChannelIds, reason: str) -> None:
        """Records why removing channels changes more than their own values; the first reason is reported."""
        for channel in np.unique(ids):
            if channel != FIXED:
                self.inexact.setdefault(int(channel), reason)

    def last_axis(self, tensor: ChannelMap) -> ChannelIds:
        """Returns the ids along the last axis, after coupling them over all positions, which the layer treats alike.

        Raises:
          UnsupportedLayer: The channels lie along another axis.
        """
        size = tensor.shape[-1]
        rows = tensor.ids.reshape(-1, tensor.ids.shape[-1])
        if tensor.fixed:
            return np.zeros(size or 1, np.int64)
        if rows.shape[1] != size:
            raise UnsupportedLayer("works along the last axis, and the channels lie along another one")
        for row in rows[1:]:
            self.couple(rows[0], row)
        return rows[0]
