"""How the sparsity is spread over kernels or groups of channels."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from tfx_compression.errors import ConfigError
from tfx_compression.pruning.pruning_group import PruningGroup

Sparsities = dict[str, float]
Achieved = Callable[[Mapping[str, float]], float]
Allocation = Literal["uniform", "global", "erdos_renyi", "lamp"]

_FINE = 2**40  # steps of a strength that is no count


def allocate(
    parts: Sequence[PruningGroup],
    allocation: Allocation,
    sparsity: float,
    fixed: Mapping[str, float] | None = None,
    achieved: Achieved | None = None,
    target: str = "sparsity",
) -> Sparsities:
    """The sparsity of every part, such that what is asked for goes and as little more as possible.

    Each allocation prunes all parts at one strength, which is searched for by bisection:

    - `uniform`: the same sparsity everywhere.
    - `global`: the least important elements of all parts together go; the scores must compare (`criteria.normalize`).
    - `erdos_renyi`: densities in proportion to `PruningGroup.erdos_renyi`, but never above 1 (ERK; Evci et al. 2020,
      arXiv:1911.11134).
    - `lamp`: as `global`, by each squared score over the sum of those not smaller in its part (Lee et al. 2021,
      arXiv:2010.07611). Negative scores count as 0.

    Args:
      parts: what shares the sparsity. None of them is pruned whole.
      allocation: one of these; the plan's `sensitivity` is `sensitivity.solve`.
      sparsity: what is asked for, in [0, 1).
      fixed: the sparsities that rules set, by the part's name.
      achieved: which fraction of the plan's target goes at given sparsities of all parts; must not fall when they rise.
        Without it, the fraction of the elements of the parts that aren't fixed, and for `uniform` no search.
      target: what it is a fraction of, for the message.

    Returns:
      By name, in the parts' order. `PruningGroup.kept` says how many elements that leaves.

    Raises:
      ConfigError: where not so much can go, with the most that can.
    """
    fixed = fixed or {}
    free = [part for part in parts if part.name not in fixed]
    if allocation == "uniform" and achieved is None:
        return {part.name: fixed.get(part.name, sparsity) for part in parts}
    strengthened, steps = _FAMILIES[allocation](free)

    def whole(step: int) -> Sparsities:
        chosen = strengthened(step)
        return {
            part.name: fixed[part.name] if part.name in fixed else _capped(part, chosen[part.name]) for part in parts
        }

    def reached(step: int) -> float:
        sparsities = whole(step)
        return achieved(sparsities) if achieved else _elements(free, sparsities)

    if (highest := reached(steps)) < sparsity - 1e-9:
        raise unreachable(sparsity, highest, target)
    return whole(smallest(steps, lambda step: reached(step) >= sparsity - 1e-9))


def smallest(steps: int, enough: Callable[[int], bool]) -> int:
    """The first of 0, 1 … `steps` that is enough, by bisection; `steps` is known to be."""
    low, high = -1, steps
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def unreachable(sparsity: float, highest: float, target: str) -> ConfigError:
    """The error for a target that can't be met."""
    what = "of what can be pruned" if target == "sparsity" else f"of the {target}"
    return ConfigError(
        f"PruningPlan.sparsity = {sparsity:g} {what} can't be reached with this plan: the highest is "
        f"{math.floor(highest * 1000) / 1000:g}. Remedy: a sparsity up to that, fewer protected layers and rules, "
        "a smaller round_to, or higher sensitivity_levels."
    )


def _capped(part: PruningGroup, sparsity: float) -> float:
    """No part is pruned whole: one `multiple` stays."""
    return min(sparsity, 1 - min(part.multiple, part.scores.size) / part.scores.size)


def _elements(parts: Sequence[PruningGroup], sparsities: Mapping[str, float]) -> float:
    total = sum(part.scores.size for part in parts)
    return 1 - sum(part.kept(sparsities[part.name]) for part in parts) / total if total else 0.0


Family = tuple[Callable[[int], Sparsities], int]  # the sparsities at each strength 0, 1 …, and the greatest strength


def _uniform(parts: Sequence[PruningGroup]) -> Family:
    return lambda step: {part.name: step / _FINE for part in parts}, _FINE


def _erdos_renyi(parts: Sequence[PruningGroup]) -> Family:
    """Strength 0 is the smallest scale at which every part is dense, the greatest is scale 0."""
    dense = 1 / min((part.erdos_renyi for part in parts), default=1.0)

    def sparsities(step: int) -> Sparsities:
        scale = dense * (1 - step / _FINE)
        return {part.name: 1 - min(1.0, scale * part.erdos_renyi) for part in parts}

    return sparsities, _FINE


def _global(parts: Sequence[PruningGroup]) -> Family:
    return _pooled(parts, [np.sort(part.scores, axis=None) for part in parts])


def _lamp(parts: Sequence[PruningGroup]) -> Family:
    return _pooled(parts, [_lamp_scores(part.scores) for part in parts])


def _lamp_scores(scores: np.ndarray) -> np.ndarray:
    """In ascending order, which is also that of `scores`; equal ones are taken one after the other, as in the paper."""
    squares = np.square(np.maximum(np.sort(scores, axis=None), 0), dtype=np.float64)
    above = np.cumsum(squares[::-1])[::-1]
    return np.divide(squares, above, out=np.zeros_like(squares), where=above > 0).astype(np.float32)


def _pooled(parts: Sequence[PruningGroup], ascending: Sequence[np.ndarray]) -> Family:
    """The strength is how many of all elements lie below one threshold; of those at the threshold, the first parts'."""
    pooled = np.concatenate([*ascending, np.empty(0, np.float32)])
    pooled.sort(kind="stable")  # merges runs that are sorted already, in half the time

    def sparsities(step: int) -> Sparsities:
        threshold = pooled[step] if step < len(pooled) else np.inf
        below = [int(np.searchsorted(scores, threshold, "left")) for scores in ascending]
        left = step - sum(below)
        result = {}
        for part, scores, count in zip(parts, ascending, below, strict=True):
            ties = min(left, int(np.searchsorted(scores, threshold, "right")) - count)
            left -= ties
            result[part.name] = (count + ties) / part.scores.size
        return result

    return sparsities, len(pooled)


_FAMILIES: dict[str, Callable[[Sequence[PruningGroup]], Family]] = {
    "uniform": _uniform,
    "global": _global,
    "erdos_renyi": _erdos_renyi,
    "lamp": _lamp,
}
