"""`fine_tune`: trains a pruned model so that what was pruned stays so, without a pipeline."""

import contextlib
import importlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from tfx_compression.config import require_config
from tfx_compression.data.batches import as_batches
from tfx_compression.errors import ConfigError, ModelError
from tfx_compression.keras_models.data_check import explained_labels, require_fitting
from tfx_compression.keras_models.library import keras_library
from tfx_compression.model_handle import ModelHandle, wrap
from tfx_compression.model_handle.compressed import Masks, Summary, require_masked_zeros
from tfx_compression.pruning.batch_statistics import recalibrate
from tfx_compression.pruning.plan import PruningPlan
from tfx_compression.pruning.prune import PrunedModel
from tfx_compression.quiet import quiet_libraries
from tfx_compression.sparsity_fine_tuner import checks, modes
from tfx_compression.sparsity_fine_tuner.checkpoints import require_same_configuration
from tfx_compression.sparsity_fine_tuner.config import FineTuning
from tfx_compression.sparsity_fine_tuner.results import FineTunedModel, ModeResult
from tfx_compression.sparsity_fine_tuner.session import Session
from tfx_compression.sparsity_fine_tuner.training_data import Batches, finite_evaluation_data, seeded_passes
from tfx_compression.sparsity_fine_tuner.training_loop import TrainStep
from tfx_compression.sparsity_fine_tuner.training_model import CompileFn, LossFn
from tfx_compression.sparsity_fine_tuner.variables import non_finite
from tfx_compression.tracing import unwrapped_errors


@unwrapped_errors()
@quiet_libraries()
@explained_labels()
def fine_tune(
    model: Any,
    data: Any,
    config: FineTuning,
    teacher: Any = None,
    plan: PruningPlan | None = None,
    *,
    masks: Masks | None = None,
    target_sparsity: Mapping[str, float] | None = None,
    validation_data: Any = None,
    compile_fn: CompileFn | None = None,
    loss_fn: LossFn | None = None,
    train_step: TrainStep | None = None,
    callbacks: Sequence[Any] = (),
    checkpoints: str | None = None,
    log_dir: str | None = None,
    custom_objects: Mapping[str, Any] | None = None,
) -> FineTunedModel:
    """Trains a pruned model. What is pruned stays so.

    Where channels were removed, the statistics of batch normalizations are first computed anew on the data
    (`PruningPlan.recalibrate_batches`).

    Inside the scope of a `tf.distribute` strategy in which the model was loaded, it trains on all replicas.

    Args:
      model: Result of `prune`, with its plan and masks, or of `fine_tune`, with its masks; or a Keras 2 or Keras 3
        model, the path of one or of a SavedModel, or the result of `model_handle.load`. A model in memory, that of such
        a result included, is trained in place, unless this training removes channels or makes it quantization-aware.
      data: Batches of (features, labels) or (features, labels, weights), as Keras' `fit` takes them; a function from
        the number of a pass to such batches, with the same rows in the same order whenever it is called; or arrays of
        features and labels, which are shuffled for each pass.
      config: Configuration of the training.
      teacher: Dense model, or several of them, to learn from (`config.distillation`) and to compare with
        (`config.guard`). It may be of any kind that `model` may be.
      plan: Plan of the pruning, for the modes `gradual` and `iterative`. By default, the plan of the pruned model.
      masks: Masks by kernel name, as `prune` returns them. By default, every weight of a kernel that is zero is pruned.
      target_sparsity: Sparsity of each kernel at the end of the plan's schedule, for the mode `gradual`, as `prune`
        returns it. By default, the plan's sparsity is allocated to the kernels as they are.
      validation_data: Batches like `data`, which are evaluated after each epoch and by the guard.
        `config.class_weights` apply to training only, as in Keras.
      compile_fn: Function that compiles the given model. By default, loss, metrics and optimizer are those that it was
        compiled with. The configuration's learning rate replaces the optimizer's.
      loss_fn: Loss of a SavedModel without layers: `loss_fn(labels, outputs)`, with outputs by name.
      train_step: Function `train_step(model, batch)` that returns logs and replaces the model's own step.
      callbacks: Callbacks of the model's Keras. One with an `on_prune(step, sparsity)` is told when masks change.
      checkpoints: Folder from which a training that was killed resumes. It belongs to this model, data, configuration
        and plan. Data that is a Dataset must come in the same order again.
      log_dir: Folder of the TensorBoard logs.
      custom_objects: The user's classes by name, for models that are paths and for checkpoints of networks.

    Raises:
      ConfigError: If mode, plan and model don't fit together.
      ModelError: For a model without a loss, a loss that is not a number, masks that don't fit, or a checkpoint that
        can't be written.
    """
    require_config(config, FineTuning, "config")
    if plan is not None:
        require_config(plan, PruningPlan, "plan")
    original = None
    if isinstance(model, PrunedModel | FineTunedModel):
        original, masks = model.handle, model.masks if masks is None else masks
        if plan is None and isinstance(model, PrunedModel):
            plan, target_sparsity = model.plan, target_sparsity or model.target_sparsity
        model = original if model.model is original.model else model.model
    checks.require_mode_fits_plan(config, plan)
    checks.require_monitored_data(config, validation_data)
    tf_keras.utils.set_random_seed(config.seed)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    handle = wrap(model, custom_objects)
    checks.require_distributable(handle)
    masks = dict(masks) if masks is not None else _masks_of_zeros(handle)
    require_masked_zeros(handle, masks, "the model before training")
    size = handle.measure()
    if checkpoints is not None:
        require_same_configuration(checkpoints, _json_values(config, plan))
    _compile(handle, config, compile_fn)
    if train_step is None and handle.kind != "saved_model":
        checks.require_standard_step(handle.model)
    with contextlib.ExitStack() as stack:
        passes = seeded_passes(data, config)
        validation = None if validation_data is None else as_batches(validation_data)
        if train_step is None and handle.kind != "saved_model":
            require_fitting(handle.model, passes(0))
            if validation is not None:
                require_fitting(handle.model, validation, "validation_data")
        notes = _recalibrate(handle, plan, passes)
        session = Session(
            handle=handle,
            config=config,
            plan=plan,
            target_sparsity=dict(target_sparsity or {}),
            data=passes,
            validation=finite_evaluation_data(validation, config),
            teachers=[wrap(each, custom_objects) for each in _as_sequence(teacher)],
            loss_fn=loss_fn,
            train_step=train_step,
            callbacks=tuple(callbacks),
            folder=checkpoints or stack.enter_context(tempfile.TemporaryDirectory(prefix="tfx-compression-")),
            resumable=checkpoints is not None,
            log_dir=log_dir,
            custom_objects=dict(custom_objects or {}),
        )
        mode = importlib.import_module(f"{modes.__name__}.{config.mode}")
        result: ModeResult = mode.run(session, masks)
    if broken := non_finite(result.handle.weights):
        raise ModelError(f"Weights of the trained model are not finite: {', '.join(broken)}.", code="diverged")
    require_masked_zeros(result.handle, result.masks, "the model after training")
    original = original or handle
    return FineTunedModel(
        model=result.handle.model,
        summary=Summary(before=size, after=result.handle.measure()),
        masks=result.masks,
        handle=original,
        network=None if result.handle is original else result.handle.network,
        history=result.history,
        rounds=result.rounds,
        metrics=result.metrics,
        notes=[*notes, *result.notes],
    )


def _recalibrate(handle: ModelHandle, plan: PruningPlan | None, passes: Batches) -> list[str]:
    """Computes the statistics of batch normalizations anew if channels were removed."""
    if plan is None or not plan.structured or handle.network is None:
        return []
    _, notes = recalibrate(handle.network, passes(0), plan.recalibrate_batches, plan.batch_size)
    return notes


def _masks_of_zeros(handle: ModelHandle) -> dict[str, np.ndarray]:
    """Returns the masks of the kernels that have zeros. A shared variable is masked under its first name."""
    masks = {name: kernel.values != 0 for name, kernel in handle.kernels.items() if name not in handle.tied}
    return {name: mask for name, mask in masks.items() if not mask.all()}


def _json_values(config: FineTuning, plan: PruningPlan | None) -> dict[str, Any]:
    return {"config": json.loads(config.to_json()), "plan": None if plan is None else json.loads(plan.to_json())}


def _compile(handle: ModelHandle, config: FineTuning, compile_fn: CompileFn | None) -> None:
    """Compiles a Keras model as the user specifies. Networks made from it are compiled like it."""
    checks.require_keras_names(config, tf_keras if handle.kind == "saved_model" else keras_library(handle.model))
    if handle.kind == "saved_model":
        return
    if compile_fn is not None:
        compile_fn(handle.model)
    elif config.loss is not None:
        optimizer = getattr(handle.model, "optimizer", None) or "adam"
        handle.model.compile(optimizer=optimizer, loss=config.loss, metrics=list(config.metrics))
    elif config.metrics:
        raise ConfigError(
            "FineTuning.metrics needs FineTuning.loss; without it, the model keeps what it was compiled with. Remedy: "
            "both, or a compile_fn(model) in the module file.",
            field="FineTuning.metrics",
            code="metrics-without-loss",
        )


def _as_sequence(teacher: Any) -> Sequence[Any]:
    if teacher is None:
        return ()
    return teacher if isinstance(teacher, list | tuple) else (teacher,)
