"""The decision: which candidates hold the limits, and which of them is released."""

import math
from collections.abc import Callable, Mapping, Sequence

from tfx_compression.compressed_evaluator.budget import ROUNDING, Budget, Verdict, at_least, at_most, metric_drop
from tfx_compression.compressed_evaluator.record import Evaluation, Measured


def decide(
    rows: int,
    baseline: Measured | None,
    candidates: Mapping[str, Measured],
    budget: Budget,
    failures: Mapping[str, Sequence[Verdict]],
) -> Evaluation:
    """Holds every candidate against the budget and chooses one; nothing is chosen without a baseline.

    Args:
      rows: number of examples that the metrics were computed on.
      baseline: the model that the candidates are compared with.
      candidates: by name.
      budget: the limits and the objective.
      failures: by candidate, the thresholds of the eval_config that it missed.
    """
    drops = {name: _drops(baseline, candidate) for name, candidate in candidates.items()}
    verdicts = {
        name: (*_verdicts(budget, baseline, candidate, drops[name]), *failures.get(name, ()))
        for name, candidate in candidates.items()
    }
    held = [name for name in candidates if all(verdict.held for verdict in verdicts[name])]
    chosen, reason = None, ""
    if baseline is None:
        reason = "There is no baseline to compare with, so nothing is chosen."
    elif not held:
        reason = "No candidate holds every limit: " + "; ".join(
            f"{name}: {describe(next(verdict for verdict in verdicts[name] if not verdict.held))}"
            for name in candidates
        )
    else:
        cost = _cost(budget, candidates, drops)
        chosen = min(held, key=cost)
        preferred = budget.objective.replace("_", " ")
        reason = f"{chosen} holds every limit."
        if len(held) > 1:
            reason = f"{chosen} is the {preferred} of {len(held)} candidates that hold every limit."
    return Evaluation(
        rows=rows,
        baseline=baseline,
        candidates=dict(candidates),
        metric_drop=drops,
        verdicts=verdicts,
        budget=budget,
        chosen=chosen,
        reason=reason,
    )


def describe(verdict: Verdict) -> str:
    """A verdict in words."""
    held = "held" if verdict.held else "not held"
    if verdict.measured is None:
        return f"{verdict.limit}: {held}, {verdict.note or 'not measured'}"
    if verdict.bound is None:
        return f"{verdict.limit}: {held} (measured {_number(verdict.measured)})"
    return f"{verdict.limit} {_number(verdict.bound)}: {held} (measured {_number(verdict.measured)})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value.is_integer() else f"{value:.4g}"


def _drops(baseline: Measured | None, candidate: Measured) -> dict[str, float]:
    if baseline is None:
        return {}
    return {
        metric: metric_drop(metric, baseline.metrics[metric], value)
        for metric, value in candidate.metrics.items()
        if metric in baseline.metrics and metric != "example_count"
    }


def _verdicts(
    budget: Budget, baseline: Measured | None, candidate: Measured, drops: Mapping[str, float]
) -> list[Verdict]:
    verdicts = []
    unknown = "there is no baseline" if baseline is None else "the baseline or the candidate lacks this metric"
    for metric, allowed in budget.max_metric_drop.items():
        verdicts += at_most(f"{metric} drops at most", allowed, drops.get(metric), unknown, ROUNDING)
    verdicts += at_most("bytes at most", budget.max_bytes, candidate.bytes)
    verdicts += at_most("bytes gzipped at most", budget.max_bytes_gzip, candidate.bytes_gzip)
    verdicts += at_most("milliseconds for one row at most", budget.max_latency_ms, candidate.latency_ms)
    unknown = (
        "there is no baseline" if baseline is None else f"the baseline is not to be had as a {candidate.kind} model"
    )
    verdicts += at_least(
        "times as fast as the baseline, at least", budget.min_speedup, speedup(baseline, candidate), unknown
    )
    verdicts += at_least(
        "fraction of zero weights at least", budget.min_sparsity, candidate.sparsity, "its weights can't be seen"
    )
    return verdicts


def speedup(baseline: Measured | None, candidate: Measured) -> float | None:
    """The baseline's latency in the candidate's format divided by the candidate's; None where it is not known."""
    if baseline is None:
        return None
    twin = baseline if baseline.kind == candidate.kind else baseline.tflite if candidate.kind == "tflite" else None
    return twin.latency_ms / candidate.latency_ms if twin else None


def _cost(
    budget: Budget, candidates: Mapping[str, Measured], drops: Mapping[str, Mapping[str, float]]
) -> Callable[[str], tuple[float, ...]]:
    """What the objective makes as small as it can; ties go to the smaller file."""

    def size(name: str) -> tuple[float, ...]:
        return (candidates[name].bytes, candidates[name].bytes_gzip)

    def drop(name: str) -> float:
        metric = next(iter(budget.max_metric_drop), None) or next(iter(drops[name]), None)
        value = drops[name].get(metric, math.inf) if metric else math.inf
        return math.inf if math.isnan(value) else value

    return {
        "smallest": size,
        "fastest": lambda name: (candidates[name].latency_ms, *size(name)),
        "most_accurate": lambda name: (drop(name), *size(name)),
    }[budget.objective]
