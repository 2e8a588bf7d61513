"""The gate: which candidates hold the budget, and which of them is released."""

from collections.abc import Mapping, Sequence

from tfx_compression.compressed_evaluator.budget import Budget
from tfx_compression.compressed_evaluator.evaluation import Evaluation
from tfx_compression.compressed_evaluator.limit_kinds import LimitContext, requirement_verdicts
from tfx_compression.compressed_evaluator.objectives import OBJECTIVES, Costs, choose, costs_of, pareto_front
from tfx_compression.compressed_evaluator.records import BaselineComparison, LimitVerdict, ModelMeasurements


def decide(
    rows: int,
    baseline: ModelMeasurements | None,
    candidates: Mapping[str, ModelMeasurements],
    comparisons: Mapping[str, BaselineComparison],
    budget: Budget,
    threshold_verdicts: Mapping[str, Sequence[LimitVerdict]],
    seconds: Mapping[str, float] | None = None,
    effective_rows: int | None = None,
) -> Evaluation:
    """Judges every candidate by the budget and chooses one.

    Args:
      rows: Number of examples that the metrics were computed on.
      baseline: Measurements of the baseline. Without one nothing is chosen, unless the budget allows a first release.
      candidates: Measurements of the candidates by name.
      comparisons: Comparisons with the baseline by candidate; empty without a baseline.
      budget: Limits and objective.
      threshold_verdicts: Thresholds of the eval_config that a candidate missed, by candidate.
      seconds: Seconds that each step of the evaluation took, for the record.
      effective_rows: Number of rows of equal weight that carry as much information; `rows` by default.
    """
    verdicts: dict[str, tuple[LimitVerdict, ...]] = {}
    for name, candidate in candidates.items():
        context = LimitContext(
            candidate=candidate,
            baseline=baseline,
            comparison=comparisons.get(name, BaselineComparison()),
            rows=rows if effective_rows is None else effective_rows,
            confidence=budget.confidence,
            min_slice_rows=budget.min_slice_rows,
        )
        verdicts[name] = (*_verdicts(budget, context), *threshold_verdicts.get(name, ()))
    costs = {
        name: costs_of(candidate, baseline, comparisons.get(name), budget.limited_metrics)
        for name, candidate in candidates.items()
    }
    chosen, reason = _choose(budget, baseline is not None, verdicts, costs)
    return Evaluation(
        rows=rows,
        baseline=baseline,
        candidates=dict(candidates),
        comparisons=dict(comparisons),
        verdicts=verdicts,
        budget=budget,
        pareto=pareto_front({name: each for name, each in costs.items() if not candidates[name].failure}),
        chosen=chosen,
        reason=reason,
        seconds=dict(seconds or {}),
    )


def _verdicts(budget: Budget, context: LimitContext) -> list[LimitVerdict]:
    """Returns the verdicts on one candidate. A first release skips the limits that compare with a baseline."""
    compares = context.baseline is not None or not budget.allow_first
    verdicts = list(requirement_verdicts(context, limits_drops=compares and bool(budget.limited_metrics)))
    if context.candidate.failure:
        return verdicts
    for field, limit in budget.set_limits.items():
        if compares or not limit.needs_baseline:
            verdicts += limit.verdicts(field, getattr(budget, field), context)
    return verdicts


def _choose(
    budget: Budget,
    has_baseline: bool,
    verdicts: Mapping[str, Sequence[LimitVerdict]],
    costs: Mapping[str, Costs],
) -> tuple[str | None, str]:
    """Returns the chosen candidate, if any, and the reason in words."""
    if not has_baseline and not budget.allow_first:
        return None, "There is no baseline to compare with, so nothing is chosen."
    held = {name: costs[name] for name in verdicts if all(verdict.held for verdict in verdicts[name])}
    if not held:
        return None, "No candidate holds every limit: " + "; ".join(
            f"{name}: {next(verdict for verdict in verdicts[name] if not verdict.held).sentence}" for name in verdicts
        )
    chosen = choose(held, budget.objective, budget.weights)
    reason = f"{chosen} holds every limit."
    if len(held) > 1:
        superlative = OBJECTIVES[budget.objective].superlative
        reason = f"{chosen} is the {superlative} of {len(held)} candidates that hold every limit."
    if not has_baseline:
        reason += " It is a first release (allow_first): there was no baseline to compare it with."
    return chosen, reason
