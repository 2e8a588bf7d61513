"""Every limit of the budget: held at its bound, not beyond it, and not if its value is unknown."""

import itertools
import math
from typing import Annotated, Any, NamedTuple

import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from tfx_compression.compressed_evaluator import report
from tfx_compression.compressed_evaluator.budget import Budget
from tfx_compression.compressed_evaluator.limit_kinds import Bound, NumberLimit
from tfx_compression.compressed_evaluator.records import BaselineComparison, LimitVerdict, MetricDrop

from tests.support.evaluations import (
    answering,
    baseline,
    decide,
    dropped,
    dropped_in_slices,
    failed_model,
    model,
    verdict,
    verdicts,
)

_NAN, _INF = math.nan, math.inf
_PLAIN = {"confidence": None}


class Case(NamedTuple):
    """A budget of one limit, and candidates within and beyond it.

    Attributes:
      budget: Fields of the budget.
      at_bound: What is measured exactly at the bound: arguments of `verdict`.
      beyond: What is measured beyond it.
      metric: Metric that the verdict names.
    """

    budget: dict[str, Any]
    at_bound: dict[str, Any]
    beyond: dict[str, Any]
    metric: str = ""


def candidates(field: str, at_bound: Any, beyond: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    return {"candidate": model(**{field: at_bound})}, {"candidate": model(**{field: beyond})}


def compared(at_bound: BaselineComparison, beyond: BaselineComparison) -> tuple[dict[str, Any], dict[str, Any]]:
    return {"compared": at_bound}, {"compared": beyond}


_DROP = {"max_metric_drop": {"accuracy": 0.25}}
_RELATIVE = {"max_relative_metric_drop": {"accuracy": 0.25}}
_SLICE = {"max_slice_metric_drop": {"accuracy": 0.25}}
CASES = {
    "drop": Case(
        {**_DROP, **_PLAIN}, *candidates("metrics", {"accuracy": 0.5}, {"accuracy": 0.4375}), metric="accuracy"
    ),
    "no drop allowed": Case(
        {"max_metric_drop": {"accuracy": 0.0}, **_PLAIN},
        *candidates("metrics", {"accuracy": 0.75}, {"accuracy": 0.74}),
        metric="accuracy",
    ),
    "gain demanded": Case(
        {"max_metric_drop": {"accuracy": -0.125}, **_PLAIN},
        *candidates("metrics", {"accuracy": 0.875}, {"accuracy": 0.86}),
        metric="accuracy",
    ),
    "drop with confidence": Case(
        _DROP, *compared(dropped(0.0, upper=0.25), dropped(0.0, upper=0.26)), metric="accuracy"
    ),
    "relative drop": Case(
        {**_RELATIVE, **_PLAIN},
        *compared(dropped(0.125, relative=0.25), dropped(0.125, relative=0.26)),
        metric="accuracy",
    ),
    "relative drop with confidence": Case(
        _RELATIVE,
        *compared(
            dropped(0.0, upper=0.5, relative=0.0, relative_upper=0.25),
            dropped(0.0, upper=0.1, relative=0.0, relative_upper=0.26),
        ),
        metric="accuracy",
    ),
    "worst slice": Case(
        {**_SLICE, **_PLAIN},
        *compared(
            dropped_in_slices(a=MetricDrop(value=0.125, rows=30), b=MetricDrop(value=0.25, rows=30)),
            dropped_in_slices(a=MetricDrop(value=0.26, rows=30), b=MetricDrop(value=0.125, rows=30)),
        ),
        metric="accuracy",
    ),
    "worst slice with confidence": Case(
        _SLICE,
        *compared(
            dropped_in_slices(a=MetricDrop(value=0.0, upper=0.25, rows=30)),
            dropped_in_slices(a=MetricDrop(value=0.0, upper=0.26, rows=30)),
        ),
        metric="accuracy",
    ),
    "bytes": Case({"max_bytes": 1000}, *candidates("bytes", 1000, 1001)),
    "bytes gzipped": Case({"max_bytes_gzip": 500}, *candidates("bytes_gzip", 500, 501)),
    "arena": Case({"max_arena_bytes": 4096}, *candidates("arena_bytes", 4096, 4097)),
    "latency": Case({"max_latency_ms": 2.0}, *candidates("latency_ms", 2.0, math.nextafter(2.0, 3.0))),
    "speedup": Case({"min_speedup": 2.0}, *candidates("latency_ms", 2.0, 2.03125)),
    "agreement": Case(
        {"min_agreement": 0.75},
        *compared(answering(agreement=0.75), answering(agreement=math.nextafter(0.75, 0))),
    ),
    "divergence": Case(
        {"max_divergence": 0.125},
        *compared(answering(divergence=0.125), answering(divergence=math.nextafter(0.125, 1))),
    ),
    "sparsity": Case({"min_sparsity": 0.5}, *candidates("sparsity", 0.5, math.nextafter(0.5, 0.0))),
    "operators": Case(
        {"allowed_ops": ("CONV_2D", "SOFTMAX")},
        *candidates("ops", {"CONV_2D": 2, "SOFTMAX": 1}, {"CONV_2D": 1, "TANH": 1}),
    ),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def test_every_limit_has_a_case():
    assert {next(iter(case.budget)) for case in CASES.values()} == set(Budget.limits())


@each_case
def test_a_limit_is_held_at_its_bound_with_no_margin(case):
    held = verdict(Budget(**case.budget), **case.at_bound)
    assert (held.held, held.measured, held.margin) == (True, held.bound, 0.0)


@each_case
def test_a_limit_is_not_held_beyond_its_bound_and_the_margin_is_negative(case):
    missed = verdict(Budget(**case.budget), **case.beyond)
    assert not missed.held
    assert missed.margin == -abs(missed.bound - missed.measured) < 0


@each_case
def test_a_verdict_carries_the_field_that_it_judges(case):
    said = verdict(Budget(**case.budget), **case.at_bound)
    assert (said.field, said.metric) == (next(iter(case.budget)), case.metric)


@each_case
def test_a_missed_limit_refuses_the_candidate_and_the_reason_quotes_it(case):
    comparisons = {"int8": case.beyond["compared"]} if "compared" in case.beyond else None
    evaluation = decide(Budget(**case.budget), {"int8": case.beyond.get("candidate", model())}, comparisons)
    assert evaluation.chosen is None
    assert evaluation.reason.endswith(f"int8: {evaluation.verdicts['int8'][0].sentence}")


@pytest.mark.slow
def test_a_new_limit_is_one_field_of_the_budget():
    class BudgetWithFewLayers(Budget):
        max_layers: Annotated[
            int | None, NumberLimit("layers", Bound.AT_MOST, lambda context: len(context.candidate.layers), "kernels")
        ] = None
        """Number of kernels."""

    assert BudgetWithFewLayers.limits_table().endswith("| `max_layers` | Number of kernels. |")
    evaluation = decide(BudgetWithFewLayers(max_layers=3), {"int8": model()})
    (said,) = evaluation.verdicts["int8"]
    assert (said.field, said.held, said.sentence) == (
        "max_layers",
        True,
        "layers at most 3 kernels: held (measured 0 kernels)",
    )
    assert "layers at most" in report.render({"": evaluation.model_copy(update={"budget": Budget()})})


@pytest.mark.parametrize(
    ("budget", "changes", "margin"),
    [
        (Budget(max_bytes=1500), {}, 500),
        (Budget(max_bytes=400), {}, -600),
        (Budget(max_arena_bytes=5000), {}, 904),
        (Budget(max_arena_bytes=4000), {}, -96),
        (Budget(min_sparsity=0.25), {}, 0.25),
        (Budget(min_sparsity=0.75), {}, -0.25),
        (Budget(min_speedup=1.5), {}, 0.5),
        (Budget(min_speedup=4.0), {}, -2.0),
        (Budget(min_agreement=0.5), {"compared": answering(agreement=0.75)}, 0.25),
        (Budget(min_agreement=1.0), {"compared": answering(agreement=0.75)}, -0.25),
        (Budget(max_divergence=0.5), {"compared": answering(divergence=0.125)}, 0.375),
        (Budget(max_divergence=0.0), {"compared": answering(divergence=0.125)}, -0.125),
        (Budget(max_metric_drop={"accuracy": 0.5}), {"compared": dropped(0.125, upper=0.375)}, 0.125),
        (Budget(max_metric_drop={"accuracy": 0.25}), {"compared": dropped(0.125, upper=0.375)}, -0.125),
        (Budget(max_metric_drop={"accuracy": 0.5}, **_PLAIN), {"compared": dropped(0.25)}, 0.25),
        (Budget(max_metric_drop={"accuracy": 0.125}, **_PLAIN), {"compared": dropped(0.25)}, -0.125),
        (Budget(max_metric_drop={"accuracy": 0.125}, **_PLAIN), {"compared": dropped(-0.25)}, 0.375),
        (Budget(allowed_ops=("ADD",)), {}, -2),
    ],
)
def test_the_margin_is_the_distance_of_the_measured_value_from_the_bound(budget, changes, margin):
    assert verdict(budget, **changes).margin == margin


def test_unsupported_operators_are_named():
    missed = verdict(Budget(allowed_ops=("CONV_2D",)), candidate=model(ops={"TANH": 1, "CONV_2D": 3, "ELU": 2}))
    assert (missed.measured, missed.note) == (2, "ELU, TANH")
    assert "ELU, TANH" in missed.sentence


def test_a_device_may_support_operators_that_the_model_does_not_use():
    assert verdict(Budget(allowed_ops=("TANH", "SOFTMAX", "CONV_2D", "ADD"))).held


# Unknown values

_UNKNOWN = {
    "drop of an unknown metric": (Budget(max_metric_drop={"auc": 1.0}, **_PLAIN), {}),
    "relative drop of an unknown metric": (Budget(max_relative_metric_drop={"auc": 1.0}, **_PLAIN), {}),
    "relative drop of a baseline of zero": (
        Budget(max_relative_metric_drop={"accuracy": 1.0}, **_PLAIN),
        {"against": baseline(metrics={"accuracy": 0.0})},
    ),
    "relative drop of a baseline of zero, with confidence": (
        Budget(max_relative_metric_drop={"accuracy": 1.0}),
        {"compared": dropped(0.0, upper=0.1), "against": baseline(metrics={"accuracy": 0.0})},
    ),
    "no slices": (Budget(max_slice_metric_drop={"accuracy": 1.0}, **_PLAIN), {}),
    "only small slices": (
        Budget(max_slice_metric_drop={"accuracy": 1.0}, min_slice_rows=50, **_PLAIN),
        {"compared": dropped_in_slices(a=MetricDrop(value=0.0, rows=49))},
    ),
    "a metric that no slice has": (
        Budget(max_slice_metric_drop={"auc": 1.0}, **_PLAIN),
        {"compared": dropped_in_slices(a=MetricDrop(value=0.0, rows=49))},
    ),
    "arena of a SavedModel": (
        Budget(max_arena_bytes=10**9),
        {"candidate": model(kind="saved_model", arena_bytes=None)},
    ),
    "operators of a SavedModel": (Budget(allowed_ops=("CONV_2D",)), {"candidate": model(kind="saved_model", ops={})}),
    "speedup over a baseline of another format": (Budget(min_speedup=1e-9), {"against": baseline(tflite=None)}),
    "agreement of outputs that are not classes": (Budget(min_agreement=0.0), {"compared": answering(divergence=0.0)}),
    "divergence from zeros": (Budget(max_divergence=1e9), {"compared": answering(agreement=1.0)}),
    "sparsity of unreadable weights": (Budget(min_sparsity=0.0), {"candidate": model(sparsity=None)}),
    "no bound of a drop": (Budget(max_metric_drop={"accuracy": 1.0}), {"compared": dropped(-0.5)}),
    "no bound of a relative drop": (
        Budget(max_relative_metric_drop={"accuracy": 1.0}),
        {"compared": dropped(-0.5, relative=-0.5)},
    ),
    "no bound in a slice": (
        Budget(max_slice_metric_drop={"accuracy": 1.0}),
        {"compared": dropped_in_slices(a=MetricDrop(value=-0.5, rows=100))},
    ),
}
_WHY = {
    "drop of an unknown metric": "the baseline or the candidate lacks this metric",
    "relative drop of an unknown metric": "the baseline or the candidate lacks this metric",
    "relative drop of a baseline of zero": "the baseline's metric is zero",
    "relative drop of a baseline of zero, with confidence": "the baseline's metric is zero",
    "no slices": "no slice has 30 rows and this metric",
    "only small slices": "no slice has 50 rows and this metric",
    "a metric that no slice has": "no slice has 30 rows and this metric",
    "arena of a SavedModel": "it is not a TFLite model",
    "operators of a SavedModel": "it is not a TFLite model",
    "speedup over a baseline of another format": "the baseline could not be measured as a tflite model",
    "agreement of outputs that are not classes": "the outputs are not classes",
    "divergence from zeros": "the outputs are not numbers, or the baseline's are all zero",
    "sparsity of unreadable weights": "its weights can't be read",
    "no bound of a drop": "its confidence bound could not be computed",
    "no bound of a relative drop": "its confidence bound could not be computed",
    "no bound in a slice": "its confidence bound could not be computed",
}


@pytest.mark.parametrize("case", _UNKNOWN)
def test_an_unknown_value_holds_no_limit_and_the_verdict_says_why(case):
    budget, changes = _UNKNOWN[case]
    missed = verdict(budget, **changes)
    assert (missed.held, missed.measured, missed.margin, missed.note) == (False, None, None, _WHY[case])
    assert missed.sentence.endswith(f": not held, {missed.note}")


def test_a_known_value_has_no_note():
    assert verdict(Budget(min_sparsity=0.75)).note == ""


@pytest.mark.parametrize(
    ("budget", "changes"),
    [
        (Budget(max_divergence=1e9), {"compared": answering(divergence=_NAN)}),
        (Budget(max_divergence=1e9), {"compared": answering(divergence=_INF)}),
        (Budget(min_agreement=0.0), {"compared": answering(agreement=_NAN)}),
        (Budget(max_metric_drop={"accuracy": 1.0}), {"compared": dropped(0.0, upper=_NAN)}),
        (Budget(max_metric_drop={"accuracy": 1.0}), {"compared": dropped(0.0, upper=_INF)}),
        (Budget(max_metric_drop={"accuracy": 1.0}, **_PLAIN), {"candidate": model(metrics={"accuracy": _NAN})}),
        (Budget(max_metric_drop={"accuracy": 1.0}, **_PLAIN), {"against": baseline(metrics={"accuracy": _NAN})}),
        (Budget(max_metric_drop={"loss": 1.0}, **_PLAIN), {"candidate": model(metrics={"loss": _NAN})}),
        (Budget(max_latency_ms=1e9), {"candidate": model(latency_ms=_NAN)}),
        (Budget(min_speedup=1e-9), {"candidate": model(latency_ms=_NAN)}),
        (Budget(min_sparsity=0.0), {"candidate": model(sparsity=_NAN)}),
    ],
)
def test_a_number_that_is_not_finite_holds_no_limit(budget, changes):
    missed = verdict(budget, **changes)
    assert not missed.held
    assert not math.isfinite(missed.measured)


# Drops of metrics

_FRACTIONS = st.sampled_from([-0.5, -0.125, 0.0, 0.125, 0.25])


@given(_FRACTIONS, _FRACTIONS)
def test_with_a_confidence_the_upper_bound_is_judged_and_not_the_drop(value, upper):
    comparison = dropped(value, upper=upper, relative=value * 2, relative_upper=upper * 2)
    for budget, measured in (
        (Budget(max_metric_drop={"accuracy": 0.125}), upper),
        (Budget(max_relative_metric_drop={"accuracy": 0.25}), 2 * upper),
        (Budget(max_metric_drop={"accuracy": 0.125}, **_PLAIN), value),
        (Budget(max_relative_metric_drop={"accuracy": 0.25}, **_PLAIN), 2 * value),
    ):
        said = verdict(budget, comparison)
        assert (said.measured, said.held) == (measured, measured <= said.bound)


def test_a_verdict_on_a_confidence_bound_names_the_confidence_and_the_drop():
    said = verdict(Budget(max_metric_drop={"accuracy": 0.25}, confidence=0.975), dropped(0.0625, upper=0.125))
    assert "97.5% confidence" in said.limit
    assert said.note == "the drop itself is 0.0625"
    assert "(measured 0.125; the drop itself is 0.0625)" in said.sentence


def test_a_drop_that_exceeds_its_bound_by_rounding_is_held():
    against = baseline(metrics={"accuracy": 0.96})
    budget = Budget(max_metric_drop={"accuracy": 0.01}, **_PLAIN)
    assert verdict(budget, candidate=model(metrics={"accuracy": 0.95}), against=against).held
    assert not verdict(budget, candidate=model(metrics={"accuracy": 0.9499}), against=against).held


def test_the_verdict_names_the_worst_slice():
    comparison = dropped_in_slices(red=MetricDrop(value=0.25, rows=40), blue=MetricDrop(value=0.5, rows=40))
    said = verdict(Budget(max_slice_metric_drop={"accuracy": 0.1}, **_PLAIN), comparison)
    assert said.slice == "blue"
    assert "blue" in said.limit


def test_the_worst_slice_is_the_one_with_the_worst_bound():
    comparison = dropped_in_slices(
        sure=MetricDrop(value=0.25, upper=0.26, rows=4000), unsure=MetricDrop(value=0.125, upper=0.5, rows=40)
    )
    said = verdict(Budget(max_slice_metric_drop={"accuracy": 0.3}), comparison)
    assert (said.measured, said.slice) == (0.5, "unsure")


@pytest.mark.parametrize("order", [("known", "unknown"), ("unknown", "known")])
@pytest.mark.parametrize(
    ("confidence", "unknown", "measured"),
    [
        (0.95, MetricDrop(value=-0.5, rows=40), "None"),  # no bound
        (0.95, MetricDrop(value=_NAN, rows=40), "None"),
        (0.95, MetricDrop(value=0.0, upper=_NAN, rows=40), "nan"),
        (None, MetricDrop(value=_NAN, rows=40), "nan"),
    ],
)
def test_a_slice_without_a_number_counts_as_the_worst(order, confidence, unknown, measured):
    drops = {"known": MetricDrop(value=0.0, upper=0.01, rows=40), "unknown": unknown}
    comparison = dropped_in_slices(**{name: drops[name] for name in order})
    said = verdict(Budget(max_slice_metric_drop={"accuracy": 0.25}, confidence=confidence), comparison)
    assert (said.held, str(said.measured), said.slice) == (False, measured, "unknown")


def test_slices_with_few_rows_are_not_judged():
    comparison = dropped_in_slices(few=MetricDrop(value=0.5, rows=29), many=MetricDrop(value=0.0, rows=30))
    limit = {"max_slice_metric_drop": {"accuracy": 0.25}}
    assert verdict(Budget(**limit, **_PLAIN), comparison).held
    assert not verdict(Budget(**limit, min_slice_rows=29, **_PLAIN), comparison).held


def test_a_slice_that_gets_better_does_not_offset_one_that_gets_worse():
    comparison = BaselineComparison(
        drops={"accuracy": MetricDrop(value=-0.25)},
        slice_drops={
            "a": {"accuracy": MetricDrop(value=-0.5, rows=50)},
            "b": {"accuracy": MetricDrop(value=0.5, rows=50)},
        },
    )
    budget = Budget(max_metric_drop={"accuracy": 0.0}, max_slice_metric_drop={"accuracy": 0.25}, **_PLAIN)
    assert [said.held for said in verdicts(budget, comparison)] == [True, False]


# Too few rows


def drops_and_rows(budget: Budget, comparison: BaselineComparison, **changes: Any) -> list[LimitVerdict]:
    """The verdicts, without the one that a confidence bound takes 20 rows at all."""
    return [said for said in verdicts(budget, comparison, **changes) if said.field != "confidence" or said.metric]


def _enough(confidence: float, allowed: float) -> int:
    """The fewest rows of which none is worse by bad luck, though a fraction `allowed` of all rows is; by counting."""
    rows = 0
    while scipy.stats.binom.pmf(0, rows, allowed) > 1 - confidence:
        rows += 1
    return rows


@pytest.mark.parametrize(
    ("confidence", "allowed"), [(0.95, 0.01), (0.95, 0.02), (0.95, 0.1), (0.99, 0.05), (0.8, 0.3), (0.6, 0.9)]
)
def test_a_split_too_small_for_the_confidence_holds_no_drop_and_says_how_many_rows_it_takes(confidence, allowed):
    needed = _enough(confidence, allowed)
    budget = Budget(max_metric_drop={"accuracy": allowed}, confidence=confidence)
    comparison = dropped(0.0, upper=0.0)
    few, drop = drops_and_rows(budget, comparison, rows=needed - 1)
    assert (few.field, few.metric, few.slice) == ("confidence", "accuracy", "")
    assert (few.held, few.bound, few.measured, drop.held) == (False, needed, needed - 1, True)
    assert f"{100 * confidence:g}% confidence" in few.note
    (drop,) = drops_and_rows(budget, comparison, rows=needed)
    assert drop.held


@pytest.mark.parametrize("allowed", [0.01, 0.05, 0.2])
def test_as_many_rows_as_needed_bound_the_drop_by_what_is_allowed(allowed):
    few, _ = drops_and_rows(Budget(max_metric_drop={"accuracy": allowed}), dropped(0.0, upper=0.0), rows=1)

    def upper(rows: int) -> float:  # of Clopper and Pearson, if no row is worse
        return scipy.stats.binomtest(0, rows, alternative="less").proportion_ci(0.95, method="exact").high

    assert upper(int(few.bound)) <= allowed < upper(int(few.bound) - 1)


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_a_confidence_bound_takes_twenty_rows(metric):
    """One for each part of the jackknife: five equal rows would make it certain of anything."""
    limit = {"max_metric_drop": {metric: 0.1 if metric == "loss" else 0.0}}

    def first(rows: int, **options: Any) -> LimitVerdict:
        return verdicts(Budget(**limit, **options), dropped(0.0, metric=metric, upper=0.0), rows=rows)[0]

    few = first(19)
    assert (few.field, few.metric, few.held, few.bound, few.measured) == ("confidence", "", False, 20, 19)
    assert first(20).held
    assert first(5, confidence=None).held


def test_the_rule_of_three():
    few, _ = drops_and_rows(Budget(max_metric_drop={"accuracy": 0.01}), dropped(0.0, upper=0.0), rows=1)
    assert few.bound == 299


def test_a_relative_drop_takes_rows_for_its_absolute_value():
    budget = Budget(max_relative_metric_drop={"accuracy": 0.02})
    comparison = dropped(0.0, upper=0.0, relative=0.0, relative_upper=0.0)
    few, _ = drops_and_rows(budget, comparison, rows=1, against=baseline(metrics={"accuracy": 0.5}))
    assert few.bound == 299


def test_too_few_rows_are_named_once_for_each_limited_metric():
    budget = Budget(max_metric_drop={"accuracy": 0.01, "auc": 0.02})
    comparison = BaselineComparison(drops={name: MetricDrop(value=0.0, upper=0.0) for name in ("accuracy", "auc")})
    assert [said.held for said in verdicts(budget, comparison, rows=100)] == [False, True, False, True]
    assert [said.held for said in verdicts(budget, comparison, rows=200)] == [False, True, True]


@pytest.mark.parametrize(
    "budget",
    [
        Budget(max_metric_drop={"loss": 0.01}),
        Budget(max_metric_drop={"accuracy": 0.01}, **_PLAIN),
        Budget(max_metric_drop={"accuracy": 1.0}),
        Budget(max_metric_drop={"accuracy": 0.0}),
    ],
    ids=["not a fraction of rows", "no confidence", "everything allowed", "no number of rows is enough"],
)
def test_the_number_of_rows_is_not_judged_if_it_says_nothing(budget):
    comparison = BaselineComparison(drops={name: MetricDrop(value=0.0, upper=0.0) for name in ("accuracy", "loss")})
    (drop,) = drops_and_rows(budget, comparison, rows=1)
    assert drop.held


def test_the_smallest_judged_slice_needs_enough_rows_too():
    """40 rows, none of them worse, exclude a drop of 0.1 and don't exclude one of 0.05."""
    comparison = BaselineComparison(
        slice_drops={
            "size=rare": {"accuracy": MetricDrop(value=0.0, upper=0.0, rows=40)},
            "size=common": {"accuracy": MetricDrop(value=0.0, upper=0.0, rows=4000)},
            "size=hardly": {"accuracy": MetricDrop(value=0.5, upper=0.9, rows=3)},
        }
    )

    def judge(allowed: float, **options: Any) -> list[LimitVerdict]:
        return verdicts(Budget(max_slice_metric_drop={"accuracy": allowed}, **options), comparison, rows=4043)

    assert [said.held for said in judge(0.1)] == [True]
    few, worst = judge(0.05)
    assert (few.field, few.metric, few.slice) == ("confidence", "accuracy", "size=rare")
    assert (few.held, worst.held) == (False, True)
    assert [said.held for said in judge(0.05, min_slice_rows=100)] == [True]
    assert [said.held for said in judge(0.05, confidence=None)] == [True]


def test_confidence_bounds_are_needed_only_for_drops_with_confidence():
    drops = [{}, *({name: {"accuracy": 0.1}} for name in Budget.limits() if "drop" in name)]
    for limits, confidence in itertools.product(drops, (None, 0.95)):
        assert Budget(**limits, confidence=confidence).needs_intervals == bool(limits and confidence)


# Requirements of every candidate


def test_a_model_that_does_not_run_has_one_verdict():
    budget = Budget(max_bytes=1, min_sparsity=1.0, max_metric_drop={"accuracy": 0.1})
    said = verdict(budget, candidate=failed_model("unsupported op TANH"), rows=5)
    assert (said.field, said.held, said.note) == ("failure", False, "unsupported op TANH")


def test_rows_with_nan_predictions_are_a_missed_limit_that_says_how_many():
    said = verdict(Budget(), candidate=model(not_finite=3))
    assert (said.field, said.held, said.bound, said.measured, said.margin) == ("not_finite", False, 0, 3, -3)
    assert "NaN" in said.sentence
