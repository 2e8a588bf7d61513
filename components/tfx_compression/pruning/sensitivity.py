"""Sensitivity: the metric as a function of the sparsity of one group, and the allocation of least loss.

Li et al. 2017 (arXiv:1608.08710) measure such curves. The allocation is the multiple-choice knapsack problem of HAWQ-V2
(arXiv:1911.03852): one level for each group, such that the sum of the losses is least.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tfx_compression.errors import ConfigError, ModelError
from tfx_compression.pruning.allocation import TOLERANCE, AchievedFn, GroupSparsity, smallest, unreachable
from tfx_compression.pruning.record import SensitivityCurve

STEPS = 20  # levels between 0 and the highest measured one that `solve` chooses from
_SCALES = 2**20  # resolution of the search for the saving to request from the solver
_SAVING_COST = 1e-7  # cost of a saving relative to a loss: among equal losses, the least pruning is chosen
_log = logging.getLogger(__name__)

ProgressFn = Callable[[int, int, str], None]
AblateFn = Callable[[str, float], contextlib.AbstractContextManager[Any]]


def _log_progress(done: int, total: int, name: str) -> None:
    _log.info("Sensitivity: %d of %d measured (%s)", done, total, name or "the whole model")


@dataclasses.dataclass(frozen=True)
class SensitivityOptions:
    """Options of the measurement.

    Attributes:
      store_path: Path of a JSON file, on any file system that TensorFlow knows, that keeps each value as soon as it is
        measured; stored values are not measured again. None keeps none.
      fingerprint: Fingerprint of model, data and plan; values stored under another one are not used.
      progress: Function that is called with the number of known values, their total number, and the group's name.
    """

    store_path: str | None = None
    fingerprint: str = ""
    progress: ProgressFn = _log_progress


def measure(
    names: Sequence[str],
    levels: Sequence[float],
    ablate: AblateFn,
    metric: Callable[[], float],
    options: SensitivityOptions | None = None,
) -> list[SensitivityCurve]:
    """Measures the metric at each level of each group, with all other groups left dense.

    Args:
      names: Names of the groups.
      levels: Sparsities, ascending, in (0, 1).
      ablate: Function that returns a context in which a group is pruned to a level.
      metric: Function that returns the metric of the model in its current state.
      options: Where to keep values, and whom to tell of the progress.

    Returns:
      A curve for each group, in order, with the first level 0.

    Raises:
      ConfigError: The file at `store_path` holds something else.
      ModelError: The metric is not finite.
    """
    options = options or SensitivityOptions()
    store = _Store(options.store_path, options.fingerprint)
    total = 1 + len(names) * len(levels)
    dense = store.value("", 0.0, lambda: _finite(metric(), "the model before pruning"))
    options.progress(1, total, "")
    curves = []
    for index, name in enumerate(names):
        values = [dense]
        for level in levels:
            values.append(store.value(name, level, functools.partial(_at, name, level, ablate, metric)))
            options.progress(len(values) + index * len(levels), total, name)
        curves.append(SensitivityCurve(name=name, levels=(0.0, *levels), values=tuple(values)))
    return curves


def solve(
    curves: Sequence[SensitivityCurve],
    saving: Callable[[str, float], float],
    sparsity: float,
    achieved: AchievedFn,
    higher_is_better: bool,
    target: str = "sparsity",
) -> GroupSparsity:
    """Returns the sparsity of each group that reaches `sparsity` with the least sum of losses.

    A group's loss is how much worse the metric is than at level 0. It never falls with the level and is linear between
    levels. The problem is solved exactly, as an integer program, over `STEPS` and the measured levels. The savings of
    neighboring groups don't add up (a convolution's weights are its inputs times its outputs), so a bisection finds the
    sum of savings to request such that `achieved` is enough.

    Args:
      curves: Curves of the groups; no sparsity above their last level is chosen.
      saving: Function that returns the fraction of the target that one group alone removes at a level.
      sparsity: Fraction of the target to remove.
      achieved: Function that returns the fraction that given sparsities of all these groups remove.
      higher_is_better: Whether a higher metric is better.
      target: Name of the plan's target, for the error message.

    Raises:
      ConfigError: The sparsity can't be reached; the message has the highest that can.
    """
    grids = [_grid(curve) for curve in curves]
    losses = [_loss(curve, grid, higher_is_better) for curve, grid in zip(curves, grids, strict=True)]
    savings = [
        np.array([saving(curve.name, level) for level in grid]) for curve, grid in zip(curves, grids, strict=True)
    ]
    highest = {curve.name: float(grid[-1]) for curve, grid in zip(curves, grids, strict=True)}
    if (reachable := achieved(highest)) < sparsity - TOLERANCE:
        raise unreachable(sparsity, reachable, target)
    if not curves:
        return {}
    total = sum(values.max() for values in savings)

    def solved(step: int) -> GroupSparsity:
        if step == _SCALES:
            return highest
        picked = _least_loss(losses, savings, total * step / _SCALES)
        return {curve.name: float(grid[i]) for curve, grid, i in zip(curves, grids, picked, strict=True)}

    return solved(smallest(_SCALES, lambda step: achieved(solved(step)) >= sparsity - TOLERANCE))


class _Store:
    """Measured values in a JSON file, which is replaced after each."""

    def __init__(self, path: str | None, fingerprint: str) -> None:
        self._path = path
        self._content: dict[str, Any] = {"fingerprint": fingerprint, "values": {}}
        known = _read(path) if path else {}
        if known.get("fingerprint") == fingerprint:
            self._content = known

    def value(self, name: str, level: float, measure: Callable[[], float]) -> float:
        """Returns the stored value, or measures and stores it."""
        values = self._content["values"].setdefault(name, {})
        if repr(level) not in values:
            values[repr(level)] = measure()
            self._write()
        return float(values[repr(level)])

    def _write(self) -> None:
        import tensorflow as tf

        if not self._path:
            return
        with tf.io.gfile.GFile(self._path + ".partial", "w") as file:
            file.write(json.dumps(self._content))
        tf.io.gfile.rename(self._path + ".partial", self._path, overwrite=True)


def _read(path: str) -> dict[str, Any]:
    import tensorflow as tf

    if not tf.io.gfile.exists(path):
        return {}
    with tf.io.gfile.GFile(path, "r") as file:
        content = file.read()
    try:
        return dict(json.loads(content))
    except (ValueError, TypeError) as error:
        message = f"{path} holds no stored sensitivity: {error} Remedy: delete it, or another path."
        raise ConfigError(message, field="store_path", code="unreadable-store") from error


def _at(
    name: str,
    level: float,
    ablate: AblateFn,
    metric: Callable[[], float],
) -> float:
    with ablate(name, level):
        return _finite(metric(), f"{name!r} pruned to {level:g}")


def _finite(value: float, where: str) -> float:
    if not np.isfinite(value):
        raise ModelError(
            f"The sensitivity metric is {value} for {where}. "
            "Remedy: another sensitivity_metric; if the loss itself is not finite, the model diverged.",
            field="PruningPlan.sensitivity_metric",
            code="not-finite",
        )
    return float(value)


def _grid(curve: SensitivityCurve) -> np.ndarray:
    return np.unique([*np.linspace(0, curve.levels[-1], STEPS + 1), *curve.levels])


def _loss(curve: SensitivityCurve, grid: np.ndarray, higher_is_better: bool) -> np.ndarray:
    """Returns how much worse the metric is than at level 0, at each level of the grid; better ones count as 0."""
    values = np.array(curve.values)
    worse = values[0] - values if higher_is_better else values - values[0]
    return np.interp(grid, curve.levels, np.maximum.accumulate(np.maximum(worse, 0)))


def _least_loss(losses: Sequence[np.ndarray], savings: Sequence[np.ndarray], needed: float) -> list[int]:
    """Returns the level of each group that gives the least total loss and at least the needed total saving."""
    from scipy import optimize, sparse

    # The solver's tolerances are absolute, so costs and gains are scaled to 1.
    largest = max(float(values.max()) for values in savings) or 1.0
    gain = np.concatenate(savings) / largest
    cost = np.concatenate(losses) / (max(float(values.max()) for values in losses) or 1.0)
    starts = np.cumsum([0, *(len(values) for values in losses)])
    owners = np.repeat(np.arange(len(losses)), np.diff(starts))
    one_each = sparse.csr_matrix((np.ones(len(cost)), (owners, np.arange(len(cost)))))
    result = optimize.milp(
        cost + _SAVING_COST * gain,
        integrality=np.ones(len(cost)),
        bounds=optimize.Bounds(0, 1),
        constraints=[
            optimize.LinearConstraint(one_each, 1, 1),
            optimize.LinearConstraint(gain[None, :], needed / largest, np.inf),
        ],
        options={"mip_rel_gap": 0.0},
    )
    return [int(np.argmax(result.x[start:end])) for start, end in itertools.pairwise(starts)]
