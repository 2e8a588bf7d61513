"""Weight pruning: masks that set single weights to zero, in any model that has variables."""

import contextlib
import math
from collections.abc import Mapping

import numpy as np

from tfx_compression.errors import ConfigError
from tfx_compression.keras_models import execution, graph
from tfx_compression.kernels.variable_uses import first_and_last_kernels, variable_id
from tfx_compression.model_handle import ModelHandle
from tfx_compression.pruning import importance
from tfx_compression.pruning.allocation import ALLOCATIONS
from tfx_compression.pruning.dependency_graph import DependencyGraph
from tfx_compression.pruning.masks import block_scores, mask, supports_pattern
from tfx_compression.pruning.model_pruner import AppliedPruning, Kept, ModelPruner, assigned
from tfx_compression.pruning.plan import PruningPlan
from tfx_compression.pruning.protection import protected_ends
from tfx_compression.pruning.pruning_group import PruningGroup
from tfx_compression.pruning.statistics import Statistics


class WeightPruner(ModelPruner):
    """The technique `weight`. Each group is a kernel.

    Args:
      handle: The model; `apply` changes its weights.
      plan: The plan.

    Raises:
      ConfigError: A rule matches no kernel or names one that is too small for the pattern, or nothing is left to prune.
    """

    rounding_reason = "weights that tie with the least important kept weight are kept too (as tfmot does)"

    def __init__(self, handle: ModelHandle, plan: PruningPlan):
        self.kernels = {name: kernel for name, kernel in handle.kernels.items() if kernel.prunable}
        reasons, notes = _protected(handle, plan)
        protected = {name: reason for name, reason in reasons.items() if name in self.kernels}
        small = [name for name, kernel in self.kernels.items() if not supports_pattern(kernel, plan)]
        protected |= dict.fromkeys(small, f"too small for the pattern {plan.pattern}")
        super().__init__(handle, plan, {name: (name,) for name in self.kernels}, protected)
        self.notes += notes
        self.apply_rules(_tied(handle))
        if named := [name for name in small if name in self.rule_sparsity]:
            raise ConfigError(
                f"PruningPlan.rules name {named[0]!r}, whose kernel of shape {self.kernels[named[0]].shape} is too "
                f"small for the pattern {plan.pattern!r}: none of its weights could be zero. Remedy: leave it out of "
                "the rules.",
                field="PruningPlan.rules",
                code="kernel-too-small",
            )
        if small:
            self.notes.append(f"Too small for the pattern {plan.pattern} and left dense: {', '.join(small)}.")
        self._scores: dict[str, np.ndarray] = {}
        self._macs = {layer.name: layer.macs or 0 for layer in self.size.layers}

    def score(self, statistics: Statistics | None) -> None:
        """See the base class."""
        scores = importance.score(self.kernels, self.names, self.plan, self.criterion, statistics)
        for name in self.names:
            if name not in scores:
                raise importance.unscored(self.criterion, name)
            kernel, values = self.kernels[name], scores.pop(name)
            if ALLOCATIONS[self.plan.allocation].ranks_groups_together:
                values = importance.normalize(values)
            self._scores[name] = values
            if self.plan.block != (1, 1):
                values = block_scores(kernel, values, self.plan.block)
            self.groups[name] = PruningGroup(name, values, sum(kernel.shape) / math.prod(kernel.shape))

    def select(self, sparsity: Mapping[str, float]) -> dict[str, np.ndarray]:
        """Returns the masks of the kernels that lose weights: True where a weight is kept, in the kernel's shape."""
        return {
            name: mask(self.kernels[name], self._scores[name], sparsity[name], self.plan)
            for name in self.groups
            if sparsity.get(name)
        }

    def apply(self, kept: Kept) -> AppliedPruning:
        """Sets the masked weights of the model to zero."""
        for name, stays in kept.items():
            kernel = self.kernels[name]
            values = kernel.values
            kernel.variable.assign(np.where(stays, values, np.zeros((), values.dtype)))
        return AppliedPruning(self.handle.model, self.handle.measure(), masks=kept)

    def counts(self, name: str) -> bool:
        """See the base class. A shared variable counts under its first name."""
        return name not in self.handle.tied

    def elements(self, name: str) -> int:
        """See the base class."""
        return math.prod(self.kernels[name].shape)

    def saved_fraction(self, sparsity: Mapping[str, float]) -> float:
        """See the base class. Bytes are those of the kept weights, and a bit mask for each pruned kernel."""
        removed = {name: self.elements(name) * fraction for name, fraction in sparsity.items() if fraction}
        if self.plan.target == "parameters":
            return sum(removed.values()) / self.size.parameters
        if self.plan.target == "macs":
            return sum(self._macs.get(name, 0) * sparsity[name] for name in removed) / (self.size.macs or 1)
        itemsize = {name: self.kernels[name].itemsize for name in removed}
        saved = sum(weights * itemsize[name] - self.elements(name) / 8 for name, weights in removed.items())
        return saved / self.size.bytes

    def ablated(self, name: str, sparsity: float) -> contextlib.AbstractContextManager[None]:
        """See the base class."""
        kernel = self.kernels[name]
        stays = mask(kernel, self._scores[name], sparsity, self.plan)
        return assigned([(kernel.variable, kernel.values * stays)])


def _protected(handle: ModelHandle, plan: PruningPlan) -> tuple[dict[str, str], list[str]]:
    """Returns the reasons why kernels are not pruned (their place, or what the user did to them), and notes."""
    first, last = _ends(handle)
    ends = dict.fromkeys(last if "last" in plan.protected_ends else (), "last layer")
    ends |= dict.fromkeys(first if "first" in plan.protected_ends else (), "first layer")
    left = dict.fromkeys(handle.frozen, "frozen: fine-tuning could not make up for it") | _tied(handle)
    weights = {name: math.prod(kernel.shape) for name, kernel in handle.kernels.items() if name not in handle.tied}
    ends = {name: end for name, end in ends.items() if name not in left and handle.kernels[name].prunable}
    reasons, notes = protected_ends(plan, ends, weights, sum(weights.values()))
    return reasons | left, notes


def _tied(handle: ModelHandle) -> dict[str, str]:
    """Returns the kernels whose variable is pruned under another kernel's name."""
    return {name: f"shares its weights with {first!r}" for name, first in handle.tied.items()}


def _traced_ends(handle: ModelHandle) -> tuple[list[str], list[str]]:
    """Returns the ends of a subclassed model, from the graph of its call; without one, the kernels of its first and
    last layer.
    """
    names = list(handle.kernels)
    function = execution.trace(handle.model)
    if function is not None:
        ids = {name: variable_id(handle.kernels[name].variable) for name in names}
        first, last = first_and_last_kernels(function, set(ids.values()))
        if first and last:
            return [name for name in names if ids[name] in first], [name for name in names if ids[name] in last]
    return names[:1], names[-1:]


def _ends(handle: ModelHandle) -> tuple[list[str], list[str]]:
    """Returns the kernels next to the inputs, and those next to the outputs."""
    if handle.kind == "saved_model":
        return handle.model.first_and_last_kernels
    names = list(handle.kernels)
    if handle.network is None or not graph.is_functional(handle.network):
        return _traced_ends(handle)
    dependencies = DependencyGraph(handle.network)

    def kernels_of(layers: list[str]) -> list[str]:
        return [name for name in names if any(name == layer or name.startswith(f"{layer}/") for layer in layers)]

    return kernels_of(dependencies.first_layers), kernels_of(dependencies.last_layers)
