"""Masks that move while training: gradual pruning by a schedule, and dynamic sparse training."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tfx_compression.errors import ConfigError
from tfx_compression.pruning.masks import block_scores
from tfx_compression.pruning.plan import PruningPlan
from tfx_compression.pruning.statistics import Statistics
from tfx_compression.pruning.weight_pruner import WeightPruner
from tfx_compression.sparsity_fine_tuner.holds import Zeros

_OF_THE_TRAINING = 0.75  # after which no mask moves, where the plan doesn't say


class Schedule:
    """The steps at which masks move, and how far the way from the present to the target sparsity is gone.

    `polynomial` and `cubic` as in Zhu & Gupta 2017 (arXiv:1710.01878): the way that is left is `(1 - p) ** power`, `p`
    being the fraction of the steps between begin and end. `constant` is at the target at once.

    Args:
      plan: its schedule, power, begin_step, end_step and frequency are used.
      steps: of the training; without end_step, three quarters of them.

    Raises:
      ConfigError: where the schedule doesn't end within the training.
    """

    def __init__(self, plan: PruningPlan, steps: int):
        self._power = {"constant": 0.0, "cubic": 3.0}.get(plan.schedule, plan.power)
        self._begin = plan.begin_step
        self._frequency = plan.frequency
        self.end = plan.end_step if plan.end_step is not None else max(1, math.floor(_OF_THE_TRAINING * steps))
        if not self._begin < self.end <= steps:
            raise ConfigError(
                f"PruningPlan: masks move from step {self._begin} to {self.end}, and the training has {steps} steps. "
                "Remedy: more epochs, or begin_step and end_step within them."
            )

    def due(self, step: int) -> bool:
        """Whether masks move after this many steps; at the last one always."""
        return self._begin <= step <= self.end and ((step - self._begin) % self._frequency == 0 or step == self.end)

    def gone(self, step: int) -> float:
        """The fraction of the way that is gone after this many steps."""
        progress = min(1.0, max(0.0, (step - self._begin) / (self.end - self._begin)))
        return 1 - (1 - progress) ** self._power if self._power else 1.0


class Gradual:
    """Gradual pruning: at each due step, masks are chosen anew for the sparsity of that step.

    Args:
      technique: the model's kernels, by the plan's criterion.
      targets: the sparsity of each kernel in the end.
      zeros: the masks.
      schedule: when, and how far.
      statistics: for criteria that look at data.
    """

    def __init__(
        self,
        technique: WeightPruner,
        targets: Mapping[str, float],
        zeros: Zeros,
        schedule: Schedule,
        statistics: Statistics | None,
    ):
        self._technique, self._zeros, self._schedule, self._evidence = technique, zeros, schedule, statistics
        start = {name: 1 - float(mask.mean()) for name, mask in zeros.masks.items()}
        self._ways = {name: (min(start.get(name, 0.0), target), target) for name, target in targets.items()}

    def prepare(self, step: int) -> None:
        """Lets what is masked move in the step before masks are chosen, as tfmot does: it may come back."""
        if self._schedule.due(step + 1):
            self._zeros.on.assign(False)

    def move(self, step: int) -> bool:
        """Chooses masks where they are due."""
        if not self._schedule.due(step):
            return False
        gone = self._schedule.gone(step)
        sparsities = {name: start + (target - start) * gone for name, (start, target) in self._ways.items()}
        self._technique.score(self._evidence)
        masks, present = self._technique.select(sparsities), self._zeros.masks
        for name, mask in masks.items():
            if 1 - mask.mean() < sparsities[name] - 1 / mask.size:  # many tie: what is pruned already stays so
                masks[name] = mask & present[name]
        self._zeros.exchange(masks)
        return True

    def done(self, step: int) -> bool:
        """Whether the target is reached."""
        return step >= self._schedule.end


class Dynamic:
    """Dynamic sparse training: RigL (Evci et al. 2020, arXiv:1911.11134).

    At each due step a share of each kernel's weights, those of least magnitude, is dropped and as many are grown where
    the gradient is largest, at zero; weights that are dropped and grown at once keep their value. The share falls from
    `drop_fraction` to zero as a cosine. In the pattern's blocks, whole ones move, by their mean.

    Args:
      kernels: of the model.
      zeros: the masks.
      schedule: when.
      plan: its pattern is used.
      drop_fraction: at first.
      gradients: of the loss by each kernel of these names, in its shape.

    Raises:
      ConfigError: for N:M patterns, in which no weight can be dropped alone, or a training in which none would be.
    """

    def __init__(
        self,
        kernels: Mapping[str, Any],
        zeros: Zeros,
        schedule: Schedule,
        plan: PruningPlan,
        drop_fraction: float,
        gradients: Callable[[list[str]], Mapping[str, np.ndarray]],
    ):
        if plan.n_of_m:
            raise ConfigError(
                f"FineTuning(mode='dynamic') with pattern {plan.pattern!r}: each group of weights keeps its number, so "
                "none can be dropped for one elsewhere. Remedy: mode 'fixed', or an unstructured pattern or blocks."
            )
        if not any(schedule.due(step) for step in range(1, schedule.end)):
            raise ConfigError(
                f"FineTuning(mode='dynamic'): no weight would ever move, as it does every {plan.frequency} steps from "
                f"step {plan.begin_step} to before {schedule.end}. Remedy: a smaller PruningPlan.frequency, or more "
                "epochs."
            )
        self._kernels, self._zeros, self._schedule, self._plan = kernels, zeros, schedule, plan
        self._drop_fraction, self._gradients = drop_fraction, gradients

    def prepare(self, step: int) -> None:
        """Nothing: only what is there competes, and gradients are dense anyhow."""

    def move(self, step: int) -> bool:
        """Drops and grows where it is due."""
        if not self._schedule.due(step) or step >= self._schedule.end:
            return False
        share = self._drop_fraction / 2 * (1 + math.cos(math.pi * step / self._schedule.end))
        masks = self._zeros.masks
        gradients = self._gradients(list(masks))
        moved = {}
        for name, mask in masks.items():
            kernel, block = self._kernels[name], self._plan.block
            found = np.abs(kernel.values), np.abs(gradients[name]), mask.astype(np.float32)
            weights, growth, active = (block_scores(kernel, values, block) for values in found)
            chosen = drop_and_grow(weights, growth, active > 0.5, share)
            rows, columns = kernel.to_matrix(mask).shape
            moved[name] = kernel.from_matrix(chosen.repeat(block[0], 0).repeat(block[1], 1)[:rows, :columns])
        self._zeros.exchange(moved)
        return True

    def done(self, step: int) -> bool:
        """Always: the sparsity is what it will be."""
        return True


def drop_and_grow(weights: np.ndarray, growth: np.ndarray, active: np.ndarray, share: float) -> np.ndarray:
    """The mask after one update: as many elements as before.

    Args:
      weights: magnitudes.
      growth: magnitudes of the gradient.
      active: the mask before.
      share: of the active elements that is dropped.
    """
    count = int(share * np.count_nonzero(active))
    flat = active.ravel().copy()
    order = np.argsort(np.where(flat, weights.ravel(), np.inf), kind="stable")
    flat[order[:count]] = False
    order = np.argsort(-np.where(flat, -np.inf, growth.ravel()), kind="stable")
    flat[order[:count]] = True
    return flat.reshape(active.shape)
