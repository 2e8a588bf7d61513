"""Pruning of a model, without a pipeline."""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfx_compression.errors import ConfigError, ModelError
from tfx_compression.keras_models import model_size
from tfx_compression.keras_models.metric_names import smaller_is_better
from tfx_compression.model_handle import ModelHandle, copy_compilation, wrap
from tfx_compression.model_handle.compressed import Compressed, Summary
from tfx_compression.pruning import criteria, sensitivity
from tfx_compression.pruning.allocation import allocate
from tfx_compression.pruning.channel_pruner import ChannelPruner
from tfx_compression.pruning.keras_statistics import KerasStatistics
from tfx_compression.pruning.plan import PruningPlan
from tfx_compression.pruning.record import GroupResult, PruningRecord, SensitivityCurve
from tfx_compression.pruning.signature_statistics import Loss, SignatureStatistics
from tfx_compression.pruning.statistics import Statistics
from tfx_compression.pruning.surgery import channels_left
from tfx_compression.pruning.technique import Technique
from tfx_compression.pruning.weight_pruner import WeightPruner

Progress = Callable[[int, int, str], None]
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class PrunedModel(Compressed):
    """A pruned model.

    Attributes:
      record: what was done, for the report.
      trained: where the model came from, for its signatures.
    """

    record: PruningRecord
    trained: ModelHandle

    def save(self, path: str, signatures_fn: Callable | None = None, transform_graph: str | None = None) -> None:
        """Writes a SavedModel that answers the same signatures, and a `.keras` beside it where there was one.

        Args:
          path: of the SavedModel.
          signatures_fn: makes the signatures of a network whose channels were removed; by default they are made like
            the old ones, and that is proven.
          transform_graph: URI of the TransformGraph, where the signatures use one that the model doesn't hold.
        """
        network = self.model if self.record.plan.structured else None
        self.trained.save(path, network=network, signatures_fn=signatures_fn, transform_graph_uri=transform_graph)


def _log_progress(done: int, total: int, name: str) -> None:
    _log.info("Sensitivity: %d of %d measured (%s)", done, total, name or "the whole model")


@dataclasses.dataclass(frozen=True)
class SensitivityOptions:
    """How `sensitivity` is measured: where values are kept for a second attempt, under which key, who is told."""

    store_path: str | None = None
    fingerprint: str = ""
    progress: Progress = _log_progress


def prune(
    model: Any,
    plan: PruningPlan,
    data: tf.data.Dataset | None = None,
    *,
    loss_fn: Loss | None = None,
    sensitivity_options: SensitivityOptions | None = None,
    asked: float | None = None,
    done: float = 0.0,
) -> PrunedModel:
    """Prunes a model as `plan` says: single weights become zero, or channels are removed.

    With a schedule, the first step is taken, or the one that `asked` says.

    Args:
      model: a Keras 2 or Keras 3 model, the path of one or of a SavedModel, or what `model_handle.load` returned. By
        technique `weight` a model in memory is changed in place; the others build a new one.
      plan: what to prune.
      data: batches of (features, labels), as Keras' `fit` takes them, for criteria and allocations that look at data.
        Of a SavedModel without layers, the features are what its signature takes: by argument, or serialized examples.
      loss_fn: for a SavedModel without layers, which knows none: `loss_fn(labels, outputs)`, outputs by name, to the
        batch's mean loss or one of each row.
      sensitivity_options: for the allocation `sensitivity`, where its values are kept and who is told of its progress.
      asked: how much of the plan's target is to be gone after this step, of the model that pruning began with.
      done: how much of it earlier steps have removed: channels that are gone can't be counted any more.

    Raises:
      ConfigError: where the plan doesn't fit the model, or can't be reached, with the most that can.
      ModelError: for a model that can't be pruned so, or a weight that is not a number.
    """
    trained = model if isinstance(model, ModelHandle) else wrap(model)
    _require_finite(trained)
    _require_batches(data)
    before = trained.measure()
    technique: ChannelPruner | WeightPruner = (ChannelPruner if plan.structured else WeightPruner)(
        trained, before, plan
    )
    statistics = statistics_of(trained, plan, data, loss_fn)
    technique.score(statistics)
    curves = _curves(technique, statistics, sensitivity_options or SensitivityOptions())
    asked = plan.first_step() if asked is None else asked
    if not plan.structured:
        done = 0.0  # zeros are still there to be counted
    sparsities = allocate_sparsity(technique, asked, curves, done)
    targets = sparsities if asked == plan.sparsity else allocate_sparsity(technique, plan.sparsity, curves, done)
    result, masks, left = trained.model, {}, {}
    if isinstance(technique, ChannelPruner):
        choices = technique.choices(sparsities)
        kept = {name: int(stays.sum()) for name, stays in choices.items()}
        left = channels_left(technique.structure, choices)
        result = technique.apply(choices)
        copy_compilation(trained.model, result)
        after = model_size.measure(result)
    else:
        masks = technique.masks(sparsities)
        kept = {name: int(stays.sum()) for name, stays in masks.items()}
        technique.apply(masks)
        after = trained.measure()
    technique.require_reached(remaining(asked, done), kept)
    record = PruningRecord(
        plan=plan,
        kind=trained.kind,
        summary=Summary(before=before, after=after),
        parts=_parts(technique, kept, targets),
        channels=left,
        notes=(*trained.notes, *technique.notes, *_schedule_note(plan)),
        sensitivity=curves,
        metric=plan.sensitivity_metric if curves else "",
        asked=asked,
        reached=technique.reached(kept),
    )
    return PrunedModel(result, record.summary, masks, record, trained)


def remaining(asked: float, done: float) -> float:
    """The fraction of what is left that goes, where `done` of the whole is gone and `asked` shall be."""
    return max(0.0, 1 - (1 - asked) / (1 - done))


def allocate_sparsity(
    technique: Technique, asked: float, curves: tuple[SensitivityCurve, ...] = (), done: float = 0.0
) -> dict[str, float]:
    """The sparsity of each part that is pruned, of what is left of it after earlier steps."""
    plan, fixed = technique.plan, {name: technique.fixed[name] for name in technique.names if name in technique.fixed}
    scale = 1 / plan.sparsity if plan.sparsity else 0.0  # a schedule's steps are the rules' too
    fixed = {name: remaining(value * scale * asked, value * scale * done) for name, value in fixed.items()}
    asked = remaining(asked, done)
    if not technique.free or not asked:
        return {name: fixed.get(name, 0.0) for name in technique.names}
    if curves:
        chosen = sensitivity.solve(
            curves,
            lambda name, level: technique.achieved({name: level}),
            asked,
            lambda sparsities: technique.achieved({**fixed, **sparsities}),
            higher_is_better=not smaller_is_better(plan.sensitivity_metric),
            target=plan.target,
        )
        return {name: fixed.get(name, chosen.get(name, 0.0)) for name in technique.names}
    parts = [technique.parts[name] for name in technique.names]
    achieved = None if plan.target == "sparsity" else technique.achieved
    return allocate(parts, plan.allocation, asked, fixed, achieved, plan.target)  # type: ignore[arg-type]


def requires_data(plan: PruningPlan) -> bool:
    """Whether criterion or allocation need data; the criterion is known."""
    needs = "nothing" if plan.criterion == "scores" else criteria.get(plan.criterion).needs
    return needs not in ("nothing", "scale") or plan.allocation == "sensitivity"


def statistics_of(
    trained: ModelHandle, plan: PruningPlan, data: tf.data.Dataset | None, loss_fn: Loss | None
) -> KerasStatistics | SignatureStatistics | None:
    """What tells criteria and allocation of the data, where the plan looks at more than weights."""
    needs = "nothing" if plan.criterion == "scores" else criteria.get(plan.criterion).needs
    if needs == "nothing" and plan.allocation != "sensitivity":
        return None
    looks = f"Criterion {plan.criterion!r} with allocation {plan.allocation!r} looks at data"
    if data is None and needs != "scale":
        raise ConfigError(
            f"{looks}, and there is none. Remedy: connect examples and schema to Pruner (prune(model, plan, data)), or "
            "a plan of the weights alone."
        )
    if trained.kind != "saved_model":
        return KerasStatistics(trained.model, data, trained.kernels, plan)
    if loss_fn is None or data is None:
        raise ModelError(
            f"{looks}, and the SavedModel in {trained.path} doesn't say what its loss is. Remedy: a "
            "loss_fn(labels, outputs) in the module file (prune(…, loss_fn=…)), or a plan of the weights alone."
        )
    return SignatureStatistics(trained.model, data, trained.kernels, plan, loss_fn)


def _curves(
    technique: Technique, statistics: Statistics | None, how: SensitivityOptions
) -> tuple[SensitivityCurve, ...]:
    plan = technique.plan
    if plan.allocation != "sensitivity" or statistics is None or not technique.free:
        return ()

    def metric() -> float:
        found = statistics.metrics()
        if plan.sensitivity_metric not in found:
            raise ConfigError(
                f"PruningPlan.sensitivity_metric = {plan.sensitivity_metric!r}: the model was not compiled with it. "
                f"Remedy: one of {', '.join(found)}, or a compile_fn(model) in the module file."
            )
        return found[plan.sensitivity_metric]

    return tuple(
        sensitivity.measure(
            technique.free,
            plan.sensitivity_levels,
            technique.ablated,
            metric,
            how.store_path,
            how.fingerprint,
            how.progress,
        )
    )


def _parts(technique: Technique, kept: Mapping[str, int], targets: Mapping[str, float]) -> tuple[GroupResult, ...]:
    found = []
    for name, concerned in technique.layers.items():
        part = technique.parts.get(name)
        size = technique.size(name)
        scores = None
        if part is not None:
            scores = float(part.scores.min()), float(np.median(part.scores)), float(part.scores.max())
        found.append(
            GroupResult(
                name=name,
                layers=concerned,
                elements=size,
                kept=kept.get(name, size),
                target=targets.get(name, 0.0),
                protected=technique.protected.get(name, ""),
                scores=scores,
            )
        )
    return tuple(found)


def _schedule_note(plan: PruningPlan) -> list[str]:
    if plan.schedule == "one_shot":
        return []
    return [
        f"Schedule {plan.schedule!r}: this is its first step, to {plan.first_step():.3g} of {plan.sparsity:.3g}; "
        "the plan tells the rest to what trains the model."
    ]


def _require_finite(trained: ModelHandle) -> None:
    if trained.kind == "saved_model":
        weights = list(trained.model.variables.values())
    else:
        weights = [weight for weight in trained.model.weights if hasattr(weight, "numpy")]  # a vocabulary is one too
    for weight in weights:
        values = weight.numpy()
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ModelError(
                f"A weight of {getattr(weight, 'path', weight.name)!r} is not finite. "
                "Remedy: look at the Trainer's loss, this model diverged."
            )


def _require_batches(data: Any) -> None:
    """Raises ConfigError for data that is no batches of (features, labels)."""
    if data is None or (isinstance(data, tf.data.Dataset) and isinstance(data.element_spec, tuple)):
        return
    what = f"a dataset of {data.element_spec}" if isinstance(data, tf.data.Dataset) else f"a {type(data).__name__}"
    raise ConfigError(
        f"prune(…, data): {what} is no batches of (features, labels). Remedy: "
        "tf.data.Dataset.from_tensor_slices((features, labels)).batch(32)."
    )
