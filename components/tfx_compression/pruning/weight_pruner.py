"""Single weights, set to zero by masks: of any model that has variables."""

import contextlib
import math
from collections.abc import Mapping

import numpy as np

from tfx_compression.errors import ConfigError
from tfx_compression.keras_models import graph
from tfx_compression.keras_models.model_size import ModelSize
from tfx_compression.kernels import Kernel
from tfx_compression.model_handle import ModelHandle
from tfx_compression.pruning import criteria
from tfx_compression.pruning.dependency_graph import DependencyGraph
from tfx_compression.pruning.masks import block_scores, carries, mask
from tfx_compression.pruning.plan import PruningPlan
from tfx_compression.pruning.pruning_group import PruningGroup
from tfx_compression.pruning.statistics import Statistics
from tfx_compression.pruning.technique import Technique, assigned


class WeightPruner(Technique):
    """The technique `weight`: the parts are kernels.

    Raises:
      ConfigError: where a rule matches no kernel, asks for a pattern that its kernel can't carry, or nothing is left.
    """

    rounding = "weights that tie with the least important one that stays are kept too (as tfmot does)"

    def __init__(self, trained: ModelHandle, whole: ModelSize, plan: PruningPlan):
        self.kernels = {name: kernel for name, kernel in trained.kernels.items() if kernel.prunable}
        why = {name: reason for name, reason in _left_alone(trained, plan).items() if name in self.kernels}
        small = [name for name, kernel in self.kernels.items() if not carries(kernel, plan)]
        why |= dict.fromkeys(small, f"too small for the pattern {plan.pattern}")
        super().__init__(trained, whole, plan, {name: (name,) for name in self.kernels}, why)
        self.follow_rules(_tied(trained))
        if named := [name for name in small if name in self.fixed]:
            raise ConfigError(
                f"PruningPlan.rules name {named[0]!r}, whose kernel of shape {self.kernels[named[0]].shape} is too "
                f"small for the pattern {plan.pattern!r}: nothing of it could be zero. Remedy: leave it out of the "
                "rules."
            )
        if small:
            self.notes.append(f"Too small for the pattern {plan.pattern} and left dense: {', '.join(small)}.")
        self._scores: dict[str, np.ndarray] = {}
        self._macs = {layer.name: layer.macs or 0 for layer in whole.layers}

    def score(self, statistics: Statistics | None) -> None:
        """See the base class."""
        scores = criteria.score(self.kernels, self.names, self.plan, statistics)
        for name in self.names:
            if name not in scores:
                raise criteria.unscored(self.plan, name)
            kernel, of = self.kernels[name], scores.pop(name)
            if self.plan.allocation == "global":
                of = criteria.normalize(of)
            self._scores[name] = of
            if self.plan.block != (1, 1):
                of = block_scores(kernel, of, self.plan.block)
            self.parts[name] = PruningGroup(name, of, sum(kernel.shape) / math.prod(kernel.shape))

    def masks(self, sparsities: Mapping[str, float]) -> dict[str, np.ndarray]:
        """Which weights stay, of the kernels of which some go."""
        return {
            name: mask(self.kernels[name], self._scores[name], sparsities[name], self.plan)
            for name in self.parts
            if sparsities[name]
        }

    def apply(self, masks: Mapping[str, np.ndarray]) -> None:
        """Sets the weights to zero."""
        for name, stays in masks.items():
            _assign(self.kernels[name], stays)

    def size(self, name: str) -> int:
        """See the base class."""
        return math.prod(self.kernels[name].shape)

    def saved(self, sparsities: Mapping[str, float]) -> float:
        """See the base class. Bytes are those of the weights that are left and a bit mask of the pruned kernels."""
        gone = {name: self.size(name) * share for name, share in sparsities.items() if share}
        if self.plan.target == "parameters":
            return sum(gone.values()) / self.whole.parameters
        if self.plan.target == "macs":
            return sum(self._macs.get(name, 0) * sparsities[name] for name in gone) / max(1, self.whole.macs)
        items = {name: self.kernels[name].itemsize for name in gone}
        return sum(weights * items[name] - self.size(name) / 8 for name, weights in gone.items()) / self.whole.bytes

    def ablated(self, name: str, sparsity: float) -> contextlib.AbstractContextManager[None]:
        """See the base class."""
        kernel = self.kernels[name]
        stays = mask(kernel, self._scores[name], sparsity, self.plan)
        return assigned([(kernel.variable, kernel.values * stays)])


def _assign(kernel: Kernel, stays: np.ndarray) -> None:
    values = kernel.values
    kernel.variable.assign(np.where(stays, values, np.zeros((), values.dtype)))


def _left_alone(trained: ModelHandle, plan: PruningPlan) -> dict[str, str]:
    """By kernel, why it is left alone: its place in the network, or what the user did to it."""
    firsts, lasts = _ends(trained)
    why = dict.fromkeys(lasts if "last" in plan.protect else (), "last layer, protected by default")
    why |= dict.fromkeys(firsts if "first" in plan.protect else (), "first layer, protected by default")
    why |= dict.fromkeys(trained.frozen, "frozen: fine-tuning could not make up for it")
    return why | _tied(trained)


def _tied(trained: ModelHandle) -> dict[str, str]:
    """The kernels that are pruned under another's name, whose variable they share."""
    return {name: f"shares its weights with {first!r}" for name, first in trained.tied.items()}


def _ends(trained: ModelHandle) -> tuple[list[str], list[str]]:
    """The kernels that see the inputs, and those that the outputs come from."""
    if trained.kind == "saved_model":
        return trained.model.ends
    names = list(trained.kernels)
    if trained.network is None or not graph.is_functional(trained.network):
        return names[:1], names[-1:]
    structure = DependencyGraph(trained.network)

    def of(layers: list[str]) -> list[str]:
        return [name for name in names if any(name == layer or name.startswith(f"{layer}/") for layer in layers)]

    return of(structure.firsts), of(structure.lasts)
