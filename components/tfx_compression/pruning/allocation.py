"""Allocations: how a sparsity is distributed over pruning groups.

An allocation is a row of `ALLOCATIONS`. It prunes all groups at one strength, and a bisection finds the smallest
strength that reaches the sparsity. The row `sensitivity` has no strength; `sensitivity.solve` allocates from measured
curves instead.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tfx_compression.errors import ConfigError
from tfx_compression.pruning.pruning_group import PruningGroup

GroupSparsity = dict[str, float]  # sparsity of each group, by name
AchievedFn = Callable[[Mapping[str, float]], float]  # group sparsities to the fraction of the plan's target

TOLERANCE = 1e-9  # a sparsity that misses the target by less has reached it
_FINE = 2**40  # number of strengths of an allocation whose strength is continuous


@dataclasses.dataclass(frozen=True)
class Strengths:
    """The group sparsities of an allocation as a function of its strength.

    Attributes:
      sparsity: Returns the group sparsities at a strength in 0, 1 … `steps`; none of them falls with the strength.
      steps: The greatest strength.
    """

    sparsity: Callable[[int], GroupSparsity]
    steps: int


@dataclasses.dataclass(frozen=True)
class Allocation:
    """A way to distribute a sparsity.

    Attributes:
      strengths: Returns the strengths for some groups; None for an allocation from sensitivity curves.
      ranks_groups_together: Whether scores of different groups are compared, which requires scores of mean 1.
      requires_data: Whether the allocation measures the model on data.
    """

    strengths: Callable[[Sequence[PruningGroup]], Strengths] | None
    ranks_groups_together: bool = False
    requires_data: bool = False


class Allocator:
    """Allocates sparsities to groups by strength; prepares the scores once for several sparsities.

    Args:
      groups: Groups that share the sparsity. Each keeps at least one multiple of elements.
      allocation: A name in `ALLOCATIONS` other than `sensitivity`.
      fixed: Names of the groups whose sparsity is set by rules.
      achieved: Returns the fraction of the plan's target that given group sparsities remove; must not fall when they
        rise. The default is the fraction of the elements of the groups that are not fixed.
      target: Name of the plan's target, for the error message.
    """

    def __init__(
        self,
        groups: Sequence[PruningGroup],
        allocation: str,
        fixed: Sequence[str] = (),
        achieved: AchievedFn | None = None,
        target: str = "sparsity",
    ):
        self._groups = groups
        self._free = [group for group in groups if group.name not in fixed]
        self._achieved = achieved
        self._target = target
        strengths = ALLOCATIONS[allocation].strengths
        assert strengths is not None
        # The same sparsity everywhere needs no search, unless the target is of the whole model.
        self._strengths = None if allocation == "uniform" and achieved is None else strengths(self._free)

    def allocate(self, sparsity: float, rules: Mapping[str, float] | None = None) -> GroupSparsity:
        """Returns the smallest group sparsities that reach a sparsity, by name, in the order of the groups.

        Args:
          sparsity: Fraction of the plan's target to remove, in [0, 1).
          rules: Sparsity of each fixed group.

        Raises:
          ConfigError: The sparsity can't be reached; the message has the highest that can.
        """
        rules = rules or {}
        if self._strengths is None:
            return {group.name: rules.get(group.name, sparsity) for group in self._groups}
        strengths = self._strengths

        def at(strength: int) -> GroupSparsity:
            free = strengths.sparsity(strength)
            return {
                group.name: rules[group.name] if group.name in rules else _capped(group, free[group.name])
                for group in self._groups
            }

        def reached(strength: int) -> float:
            allocated = at(strength)
            return self._achieved(allocated) if self._achieved else _removed_elements(self._free, allocated)

        if (highest := reached(strengths.steps)) < sparsity - TOLERANCE:
            raise unreachable(sparsity, highest, self._target)
        return at(smallest(strengths.steps, lambda strength: reached(strength) >= sparsity - TOLERANCE))


def remaining_sparsity(target: float, current: float) -> float:
    """Returns the fraction of the remaining elements to prune to move total sparsity from `current` to `target`."""
    return max(0.0, 1 - (1 - target) / (1 - current))


def smallest(steps: int, enough: Callable[[int], bool]) -> int:
    """Returns the first of 0, 1 … `steps` that is enough, by bisection; `steps` is assumed to be."""
    low, high = -1, steps
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def unreachable(sparsity: float, highest: float, target: str) -> ConfigError:
    """Returns the error for a sparsity that can't be reached."""
    base = "of the prunable elements" if target == "sparsity" else f"of the {target}"
    return ConfigError(
        f"PruningPlan.sparsity = {sparsity:g} {base} can't be reached with this plan. The highest is "
        f"{math.floor(highest * 1000) / 1000:g}. Remedy: a sparsity up to that, fewer protected layers and rules, "
        "a smaller round_to, or higher sensitivity_levels.",
        field="PruningPlan.sparsity",
        code="unreachable-sparsity",
    )


def _capped(group: PruningGroup, sparsity: float) -> float:
    """Returns a sparsity at which at least one multiple of elements is kept."""
    return min(sparsity, 1 - min(group.multiple, group.scores.size) / group.scores.size)


def _removed_elements(groups: Sequence[PruningGroup], sparsity: Mapping[str, float]) -> float:
    total = sum(group.scores.size for group in groups)
    return 1 - sum(group.kept(sparsity[group.name]) for group in groups) / total if total else 0.0


def _uniform(groups: Sequence[PruningGroup]) -> Strengths:
    """Returns the same sparsity for all groups."""
    return Strengths(lambda strength: {group.name: strength / _FINE for group in groups}, _FINE)


def _erdos_renyi(groups: Sequence[PruningGroup]) -> Strengths:
    """Returns densities in proportion to `PruningGroup.erdos_renyi`, at most 1 (ERK; Evci et al., arXiv:1911.11134).

    Strength 0 is the smallest scale at which every group is dense; the greatest strength is scale 0.
    """
    dense = 1 / min((group.erdos_renyi for group in groups), default=1.0)

    def sparsity(strength: int) -> GroupSparsity:
        scale = dense * (1 - strength / _FINE)
        return {group.name: 1 - min(1.0, scale * group.erdos_renyi) for group in groups}

    return Strengths(sparsity, _FINE)


def _global(groups: Sequence[PruningGroup]) -> Strengths:
    """Prunes the least important elements of all groups together."""
    return _pooled(groups, [np.sort(group.scores, axis=None) for group in groups])


def _lamp(groups: Sequence[PruningGroup]) -> Strengths:
    """Prunes all groups together by each squared score over the sum of the squared scores in its group that are not
    smaller (LAMP; Lee et al., arXiv:2010.07611). Negative scores count as 0.
    """
    return _pooled(groups, [_lamp_scores(group.scores) for group in groups])


def _lamp_scores(scores: np.ndarray) -> np.ndarray:
    """Returns ascending LAMP scores, in the order of `scores`; equal ones are taken one by one, as in the paper."""
    squares = np.square(np.maximum(np.sort(scores, axis=None), 0), dtype=np.float64)
    above = np.cumsum(squares[::-1])[::-1]
    return np.divide(squares, above, out=np.zeros_like(squares), where=above > 0).astype(np.float32)


def _pooled(groups: Sequence[PruningGroup], ascending: Sequence[np.ndarray]) -> Strengths:
    """Returns strengths that count the elements below one threshold over all groups.

    Elements that equal the threshold are taken from the first groups first.
    """
    pooled = np.concatenate([*ascending, np.empty(0, np.float32)])
    pooled.sort(kind="stable")  # merges sorted runs in half the time

    def sparsity(strength: int) -> GroupSparsity:
        threshold = pooled[strength] if strength < len(pooled) else np.inf
        below = [int(np.searchsorted(scores, threshold, "left")) for scores in ascending]
        left = strength - sum(below)
        result = {}
        for group, scores, count in zip(groups, ascending, below, strict=True):
            ties = min(left, int(np.searchsorted(scores, threshold, "right")) - count)
            left -= ties
            result[group.name] = (count + ties) / group.scores.size
        return result

    return Strengths(sparsity, len(pooled))


ALLOCATIONS: dict[str, Allocation] = {
    "uniform": Allocation(_uniform),
    "global": Allocation(_global, ranks_groups_together=True),
    "erdos_renyi": Allocation(_erdos_renyi),
    "lamp": Allocation(_lamp),
    "sensitivity": Allocation(None, requires_data=True),
}
