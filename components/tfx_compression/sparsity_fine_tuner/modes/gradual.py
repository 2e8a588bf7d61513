"""Mode `gradual`: more weights are pruned while training, by the plan's schedule."""

import numpy as np

from tfx_compression.model_handle.compressed import Masks
from tfx_compression.pruning.sparsity_allocator import SparsityAllocator
from tfx_compression.pruning.weight_pruner import WeightPruner
from tfx_compression.sparsity_fine_tuner.mask_updates import GradualPruning, Schedule
from tfx_compression.sparsity_fine_tuner.results import ModeResult
from tfx_compression.sparsity_fine_tuner.session import Session
from tfx_compression.sparsity_fine_tuner.training_statistics import TrainingStatistics


def run(session: Session, masks: Masks) -> ModeResult:
    """Trains the session's model and moves each kernel from its current sparsity to its target.

    Raises:
      ConfigError: If the schedule doesn't fit the training, or the plan the model.
    """
    assert session.plan is not None
    plan, training = session.plan, session.prepare(session.handle, masks)
    kernels = training.handle.kernels
    schedule = Schedule(plan, session.steps)
    pruner = WeightPruner(training.handle, plan)
    statistics = None
    if pruner.criterion.requires_statistics:
        statistics = TrainingStatistics(training.model, session.data(0), kernels, plan.sample_rows, plan.batch_size)
    pruner.score(statistics)
    target_sparsity = session.target_sparsity or {
        name: sparsity for name, sparsity in SparsityAllocator(pruner).allocate(plan.sparsity).items() if sparsity
    }
    dense = {name: np.ones(kernels[name].shape, bool) for name in target_sparsity if name not in training.masks}
    if dense:
        training.mask_constraint.add(kernels, dense)
    updater = GradualPruning(pruner, target_sparsity, training.mask_constraint, schedule, statistics)
    result = training.run(mask_updaters=[updater])
    return ModeResult.from_training(session.handle, training.masks, result)
