"""Measurements, comparisons and decisions of imaginary models, in round numbers that are exact in floating point."""

from collections.abc import Mapping, Sequence
from typing import Any

from tfx_compression.compressed_evaluator import gate
from tfx_compression.compressed_evaluator.budget import Budget
from tfx_compression.compressed_evaluator.evaluation import Evaluation
from tfx_compression.compressed_evaluator.records import (
    BaselineComparison,
    LimitVerdict,
    MetricDrop,
    ModelMeasurements,
    OutputComparison,
)
from tfx_compression.keras_models.metric_names import is_example_count

ROWS = 1000


def model(**changes: Any) -> ModelMeasurements:
    """A TFLite model."""
    known: dict[str, Any] = {
        "kind": "tflite",
        "uri": "/candidate",
        "metrics": {"accuracy": 0.75, "loss": 0.5},
        "bytes": 1000,
        "bytes_gzip": 500,
        "latency_ms": 2.0,
        "latency_spread_ms": 0.25,
        "sparsity": 0.5,
        "arena_bytes": 4096,
        "ops": {"CONV_2D": 2, "SOFTMAX": 1},
    }
    return ModelMeasurements(**{**known, **changes})


def baseline(**changes: Any) -> ModelMeasurements:
    """A SavedModel that takes 64 ms per row, and 4 ms as the float TFLite model that it converts to."""
    known = {
        "kind": "saved_model",
        "uri": "/baseline",
        "bytes": 8000,
        "bytes_gzip": 4000,
        "latency_ms": 64.0,
        "arena_bytes": None,
        "ops": {},
        "tflite": model(bytes=4000, bytes_gzip=2000, latency_ms=4.0),
    }
    return model(**{**known, **changes})


def failed_model(failure: str) -> ModelMeasurements:
    """A model that can't be run."""
    return ModelMeasurements(
        kind="tflite", uri="/failed", bytes=1, bytes_gzip=1, latency_ms=None, latency_spread_ms=None, failure=failure
    )


def dropped(value: float = 0.0, metric: str = "accuracy", rows: int = ROWS, **bounds: Any) -> BaselineComparison:
    """A comparison in which one metric drops on the whole split."""
    return BaselineComparison(drops={metric: MetricDrop(value=value, rows=rows, **bounds)})


def dropped_in_slices(metric: str = "accuracy", **slices: MetricDrop) -> BaselineComparison:
    """A comparison in which one metric drops in slices."""
    return BaselineComparison(slice_drops={name: {metric: drop} for name, drop in slices.items()})


def answering(**output: Any) -> BaselineComparison:
    """A comparison of models with one output."""
    return BaselineComparison(behavior={"": OutputComparison(**output)})


def comparison(reference: ModelMeasurements, candidate: ModelMeasurements, rows: int = ROWS) -> BaselineComparison:
    """The comparison of two models' metrics."""
    return BaselineComparison(
        drops={
            metric: MetricDrop.between(metric, reference.metrics[metric], value, rows)
            for metric, value in candidate.metrics.items()
            if metric in reference.metrics and not is_example_count(metric)
        }
    )


def decide(
    budget: Budget,
    candidates: Mapping[str, ModelMeasurements],
    comparisons: Mapping[str, BaselineComparison] | None = None,
    *,
    against: ModelMeasurements | None = None,
    first: bool = False,
    rows: int = ROWS,
    threshold_verdicts: Mapping[str, Sequence[LimitVerdict]] | None = None,
) -> Evaluation:
    """The gate's decision.

    Args:
      budget: Limits and objective.
      candidates: Candidates by name.
      comparisons: Comparisons with the baseline; by default those of the metrics.
      against: The baseline; `baseline()` by default.
      first: Whether there is no baseline.
      rows: Number of examples.
      threshold_verdicts: Missed thresholds by candidate.
    """
    reference = None if first else against or baseline()
    if comparisons is None:
        comparisons = {} if reference is None else {n: comparison(reference, c, rows) for n, c in candidates.items()}
    return gate.decide(
        rows=rows,
        baseline=reference,
        candidates=candidates,
        comparisons=comparisons,
        budget=budget,
        threshold_verdicts=threshold_verdicts or {},
    )


def verdicts(
    budget: Budget,
    compared: BaselineComparison | None = None,
    candidate: ModelMeasurements | None = None,
    **changes: Any,
) -> list[LimitVerdict]:
    """The verdicts of a budget on one candidate. `changes` are arguments of `decide`."""
    comparisons = None if compared is None else {"int8": compared}
    return list(decide(budget, {"int8": candidate or model()}, comparisons, **changes).verdicts["int8"])


def verdict(
    budget: Budget,
    compared: BaselineComparison | None = None,
    candidate: ModelMeasurements | None = None,
    **changes: Any,
) -> LimitVerdict:
    """The only verdict of a budget on one candidate."""
    (only,) = verdicts(budget, compared, candidate, **changes)
    return only
