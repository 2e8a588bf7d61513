"""Training of a pruned model that keeps what was removed away, without a pipeline."""

import contextlib
import dataclasses
import functools
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from tfx_compression.errors import ConfigError, ModelError
from tfx_compression.keras_models.library import keras_library
from tfx_compression.kernels import Kernel
from tfx_compression.model_handle import ModelHandle, wrap
from tfx_compression.model_handle.compressed import Compressed, Masks, Summary, require_masked_zeros
from tfx_compression.pruning.keras_statistics import KerasStatistics
from tfx_compression.pruning.plan import PruningPlan
from tfx_compression.pruning.prune import PrunedModel
from tfx_compression.pruning.sparsity_allocator import SparsityAllocator
from tfx_compression.pruning.weight_pruner import WeightPruner
from tfx_compression.sparsity_fine_tuner import clustering, iterative, lessons, loop, quantization, state, trainee
from tfx_compression.sparsity_fine_tuner.config import FineTuning
from tfx_compression.sparsity_fine_tuner.holds import Clusters, Hold, Zeros
from tfx_compression.sparsity_fine_tuner.iterative import Round
from tfx_compression.sparsity_fine_tuner.loop import Batches, Job, Mover, Outcome, TrainStep
from tfx_compression.sparsity_fine_tuner.movers import Dynamic, Gradual, Schedule
from tfx_compression.sparsity_fine_tuner.trainee import CompileFn, LossFn

_CALIBRATION_BATCHES = 16
_SCHEDULES = {
    "gradual": ("constant", "polynomial", "cubic"),
    "iterative": ("one_shot", "iterative"),
    "dynamic": ("one_shot", "constant"),
}
_CHOSEN_BY_LOSS = ("accuracy", "acc", "crossentropy", "ce")  # metrics that are another for each kind of label


@dataclasses.dataclass(frozen=True)
class Tuned(Compressed):
    """A fine-tuned model.

    Attributes:
      trained: the model that it came from, whose signatures it answers.
      network: the network that takes its place, where its graph changed; None where its weights did only.
      history: the logs of each epoch, round after round.
      rounds: of `iterative`, what each one came to.
      metrics: of the epoch or round whose model it is, called as in the history.
      notes: for the user.
    """

    trained: ModelHandle
    network: Any = None
    history: Sequence[Mapping[str, float]] = ()
    rounds: Sequence[Round] = ()
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()

    def save(self, path: str, signatures_fn: Callable | None = None, transform_graph: str | None = None) -> None:
        """Writes a SavedModel that answers the same signatures, and a `.keras` beside it where there was one.

        Args:
          path: of the SavedModel.
          signatures_fn: makes the signatures of a network whose graph changed; by default they are made like the old
            ones, and that is proven.
          transform_graph: URI of the TransformGraph, where the signatures use one that the model doesn't hold.
        """
        signatures_fn = signatures_fn if self.network is not None else None
        self.trained.save(path, self.network, signatures_fn, transform_graph)


def fine_tune(
    model: Any,
    data: tf.data.Dataset | Batches,
    config: FineTuning,
    teacher: Any = None,
    plan: PruningPlan | None = None,
    *,
    masks: Masks | None = None,
    target_sparsity: Mapping[str, float] | None = None,
    validation_data: tf.data.Dataset | None = None,
    compile_fn: CompileFn | None = None,
    loss_fn: LossFn | None = None,
    train_step: TrainStep | None = None,
    callbacks: Sequence[Any] = (),
    checkpoints: str | None = None,
    log_dir: str | None = None,
    custom_objects: Mapping[str, Any] | None = None,
) -> Tuned:
    """Trains a pruned model; what is pruned stays so.

    It trains inside a `tf.distribute` strategy's scope too, on all of its replicas, if the model was loaded there.

    Args:
      model: what `prune` returned, with its plan and masks; or a Keras 2 or Keras 3 model, the path of one or of a
        SavedModel, or what `model_handle.load` returned. A model in memory is changed in place, but where channels
        are removed or it becomes quantization-aware.
      data: batches of (features, labels) or (features, labels, weights), as Keras' `fit` takes them; or a function from
        the number of a pass to them, which gives the same rows in the same order whenever it is called.
      config: how to train.
      teacher: the dense model, or several, to learn from (`config.distillation`) and to be compared with
        (`config.guard`): as `model`.
      plan: Plan of the pruning, for the modes `gradual` and `iterative`; by default that of the pruned model.
      masks: what was pruned, as `prune` returns it; by default every weight of a kernel that is zero now.
      target_sparsity: Sparsity of each kernel at the end of the plan's schedule, for the mode `gradual`: what `prune`
        returned as `target_sparsity`. By default the plan's sparsity is allocated to the kernels as they are now.
      validation_data: as `data`, evaluated after each epoch; the guard's too. `config.class_weights` are of the
        training alone, as in Keras.
      compile_fn: compiles the model that it is given; by default loss, metrics and optimizer are those that the model
        was compiled with. Its learning rate is replaced by the configuration's.
      loss_fn: of a SavedModel without layers: `loss_fn(labels, outputs)`, outputs by name.
      train_step: `train_step(model, batch)` to logs, instead of the model's own.
      callbacks: Keras callbacks of the model's Keras; one with an `on_prune(step, sparsity)` hears of masks that moved.
      checkpoints: a folder in which a training that is killed finds itself again; of this model, data, configuration
        and plan alone. Data that is a Dataset has to come in the same order again.
      log_dir: where TensorBoard's logs are written.
      custom_objects: the user's classes, for checkpoints of networks.

    Raises:
      ConfigError: where mode, plan and model don't fit together.
      ModelError: for a model without a loss, a loss that is not a number, masks that don't fit, or a checkpoint that
        can't be written.
    """
    origin = None
    if isinstance(model, PrunedModel):
        masks = model.masks if masks is None else masks
        if plan is None:
            plan, target_sparsity = model.plan, target_sparsity or model.target_sparsity
        origin, model = model.handle, model.handle if model.model is model.handle.model else model.model
    _require_mode(config, plan)
    _require_monitored(config, validation_data)
    tf_keras.utils.set_random_seed(config.seed)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    trained = model if isinstance(model, ModelHandle) else wrap(model)
    if trained.kind == "saved_model" and tf.distribute.get_strategy().num_replicas_in_sync > 1:
        raise ConfigError(
            "FineTuning on several devices needs the layers, and the model is a SavedModel without. Remedy: "
            "distribution 'none', or have Trainer save the Keras model."
        )
    masks = dict(masks) if masks is not None else _zeros_of(trained)
    require_masked_zeros(trained, masks, "the model before training")
    before = trained.measure()
    if checkpoints is not None:
        _require_same_training(checkpoints, config, plan)
    _compile(trained, config, compile_fn)
    if train_step is None and trained.kind != "saved_model":
        trainee.require_known_step(trained.model)
    with contextlib.ExitStack() as stack:
        session = Session(
            trained=trained,
            config=config,
            plan=plan,
            target_sparsity=dict(target_sparsity or {}),
            data=_seeded(data, config),
            validation=_limited(validation_data, config),
            teachers=[each if isinstance(each, ModelHandle) else wrap(each) for each in _several(teacher)],
            loss_fn=loss_fn,
            train_step=train_step,
            callbacks=tuple(callbacks),
            folder=checkpoints or stack.enter_context(tempfile.TemporaryDirectory(prefix="tfx-compression-")),
            survives=checkpoints is not None,
            log_dir=log_dir,
            custom_objects=dict(custom_objects or {}),
        )
        if config.mode == "iterative":
            result = iterative.run(session, masks)
        elif config.mode == "quantization_aware":
            result = _quantization_aware(session, masks)
        else:
            outcome, masks = session.train(trained, masks)
            result = iterative.Result(trained, masks, outcome.history, outcome.metrics, outcome.notes)
    view = result.view
    if broken := trainee.finite(view.network if view.network is not None else _module(view)):
        raise ModelError(f"Weights of the trained model are not finite: {', '.join(broken)}.")
    require_masked_zeros(view, result.masks, "the model after training")
    origin = origin or trained
    network = None if view is origin else view.network
    return Tuned(
        view.model,
        Summary(before=before, after=view.measure()),
        result.masks,
        origin,
        network,
        result.history,
        result.rounds,
        result.metrics,
        result.notes,
    )


@dataclasses.dataclass(frozen=True)
class Session:
    """What all trainings of one fine-tuning share; see `fine_tune`.

    Attributes:
      target_sparsity: Sparsity of each kernel in the end, where Pruner chose it.
      survives: whether checkpoints are wanted; `folder` is there anyhow.
    """

    trained: ModelHandle
    config: FineTuning
    plan: PruningPlan | None
    target_sparsity: Mapping[str, float]
    data: Batches
    validation: tf.data.Dataset | None
    teachers: Sequence[ModelHandle]
    loss_fn: LossFn | None
    train_step: TrainStep | None
    callbacks: tuple[Any, ...]
    folder: str
    survives: bool
    log_dir: str | None
    custom_objects: dict[str, Any]

    @functools.cached_property
    def steps(self) -> int:
        """How many steps a training takes."""
        return loop.total_steps(self.data, self.config)

    def train(
        self,
        view: ModelHandle,
        masks: Masks,
        clusters: Mapping[str, np.ndarray] | None = None,
        name: str = "training",
        first_step: int = 0,
    ) -> tuple[Outcome, dict[str, np.ndarray]]:
        """Trains a model in place, by the mode's holds and movers; the masks as they are in the end.

        Args:
          view: the model, or what became of it.
          masks: by kernel of `view`.
          clusters: by kernel of `view`, weights that share values.
          name: of its checkpoints in the folder.
          first_step: what the logs count from.
        """
        config = self.config
        copy = trainee.copied(_layered(view), config.mixed_precision) if config.mixed_precision else None
        work = wrap(copy) if copy is not None else view
        teaching = config.distillation
        model = self.trainee(work, teaching.features if teaching is not None else ())
        if teaching is not None:
            model.lesson = lessons.lesson(
                teaching, self.trained, None if work.network is None else model, self.teachers
            )
        kernels = work.kernels
        zeros = Zeros(kernels, masks)
        if config.mode == "cluster":
            clusters = {
                each: clustering.cluster(kernel.values, masks.get(each), config.clusters)
                for each, kernel in kernels.items()
                if kernel.prunable and each not in (*work.tied, *work.frozen)
            }
        holds: list[Hold] = [Clusters(kernels, clusters)] if clusters else []
        holds.append(zeros)
        for hold in holds:
            hold.apply()
        folder = os.path.join(self.folder, name)
        steps = self.steps
        job = Job(
            model=model,
            config=config,
            data=self.data,
            validation=self.validation,
            holds=holds,
            movers=self._movers(work, model, zeros, steps),
            callbacks=self.callbacks,
            train_step=self.train_step,
            sparsity=lambda: _sparsity(kernels),
            folder=folder if self.survives else None,
            log_dir=self.log_dir,
            first_step=first_step,
        )
        outcome = loop.run(job, steps)
        for hold in holds:
            hold.apply()
        if copy is not None:
            view.network.set_weights(copy.get_weights())
        return outcome, zeros.masks

    def trainee(self, view: ModelHandle, taps: Iterable[str] = ()) -> Any:
        """A model that trains, or evaluates, `view` in place; a lesson sees the outputs of the layers `taps`."""
        if view.kind == "saved_model":
            return trainee.of_signature(view.model, self.config, self.loss_fn)
        network = _layered(view)
        source = self.trained if self.trained.kind == view.kind else view  # a teacher of the other Keras
        return trainee.of_network(source, network, self.config, tuple(taps))

    def evaluate(self, view: ModelHandle) -> dict[str, float]:
        """Loss and metrics of a model on the evaluation data."""
        found = self.trainee(view).evaluate(self.validation, verbose=0, return_dict=True)
        return {name: float(value) for name, value in found.items()}

    def _movers(self, work: ModelHandle, model: Any, zeros: Zeros, steps: int) -> list[Mover]:
        if self.config.mode not in ("gradual", "dynamic"):
            return []
        plan = self.plan or PruningPlan()
        schedule = Schedule(plan, steps)
        if self.config.mode == "dynamic":
            probe = _Probe(model, self.data(0), work.kernels, plan.sample_rows, self.config.batch_size)
            return [Dynamic(work.kernels, zeros, schedule, plan, self.config.drop_fraction, _gradients(probe))]
        technique = WeightPruner(work, plan)
        statistics = None
        if technique.criterion.requires_statistics:
            statistics = _Probe(model, self.data(0), work.kernels, plan.sample_rows, plan.batch_size)
        technique.score(statistics)
        targets = self.target_sparsity or {
            name: value for name, value in SparsityAllocator(technique).allocate(plan.sparsity).items() if value
        }
        if lacking := [name for name in targets if name not in zeros.masks]:
            zeros.add(work.kernels, {name: np.ones(work.kernels[name].shape, bool) for name in lacking})
        return [Gradual(technique, targets, zeros, schedule, statistics)]


def _layered(view: ModelHandle) -> Any:
    """The network of a model that has one.

    Raises:
      ConfigError: for a SavedModel without, whose precision is that of its signature.
      ModelError: for a subclassed model.
    """
    if view.kind == "saved_model" and view.network is None:
        raise ConfigError(
            "FineTuning.mixed_precision needs the layers, and the model is a SavedModel without. Remedy: leave "
            "it out, or have Trainer save the Keras model."
        )
    if view.network is None:
        raise ModelError(
            f"The model {view.model.name!r} is subclassed: it has no graph of layers to train by. Remedy: build it "
            "with Sequential or the functional API, or save it as a SavedModel, which trains by its signature."
        )
    return view.network


class _Probe(KerasStatistics):
    """A look at a model between two steps, which leaves the epoch's metrics as they are.

    Keras 2 adds each loss that it computes to them.
    """

    def gradients(self, batch: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
        """See the base class."""
        states = trainee.unique(variable for metric in self._model.metrics for variable in metric.variables)
        before = [variable.numpy() for variable in states]
        found = super().gradients(batch, names)
        for variable, values in zip(states, before, strict=True):
            variable.assign(values)
        return found

    def _gradients(self, variables: Sequence[Any], features: Any, labels: Any, weights: Any) -> list[tf.Tensor]:
        """On several devices each computes the same: outside of them, their variables can't be watched."""
        strategy = tf.distribute.get_strategy()
        devices = strategy.num_replicas_in_sync
        if devices == 1:
            return super()._gradients(variables, features, labels, weights)
        found = strategy.run(super()._gradients, (variables, features, labels, weights))
        return [strategy.experimental_local_results(value)[0] * devices for value in found]  # of a share of the loss


def _quantization_aware(session: Session, masks: Masks) -> "iterative.Result":
    """Trains a copy that rounds as int8 will; what is zero or shares values goes on so."""
    trained, config = session.trained, session.config
    if trained.kind == "saved_model" or trained.network is None:
        raise ModelError(
            "FineTuning(mode='quantization_aware') needs the graph of layers, and the model has none. Remedy: have "
            'Trainer save a tf_keras model with model.save(fn_args.serving_model_dir, save_format="tf", signatures=…).'
        )
    found = quantization.aware(trained.network)
    if found.network is not trained.network:
        quantization.calibrate(found.network, (batch[0] for batch in session.data(0).take(_CALIBRATION_BATCHES)))
    shared_values = {
        name: clustering.clustered(kernel.values, config.keep_clusters) if config.keep_clusters else None
        for name, kernel in trained.kernels.items()
    }
    view = ModelHandle("keras2", found.network, notes=found.notes)
    outcome, masks = session.train(
        view, masks, {name: index for name, index in shared_values.items() if index is not None}
    )
    return iterative.Result(view, masks, outcome.history, outcome.metrics, (*found.notes, *outcome.notes))


def _require_mode(config: FineTuning, plan: PruningPlan | None) -> None:
    """Raises ConfigError where the mode doesn't take the plan to its end."""
    schedule = plan.schedule if plan is not None else "one_shot"
    allowed = _SCHEDULES.get(config.mode, ("one_shot",))
    if config.mode in ("gradual", "iterative") and plan is None:
        raise ConfigError(f"FineTuning(mode={config.mode!r}) prunes further. Remedy: fine_tune(…, plan=…).")
    if schedule not in allowed:
        modes = [mode for mode, schedules in _SCHEDULES.items() if schedule in schedules]
        raise ConfigError(
            f"PruningPlan.schedule = {schedule!r}: FineTuning(mode={config.mode!r}) would never reach the plan's "
            f"sparsity of {plan.sparsity if plan else 0:g}. Remedy: mode {' or '.join(map(repr, modes)) or 'fixed'}, "
            f"or a schedule among {', '.join(allowed)}."
        )
    if config.mode == "dynamic" and plan is not None and plan.structured:
        raise ConfigError(
            "FineTuning(mode='dynamic') moves single weights, and the plan removes channels. "
            "Remedy: mode 'fixed' or 'iterative'."
        )
    if config.rewind is not None and plan is not None and plan.structured:
        raise ConfigError(
            "FineTuning.rewind is for weights that are zero, and the plan removes channels. Remedy: leave rewind out."
        )


def _require_monitored(config: FineTuning, validation_data: Any) -> None:
    """Raises ConfigError where early stopping looks at evaluation data that isn't there."""
    monitor = config.early_stopping.monitor if config.early_stopping is not None else None
    if monitor is not None and monitor.startswith("val_") and validation_data is None:
        raise ConfigError(
            f"EarlyStopping.monitor = {monitor!r} is of evaluation data, and there is none. Remedy: a split of it "
            f"(validation_data=), or {monitor.removeprefix('val_')!r}."
        )


def _require_same_training(folder: str, config: FineTuning, plan: PruningPlan | None) -> None:
    """Raises ConfigError where a folder holds the checkpoints of another configuration."""
    path = os.path.join(folder, "training.json")
    own = {"config": json.loads(config.to_json()), "plan": None if plan is None else json.loads(plan.to_json())}
    found = state.read_json(path)
    if found is None:
        state.write_json(path, own)
    elif found != own:
        raise ConfigError(
            f"The checkpoints in {folder} are of another configuration or plan. Remedy: another folder (checkpoints=), "
            "or delete it."
        )


def _compile(trained: ModelHandle, config: FineTuning, compile_fn: CompileFn | None) -> None:
    """Compiles the model as the user wants it, where they say so; everything else is compiled like it."""
    keras_model = trained.kind != "saved_model"
    _require_known(config, keras_library(trained.model) if keras_model else tf_keras)
    if not keras_model:
        return
    if compile_fn is not None:
        compile_fn(trained.model)
    elif config.loss is not None:
        optimizer = getattr(trained.model, "optimizer", None) or "adam"
        trained.model.compile(optimizer=optimizer, loss=config.loss, metrics=list(config.metrics))
    elif config.metrics:
        raise ConfigError(
            "FineTuning.metrics goes with FineTuning.loss; without, the model keeps what it was compiled with. Remedy: "
            "both, or a compile_fn(model) in the module file."
        )


def _require_known(config: FineTuning, library: Any) -> None:
    """Raises ConfigError for losses and metrics that Keras doesn't know."""
    metrics = [name for name in config.metrics if name not in _CHOSEN_BY_LOSS]
    known = (("loss", [config.loss] if config.loss else [], library.losses), ("metrics", metrics, library.metrics))
    for field, names, home in known:
        for name in names:
            try:
                found = home.get(name)
            except ValueError:
                found = None
            if found is None or isinstance(found, str):  # Keras 2 hands back the name of a metric that it doesn't know
                raise ConfigError(
                    f"FineTuning.{field}: {name!r} is none of Keras. Remedy: a name of {home.__name__}, or a "
                    "compile_fn(model) in the module file."
                )


def _seeded(data: tf.data.Dataset | Batches, config: FineTuning) -> Batches:
    """The data of a pass, the same whenever it is asked for."""

    def batches(number: int) -> tf.data.Dataset:
        tf_keras.utils.set_random_seed(config.seed + number)  # of a user's input_fn, that names no seed
        found = data if isinstance(data, tf.data.Dataset) else data(number)
        return _weighted(found, config)

    return batches


def _weighted(data: Any, config: FineTuning) -> Any:
    """The rows weighted by their class."""
    if data is None or not config.class_weights:
        return data
    most = max(config.class_weights)
    table = tf.constant([config.class_weights.get(number, 1.0) for number in range(most + 1)], tf.float32)

    if not isinstance(data.element_spec[1], tf.TensorSpec):
        raise ConfigError(
            "FineTuning.class_weights is for models of one output; the labels are of several. Remedy: weights of the "
            "rows, by sample_weight_key or as the data's third part."
        )

    if (data.element_spec[1].shape.rank or 0) > 2:
        raise ConfigError(
            f"FineTuning.class_weights weigh rows, and the labels, {data.element_spec[1].shape}, are of positions in "
            "them. Remedy: weights as the data's third part."
        )

    def weigh(features: Any, labels: Any, weights: Any = None) -> tuple[Any, Any, Any]:
        known = labels if labels.shape.rank in (1, None) or labels.shape[-1] == 1 else tf.argmax(labels, -1)
        places = tf.reshape(tf.cast(known, tf.int32), [-1])
        found = tf.where(places <= most, tf.gather(table, tf.minimum(places, most)), 1.0)
        return features, labels, found if weights is None else found * tf.reshape(tf.cast(weights, tf.float32), [-1])

    return data.map(weigh)


def _limited(data: tf.data.Dataset | None, config: FineTuning) -> tf.data.Dataset | None:
    """Evaluation data that ends."""
    if data is None:
        return None
    size = int(data.cardinality())
    if size == tf.data.INFINITE_CARDINALITY:
        if config.steps_per_epoch is not None:
            return data.take(config.steps_per_epoch)
        raise ModelError(
            "The evaluation data never ends (it repeats), so neither would an epoch. Remedy: "
            "FineTuning.steps_per_epoch."
        )
    if size == 0 or (size == tf.data.UNKNOWN_CARDINALITY and not any(True for _ in data.take(1))):
        raise ModelError("The evaluation data is empty. Remedy: check the split, or leave it out.")
    return data


def _several(teacher: Any) -> Sequence[Any]:
    if teacher is None:
        return ()
    return teacher if isinstance(teacher, list | tuple) else (teacher,)


def _gradients(probe: _Probe) -> Callable[[list[str]], dict[str, np.ndarray]]:
    """The gradient of the mean loss on the probe's sample."""

    def of_sample(names: list[str]) -> dict[str, np.ndarray]:
        found = [probe.gradients(batch, names) for batch in probe.batches()]
        return {name: np.mean([each[name] for each in found], axis=0) for name in names}

    return of_sample


def _sparsity(kernels: Mapping[str, Kernel]) -> float:
    """The fraction of zeros of all kernels."""
    variables = trainee.unique(kernel.variable for kernel in kernels.values())
    size = sum(variable.shape.num_elements() for variable in variables)
    used = sum(int(tf.math.count_nonzero(variable)) for variable in variables)
    return 1 - used / size if size else 0.0


def _zeros_of(trained: ModelHandle) -> dict[str, np.ndarray]:
    found = {name: kernel.values != 0 for name, kernel in trained.kernels.items() if name not in trained.tied}
    return {name: mask for name, mask in found.items() if not mask.all()}


def _module(view: ModelHandle) -> Any:
    """What has the weights of a model without layers."""
    module = tf.Module() if view.kind == "saved_model" else view.model
    if view.kind == "saved_model":
        module.weights = list(view.model.variables.values())
    return module
