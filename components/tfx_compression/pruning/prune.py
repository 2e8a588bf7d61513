"""Pruning of a model, without a pipeline."""

import dataclasses
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfx_compression.config import require_config
from tfx_compression.data.batches import as_batches
from tfx_compression.errors import CompressionWarning, ConfigError, ModelError
from tfx_compression.keras_models.data_check import explained_labels, require_fitting
from tfx_compression.model_handle import ModelHandle, wrap
from tfx_compression.model_handle.compressed import Compressed, Summary
from tfx_compression.pruning import criteria, sensitivity
from tfx_compression.pruning.allocation import ALLOCATIONS, remaining_sparsity
from tfx_compression.pruning.channel_pruner import ChannelPruner
from tfx_compression.pruning.keras_statistics import KerasStatistics
from tfx_compression.pruning.model_copy import copy_model
from tfx_compression.pruning.model_pruner import Kept, ModelPruner
from tfx_compression.pruning.plan import PruningPlan
from tfx_compression.pruning.record import GroupResult, PruningRecord, SensitivityCurve
from tfx_compression.pruning.sensitivity import SensitivityOptions
from tfx_compression.pruning.signature_statistics import LossFn, SignatureStatistics
from tfx_compression.pruning.sparsity_allocator import SparsityAllocator
from tfx_compression.pruning.statistics import Statistics
from tfx_compression.pruning.weight_pruner import WeightPruner
from tfx_compression.quiet import quiet_libraries
from tfx_compression.tracing import unwrapped_errors


@dataclasses.dataclass(frozen=True)
class PrunedModel(Compressed):
    """A pruned model.

    Attributes:
      record: Record of the pruning, for the report.
      handle: Handle that saves the model. For technique `weight` it holds the pruned model; for the others it holds the
        original, whose signatures the pruned model answers.
    """

    record: PruningRecord
    handle: ModelHandle

    @property
    def plan(self) -> PruningPlan:
        """The plan."""
        return self.record.plan

    @property
    def target_sparsity(self) -> dict[str, float]:
        """Sparsity of each pruned group at the end of the plan's schedule, by name."""
        return self.record.target_sparsity

    def save(self, path: str, signatures_fn: Callable | None = None, transform_graph: str | None = None) -> None:
        """Writes a SavedModel that answers the original signatures, and a `.keras` file beside it if there was one.

        Args:
          path: Path of the SavedModel.
          signatures_fn: Function that makes the signatures of a network whose channels were removed; by default they
            are rebuilt from the original ones and verified against them.
          transform_graph: URI of the TransformGraph, if the signatures use one that the model doesn't hold.
        """
        network = self.model if self.plan.structured else None
        self.handle.save(path, network=network, signatures_fn=signatures_fn, transform_graph_uri=transform_graph)


@unwrapped_errors()
@quiet_libraries()
def prune(
    model: Any,
    plan: PruningPlan,
    data: Any = None,
    *,
    loss_fn: LossFn | None = None,
    sensitivity_options: SensitivityOptions | None = None,
    custom_objects: Mapping[str, Any] | None = None,
) -> PrunedModel:
    """Prunes a model: sets weights to zero or removes channels. It takes the first step of the plan's schedule.

    The given model is left as it is. Technique `weight` prunes a copy of it (see `model_copy`), which takes the memory
    of a second model; a model that is given as a path is loaded only once.

    Args:
      model: A Keras 2 or Keras 3 model, the path of one or of a SavedModel, or the result of `model_handle.load`, of
        `prune` or of `fine_tune`.
      plan: What to prune.
      data: Batches of (features, labels), as Keras' `fit` takes them, or arrays of both, for criteria and allocations
        that require data.
        Where channels are removed, it also gives the means that take their place (see `unit_constants`) and new
        statistics of batch normalizations (`PruningPlan.recalibrate_batches`).
        For a SavedModel without layers, the features are what its signature takes: by argument, or serialized examples.
      loss_fn: Loss of a SavedModel without layers: `loss_fn(labels, outputs)`, with outputs by name, returns the
        batch's mean loss or one loss per row.
      sensitivity_options: Options of the allocation `sensitivity`.
      custom_objects: The user's classes and functions by name, to load a model from a path.

    Returns:
      The pruned model, its record and its masks.

    Raises:
      ConfigError: The plan doesn't fit the model or its sparsity can't be reached; the message has the highest that
        can.
      ModelError: The model can't be pruned this way, can't be copied, has no weights yet, or a weight is not finite.
      DataError: The data doesn't fit the model, or a value is NaN or infinite.
    """
    require_config(plan, PruningPlan, "plan")
    handle = wrap(model, custom_objects)
    _require_built(handle)
    if data is not None:
        data = as_batches(data)
        _require_batches(data)
        if handle.kind != "saved_model":
            require_fitting(handle.model, data)
    if not plan.structured and not isinstance(model, str | os.PathLike):
        handle = copy_model(handle)
    with explained_labels():
        pruned = prune_step(handle, plan, data, loss_fn=loss_fn, sensitivity_options=sensitivity_options)
    for warning in pruned.summary.warnings:
        warnings.warn(warning, CompressionWarning, stacklevel=4)
    return pruned


@unwrapped_errors()
@quiet_libraries()
def prune_step(
    handle: ModelHandle,
    plan: PruningPlan,
    data: tf.data.Dataset | None = None,
    *,
    loss_fn: LossFn | None = None,
    sensitivity_options: SensitivityOptions | None = None,
    step_sparsity: float | None = None,
    current_sparsity: float = 0.0,
) -> PrunedModel:
    """Takes one step of a plan's schedule on a model that the caller gives up.

    Technique `weight` sets weights of the model itself to zero; the others build a new network.

    Args:
      handle: The model.
      plan: See `prune`.
      data: See `prune`.
      loss_fn: See `prune`.
      sensitivity_options: See `prune`.
      step_sparsity: Sparsity after this step, as a fraction of the plan's target in the model before the first step;
        None takes the schedule's first step.
      current_sparsity: Sparsity that earlier steps reached. Only the removal of channels needs it: removed channels
        can't be counted any more, zeros can.

    Raises:
      ConfigError: See `prune`.
      ModelError: See `prune`.
    """
    if handle.kind == "saved_model":
        handle.model.require_savable()
    _require_built(handle)
    _require_finite(handle)
    _require_batches(data)
    step_sparsity = plan.first_step_sparsity if step_sparsity is None else step_sparsity
    current_sparsity = current_sparsity if plan.structured else 0.0
    pruner: ModelPruner = ChannelPruner(handle, plan, data) if plan.structured else WeightPruner(handle, plan)
    statistics = _statistics(pruner, data, loss_fn)
    pruner.score(statistics)
    curves = _sensitivity(pruner, statistics, sensitivity_options or SensitivityOptions())
    allocator = SparsityAllocator(pruner, curves)
    kept = pruner.select(allocator.allocate(step_sparsity, current_sparsity))
    target_sparsity = allocator.allocate(plan.sparsity, current_sparsity)
    asked = remaining_sparsity(step_sparsity, current_sparsity)
    pruner.check_achieved(asked, kept)
    shortfall = pruner.shortfall(asked, kept)
    messages = (shortfall,) if shortfall else ()
    applied = pruner.apply(kept)
    record = PruningRecord(
        plan=plan,
        kind=handle.kind,
        summary=Summary(before=pruner.size, after=applied.size, warnings=messages),
        groups=_results(pruner, kept, target_sparsity, applied.inexact),
        channels=dict(applied.channels),
        notes=(*messages, *handle.notes, *pruner.notes, *_schedule_notes(plan)),
        sensitivity=curves,
        metric=plan.sensitivity_metric if curves else "",
        step_sparsity=step_sparsity,
        achieved_sparsity=pruner.achieved_fraction(kept),
        model_sparsity=pruner.model_fraction(kept),
    )
    return PrunedModel(applied.model, record.summary, applied.masks, record, handle)


def requires_data(plan: PruningPlan) -> bool:
    """Returns whether a plan's criterion or allocation requires data.

    Raises:
      ConfigError: The criterion is unknown.
    """
    return criteria.lookup(plan.criterion).requires_data or ALLOCATIONS[plan.allocation].requires_data


def _statistics(pruner: ModelPruner, data: tf.data.Dataset | None, loss_fn: LossFn | None) -> Statistics | None:
    """Returns the statistics that the plan's criterion and allocation require; None if they require none."""
    handle, plan, criterion = pruner.handle, pruner.plan, pruner.criterion
    allocation = ALLOCATIONS[plan.allocation]
    if not criterion.requires_statistics and not allocation.requires_data:
        return None
    requirement = f"Criterion {plan.criterion!r} with allocation {plan.allocation!r} requires data"
    if data is None and (criterion.requires_data or allocation.requires_data):
        raise ConfigError(
            f"{requirement}, and there is none. Remedy: connect examples and schema to Pruner (prune(model, plan, "
            "data)), or a plan of the weights alone.",
            field="PruningPlan.criterion",
            code="plan-without-data",
        )
    if handle.kind != "saved_model":
        return KerasStatistics(handle.model, data, handle.kernels, plan.sample_rows, plan.batch_size)
    if loss_fn is None or data is None:
        raise ModelError(
            f"{requirement}, and the SavedModel in {handle.path} doesn't have a loss. Remedy: a "
            "loss_fn(labels, outputs) in the module file (prune(…, loss_fn=…)), or a plan of the weights alone.",
            code="model-without-loss",
        )
    return SignatureStatistics(handle.model, data, handle.kernels, plan.sample_rows, plan.batch_size, loss_fn)


def _sensitivity(
    pruner: ModelPruner, statistics: Statistics | None, options: SensitivityOptions
) -> tuple[SensitivityCurve, ...]:
    """Measures the sensitivity of the free groups; returns no curves if the allocation doesn't use them."""
    plan = pruner.plan
    if not ALLOCATIONS[plan.allocation].requires_data or statistics is None or not pruner.free:
        return ()

    def metric() -> float:
        metrics = statistics.metrics()
        if plan.sensitivity_metric not in metrics:
            raise ConfigError(
                f"PruningPlan.sensitivity_metric = {plan.sensitivity_metric!r}: the model is not compiled with it. "
                f"Remedy: one of {', '.join(metrics)}, or a compile_fn(model) in the module file.",
                field="PruningPlan.sensitivity_metric",
                code="unknown-metric",
            )
        return metrics[plan.sensitivity_metric]

    return tuple(sensitivity.measure(pruner.free, plan.sensitivity_levels, pruner.ablated, metric, options))


def _results(
    pruner: ModelPruner, kept: Kept, target_sparsity: Mapping[str, float], inexact: Mapping[str, str]
) -> tuple[GroupResult, ...]:
    results = []
    for name, layers in pruner.layers.items():
        group = pruner.groups.get(name)
        elements = pruner.elements(name)
        scores = None
        if group is not None:
            scores = float(group.scores.min()), float(np.median(group.scores)), float(group.scores.max())
        results.append(
            GroupResult(
                name=name,
                layers=layers,
                elements=elements,
                kept=int(kept[name].sum()) if name in kept else elements,
                target_sparsity=target_sparsity.get(name, 0.0),
                protected=pruner.protected.get(name, ""),
                inexact=inexact.get(name, ""),
                scores=scores,
            )
        )
    return tuple(results)


def _schedule_notes(plan: PruningPlan) -> list[str]:
    if plan.schedule == "one_shot":
        return []
    return [
        f"Schedule {plan.schedule!r}: this is its first step, to {plan.first_step_sparsity:.3g} of "
        f"{plan.sparsity:.3g}; SparsityFineTuner takes the rest."
    ]


def _require_built(handle: ModelHandle) -> None:
    """Raises ModelError for a Keras model that has no weights yet."""
    if handle.kind != "saved_model" and not handle.model.built:
        raise ModelError(
            f"The model {handle.model.name!r} has no weights yet, as it doesn't know the shape of its inputs. Remedy: "
            "call it on a batch of data first: model(features).",
            code="not-built",
        )


def _require_finite(handle: ModelHandle) -> None:
    """Raises ModelError for a weight that is not finite."""
    if handle.kind == "saved_model":
        weights = list(handle.model.variables.values())
    else:
        weights = [
            weight for weight in handle.model.weights if hasattr(weight, "numpy")
        ]  # a vocabulary is a weight too
    for weight in weights:
        values = weight.numpy()
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ModelError(
                f"A weight of {getattr(weight, 'path', weight.name)!r} is not finite. "
                "Remedy: check the Trainer's loss, as this model may have diverged.",
                code="not-finite",
            )


def _require_batches(data: Any) -> None:
    """Raises ConfigError for data that is not batches of (features, labels)."""
    if data is None or (isinstance(data, tf.data.Dataset) and isinstance(data.element_spec, tuple)):
        return
    given = f"a dataset of {data.element_spec}" if isinstance(data, tf.data.Dataset) else f"a {type(data).__name__}"
    raise ConfigError(
        f"prune(…, data): {given} has no batches of (features, labels). Remedy: "
        "tf.data.Dataset.from_tensor_slices((features, labels)).batch(32).",
        field="data",
        code="not-batches",
    )
