"""Objectives: what is minimized to choose among the candidates that hold every limit, and the Pareto front."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from pydantic import Field

from tfx_compression.compressed_evaluator.records import BaselineComparison, ModelMeasurements
from tfx_compression.config import Config
from tfx_compression.keras_models.metric_names import is_example_count, metric_drop


class ObjectiveWeights(Config):
    """Weights of the weighted objective, a sum of terms relative to the baseline. The smallest sum wins.

    Attributes:
      bytes: Weight of the gzipped size divided by the baseline's (as float TFLite, for a TFLite candidate).
      latency: Weight of the latency divided by the baseline's.
      drop: Weight of the drop in the budget's first metric, in the metric's unit. At 100, one percentage point counts
        as much as the whole size of the baseline.
    """

    bytes: float = Field(default=1.0, ge=0)
    latency: float = Field(default=1.0, ge=0)
    drop: float = Field(default=100.0, ge=0)


@dataclasses.dataclass(frozen=True)
class Costs:
    """What a candidate costs; less is better.

    Attributes:
      bytes: Size of the model.
      bytes_gzip: Gzipped size.
      latency_ms: Latency of one row, infinite if unknown.
      drop: Drop in the metric that decides, infinite if unknown. Without a baseline, the metric itself, negated if
        larger is better.
      relative_bytes: Gzipped size divided by the baseline's.
      relative_latency: Latency divided by the baseline's.
    """

    bytes: int
    bytes_gzip: int
    latency_ms: float
    drop: float
    relative_bytes: float
    relative_latency: float

    @property
    def trade_off(self) -> tuple[float, float, float]:
        """The costs that the Pareto front compares: gzipped size, latency and drop."""
        return (float(self.bytes_gzip), self.latency_ms, self.drop)


def _weighted_sum(costs: Costs, weights: ObjectiveWeights) -> float:
    """Returns the weighted sum. A term of weight 0 counts nothing, even if its value is infinite."""
    terms = (
        (weights.bytes, costs.relative_bytes),
        (weights.latency, costs.relative_latency),
        (weights.drop, costs.drop),
    )
    return sum(weight * term for weight, term in terms if weight)


@dataclasses.dataclass(frozen=True)
class Objective:
    """What an objective minimizes.

    Attributes:
      superlative: The chosen candidate, as in "NAME is the SUPERLATIVE of 3 candidates".
      cost: Returns the cost to minimize. Ties go to the smaller file.
    """

    superlative: str
    cost: Callable[[Costs, ObjectiveWeights], float]


ObjectiveName = Literal["smallest", "fastest", "most_accurate", "weighted"]
OBJECTIVES: Mapping[ObjectiveName, Objective] = {
    "smallest": Objective("smallest", lambda costs, weights: costs.bytes),
    "fastest": Objective("fastest", lambda costs, weights: costs.latency_ms),
    "most_accurate": Objective("most accurate", lambda costs, weights: costs.drop),
    "weighted": Objective("best by the weighted objective", _weighted_sum),
}


def costs_of(
    candidate: ModelMeasurements,
    baseline: ModelMeasurements | None,
    comparison: BaselineComparison | None,
    limited_metrics: Sequence[str],
) -> Costs:
    """Returns the costs of a candidate.

    Args:
      candidate: Measurements of the candidate.
      baseline: Measurements of the baseline, if there is one.
      comparison: The candidate compared with the baseline, if there is one.
      limited_metrics: Metrics that the budget limits. The first decides; without any, the candidate's first metric.
    """
    latency = math.inf if candidate.latency_ms is None else candidate.latency_ms
    reference = (baseline.as_kind(candidate.kind) or baseline) if baseline is not None else None
    size, reference_latency = (reference.bytes_gzip, reference.latency_ms) if reference is not None else (1.0, 1.0)
    return Costs(
        bytes=candidate.bytes,
        bytes_gzip=candidate.bytes_gzip,
        latency_ms=latency,
        drop=_drop(candidate, baseline, comparison, limited_metrics),
        relative_bytes=candidate.bytes_gzip / size,
        relative_latency=latency / (reference_latency or math.inf),
    )


def _drop(
    candidate: ModelMeasurements,
    baseline: ModelMeasurements | None,
    comparison: BaselineComparison | None,
    limited_metrics: Sequence[str],
) -> float:
    computed = [metric for metric in candidate.metrics if not is_example_count(metric)]
    metric = next(iter([*limited_metrics, *computed]), "")
    if baseline is None:
        value = metric_drop(metric, 0.0, candidate.metrics.get(metric, math.nan))
    else:
        drop = comparison.drops.get(metric) if comparison is not None else None
        value = math.nan if drop is None else drop.value
    return math.inf if math.isnan(value) else value


def choose(costs: Mapping[str, Costs], objective: ObjectiveName, weights: ObjectiveWeights) -> str:
    """Returns the candidate with the least cost; ties go to the smaller file, then to the first."""

    def cost(name: str) -> tuple[float, int, int]:
        each = costs[name]
        return (OBJECTIVES[objective].cost(each, weights), each.bytes, each.bytes_gzip)

    return min(costs, key=cost)


def pareto_front(costs: Mapping[str, Costs]) -> tuple[str, ...]:
    """Returns the candidates that no other one equals or beats in size, latency and drop, and beats in one of them."""
    trade_offs = {name: each.trade_off for name, each in costs.items()}
    return tuple(
        name
        for name, ours in trade_offs.items()
        if not any(
            other != ours and all(theirs <= mine for theirs, mine in zip(other, ours, strict=True))
            for other in trade_offs.values()
        )
    )
