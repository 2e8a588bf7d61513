"""Updates of masks while training: gradual pruning by a schedule, and dynamic sparse training (RigL)."""

import math
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from tfx_compression.errors import ConfigError
from tfx_compression.kernels import Kernel
from tfx_compression.pruning.masks import block_scores
from tfx_compression.pruning.plan import PruningPlan
from tfx_compression.pruning.statistics import Statistics
from tfx_compression.pruning.weight_pruner import WeightPruner
from tfx_compression.sparsity_fine_tuner.constraints import MaskConstraint

_DEFAULT_END = 0.75  # fraction of the training after which masks no longer change, unless the plan has an end_step


class MaskUpdater(Protocol):
    """Replaces masks between training steps."""

    def before_step(self, step: int) -> None:
        """Prepares a step. `step` is the number of completed steps."""

    def after_step(self, step: int) -> bool:
        """Updates the masks if they are due, and returns whether it did. `step` is the number of completed steps."""

    def is_finished(self, step: int) -> bool:
        """Returns whether sparsity has reached its target after `step` steps."""


class Schedule:
    """The steps at which masks are updated, and how far sparsity has moved to its target by then.

    `polynomial` and `cubic` are those of Zhu and Gupta 2017 (arXiv:1710.01878): sparsity has covered the fraction
    `1 - (1 - p) ** power` of its way, where `p` is the fraction of the steps from begin to end that are completed.
    `constant` is at the target at once.

    Attributes:
      end: Step of the last update.

    Args:
      plan: Plan whose schedule, power, begin_step, end_step and frequency are used.
      steps: Number of steps of the training. Without an end_step, masks are updated for three quarters of it.

    Raises:
      ConfigError: If the schedule doesn't end within the training.
    """

    def __init__(self, plan: PruningPlan, steps: int):
        self._power = {"constant": 0.0, "cubic": 3.0}.get(plan.schedule, plan.power)
        self._begin = plan.begin_step
        self._frequency = plan.frequency
        self.end = plan.end_step if plan.end_step is not None else max(1, math.floor(_DEFAULT_END * steps))
        if not self._begin < self.end <= steps:
            raise ConfigError(
                f"PruningPlan: masks are updated from step {self._begin} to step {self.end}, but the training has "
                f"{steps} steps. Remedy: more epochs, or a begin_step and an end_step within the training.",
                field="PruningPlan.end_step",
                code="schedule-outside-training",
            )

    def is_due(self, step: int) -> bool:
        """Returns whether masks are updated after `step` steps. The last step of the schedule is always due."""
        return self._begin <= step <= self.end and ((step - self._begin) % self._frequency == 0 or step == self.end)

    def progress(self, step: int) -> float:
        """Returns the interpolation weight between initial and target sparsity after `step` steps, in [0, 1]."""
        fraction = min(1.0, max(0.0, (step - self._begin) / (self.end - self._begin)))
        return 1 - (1 - fraction) ** self._power if self._power else 1.0


class GradualPruning:
    """Gradual pruning: at each due step, masks are chosen again for the sparsity of that step.

    Args:
      pruner: Pruner of the model's kernels, by the plan's criterion.
      target_sparsity: Final sparsity by kernel name.
      constraint: Masks to update.
      schedule: When masks are updated, and how far sparsity has moved by then.
      statistics: Statistics for criteria that need more than weights.
    """

    def __init__(
        self,
        pruner: WeightPruner,
        target_sparsity: Mapping[str, float],
        constraint: MaskConstraint,
        schedule: Schedule,
        statistics: Statistics | None,
    ):
        self._pruner, self._constraint, self._schedule, self._statistics = pruner, constraint, schedule, statistics
        initial = {name: 1 - float(mask.mean()) for name, mask in constraint.masks.items()}
        self._ranges = {name: (min(initial.get(name, 0.0), target), target) for name, target in target_sparsity.items()}

    def before_step(self, step: int) -> None:
        """Lets pruned weights move in the step before an update, as tfmot does, so that they may come back."""
        if self._schedule.is_due(step + 1):
            self._constraint.enabled.assign(False)

    def after_step(self, step: int) -> bool:
        """Chooses masks for the current sparsity if they are due."""
        if not self._schedule.is_due(step):
            return False
        progress = self._schedule.progress(step)
        sparsities = {name: first + (target - first) * progress for name, (first, target) in self._ranges.items()}
        self._pruner.score(self._statistics)
        masks, current = self._pruner.select(sparsities), self._constraint.masks
        for name, mask in masks.items():
            if 1 - mask.mean() < sparsities[name] - 1 / mask.size:  # many scores tie: keep what is pruned already
                masks[name] = mask & current[name]
        self._constraint.replace(masks)
        return True

    def is_finished(self, step: int) -> bool:
        """Returns whether the target is reached."""
        return step >= self._schedule.end


class RigL:
    """Dynamic sparse training by RigL (Evci et al. 2020, arXiv:1911.11134).

    At each due step, a fraction of each kernel's active weights is dropped, those of least magnitude, and as many
    weights grow where the gradient is largest. They start at zero. A weight that is dropped and grown at once keeps its
    value. The fraction falls from `drop_fraction` to zero along a cosine. In a block pattern, whole blocks move, by the
    means of their magnitudes.

    Args:
      kernels: Kernels of the model by name.
      constraint: Masks to update.
      schedule: When masks are updated.
      plan: Plan whose pattern is used.
      drop_fraction: Fraction of a kernel's active weights that the first update would drop.
      gradients: Function from kernel names to the gradients of the loss, in the kernels' shapes.

    Raises:
      ConfigError: For an N:M pattern, in which no weight can be dropped alone, or if no update falls into the training.
    """

    def __init__(
        self,
        kernels: Mapping[str, Kernel],
        constraint: MaskConstraint,
        schedule: Schedule,
        plan: PruningPlan,
        drop_fraction: float,
        gradients: Callable[[list[str]], Mapping[str, np.ndarray]],
    ):
        if plan.n_of_m:
            raise ConfigError(
                f"FineTuning(mode='dynamic') with pattern {plan.pattern!r}: each group keeps its number of weights, so "
                "none can move to another group. Remedy: mode 'fixed', or an unstructured pattern or blocks.",
                field="PruningPlan.pattern",
                code="pattern-not-dynamic",
            )
        if not any(schedule.is_due(step) for step in range(1, schedule.end)):
            raise ConfigError(
                f"FineTuning(mode='dynamic'): masks would never be updated. They are every {plan.frequency} steps, "
                f"from step {plan.begin_step} to before step {schedule.end}. Remedy: a smaller PruningPlan.frequency, "
                "or more epochs.",
                field="PruningPlan.frequency",
                code="masks-never-updated",
            )
        self._kernels, self._constraint, self._schedule, self._plan = kernels, constraint, schedule, plan
        self._drop_fraction, self._gradients = drop_fraction, gradients

    def before_step(self, step: int) -> None:
        """No-op: RigL needs no preparation."""

    def after_step(self, step: int) -> bool:
        """Drops and grows weights if an update is due."""
        if not self._schedule.is_due(step) or step >= self._schedule.end:
            return False
        fraction = self._drop_fraction / 2 * (1 + math.cos(math.pi * step / self._schedule.end))
        masks = self._constraint.masks
        gradients = self._gradients(list(masks))
        updated = {}
        for name, mask in masks.items():
            kernel, block = self._kernels[name], self._plan.block
            elements = np.abs(kernel.values), np.abs(gradients[name]), mask.astype(np.float32)
            weights, growth, active = (block_scores(kernel, values, block) for values in elements)
            chosen = drop_and_grow(weights, growth, active > 0.5, fraction)
            rows, columns = kernel.to_matrix(mask).shape
            updated[name] = kernel.from_matrix(chosen.repeat(block[0], 0).repeat(block[1], 1)[:rows, :columns])
        self._constraint.replace(updated)
        return True

    def is_finished(self, step: int) -> bool:
        """Returns True: sparsity is constant."""
        return True


def drop_and_grow(weights: np.ndarray, growth: np.ndarray, active: np.ndarray, fraction: float) -> np.ndarray:
    """Returns the mask after one update of RigL. It has as many active elements as before.

    Args:
      weights: Magnitudes of the weights.
      growth: Magnitudes of the gradient.
      active: Mask before the update.
      fraction: Fraction of the active elements to drop.
    """
    count = int(fraction * np.count_nonzero(active))
    flat = active.ravel().copy()
    order = np.argsort(np.where(flat, weights.ravel(), np.inf), kind="stable")
    flat[order[:count]] = False
    order = np.argsort(-np.where(flat, -np.inf, growth.ravel()), kind="stable")
    flat[order[:count]] = True
    return flat.reshape(active.shape)
