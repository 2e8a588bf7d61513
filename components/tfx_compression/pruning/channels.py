"""Which channels of a network belong together: found by sending labels through its graph.

Each layer that makes channels (a convolution's filters, a dense layer's units) gives each of them an *atom*, a number.
Beside every tensor flows an array of atoms: which channel an element comes from. Layers that move elements (Flatten,
Reshape, Permute, Concatenate) move the atoms the same way; layers that combine channels element by element (Add,
Multiply) unify them; layers with weights note which atoms index which axis of which weight. What has the same root in
the end must be removed together, and removing it is nothing but deleting indices. Torch-Pruning (Fang et al. 2023,
arXiv:2301.12900) finds the same groups by rules for pairs of layers.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

FIXED = 0  # the atom of what is never removed: the network's own inputs, and what comes out of unknown layers

Atoms = np.ndarray
Kept = Callable[[Atoms], np.ndarray]  # atoms to whether they stay


@dataclasses.dataclass(frozen=True)
class Flow:
    """A tensor in the graph, without its batch dimension.

    Attributes:
      atoms: an array of the tensor's rank, whole along the axes on which the atoms differ and 1 along the others.
      shape: the tensor's; None where it is not fixed.
    """

    atoms: Atoms
    shape: tuple[int | None, ...]

    @property
    def fixed(self) -> bool:
        """Whether nothing of it can be removed."""
        return not self.atoms.any()

    def whole(self) -> Atoms:
        """The atoms along every axis.

        Raises:
          Unsupported: where the shape is not fixed.
        """
        if None in self.shape:
            raise Unsupported(f"gets a tensor whose shape is not fixed: {self.shape}")
        return np.broadcast_to(self.atoms, [int(size or 0) for size in self.shape])


class Unsupported(Exception):  # noqa: N818 - no error: what can't be pruned is left alone
    """A layer whose channels can't be told apart; the message continues “the layer …”."""


@dataclasses.dataclass(frozen=True)
class Slice:
    """An axis of a weight and the atom of each of its indices."""

    variable: Any
    axis: int
    atoms: Atoms


@dataclasses.dataclass(frozen=True)
class Source:
    """Where channels are made: an axis of a kernel, whose slices are the channels' own weights.

    Attributes:
      layer: the layer in whose name they are reported.
      kind: `filter`, `neuron` or `head`.
      variable: the kernel.
      axis: of the kernel.
      atoms: of each index of the axis (of an LSTM's, each unit four times).
      outputs: the atoms of the layer's output channels, or None where they are not the layer's output.
    """

    layer: Any
    kind: str
    variable: Any
    axis: int
    atoms: Atoms
    outputs: Atoms | None


class Channels:
    """What is known of a network's channels; the rules fill it."""

    def __init__(self) -> None:
        self._parents = np.zeros(1, np.int64)
        self._made: dict[tuple[int, str], Atoms] = {}
        self.tied: dict[tuple[int, str], Atoms] = {}
        self.slices: dict[tuple[int, int], Slice] = {}
        self.sources: list[Source] = []
        self.scales: list[Slice] = []
        self.edits: dict[int, dict[str, Callable[[Kept], Any]]] = {}
        self.reasons: dict[int, str] = {}

    @property
    def size(self) -> int:
        """The number of atoms."""
        return len(self._parents)

    def make(self, layer: Any, count: int, part: str = "") -> Atoms:
        """The atoms of the `count` channels that a layer makes; the same at every call of the layer."""
        key = (id(layer), part)
        if key not in self._made:
            first = len(self._parents)
            self._parents = np.append(self._parents, np.arange(first, first + count))
            self._made[key] = self._parents[first:].copy()
        return self._made[key]

    def roots(self, atoms: Atoms) -> Atoms:
        """The representative of each atom's unit."""
        atoms = np.asarray(atoms)
        while True:
            parents = self._parents[atoms]
            if np.array_equal(parents, atoms):
                return atoms
            atoms = parents

    def unify(self, one: Atoms, other: Atoms) -> Atoms:
        """Couples atoms pair by pair (arrays that broadcast); what meets a fixed one is blocked.

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

    def tie(self, layer: Any, part: str, atoms: Atoms) -> None:
        """Couples what a layer gets here at all its calls."""
        self.unify(self.tied.setdefault((id(layer), part), atoms), atoms)

    def index(self, variable: Any, axis: int, atoms: Atoms) -> None:
        """Notes that the indices of a weight's axis belong to `atoms`."""
        axis %= len(variable.shape)
        atoms = np.broadcast_to(atoms, (int(variable.shape[axis]),))
        known = self.slices.setdefault((id(variable), axis), Slice(variable, axis, atoms))
        if known.atoms is not atoms:
            self.unify(known.atoms, atoms)

    def source(self, layer: Any, kind: str, variable: Any, axis: int, atoms: Atoms, outputs: Atoms | None) -> None:
        """Notes a kernel whose slices are the channels' own weights, which it indexes too."""
        axis %= len(variable.shape)
        if (id(variable), axis) not in self.slices:
            self.sources.append(Source(layer, kind, variable, axis, atoms, outputs))
        self.index(variable, axis, atoms)

    def scale(self, variable: Any, atoms: Atoms) -> None:
        """Notes the scale of a normalisation."""
        if (id(variable), 0) not in self.slices:
            self.scales.append(Slice(variable, 0, atoms))
        self.index(variable, 0, atoms)

    def edit(self, layer: Any, key: str, value: Callable[[Kept], Any]) -> None:
        """Notes a field of a layer's configuration that depends on what stays."""
        self.edits.setdefault(id(layer), {})[key] = value

    def count(self, layer: Any, key: str, atoms: Atoms) -> None:
        """Notes a field that is the number of channels that stay."""
        self.edit(layer, key, lambda kept: int(kept(atoms).sum()))

    def block(self, atoms: Atoms, reason: str) -> None:
        """Leaves the units of these atoms alone; the first reason is reported."""
        for atom in np.unique(atoms):
            if atom != FIXED:
                self.reasons.setdefault(int(atom), reason)

    def last_axis(self, flow: Flow) -> Atoms:
        """The atoms along the last axis, whose channels a layer treats alike at every place: they are coupled over it.

        Raises:
          Unsupported: where the channels lie along another axis.
        """
        size = flow.shape[-1]
        rows = flow.atoms.reshape(-1, flow.atoms.shape[-1])
        if flow.fixed:
            return np.zeros(size or 1, np.int64)
        if rows.shape[1] != size:
            raise Unsupported("works along the last axis, and the channels lie along another one")
        for row in rows[1:]:
            self.unify(rows[0], row)
        return rows[0]
