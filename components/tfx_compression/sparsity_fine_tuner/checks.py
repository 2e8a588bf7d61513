"""Checks of the arguments of `fine_tune` that come before any training."""

from typing import Any

import tensorflow as tf

from tfx_compression.errors import ConfigError, ModelError
from tfx_compression.keras_models.library import keras_library
from tfx_compression.model_handle import ModelHandle
from tfx_compression.pruning.plan import PruningPlan
from tfx_compression.sparsity_fine_tuner.config import FineTuning
from tfx_compression.sparsity_fine_tuner.modes import MODES

# Metrics for which Keras picks a class by the loss and the shape of the labels.
_RESOLVED_BY_KERAS = ("accuracy", "acc", "crossentropy", "ce")


def require_mode_fits_plan(config: FineTuning, plan: PruningPlan | None) -> None:
    """Raises ConfigError if the mode needs a plan and there is none, or would not complete the plan."""
    mode = MODES[config.mode]
    if mode.requires_plan and plan is None:
        raise ConfigError(
            f"FineTuning(mode={config.mode!r}) prunes further and needs a plan. Remedy: fine_tune(…, plan=…).",
            field="FineTuning.mode",
            code="plan-missing",
        )
    schedule = plan.schedule if plan is not None else "one_shot"
    if schedule not in mode.schedules:
        others = [name for name, other in MODES.items() if schedule in other.schedules]
        raise ConfigError(
            f"PruningPlan.schedule = {schedule!r}: FineTuning(mode={config.mode!r}) would never reach the plan's "
            f"sparsity of {plan.sparsity if plan else 0:g}. Remedy: mode {' or '.join(map(repr, others))}, or a "
            f"schedule among {', '.join(mode.schedules)}.",
            field="PruningPlan.schedule",
            code="schedule-not-completed",
        )
    if plan is None or not plan.structured:
        return
    if not mode.channels:
        raise ConfigError(
            f"FineTuning(mode={config.mode!r}) moves single weights, and the plan removes channels. Remedy: mode "
            "'fixed' or 'iterative'.",
            field="FineTuning.mode",
            code="mode-for-weights-only",
        )
    if config.rewind is not None:
        raise ConfigError(
            "FineTuning.rewind is for weights that are zero, and the plan removes channels. Remedy: leave rewind out.",
            field="FineTuning.rewind",
            code="rewind-for-weights-only",
        )


def require_monitored_data(config: FineTuning, validation_data: Any) -> None:
    """Raises ConfigError if early stopping monitors evaluation data and there is none."""
    monitor = config.early_stopping.monitor if config.early_stopping is not None else None
    if monitor is not None and monitor.startswith("val_") and validation_data is None:
        raise ConfigError(
            f"EarlyStopping.monitor = {monitor!r} needs evaluation data, and there is none. Remedy: a split for it "
            f"(validation_data=), or {monitor.removeprefix('val_')!r}.",
            field="EarlyStopping.monitor",
            code="evaluation-data-missing",
        )


def require_distributable(handle: ModelHandle) -> None:
    """Raises ConfigError for a SavedModel without layers on several devices."""
    if handle.kind == "saved_model" and tf.distribute.get_strategy().num_replicas_in_sync > 1:
        raise ConfigError(
            "FineTuning on several devices needs the layers, and the model is a SavedModel without. Remedy: "
            "distribution 'none', or have Trainer save the Keras model.",
            field="FineTuning.distribution",
            code="no-layers",
        )


def require_keras_names(config: FineTuning, library: Any) -> None:
    """Raises ConfigError for an optimizer, a loss or a metric that the Keras library doesn't know.

    Args:
      config: The configuration.
      library: `tf_keras` or `keras`.
    """
    fields = (
        ("optimizer", [config.optimizer], library.optimizers),
        ("loss", [config.loss], library.losses),
        ("metrics", [name for name in config.metrics if name not in _RESOLVED_BY_KERAS], library.metrics),
    )
    for field, names, module in fields:
        for name in filter(None, names):
            try:
                value = module.get(name)
            except ValueError:
                value = None
            if value is None or isinstance(value, str):  # Keras 2 returns the name of an unknown metric
                raise ConfigError(
                    f"FineTuning.{field}: {name!r} is not in Keras. Remedy: a name in {module.__name__}, or a "
                    "compile_fn(model) in the module file.",
                    field=f"FineTuning.{field}",
                    code="unknown-name",
                )


def require_standard_step(model: Any) -> None:
    """Raises ModelError for a class that overrides how it trains: the training loop would ignore that."""
    base = keras_library(model).Model
    overridden = [
        name for name in ("train_step", "compute_loss") if getattr(type(model), name) is not getattr(base, name)
    ]
    if overridden:
        raise ModelError(
            f"The model {model.name!r} is a {type(model).__name__}, which overrides {overridden[0]}; fine-tuning would "
            "ignore that. Remedy: a train_step(model, batch) in the module file (fine_tune(…, train_step=…)).",
            code="own-train-step",
        )
