"""Mode `dynamic`: weights are dropped and grown while training, at constant sparsity (RigL)."""

from tfx_compression.model_handle.compressed import Masks
from tfx_compression.pruning.plan import PruningPlan
from tfx_compression.sparsity_fine_tuner.mask_updates import RigL, Schedule
from tfx_compression.sparsity_fine_tuner.results import ModeResult
from tfx_compression.sparsity_fine_tuner.session import Session
from tfx_compression.sparsity_fine_tuner.training_statistics import TrainingStatistics


def run(session: Session, masks: Masks) -> ModeResult:
    """Trains the session's model and moves its masks at the steps of the plan's schedule.

    Raises:
      ConfigError: If the schedule doesn't fit the training, or the plan has an N:M pattern.
    """
    training = session.prepare(session.handle, masks)
    kernels, config = training.handle.kernels, session.config
    plan = session.plan or PruningPlan()
    schedule = Schedule(plan, session.steps)
    statistics = TrainingStatistics(training.model, session.data(0), kernels, plan.sample_rows, config.batch_size)
    updater = RigL(kernels, training.mask_constraint, schedule, plan, config.drop_fraction, statistics.mean_gradients)
    result = training.run(mask_updaters=[updater])
    return ModeResult.from_training(session.handle, training.masks, result)
