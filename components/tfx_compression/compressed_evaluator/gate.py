"""The decision: which candidates hold the limits, and which of them is released."""

import math
from collections.abc import Callable, Mapping, Sequence

from tfx_compression.compressed_evaluator.budget import (
    ROUNDING,
    Budget,
    Verdict,
    at_least,
    at_most,
    counts_examples,
    metric_drop,
)
from tfx_compression.compressed_evaluator.evaluation import Comparison, Drop, Evaluation, Measured
from tfx_compression.keras_models.metric_names import smaller_is_better

_LEAST_ROWS = 20  # one in each part of the jackknife
_NO_BASELINE = "there is no baseline"


def decide(
    rows: int,
    baseline: Measured | None,
    candidates: Mapping[str, Measured],
    budget: Budget,
    failures: Mapping[str, Sequence[Verdict]],
    comparisons: Mapping[str, Comparison] | None = None,
    seconds: Mapping[str, float] | None = None,
    effective_rows: int | None = None,
) -> Evaluation:
    """Holds every candidate against the budget and chooses one.

    Args:
      rows: number of examples that the metrics were computed on.
      baseline: the model that the candidates are compared with; without one nothing is chosen, unless the budget allows
        a first release.
      candidates: by name.
      budget: the limits and the objective.
      failures: by candidate, the thresholds of the eval_config that it missed.
      comparisons: by candidate, how it differs from the baseline; by default what the metrics on the whole split say.
      seconds: where the time went, for the record.
      effective_rows: how many rows of one weight tell as much as these; by default `rows`.
    """
    telling = rows if effective_rows is None else effective_rows
    if comparisons is None:
        comparisons = {name: compare(rows, baseline, candidate) for name, candidate in candidates.items()}
    verdicts = {
        name: (*_verdicts(telling, budget, baseline, candidate, comparisons.get(name)), *failures.get(name, ()))
        for name, candidate in candidates.items()
    }
    held = [name for name in candidates if all(verdict.held for verdict in verdicts[name])]
    costs = _Costs(budget, baseline, candidates, comparisons)
    chosen, reason = _choose(budget, baseline, held, verdicts, costs)
    return Evaluation(
        rows=rows,
        baseline=baseline,
        candidates=dict(candidates),
        comparisons=dict(comparisons),
        verdicts=verdicts,
        budget=budget,
        pareto=tuple(_pareto({name: costs.all(name) for name, of in candidates.items() if not of.failure})),
        chosen=chosen,
        reason=reason,
        seconds=dict(seconds or {}),
    )


def compare(rows: int, baseline: Measured | None, candidate: Measured) -> Comparison:
    """The drops of the metrics that both models have on the whole split."""
    if baseline is None:
        return Comparison()
    drops = {}
    for metric, value in candidate.metrics.items():
        before = baseline.metrics.get(metric)
        if before is not None and not counts_examples(metric):
            drop = metric_drop(metric, before, value)
            drops[metric] = Drop(value=drop, relative=drop / abs(before) if before else None, rows=rows)
    return Comparison(drops=drops)


def _choose(
    budget: Budget,
    baseline: Measured | None,
    held: Sequence[str],
    verdicts: Mapping[str, Sequence[Verdict]],
    costs: "_Costs",
) -> tuple[str | None, str]:
    if baseline is None and not budget.allow_first:
        return None, "There is no baseline to compare with, so nothing is chosen."
    if not held:
        return None, "No candidate holds every limit: " + "; ".join(
            f"{name}: {describe(next(verdict for verdict in verdicts[name] if not verdict.held))}" for name in verdicts
        )
    chosen = min(held, key=costs.objective)
    reason = f"{chosen} holds every limit."
    if len(held) > 1:
        best = {"weighted": "best by the weighted objective"}.get(budget.objective, budget.objective.replace("_", " "))
        reason = f"{chosen} is the {best} of {len(held)} candidates that hold every limit."
    if baseline is None:
        reason += " It is a first release (allow_first): there was no baseline to compare it with."
    return chosen, reason


def describe(verdict: Verdict) -> str:
    """A verdict in words."""
    held = "held" if verdict.held else "not held"
    if verdict.measured is None:
        return f"{verdict.limit}: {held}, {verdict.note or 'not measured'}"
    note = f"; {verdict.note}" if verdict.note else ""
    if verdict.bound is None:
        return f"{verdict.limit}: {held} (measured {_number(verdict.measured)})"
    return f"{verdict.limit} {_number(verdict.bound)}: {held} (measured {_number(verdict.measured)}{note})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value.is_integer() else f"{value:.4g}"


def _verdicts(
    rows: int, budget: Budget, baseline: Measured | None, candidate: Measured, comparison: Comparison | None
) -> list[Verdict]:
    if candidate.failure:
        return [Verdict(limit="runs in the interpreter", bound=None, measured=None, held=False, note=candidate.failure)]
    verdicts = []
    if candidate.not_finite:
        verdicts += at_most("rows with NaN or infinite predictions at most", 0, candidate.not_finite)
    compared = baseline is not None or not budget.allow_first
    if compared:
        verdicts += _drops(rows, budget, baseline, comparison or Comparison())
    verdicts += at_most("bytes at most", budget.max_bytes, candidate.bytes)
    verdicts += at_most("bytes gzipped at most", budget.max_bytes_gzip, candidate.bytes_gzip)
    no_tflite = "it is no TFLite model"
    verdicts += at_most("bytes of arena at most", budget.max_arena_bytes, candidate.arena_bytes, no_tflite)
    verdicts += at_most("milliseconds for one row at most", budget.max_latency_ms, candidate.latency_ms)
    if compared:
        verdicts += _likeness(budget, baseline, candidate, comparison or Comparison())
    verdicts += at_least(
        "fraction of zero weights at least", budget.min_sparsity, candidate.sparsity, "its weights can't be seen"
    )
    if budget.allowed_ops is not None:
        lacking = sorted(set(candidate.ops) - set(budget.allowed_ops))
        known = len(lacking) if candidate.kind == "tflite" else None
        (verdict,) = at_most("kinds of operators that the device lacks at most", 0, known, no_tflite)
        verdicts.append(verdict.model_copy(update={"note": ", ".join(lacking)}) if lacking else verdict)
    return verdicts


def _drops(rows: int, budget: Budget, baseline: Measured | None, comparison: Comparison) -> list[Verdict]:
    verdicts = []
    if budget.needs_intervals and rows < _LEAST_ROWS:
        verdicts += at_least("examples, to tell how sure a drop is, at least", _LEAST_ROWS, rows)
    lacks = _NO_BASELINE if baseline is None else "the baseline or the candidate lacks this metric"
    for metric, allowed in budget.max_metric_drop.items():
        verdicts += _enough_rows(budget, metric, allowed, rows)
        verdicts += _drop(f"{metric} drops", budget, allowed, comparison.drops.get(metric), lacks)
    for metric, fraction in budget.max_relative_metric_drop.items():
        if baseline is not None:
            verdicts += _enough_rows(budget, metric, fraction * abs(baseline.metrics.get(metric, 0.0)), rows)
        drop = comparison.drops.get(metric)
        verdicts += _drop(f"{metric} drops, relative,", budget, fraction, drop, lacks, relative=True)
    for metric, allowed in budget.max_slice_metric_drop.items():
        verdicts += _enough_in_slices(budget, metric, allowed, comparison)
        worst = _unknown_slice(budget, metric, comparison) or comparison.worst_slice(metric, budget.min_slice_rows)
        lacks = _NO_BASELINE if baseline is None else f"no slice has {budget.min_slice_rows} rows and this metric"
        place = f" ({worst[0]})" if worst else ""
        verdicts += _drop(f"{metric} drops in the worst slice{place}", budget, allowed, worst and worst[1], lacks)
    return verdicts


def _enough_in_slices(budget: Budget, metric: str, allowed: float, comparison: Comparison) -> list[Verdict]:
    """As `_enough_rows`, of the smallest slice that is judged."""
    rows = {name: drops[metric].rows for name, drops in comparison.slice_drops.items() if metric in drops}
    judged = {name: count for name, count in rows.items() if count >= budget.min_slice_rows}
    if not judged:
        return []
    smallest = min(judged, key=lambda name: judged[name])
    return _enough_rows(budget, metric, allowed, judged[smallest], f" in the slice {smallest}")


def _unknown_slice(budget: Budget, metric: str, comparison: Comparison) -> tuple[str, Drop] | None:
    """The first slice that is judged and has no number to judge it by: no other one is worse than that."""
    for name, drops in comparison.slice_drops.items():
        if metric in drops and drops[metric].rows >= budget.min_slice_rows:
            judged = drops[metric].value if budget.confidence is None else drops[metric].upper
            if judged is None or math.isnan(judged):
                return name, drops[metric]
    return None


def _likeness(budget: Budget, baseline: Measured | None, candidate: Measured, comparison: Comparison) -> list[Verdict]:
    verdicts = []
    unknown = _NO_BASELINE if baseline is None else f"the baseline is not to be had as a {candidate.kind} model"
    verdicts += at_least(
        "times as fast as the baseline, at least", budget.min_speedup, speedup(baseline, candidate), unknown
    )
    unknown = _NO_BASELINE if baseline is None else "the outputs are no classes"
    verdicts += at_least(
        "fraction of rows with the baseline's answer at least", budget.min_agreement, comparison.agreement, unknown
    )
    unknown = _NO_BASELINE if baseline is None else "the outputs are no numbers, or the baseline's are all zero"
    verdicts += at_most(
        "outputs differ from the baseline's, relative, at most", budget.max_divergence, comparison.divergence, unknown
    )
    return verdicts


def _drop(
    what: str, budget: Budget, allowed: float, drop: Drop | None, unknown: str, *, relative: bool = False
) -> list[Verdict]:
    """The verdict on a drop, or where the budget has a confidence, on its upper bound."""
    value, upper = (None, None) if drop is None else (drop.value, drop.upper)
    if relative and drop is not None:
        value, upper = drop.relative, drop.relative_upper
        unknown = "the baseline's metric is zero"
    if budget.confidence is None:
        return at_most(f"{what} at most", allowed, value, unknown, ROUNDING)
    if value is not None and upper is None:
        unknown = "its confidence bound could not be computed"
    (verdict,) = at_most(
        f"{what} with {100 * budget.confidence:g} % confidence at most", allowed, upper, unknown, ROUNDING
    )
    if upper is None or value is None:
        return [verdict]
    return [verdict.model_copy(update={"note": f"the drop itself is {value:.4g}"})]


def _enough_rows(budget: Budget, metric: str, allowed: float, rows: int, where: str = "") -> list[Verdict]:
    """Not held where the split is too small to tell, whatever it says; otherwise nothing.

    Even if not one of n rows came out worse, a fraction p of all rows may, at a confidence c, as long as
    (1 - p)^n > 1 - c: the exact binomial bound, n > 3 / p at 95 % (the "rule of three"). It is asked of metrics that
    are better when larger: fractions of rows; and not of a limit of 0 or less, which only equal answers hold.
    """
    if budget.confidence is None or smaller_is_better(metric) or not 0 < allowed < 1:
        return []
    needed = math.ceil(math.log(1 - budget.confidence) / math.log(1 - allowed))
    if rows >= needed:
        return []
    (verdict,) = at_least(f"examples{where}, to tell a drop of {allowed:g} in {metric}, at least", needed, rows)
    more = "judge larger slices only (min_slice_rows), " if where else ""
    remedy = f"evaluate on more, {more}allow more, or ask for less confidence"
    return [verdict.model_copy(update={"note": f"at {100 * budget.confidence:g} % confidence: {remedy}"})]


def speedup(baseline: Measured | None, candidate: Measured) -> float | None:
    """The baseline's latency in the candidate's format divided by the candidate's; None where it is not known."""
    twin = _twin(baseline, candidate)
    if twin is None or not twin.latency_ms or not candidate.latency_ms:
        return None
    return twin.latency_ms / candidate.latency_ms


def _twin(baseline: Measured | None, candidate: Measured) -> Measured | None:
    """The baseline in the candidate's format."""
    if baseline is None:
        return None
    return baseline if baseline.kind == candidate.kind else baseline.tflite if candidate.kind == "tflite" else None


class _Costs:
    """What a candidate costs; less is better."""

    def __init__(
        self,
        budget: Budget,
        baseline: Measured | None,
        candidates: Mapping[str, Measured],
        comparisons: Mapping[str, Comparison],
    ):
        self._budget = budget
        self._baseline = baseline
        self._candidates = candidates
        self._comparisons = comparisons

    def objective(self, name: str) -> tuple[float, ...]:
        """What the budget's objective makes as small as it can; ties go to the smaller file."""
        objectives: dict[str, Callable[[], tuple[float, ...]]] = {
            "smallest": lambda: (),
            "fastest": lambda: (self._latency(name),),
            "most_accurate": lambda: (self._drop(name),),
            "weighted": lambda: (self._weighted(name),),
        }
        candidate = self._candidates[name]
        return (*objectives[self._budget.objective](), candidate.bytes, candidate.bytes_gzip)

    def all(self, name: str) -> tuple[float, float, float]:
        """Size, latency and loss of accuracy."""
        return (float(self._candidates[name].bytes_gzip), self._latency(name), self._drop(name))

    def _latency(self, name: str) -> float:
        latency = self._candidates[name].latency_ms
        return math.inf if latency is None else latency

    def _drop(self, name: str) -> float:
        """In the first limited metric, or the evaluation's first; without a baseline the metric itself."""
        candidate, comparison = self._candidates[name], self._comparisons.get(name)
        metrics = [metric for metric in candidate.metrics if not counts_examples(metric)]
        metric = next(iter([*self._budget.limited_metrics, *metrics]), "")
        if self._baseline is None:
            value = metric_drop(metric, 0.0, candidate.metrics.get(metric, math.nan))
        else:
            drop = comparison.drops.get(metric) if comparison is not None else None
            value = math.nan if drop is None else drop.value
        return math.inf if math.isnan(value) else value

    def _weighted(self, name: str) -> float:
        candidate, weights = self._candidates[name], self._budget.weights
        twin = _twin(self._baseline, candidate) or self._baseline
        size, latency = (twin.bytes_gzip, twin.latency_ms) if twin is not None else (1.0, 1.0)
        terms = (
            (weights.bytes, candidate.bytes_gzip / size),
            (weights.latency, self._latency(name) / (latency or math.inf)),
            (weights.drop, self._drop(name)),
        )
        return sum(weight * term for weight, term in terms if weight)


def _pareto(costs: Mapping[str, tuple[float, ...]]) -> list[str]:
    """Those that no other one is as good as in everything and better in something."""
    return [
        name
        for name, cost in costs.items()
        if not any(
            other != cost and all(theirs <= ours for theirs, ours in zip(other, cost, strict=True))
            for other in costs.values()
        )
    ]
