"""The decision: which candidates hold the limits, and which of them is released."""

import math
from collections.abc import Callable, Mapping, Sequence

import tensorflow_model_analysis as tfma

from tfx_compression.compressed_evaluator.budget import Budget, Verdict, at_least, at_most, metric_drop
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


def threshold_failures(output_path: str, several: bool) -> dict[str, list[Verdict]]:
    """The thresholds of the eval_config that were missed, by model; TFMA's own verdict is one bit for all models."""
    result = tfma.load_validation_result(output_path)
    failures: dict[str, list[Verdict]] = {}
    for by_slice in result.metric_validations_per_slice:
        keys = ", ".join(f"{key.column}={_value(key)}" for key in by_slice.slice_key.single_slice_keys)
        for failure in by_slice.failures:
            text = " ".join(str(failure.metric_threshold).split()) or failure.message
            value = failure.metric_value.double_value.value if failure.metric_value.HasField("double_value") else None
            verdict = Verdict(
                limit=f"threshold on {failure.metric_key.name}{f' for {keys}' if keys else ''} ({text})",
                bound=None,
                measured=value,
                held=False,
                note=failure.message,
            )
            failures.setdefault(failure.metric_key.model_name if several else "", []).append(verdict)
    return failures


def _value(key: tfma.proto.metrics_for_slice_pb2.SingleSliceKey) -> object:
    kind = key.WhichOneof("kind")
    value = getattr(key, kind) if kind else ""
    return value.decode() if isinstance(value, bytes) else value


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
    for metric, allowed in budget.max_metric_drop.items():
        verdicts += at_most(f"{metric} drops at most", allowed, drops.get(metric), "no baseline has this metric")
    verdicts += at_most("bytes at most", budget.max_bytes, candidate.bytes)
    verdicts += at_most("bytes gzipped at most", budget.max_bytes_gzip, candidate.bytes_gzip)
    verdicts += at_most("milliseconds for one row at most", budget.max_latency_ms, candidate.latency_ms)
    verdicts += at_least(
        "times as fast as the baseline, at least",
        budget.min_speedup,
        speedup(baseline, candidate),
        "the baseline could not be converted to a float TFLite model",
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
