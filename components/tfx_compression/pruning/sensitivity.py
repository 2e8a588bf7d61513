"""Sensitivity: how the metric answers to pruning one part alone, and the least loss that reaches a target.

Li et al. 2017 (arXiv:1608.08710) measure such curves; what is solved over them is the knapsack problem of HAWQ-V2 and
AMC's successors: one level for each part, the sum of the losses least.
"""

import contextlib
import functools
import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tfx_compression.errors import ConfigError, ModelError
from tfx_compression.pruning.allocation import Achieved, Sparsities, smallest, unreachable
from tfx_compression.pruning.record import SensitivityCurve

STEPS = 20  # levels that are solved over, between 0 and the highest that was measured
_SCALES = 2**20  # how closely the savings that are asked of the solver are searched
_LEAST_SAVING = 1e-7  # beside the losses: among equal ones, the choice that prunes least


def measure(
    names: Sequence[str],
    levels: Sequence[float],
    apply: Callable[[str, float], contextlib.AbstractContextManager[Any]],
    metric: Callable[[], float],
    store_path: str | None = None,
    fingerprint: str = "",
    progress: Callable[[int, int, str], None] | None = None,
) -> list[SensitivityCurve]:
    """The metric at each level of each part, the others being whole.

    Args:
      names: of the parts.
      levels: sparsities, ascending, in (0, 1).
      apply: prunes a part to a level while its context is open, and restores it.
      metric: of the model as it is.
      store_path: a JSON file, on any file system that TensorFlow knows, into which each value goes as soon as it is
        measured, and whose values aren't measured again.
      fingerprint: of model, data and plan; what was stored under another one is not used.
      progress: called with how many values are known, of how many, and the part.

    Returns:
      A curve for each part, in order, its first level 0.

    Raises:
      ModelError: where the metric is not finite.
    """
    store = _Store(store_path, fingerprint)
    total = 1 + len(names) * len(levels)
    report = progress or (lambda done, total, name: None)
    whole = store.value("", 0.0, lambda: _finite(metric(), "the model before pruning"))
    report(1, total, "")
    curves = []
    for index, name in enumerate(names):
        values = [whole]
        for level in levels:
            values.append(store.value(name, level, functools.partial(_at, name, level, apply, metric)))
            report(len(values) + index * len(levels), total, name)
        curves.append(SensitivityCurve(name=name, levels=(0.0, *levels), values=tuple(values)))
    return curves


def solve(
    curves: Sequence[SensitivityCurve],
    saving: Callable[[str, float], float],
    sparsity: float,
    achieved: Achieved,
    higher_is_better: bool,
    target: str = "sparsity",
) -> Sparsities:
    """The sparsity of each part at which `sparsity` of the target goes and the losses add up to the least.

    A part's loss is how much worse its metric is than at level 0; it is never less than at a lower level, and linear
    between the levels. Solved exactly, as an integer programme, over `STEPS` and the measured levels. What parts save
    doesn't add up where they are neighbours (a convolution's weights go with its inputs times its outputs), so how much
    of it is asked for is searched by bisection until `achieved` is enough.

    Args:
      curves: of the parts; nothing beyond their last levels is chosen.
      saving: which fraction of the target goes when a part alone is pruned to a level.
      sparsity: what is asked for.
      achieved: which fraction goes at given sparsities of all these parts.
      higher_is_better: of the metric.
      target: what it is a fraction of, for the message.

    Raises:
      ConfigError: where not so much can go, with the most that can.
    """
    grids = [_grid(curve) for curve in curves]
    losses = [_loss(curve, grid, higher_is_better) for curve, grid in zip(curves, grids, strict=True)]
    savings = [
        np.array([saving(curve.name, level) for level in grid]) for curve, grid in zip(curves, grids, strict=True)
    ]
    most = {curve.name: float(grid[-1]) for curve, grid in zip(curves, grids, strict=True)}
    if (highest := achieved(most)) < sparsity - 1e-9:
        raise unreachable(sparsity, highest, target)
    if not curves:
        return {}
    total = sum(values.max() for values in savings)

    def chosen(step: int) -> Sparsities:
        if step == _SCALES:
            return most
        picked = _least_loss(losses, savings, total * step / _SCALES)
        return {curve.name: float(grid[i]) for curve, grid, i in zip(curves, grids, picked, strict=True)}

    return chosen(smallest(_SCALES, lambda step: achieved(chosen(step)) >= sparsity - 1e-9))


class _Store:
    """Measured values in a JSON file, written whole after each."""

    def __init__(self, path: str | None, fingerprint: str) -> None:
        self._path = path
        self._content: dict[str, Any] = {"fingerprint": fingerprint, "values": {}}
        known = _read(path) if path else {}
        if known.get("fingerprint") == fingerprint:
            self._content = known

    def value(self, name: str, level: float, measured: Callable[[], float]) -> float:
        """The stored value, or a measured one, which is stored."""
        values = self._content["values"].setdefault(name, {})
        if repr(level) not in values:
            values[repr(level)] = measured()
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
        raise ConfigError(f"{path} holds no stored sensitivity: {error} Remedy: delete it, or another path.") from error


def _at(
    name: str,
    level: float,
    apply: Callable[[str, float], contextlib.AbstractContextManager[Any]],
    metric: Callable[[], float],
) -> float:
    with apply(name, level):
        return _finite(metric(), f"{name!r} pruned to {level:g}")


def _finite(value: float, where: str) -> float:
    if not np.isfinite(value):
        raise ModelError(
            f"The metric that sensitivity looks at is {value} for {where}. "
            "Remedy: another sensitivity_metric; if the loss itself is no number, the model diverged."
        )
    return float(value)


def _grid(curve: SensitivityCurve) -> np.ndarray:
    return np.unique([*np.linspace(0, curve.levels[-1], STEPS + 1), *curve.levels])


def _loss(curve: SensitivityCurve, grid: np.ndarray, higher_is_better: bool) -> np.ndarray:
    """How much worse than whole, at each level of the grid; better ones count as none."""
    values = np.array(curve.values)
    worse = values[0] - values if higher_is_better else values - values[0]
    return np.interp(grid, curve.levels, np.maximum.accumulate(np.maximum(worse, 0)))


def _least_loss(losses: Sequence[np.ndarray], savings: Sequence[np.ndarray], needed: float) -> list[int]:
    """Which level of each part gives the least total loss and at least the needed total saving."""
    from scipy import optimize, sparse

    # Of the size of 1, as the solver's tolerances are.
    largest = max(float(part.max()) for part in savings) or 1.0
    gain = np.concatenate(savings) / largest
    cost = np.concatenate(losses) / (max(float(part.max()) for part in losses) or 1.0)
    starts = np.cumsum([0, *(len(part) for part in losses)])
    owners = np.repeat(np.arange(len(losses)), np.diff(starts))
    one_each = sparse.csr_matrix((np.ones(len(cost)), (owners, np.arange(len(cost)))))
    result = optimize.milp(
        cost + _LEAST_SAVING * gain,
        integrality=np.ones(len(cost)),
        bounds=optimize.Bounds(0, 1),
        constraints=[
            optimize.LinearConstraint(one_each, 1, 1),
            optimize.LinearConstraint(gain[None, :], needed / largest, np.inf),
        ],
        options={"mip_rel_gap": 0.0},
    )
    return [int(np.argmax(result.x[start:end])) for start, end in itertools.pairwise(starts)]
