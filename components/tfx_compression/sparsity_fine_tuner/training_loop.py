"""The training loop: epochs of any Keras model, under weight constraints, that resume after the process was killed.

Keras' own `fit` can't do this: it doesn't know its position within an epoch, nor what happens between two steps. The
step itself, losses, metrics, validation and callbacks are Keras'.
"""

import contextlib
import dataclasses
import logging
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfx_compression.data.iteration import elements
from tfx_compression.errors import ConfigError, ModelError
from tfx_compression.keras_models.library import keras_library
from tfx_compression.keras_models.metric_names import smaller_is_better
from tfx_compression.sparsity_fine_tuner import variables
from tfx_compression.sparsity_fine_tuner.checkpoints import Checkpoints, WeightSnapshot
from tfx_compression.sparsity_fine_tuner.config import FineTuning
from tfx_compression.sparsity_fine_tuner.constraints import WeightConstraint
from tfx_compression.sparsity_fine_tuner.learning_rate import learning_rate
from tfx_compression.sparsity_fine_tuner.mask_updates import MaskUpdater
from tfx_compression.sparsity_fine_tuner.results import TrainingResult
from tfx_compression.sparsity_fine_tuner.tensorboard_logs import TensorBoardLogs
from tfx_compression.sparsity_fine_tuner.training_data import Batches

_log = logging.getLogger(__name__)

TrainStep = Callable[[Any, Any], Mapping[str, Any]]


class DivergedError(ModelError):
    """The loss of a training is not a number, and no epoch ended before."""


@dataclasses.dataclass
class TrainingJob:
    """One training.

    Attributes:
      model: Compiled model, see `training_model`.
      config: Configuration of the training.
      data: Function from the number of a pass to batches of (features, labels[, weights]), in the same order each time.
      validation: Data that is evaluated after each epoch.
      constraints: Constraints that are applied after each step, in order.
      mask_updaters: Updaters of masks, called around each step.
      callbacks: Callbacks of the model's Keras. One with an `on_prune(step, sparsity)` is told when masks change.
      train_step: Function `train_step(model, batch)` that returns logs and replaces `model.train_step(batch)`.
      sparsity: Function that returns the sparsity of the kernels, for the logs.
      folder: Folder of the checkpoints. None keeps none.
      log_dir: Folder of the TensorBoard logs. None writes none.
      first_step: Number of the first step in the logs, if other trainings came before.
    """

    model: Any
    config: FineTuning
    data: Batches
    validation: tf.data.Dataset | None
    constraints: Sequence[WeightConstraint]
    mask_updaters: Sequence[MaskUpdater]
    callbacks: Sequence[Any]
    train_step: TrainStep | None
    sparsity: Callable[[], float]
    folder: str | None
    log_dir: str | None
    first_step: int = 0


@dataclasses.dataclass
class TrainingState:
    """The position of a training and what it knows so far. Checkpoints keep it as JSON.

    Attributes:
      epoch: Number of completed epochs.
      step: Number of completed steps.
      steps_in_epoch: Number of completed steps of this epoch.
      passes: Number of completed passes over the data.
      steps_in_pass: Number of completed steps of this pass.
      best: Best value of the monitored metric; larger is better.
      best_epoch: Epoch of the best value.
      epochs_without_improvement: Number of epochs since then.
      finished: Whether training ends early.
      diverged: Whether the loss or a weight is not finite.
      logs: Logs of the last step.
      history: Logs of each epoch.
      notes: Notes for the user.
    """

    epoch: int = 0
    step: int = 0
    steps_in_epoch: int = 0
    passes: int = 0
    steps_in_pass: int = 0
    best: float | None = None
    best_epoch: int | None = None
    epochs_without_improvement: int = 0
    finished: bool = False
    diverged: bool = False
    logs: dict[str, float] = dataclasses.field(default_factory=dict)
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)


def train(job: TrainingJob, steps: int) -> TrainingResult:
    """Trains for `steps` steps, or resumes from the last checkpoint in the job's folder.

    Raises:
      ModelError: If the loss is not a number and no epoch ended before, or a checkpoint can't be written.
      ConfigError: If the monitored metric is not in the logs.
    """
    with contextlib.ExitStack() as stack:
        folder = job.folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="tfx-compression-"))
        return _TrainingLoop(job, steps, folder).run()


class _TrainingLoop:
    def __init__(self, job: TrainingJob, steps: int, folder: str):
        self._job = job
        self._steps = steps
        self._state = TrainingState()
        self._strategy = tf.distribute.get_strategy()
        with self._strategy.scope():
            variables.seed_layers(job.model, job.config.seed)
            saved = variables.optimizer_variables(job.model)
            self._step = self._compiled_step()
            self._create_metrics()
            saved += variables.model_variables(job.model)
        constrained = [variable for constraint in job.constraints for variable in constraint.variables]
        saved += constrained
        best = variables.unique([*job.model.weights, *constrained])
        self._best_epoch = WeightSnapshot(os.path.join(folder, "best"), best)
        self._source: Iterator[Any] | None = None
        self._checkpoints = Checkpoints(folder, variables.per_replica(saved)) if job.folder else None
        self._callbacks = keras_library(job.model).callbacks.CallbackList(
            [*job.callbacks], model=job.model, epochs=job.config.epochs, steps=steps // job.config.epochs, verbose=0
        )
        self._tensorboard = TensorBoardLogs(job.log_dir)

    def run(self) -> TrainingResult:
        job, state = self._job, self._state
        if self._checkpoints and (restored := self._checkpoints.restore()):
            state = self._state = TrainingState(**restored)
            _log.info("Resuming at step %d of %d.", state.step, self._steps)
        job.model.stop_training = False
        self._callbacks.on_train_begin()
        while state.epoch < job.config.epochs and not state.finished:
            self._train_epoch()
        self._callbacks.on_train_end()
        stopping, epoch = job.config.early_stopping, state.epoch - 1
        if state.best_epoch is not None and (state.diverged or (stopping is not None and stopping.restore_best)):
            epoch = state.best_epoch
            self._best_epoch.restore(str(epoch))
        elif getattr(job.model.optimizer, "use_ema", False):
            self._assign_averages()
        return TrainingResult(state.step, state.history, epoch, tuple(state.notes))

    def _train_epoch(self) -> None:
        job, state = self._job, self._state
        self._callbacks.on_epoch_begin(state.epoch)
        if not state.steps_in_epoch:
            job.model.reset_metrics()
        for batch in self._batches():
            if not self._train_step(batch):
                self._end_diverged()
                return
            if job.model.stop_training:
                break
        if broken := variables.non_finite(job.model.weights):
            self._end_diverged(broken)
            return
        logs = dict(state.logs)
        if job.validation is not None:
            metrics = job.model.evaluate(job.validation, verbose=0, return_dict=True, callbacks=self._callbacks)
            logs |= {f"val_{name}": float(value) for name, value in metrics.items()}
        logs["sparsity"] = job.sparsity()
        state.history.append(logs)
        self._callbacks.on_epoch_end(state.epoch, dict(logs))
        if self._tensorboard:
            self._tensorboard.write_epoch(job.first_step + state.step, logs)
        _log.info("Epoch %d of %d: %s", state.epoch + 1, job.config.epochs, _formatted(logs))
        self._update_best(logs)
        state.epoch, state.steps_in_epoch = state.epoch + 1, 0
        if job.config.steps_per_epoch is None:
            state.passes, state.steps_in_pass = state.passes + 1, 0
        if job.model.stop_training:
            state.finished = True
        self._save_checkpoint()

    def _train_step(self, batch: Any) -> bool:
        """Runs one step and all that follows it. Returns whether the loss is finite."""
        job, state = self._job, self._state
        self._callbacks.on_train_batch_begin(state.steps_in_epoch)
        self._set_learning_rate()
        for updater in job.mask_updaters:
            updater.before_step(state.step)
        state.logs = logs = {name: float(value) for name, value in self._step(batch).items()}
        state.step += 1
        state.steps_in_epoch += 1
        state.steps_in_pass += 1
        if not all(math.isfinite(logs.get(name, 0.0)) for name in ("loss", "objective")):
            return False
        updated = [updater.after_step(state.step) for updater in job.mask_updaters]
        if any(updated):
            self._report_sparsity()
        if self._tensorboard and (job.first_step + state.step) % job.config.log_steps == 0:
            self._write_step_logs(logs)
        self._callbacks.on_train_batch_end(state.steps_in_epoch - 1, logs)
        if self._checkpoints and state.step % job.config.checkpoint_steps == 0:
            self._save_checkpoint()
        return True

    def _assign_averages(self) -> None:
        """Assigns the optimizer's averages to the weights, as `fit` does, and updates the last epoch's metrics."""
        job = self._job
        job.model.optimizer.finalize_variable_values(job.model.trainable_variables)
        for constraint in job.constraints:
            constraint.apply()
        if job.validation is not None:
            metrics = job.model.evaluate(job.validation, verbose=0, return_dict=True)
            self._state.history[-1] |= {f"val_{name}": float(value) for name, value in metrics.items()}

    def _batches(self) -> Iterator[Any]:
        """Yields the remaining batches of the epoch. With steps_per_epoch, a pass may continue in the next epoch."""
        state, steps = self._state, self._job.config.steps_per_epoch
        while steps is None or state.steps_in_epoch < steps:
            if self._source is None:
                dataset = self._job.data(state.passes).skip(state.steps_in_pass)
                self._source = elements(self._strategy.experimental_distribute_dataset(dataset))
            try:
                batch = next(self._source)
            except StopIteration:
                self._source = None
                if steps is None:
                    return
                if not state.steps_in_pass:
                    raise ModelError(
                        "The training data is empty. Remedy: check the split.", code="training-data-empty"
                    ) from None
                state.passes, state.steps_in_pass = state.passes + 1, 0
                continue
            yield batch

    def _compiled_step(self) -> Any:
        """Returns a function that runs one step on all replicas and then applies the constraints."""
        job, strategy = self._job, self._strategy

        def replica_step(batch: Any) -> Mapping[str, Any]:
            logs = dict(job.train_step(job.model, batch) if job.train_step else job.model.train_step(batch))
            return logs if job.model.objective is None else {**logs, "objective": job.model.objective()}

        def step(batch: Any) -> Mapping[str, Any]:
            job.model.training_step = True
            try:
                logs = strategy.run(replica_step, (batch,))
            finally:
                job.model.training_step = False
            for constraint in job.constraints:
                constraint.apply()
            return {name: strategy.experimental_local_results(value)[0] for name, value in logs.items()}

        return step if job.model.run_eagerly else tf.function(step, reduce_retracing=True)

    def _create_metrics(self) -> None:
        """Makes Keras create its metrics, as the first step would: checkpoints need their variables before it."""
        job = self._job
        if not job.model.run_eagerly:
            data = self._strategy.experimental_distribute_dataset(job.data(0))
            self._step.get_concrete_function(data.element_spec)
        elif job.train_step is None:
            for batch in job.data(0).take(1):
                self._strategy.run(job.model.test_step, (batch,))

    def _set_learning_rate(self) -> None:
        config, step = self._job.config, self._state.step
        if config.learning_rate_schedule != "constant" or step <= config.warmup_steps > 0:
            self._job.model.optimizer.learning_rate = learning_rate(config, step, self._steps)

    def _update_best(self, logs: Mapping[str, float]) -> None:
        """Keeps the weights of the best epoch, and ends training if epochs no longer improve."""
        job, state = self._job, self._state
        stopping = job.config.early_stopping
        monitor = (stopping.monitor if stopping else None) or ("val_loss" if "val_loss" in logs else "loss")
        if monitor not in logs:
            raise ConfigError(
                f"EarlyStopping.monitor = {monitor!r} is not in the logs, which have: {', '.join(logs)}. Remedy: one "
                "of them.",
                field="EarlyStopping.monitor",
                code="unknown-metric",
            )
        if not all(updater.is_finished(state.step) for updater in job.mask_updaters):
            return  # the model doesn't have its target sparsity yet
        value = -logs[monitor] if smaller_is_better(monitor.removeprefix("val_")) else logs[monitor]
        if state.best is None or value > state.best + (stopping.min_delta if stopping else 0.0):
            state.best, state.best_epoch, state.epochs_without_improvement = value, state.epoch, 0
            self._best_epoch.save(str(state.epoch))
        elif stopping is not None:
            state.epochs_without_improvement += 1
            if state.epochs_without_improvement > stopping.patience:
                state.finished = True
                state.notes.append(
                    f"Training stopped after epoch {state.epoch + 1} of {job.config.epochs}: {monitor} was best after "
                    f"epoch {(state.best_epoch or 0) + 1}."
                )

    def _end_diverged(self, broken: Sequence[str] = ()) -> None:
        """Ends a diverged training with the best epoch's weights.

        Raises:
          DivergedError: If no epoch ended before.
        """
        job, state = self._job, self._state
        weights = ", ".join(broken or variables.non_finite(job.model.weights)) or "none"
        problem = (
            f"Training diverged: the loss is not a number at step {state.step} (epoch {state.epoch + 1}); weights that "
            f"are not finite: {weights}"
        )
        remedy = (
            f"Remedy: a smaller FineTuning.learning_rate than {job.config.learning_rate}, or look for labels and "
            "features that are not finite."
        )
        if state.best_epoch is None:
            raise DivergedError(f"{problem}. {remedy}", field="FineTuning.learning_rate", code="diverged")
        state.notes.append(f"{problem}. The model is that of epoch {state.best_epoch + 1}. {remedy}")
        state.finished = state.diverged = True
        _log.warning("%s", state.notes[-1])

    def _report_sparsity(self) -> None:
        """Tells the callbacks that masks changed."""
        sparsity = self._job.sparsity()
        for callback in self._job.callbacks:
            if hasattr(callback, "on_prune"):
                callback.on_prune(self._state.step, sparsity)

    def _write_step_logs(self, logs: Mapping[str, float]) -> None:
        job = self._job
        rate = float(job.model.optimizer.learning_rate)
        values = {**logs, "sparsity": job.sparsity(), "learning_rate": rate}
        self._tensorboard.write_step(job.first_step + self._state.step, values)

    def _save_checkpoint(self) -> None:
        if self._checkpoints is None:
            return
        state = dataclasses.asdict(self._state)
        self._checkpoints.save(self._state.step, self._state.epoch, state)
        self._best_epoch.remove_others(str(self._state.best_epoch))


def _formatted(logs: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in logs.items())
