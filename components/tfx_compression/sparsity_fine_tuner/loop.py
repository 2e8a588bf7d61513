"""The training loop: epochs of any Keras model, held to its zeros, that goes on after a kill as if nothing was.

Keras' own `fit` can't: it knows neither the place in an epoch nor what happens between two steps. The step itself,
loss, metrics, validation and callbacks are Keras'.
"""

import contextlib
import dataclasses
import logging
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import tensorflow as tf

from tfx_compression.errors import ModelError
from tfx_compression.keras_models.library import keras_library
from tfx_compression.keras_models.metric_names import smaller_is_better
from tfx_compression.sparsity_fine_tuner import trainee
from tfx_compression.sparsity_fine_tuner.config import FineTuning
from tfx_compression.sparsity_fine_tuner.holds import Hold
from tfx_compression.sparsity_fine_tuner.state import Checkpoints, Kept, writing

_log = logging.getLogger(__name__)

Batches = Callable[[int], tf.data.Dataset]
TrainStep = Callable[[Any, Any], Mapping[str, Any]]


class DivergedError(ModelError):
    """A training whose loss is not a number, before any epoch ended."""


class Mover(Protocol):
    """What moves masks between steps."""

    def prepare(self, step: int) -> None:
        """Before a step, counted from 0."""

    def move(self, step: int) -> bool:
        """After a step, counted from 1; whether masks moved."""

    def done(self, step: int) -> bool:
        """Whether no mask moves after this many steps any more."""


@dataclasses.dataclass
class Job:
    """One training.

    Attributes:
      model: compiled.
      config: how it is trained.
      data: batches of (features, labels[, weights]) of a pass, by its number: in the same order whenever it is asked.
      validation: evaluated after each epoch.
      holds: applied after each step, in order.
      movers: of masks.
      callbacks: of the model's Keras. One with an `on_prune(step, sparsity)` hears of masks that moved.
      train_step: `train_step(model, batch)` to logs, instead of `model.train_step(batch)`.
      sparsity: of the kernels, for the logs.
      folder: where checkpoints are kept; None keeps none.
      log_dir: of TensorBoard; None logs nothing.
      first_step: what the logs count from, where other trainings went before.
    """

    model: Any
    config: FineTuning
    data: Batches
    validation: tf.data.Dataset | None
    holds: Sequence[Hold]
    movers: Sequence[Mover]
    callbacks: Sequence[Any]
    train_step: TrainStep | None
    sparsity: Callable[[], float]
    folder: str | None
    log_dir: str | None
    first_step: int = 0


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a training came to.

    Attributes:
      steps: that were made.
      history: the logs of each epoch.
      epoch: whose model it is, counted from 0.
      notes: for the user: why it ended before its time.
    """

    steps: int
    history: list[dict[str, float]]
    epoch: int
    notes: tuple[str, ...] = ()

    @property
    def metrics(self) -> dict[str, float]:
        """The logs of that epoch."""
        return self.history[self.epoch]


@dataclasses.dataclass
class _Place:
    """Where a training is."""

    epoch: int = 0
    step: int = 0
    in_epoch: int = 0
    passed: int = 0
    offset: int = 0
    best: float | None = None
    best_epoch: int | None = None
    waited: int = 0
    over: bool = False
    diverged: bool = False
    logs: dict[str, float] = dataclasses.field(default_factory=dict)  # of the last step
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)


def total_steps(data: Batches, config: FineTuning) -> int:
    """How many steps a training takes; the data is counted once where it doesn't say.

    Raises:
      ModelError: for data that never ends, or is empty.
    """
    if config.steps_per_epoch is not None:
        return config.steps_per_epoch * config.epochs
    dataset = data(0)
    size = int(dataset.cardinality())
    if size == tf.data.INFINITE_CARDINALITY:
        raise ModelError(
            "The data never ends (it repeats), so neither would an epoch. Remedy: FineTuning.steps_per_epoch."
        )
    if size < 0:
        size = int(dataset.reduce(tf.constant(0, tf.int64), lambda count, _: count + 1))
    if size == 0:
        raise ModelError("The data to train on is empty. Remedy: check the split, and batch_size with drop_remainder.")
    return size * config.epochs


def run(job: Job, steps: int) -> Outcome:
    """Trains for `steps` steps, or goes on from the last checkpoint in the job's folder.

    Raises:
      ModelError: where the loss is not a number and no epoch ended before, or a checkpoint can't be written.
    """
    with contextlib.ExitStack() as stack:
        folder = job.folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="tfx-compression-"))
        return _Run(job, steps, folder).run()


class _Run:
    def __init__(self, job: Job, steps: int, folder: str):
        self._job = job
        self._steps = steps
        self._place = _Place()
        self._strategy = tf.distribute.get_strategy()
        with self._strategy.scope():
            trainee.seed_layers(job.model, job.config.seed)
            own = trainee.optimizer_variables(job.model)
            self._step = self._compiled()
            self._make_metrics()
            own += trainee.variables(job.model)
        held = [variable for hold in job.holds for variable in hold.variables]
        own += held
        self._kept = Kept(os.path.join(folder, "best"), trainee.unique([*job.model.weights, *held]))
        self._source: Iterator[Any] | None = None
        self._checkpoints = Checkpoints(folder, trainee.of_replicas(own)) if job.folder else None
        library = keras_library(job.model)
        self._callbacks = library.callbacks.CallbackList(
            [*job.callbacks], model=job.model, epochs=job.config.epochs, steps=steps // job.config.epochs, verbose=0
        )
        self._writer = _Writer(job)

    def run(self) -> Outcome:
        job, place = self._job, self._place
        if self._checkpoints and (state := self._checkpoints.restore()):
            place = self._place = _Place(**state)
            _log.info("Going on at step %d of %d.", place.step, self._steps)
        job.model.stop_training = False
        self._callbacks.on_train_begin()
        while place.epoch < job.config.epochs and not place.over:
            self._epoch()
        self._callbacks.on_train_end()
        stopping, epoch = job.config.early_stopping, place.epoch - 1
        if place.best_epoch is not None and (place.diverged or (stopping is not None and stopping.restore_best)):
            epoch = place.best_epoch
            self._kept.read(str(epoch))
        elif getattr(job.model.optimizer, "use_ema", False):
            self._take_averages()
        return Outcome(place.step, place.history, epoch, tuple(place.notes))

    def _epoch(self) -> None:
        job, place = self._job, self._place
        self._callbacks.on_epoch_begin(place.epoch)
        if not place.in_epoch:
            job.model.reset_metrics()
        for batch in self._batches():
            self._callbacks.on_train_batch_begin(place.in_epoch)
            self._set_learning_rate()
            for mover in job.movers:
                mover.prepare(place.step)
            place.logs = logs = {name: float(value) for name, value in self._step(batch).items()}
            place.step, place.in_epoch, place.offset = place.step + 1, place.in_epoch + 1, place.offset + 1
            if not all(math.isfinite(logs.get(name, 0.0)) for name in ("loss", "objective")):
                self._diverged()
                return
            moved = [mover.move(place.step) for mover in job.movers]
            if any(moved):
                self._tell_of_masks()
            self._writer.step(job.first_step + place.step, logs)
            self._callbacks.on_train_batch_end(place.in_epoch - 1, logs)
            if self._checkpoints and place.step % job.config.checkpoint_steps == 0:
                self._save()
            if job.model.stop_training:
                break
        if broken := trainee.finite(job.model):
            self._diverged(broken)
            return
        logs = dict(place.logs)
        if job.validation is not None:
            found = job.model.evaluate(job.validation, verbose=0, return_dict=True, callbacks=self._callbacks)
            logs |= {f"val_{name}": float(value) for name, value in found.items()}
        logs["sparsity"] = job.sparsity()
        place.history.append(logs)
        self._callbacks.on_epoch_end(place.epoch, dict(logs))
        self._writer.epoch(job.first_step + place.step, logs)
        _log.info("Epoch %d of %d: %s", place.epoch + 1, job.config.epochs, _line(logs))
        self._judge(logs)
        place.epoch, place.in_epoch = place.epoch + 1, 0
        if job.config.steps_per_epoch is None:
            place.passed, place.offset = place.passed + 1, 0
        if job.model.stop_training:
            place.over = True
        self._save()

    def _take_averages(self) -> None:
        """Gives the weights the averages that the optimizer kept, as fit does, and the last epoch their metrics."""
        job = self._job
        job.model.optimizer.finalize_variable_values(job.model.trainable_variables)
        for hold in job.holds:
            hold.apply()
        if job.validation is not None:
            found = job.model.evaluate(job.validation, verbose=0, return_dict=True)
            self._place.history[-1] |= {f"val_{name}": float(value) for name, value in found.items()}

    def _batches(self) -> Iterator[Any]:
        """The batches that are left of the epoch; a pass goes on in the next one where epochs have their steps."""
        place, wanted = self._place, self._job.config.steps_per_epoch
        while wanted is None or place.in_epoch < wanted:
            if self._source is None:
                dataset = self._job.data(place.passed).skip(place.offset)
                self._source = iter(self._strategy.experimental_distribute_dataset(dataset))
            try:
                batch = next(self._source)
            except StopIteration:
                self._source = None
                if wanted is None:
                    return
                if not place.offset:
                    raise ModelError("The data to train on is empty. Remedy: check the split.") from None
                place.passed, place.offset = place.passed + 1, 0
                continue
            yield batch

    def _compiled(self) -> Any:
        """One step on all replicas, then the holds."""
        job, strategy = self._job, self._strategy

        def on_replica(batch: Any) -> Mapping[str, Any]:
            logs = dict(job.train_step(job.model, batch) if job.train_step else job.model.train_step(batch))
            return logs if job.model.objective is None else {**logs, "objective": job.model.objective()}

        def step(batch: Any) -> Mapping[str, Any]:
            job.model.teaching = True
            try:
                logs = strategy.run(on_replica, (batch,))
            finally:
                job.model.teaching = False
            for hold in job.holds:
                hold.apply()
            return {name: strategy.experimental_local_results(value)[0] for name, value in logs.items()}

        return step if job.model.run_eagerly else tf.function(step, reduce_retracing=True)

    def _make_metrics(self) -> None:
        """Has Keras make the metrics, which it does in the first step: a checkpoint is to find them before."""
        job = self._job
        if not job.model.run_eagerly:
            data = self._strategy.experimental_distribute_dataset(job.data(0))
            self._step.get_concrete_function(data.element_spec)
        elif job.train_step is None:
            for batch in job.data(0).take(1):
                self._strategy.run(job.model.test_step, (batch,))

    def _set_learning_rate(self) -> None:
        config, step = self._job.config, self._place.step
        if config.learning_rate_schedule != "constant" or step <= config.warmup_steps > 0:
            self._job.model.optimizer.learning_rate = learning_rate(config, step, self._steps)

    def _judge(self, logs: Mapping[str, float]) -> None:
        """Whether an epoch was the best, and whether to go on."""
        job, place = self._job, self._place
        stopping = job.config.early_stopping
        monitor = (stopping.monitor if stopping else None) or ("val_loss" if "val_loss" in logs else "loss")
        if monitor not in logs:
            raise ModelError(
                f"EarlyStopping.monitor = {monitor!r} is not in the log, which has: {', '.join(logs)}. Remedy: one of "
                "them."
            )
        if not all(mover.done(place.step) for mover in job.movers):
            return  # more will be pruned: this is not yet what was asked for
        value = -logs[monitor] if smaller_is_better(monitor.removeprefix("val_")) else logs[monitor]
        if place.best is None or value > place.best + (stopping.min_delta if stopping else 0.0):
            place.best, place.best_epoch, place.waited = value, place.epoch, 0
            self._kept.write(str(place.epoch))
        elif stopping is not None:
            place.waited += 1
            if place.waited > stopping.patience:
                place.over = True
                place.notes.append(
                    f"Stopped after epoch {place.epoch + 1} of {job.config.epochs}: {monitor} was best after epoch "
                    f"{(place.best_epoch or 0) + 1}."
                )

    def _diverged(self, broken: Sequence[str] = ()) -> None:
        """Ends a training whose loss is not a number: with the best epoch's weights, or with an error."""
        job, place = self._job, self._place
        what = (
            f"The loss is not a number at step {place.step} (epoch {place.epoch + 1}): training diverged (weights that "
            f"are not finite: {', '.join(broken or trainee.finite(job.model)) or 'none'})"
        )
        remedy = (
            f"Remedy: a smaller FineTuning.learning_rate than {job.config.learning_rate}, or look for labels and "
            "features that are not finite."
        )
        if place.best_epoch is None:
            raise DivergedError(f"{what}. {remedy}")
        place.notes.append(f"{what}; the model is that of epoch {place.best_epoch + 1}. {remedy}")
        place.over = place.diverged = True
        _log.warning("%s", place.notes[-1])

    def _tell_of_masks(self) -> None:
        sparsity = self._job.sparsity()
        for callback in self._job.callbacks:
            if hasattr(callback, "on_prune"):
                callback.on_prune(self._place.step, sparsity)

    def _save(self) -> None:
        if self._checkpoints is None:
            return
        state = dataclasses.asdict(self._place)
        self._checkpoints.save(self._place.step, self._place.epoch, state)
        self._kept.remove_others(str(self._place.best_epoch))


def learning_rate(config: FineTuning, step: int, steps: int) -> float:
    """The learning rate of a step, counted from 0."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.learning_rate_schedule == "constant":
        return config.learning_rate
    gone = min(1.0, (step - config.warmup_steps) / max(1, steps - 1 - config.warmup_steps))
    left = 1 - gone if config.learning_rate_schedule == "linear" else 0.5 * (1 + math.cos(math.pi * gone))
    return config.learning_rate * (config.final_learning_rate + (1 - config.final_learning_rate) * left)


class _Writer:
    """TensorBoard's files, or nothing."""

    def __init__(self, job: Job):
        self._job = job
        self._place = os.path.join(job.log_dir or "", "train")
        self._files = {}
        if job.log_dir is not None:
            self._files = {
                name: tf.summary.create_file_writer(os.path.join(job.log_dir, name)) for name in ("train", "validation")
            }

    def step(self, step: int, logs: Mapping[str, float]) -> None:
        """Loss, metrics, sparsity and learning rate of the step, every `log_steps`."""
        if not self._files or step % self._job.config.log_steps:
            return
        rate = float(self._job.model.optimizer.learning_rate)
        with writing(self._place), self._files["train"].as_default(step):
            for name, value in {**logs, "sparsity": self._job.sparsity(), "learning_rate": rate}.items():
                tf.summary.scalar(name, value)

    def epoch(self, step: int, logs: Mapping[str, float]) -> None:
        """The evaluation split's."""
        if not self._files:
            return
        with writing(self._place):
            with self._files["validation"].as_default(step):
                for name, value in logs.items():
                    if name.startswith("val_"):
                        tf.summary.scalar(name.removeprefix("val_"), value)
            for writer in self._files.values():
                writer.flush()


def _line(logs: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in logs.items())
