"""Every limit of the budget: held at its bound, not beyond, and not where nobody can know."""

import itertools
import json
import math
from collections.abc import Mapping
from typing import Any

import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from tfx_compression.compressed_evaluator import gate
from tfx_compression.compressed_evaluator.budget import Budget, Verdict
from tfx_compression.compressed_evaluator.evaluation import (
    Behaviour,
    Change,
    Comparison,
    Drop,
    Evaluation,
    Layer,
    Measured,
)
from tfx_compression.errors import ConfigError

_NAN, _INF = math.nan, math.inf
ROWS = 1000


def model(**changes: Any) -> Measured:
    """A TFLite model of round numbers, but for `changes`."""
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
    return Measured(**{**known, **changes})


def baseline(**changes: Any) -> Measured:
    """A SavedModel, with the float TFLite model that it converts to."""
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


def decide(
    budget: Budget,
    candidates: Mapping[str, Measured],
    comparisons: Mapping[str, Comparison] | None = None,
    against: Measured | None = None,
    first: bool = False,
    rows: int = ROWS,
    failures: Mapping[str, list[Verdict]] | None = None,
) -> Evaluation:
    return gate.decide(
        rows=rows,
        baseline=None if first else against or baseline(),
        candidates=candidates,
        budget=budget,
        failures=failures or {},
        comparisons=comparisons,
    )


def verdicts(budget: Budget, comparison: Comparison | None = None, **changes: Any) -> list[Verdict]:
    """What a budget says of one candidate, but that there are enough rows for a confidence bound at all."""
    comparisons = None if comparison is None else {"int8": comparison}
    candidate = changes.pop("candidate", model())
    found = decide(budget, {"int8": candidate}, comparisons, **changes).verdicts["int8"]
    return [each for each in found if not each.limit.startswith("examples, to tell how sure")]


def verdict(budget: Budget, comparison: Comparison | None = None, **changes: Any) -> Verdict:
    (only,) = verdicts(budget, comparison, **changes)
    return only


def dropped(value: float = 0.0, metric: str = "accuracy", rows: int = ROWS, **bounds: Any) -> Comparison:
    """A metric that drops so on the whole split."""
    return Comparison(drops={metric: Drop(value=value, rows=rows, **bounds)})


def in_slices(metric: str = "accuracy", **slices: Drop) -> Comparison:
    return Comparison(slice_drops={name: {metric: drop} for name, drop in slices.items()})


def answering(**behaviour: Any) -> Comparison:
    return Comparison(behaviour={"": Behaviour(**behaviour)})


_PLAIN = {"confidence": None}

# Each limit, at its bound and a little beyond

_LIMITS = {
    "relative drop": (
        Budget(max_relative_metric_drop={"accuracy": 0.25}, **_PLAIN),
        ({"comparison": dropped(0.125, relative=0.25)}, {"comparison": dropped(0.125, relative=0.26)}),
    ),
    "worst slice": (
        Budget(max_slice_metric_drop={"accuracy": 0.25}, **_PLAIN),
        (
            {"comparison": in_slices(a=Drop(value=0.125, rows=30), b=Drop(value=0.25, rows=30))},
            {"comparison": in_slices(a=Drop(value=0.26, rows=30), b=Drop(value=0.125, rows=30))},
        ),
    ),
    "arena": (
        Budget(max_arena_bytes=4096),
        ({"candidate": model(arena_bytes=4096)}, {"candidate": model(arena_bytes=4097)}),
    ),
    "allowed ops": (
        Budget(allowed_ops=("CONV_2D", "SOFTMAX")),
        ({"candidate": model()}, {"candidate": model(ops={"CONV_2D": 1, "TANH": 1})}),
    ),
    "agreement": (
        Budget(min_agreement=0.75),
        (
            {"comparison": answering(agreement=0.75)},
            {"comparison": answering(agreement=math.nextafter(0.75, 0))},
        ),
    ),
    "divergence": (
        Budget(max_divergence=0.125),
        (
            {"comparison": answering(divergence=0.125)},
            {"comparison": answering(divergence=math.nextafter(0.125, 1))},
        ),
    ),
    "drop with confidence": (
        Budget(max_metric_drop={"accuracy": 0.25}),
        ({"comparison": dropped(0.0, upper=0.25)}, {"comparison": dropped(0.0, upper=0.26)}),
    ),
    "relative drop with confidence": (
        Budget(max_relative_metric_drop={"accuracy": 0.25}),
        (
            {"comparison": dropped(0.0, upper=0.5, relative=0.0, relative_upper=0.25)},
            {"comparison": dropped(0.0, upper=0.1, relative=0.0, relative_upper=0.26)},
        ),
    ),
    "worst slice with confidence": (
        Budget(max_slice_metric_drop={"accuracy": 0.25}),
        (
            {"comparison": in_slices(a=Drop(value=0.0, upper=0.25, rows=30))},
            {"comparison": in_slices(a=Drop(value=0.0, upper=0.26, rows=30))},
        ),
    ),
}
each_limit = pytest.mark.parametrize(("budget", "cases"), _LIMITS.values(), ids=_LIMITS.keys())


@each_limit
def test_a_limit_is_held_at_its_bound_with_no_margin(budget, cases):
    held = verdict(budget, **cases[0])
    assert (held.held, held.measured, held.margin) == (True, held.bound, 0.0)


@each_limit
def test_a_limit_is_not_held_beyond_its_bound_and_the_margin_is_negative(budget, cases):
    missed = verdict(budget, **cases[1])
    assert not missed.held
    assert missed.margin is not None and missed.margin < 0
    assert missed.margin == -abs(missed.bound - missed.measured)


@each_limit
def test_a_missed_limit_refuses_the_candidate_and_the_reason_quotes_it(budget, cases):
    candidate = cases[1].get("candidate", model())
    comparisons = {"int8": cases[1]["comparison"]} if "comparison" in cases[1] else None
    evaluation = decide(budget, {"int8": candidate}, comparisons)
    assert evaluation.chosen is None
    assert evaluation.reason.endswith(f"int8: {gate.describe(evaluation.verdicts['int8'][0])}")


@pytest.mark.parametrize(
    ("budget", "changes", "margin"),
    [
        (Budget(max_arena_bytes=5000), {}, 904),
        (Budget(max_arena_bytes=4000), {}, -96),
        (Budget(min_agreement=0.5), {"comparison": answering(agreement=0.75)}, 0.25),
        (Budget(min_agreement=1.0), {"comparison": answering(agreement=0.75)}, -0.25),
        (Budget(max_divergence=0.5), {"comparison": answering(divergence=0.125)}, 0.375),
        (Budget(max_divergence=0.0), {"comparison": answering(divergence=0.125)}, -0.125),
        (Budget(max_metric_drop={"accuracy": 0.5}), {"comparison": dropped(0.125, upper=0.375)}, 0.125),
        (Budget(max_metric_drop={"accuracy": 0.25}), {"comparison": dropped(0.125, upper=0.375)}, -0.125),
        (Budget(allowed_ops=()), {}, -2),
    ],
)
def test_the_margin_is_the_distance_from_what_was_held_against_the_bound(budget, changes, margin):
    assert verdict(budget, **changes).margin == margin


def test_operators_that_the_device_lacks_are_named():
    missed = verdict(Budget(allowed_ops=("CONV_2D",)), candidate=model(ops={"TANH": 1, "CONV_2D": 3, "ELU": 2}))
    assert (missed.measured, missed.note) == (2, "ELU, TANH")
    assert "ELU, TANH" in gate.describe(missed)


def test_a_device_may_have_operators_that_the_model_does_not_use():
    assert verdict(Budget(allowed_ops=("TANH", "SOFTMAX", "CONV_2D", "ADD"))).held


# What can't be known

_UNKNOWN = {
    "relative drop of an unknown metric": (
        Budget(max_relative_metric_drop={"auc": 1.0}, **_PLAIN),
        {},
        "the baseline or the candidate lacks this metric",
    ),
    "relative drop of a baseline of zero": (
        Budget(max_relative_metric_drop={"accuracy": 1.0}, **_PLAIN),
        {"against": baseline(metrics={"accuracy": 0.0})},
        "the baseline's metric is zero",
    ),
    "relative drop of a baseline of zero, with confidence": (
        Budget(max_relative_metric_drop={"accuracy": 1.0}),
        {"comparison": dropped(0.0, upper=0.1), "against": baseline(metrics={"accuracy": 0.0})},
        "the baseline's metric is zero",
    ),
    "no slices": (
        Budget(max_slice_metric_drop={"accuracy": 1.0}, **_PLAIN),
        {},
        "no slice has 30 rows and this metric",
    ),
    "only small slices": (
        Budget(max_slice_metric_drop={"accuracy": 1.0}, min_slice_rows=50, **_PLAIN),
        {"comparison": in_slices(a=Drop(value=0.0, rows=49))},
        "no slice has 50 rows and this metric",
    ),
    "a metric that no slice has": (
        Budget(max_slice_metric_drop={"auc": 1.0}, **_PLAIN),
        {"comparison": in_slices(a=Drop(value=0.0, rows=49))},
        "no slice has 30 rows and this metric",
    ),
    "arena of a SavedModel": (
        Budget(max_arena_bytes=10**9),
        {"candidate": model(kind="saved_model", arena_bytes=None)},
        "it is no TFLite model",
    ),
    "operators of a SavedModel": (
        Budget(allowed_ops=("CONV_2D",)),
        {"candidate": model(kind="saved_model", ops={})},
        "it is no TFLite model",
    ),
    "agreement of what has no classes": (
        Budget(min_agreement=0.0),
        {"comparison": answering(divergence=0.0)},
        "the outputs are no classes",
    ),
    "divergence from nothing": (
        Budget(max_divergence=1e9),
        {"comparison": answering(agreement=1.0)},
        "the outputs are no numbers, or the baseline's are all zero",
    ),
    "no bound of a drop": (
        Budget(max_metric_drop={"accuracy": 1.0}),
        {"comparison": dropped(-0.5)},
        "its confidence bound could not be computed",
    ),
    "no bound of a relative drop": (
        Budget(max_relative_metric_drop={"accuracy": 1.0}),
        {"comparison": dropped(-0.5, relative=-0.5)},
        "its confidence bound could not be computed",
    ),
    "no bound in a slice": (
        Budget(max_slice_metric_drop={"accuracy": 1.0}),
        {"comparison": in_slices(a=Drop(value=-0.5, rows=100))},
        "its confidence bound could not be computed",
    ),
}


@pytest.mark.parametrize(("budget", "changes", "note"), _UNKNOWN.values(), ids=_UNKNOWN.keys())
def test_what_can_not_be_measured_is_not_held_and_says_why(budget, changes, note):
    missed = verdict(budget, **changes)
    assert (missed.held, missed.measured, missed.margin, missed.note) == (False, None, None, note)


@pytest.mark.parametrize(
    ("budget", "changes"),
    [
        (Budget(max_divergence=1e9), {"comparison": answering(divergence=_NAN)}),
        (Budget(min_agreement=0.0), {"comparison": answering(agreement=_NAN)}),
        (Budget(max_metric_drop={"accuracy": 1.0}), {"comparison": dropped(0.0, upper=_NAN)}),
        (Budget(max_metric_drop={"accuracy": 1.0}), {"comparison": dropped(0.0, upper=_INF)}),
        (Budget(max_divergence=1e9), {"comparison": answering(divergence=_INF)}),
    ],
)
def test_nothing_is_held_by_what_is_no_finite_number(budget, changes):
    assert not verdict(budget, **changes).held


# Drops

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


def test_a_verdict_on_a_bound_says_its_confidence_and_the_drop_itself():
    said = verdict(Budget(max_metric_drop={"accuracy": 0.25}, confidence=0.975), dropped(0.0625, upper=0.125))
    assert "97.5 % confidence" in said.limit
    assert said.note == "the drop itself is 0.0625"
    assert gate.describe(said) == (
        "accuracy drops with 97.5 % confidence at most 0.25: held (measured 0.125; the drop itself is 0.0625)"
    )


def test_a_relative_drop_is_a_fraction_of_the_baselines_metric():
    against = baseline(metrics={"accuracy": 0.5, "loss": 0.25})
    evaluation = decide(Budget(**_PLAIN), {"int8": model(metrics={"accuracy": 0.375, "loss": 0.5})}, against=against)
    drops = evaluation.comparisons["int8"].drops
    assert (drops["accuracy"].value, drops["accuracy"].relative) == (0.125, 0.25)
    assert (drops["loss"].value, drops["loss"].relative) == (0.25, 1.0)


def test_a_relative_drop_of_a_negative_metric_is_a_drop_too():
    against = baseline(metrics={"score": -2.0})
    evaluation = decide(Budget(**_PLAIN), {"int8": model(metrics={"score": -3.0})}, against=against)
    assert evaluation.comparisons["int8"].drops["score"].relative == 0.5


def test_the_verdict_names_the_worst_slice():
    comparison = in_slices(red=Drop(value=0.25, rows=40), blue=Drop(value=0.5, rows=40))
    assert "(blue)" in verdict(Budget(max_slice_metric_drop={"accuracy": 0.1}, **_PLAIN), comparison).limit


def test_the_worst_slice_is_the_one_of_the_worst_bound():
    comparison = in_slices(sure=Drop(value=0.25, upper=0.26, rows=4000), unsure=Drop(value=0.125, upper=0.5, rows=40))
    said = verdict(Budget(max_slice_metric_drop={"accuracy": 0.3}), comparison)
    assert (said.measured, "(unsure)" in said.limit) == (0.5, True)


@pytest.mark.parametrize("order", [("known", "unknown"), ("unknown", "known")])
@pytest.mark.parametrize(
    ("confidence", "unknown", "measured"),
    [
        (0.95, Drop(value=-0.5, rows=40), "None"),  # no bound
        (0.95, Drop(value=_NAN, rows=40), "None"),
        (0.95, Drop(value=0.0, upper=_NAN, rows=40), "nan"),
        (None, Drop(value=_NAN, rows=40), "nan"),
    ],
)
def test_a_slice_of_which_nothing_is_known_does_not_hide_behind_one_that_holds(order, confidence, unknown, measured):
    drops = {"known": Drop(value=0.0, upper=0.01, rows=40), "unknown": unknown}
    comparison = in_slices(**{name: drops[name] for name in order})
    said = verdict(Budget(max_slice_metric_drop={"accuracy": 0.25}, confidence=confidence), comparison)
    assert (said.held, str(said.measured)) == (False, measured)
    assert "(unknown)" in said.limit


def test_slices_of_few_rows_are_not_judged():
    comparison = in_slices(few=Drop(value=0.5, rows=29), many=Drop(value=0.0, rows=30))
    assert verdict(Budget(max_slice_metric_drop={"accuracy": 0.25}, **_PLAIN), comparison).held
    assert not verdict(Budget(max_slice_metric_drop={"accuracy": 0.25}, min_slice_rows=29, **_PLAIN), comparison).held


def test_a_slice_that_gets_better_does_not_make_up_for_one_that_gets_worse():
    comparison = Comparison(
        drops={"accuracy": Drop(value=-0.25)},
        slice_drops={
            "a": {"accuracy": Drop(value=-0.5, rows=50)},
            "b": {"accuracy": Drop(value=0.5, rows=50)},
        },
    )
    budget = Budget(max_metric_drop={"accuracy": 0.0}, max_slice_metric_drop={"accuracy": 0.25}, **_PLAIN)
    assert [said.held for said in verdicts(budget, comparison)] == [True, False]


# Too few rows


def _enough(confidence: float, allowed: float) -> int:
    """By counting: the fewest rows of which not one may be worse, if a fraction `allowed` of all are, by bad luck."""
    rows = 0
    while scipy.stats.binom.pmf(0, rows, allowed) > 1 - confidence:
        rows += 1
    return rows


@pytest.mark.parametrize(
    ("confidence", "allowed"), [(0.95, 0.01), (0.95, 0.02), (0.95, 0.1), (0.99, 0.05), (0.8, 0.3), (0.6, 0.9)]
)
def test_a_split_too_small_for_the_confidence_holds_no_drop_and_says_how_many_rows_are_needed(confidence, allowed):
    needed = _enough(confidence, allowed)
    budget = Budget(max_metric_drop={"accuracy": allowed}, confidence=confidence)
    comparison = dropped(0.0, upper=0.0)
    few, drop = verdicts(budget, comparison, rows=needed - 1)
    assert (few.held, few.bound, few.measured, drop.held) == (False, needed, needed - 1, True)
    assert f"{100 * confidence:g} % confidence" in few.note
    assert "accuracy" in few.limit
    assert verdict(budget, comparison, rows=needed).held


@pytest.mark.parametrize("allowed", [0.01, 0.05, 0.2])
def test_as_many_rows_as_needed_bound_the_drop_by_what_is_allowed(allowed):
    few, _ = verdicts(Budget(max_metric_drop={"accuracy": allowed}), dropped(0.0, upper=0.0), rows=1)

    def upper(rows: int) -> float:  # Clopper and Pearson's, of not one worse row
        return scipy.stats.binomtest(0, rows, alternative="less").proportion_ci(0.95, method="exact").high

    assert upper(int(few.bound)) <= allowed < upper(int(few.bound) - 1)


@pytest.mark.parametrize("limits", [{"max_metric_drop": {"loss": 0.1}}, {"max_metric_drop": {"accuracy": 0.0}}])
def test_whatever_the_limit_a_confidence_bound_takes_rows(limits):
    """One for each part of the jackknife: of five equal rows it would be sure of anything."""

    def first(rows: int, **options: Any) -> Verdict:
        comparisons = {"int8": dropped(0.0, metric=next(iter(limits["max_metric_drop"])), upper=0.0)}
        return decide(Budget(**limits, **options), {"int8": model()}, comparisons, rows=rows).verdicts["int8"][0]

    assert (first(19).held, first(19).bound, first(19).measured) == (False, 20, 19)
    assert first(20).held
    assert first(5, confidence=None).held


def test_the_rule_of_three():
    few, _ = verdicts(Budget(max_metric_drop={"accuracy": 0.01}), dropped(0.0, upper=0.0), rows=1)
    assert few.bound == 299


def test_a_relative_drop_needs_rows_for_what_it_is_in_absolute_terms():
    budget = Budget(max_relative_metric_drop={"accuracy": 0.02})
    comparison = dropped(0.0, upper=0.0, relative=0.0, relative_upper=0.0)
    few, _ = verdicts(budget, comparison, rows=1, against=baseline(metrics={"accuracy": 0.5}))
    assert few.bound == 299


def test_too_few_rows_are_named_once_for_each_metric_that_is_limited():
    budget = Budget(max_metric_drop={"accuracy": 0.01, "auc": 0.02})
    comparison = Comparison(drops={name: Drop(value=0.0, upper=0.0) for name in ("accuracy", "auc")})
    assert [said.held for said in verdicts(budget, comparison, rows=100)] == [False, True, False, True]
    assert [said.held for said in verdicts(budget, comparison, rows=200)] == [False, True, True]


@pytest.mark.parametrize(
    "budget",
    [
        Budget(max_metric_drop={"loss": 0.01}),  # no fraction of rows
        Budget(max_metric_drop={"accuracy": 0.01}, **_PLAIN),
        Budget(max_metric_drop={"accuracy": 1.0}),
        Budget(max_metric_drop={"accuracy": 0.0}),  # for which no number of rows is enough
    ],
    ids=["a loss", "no confidence", "all", "nothing"],
)
def test_where_the_number_of_rows_says_nothing_it_is_not_asked_for(budget):
    comparison = Comparison(drops={name: Drop(value=0.0, upper=0.0) for name in ("accuracy", "loss")})
    assert verdict(budget, comparison, rows=1).held


# The first release

_COMPARING = {
    "max_metric_drop": {"accuracy": 0.1},
    "max_relative_metric_drop": {"accuracy": 0.1},
    "max_slice_metric_drop": {"accuracy": 0.1},
    "min_speedup": 1.0,
    "min_agreement": 0.9,
    "max_divergence": 0.1,
}
_OWN = {
    "max_bytes": 1000,
    "max_bytes_gzip": 500,
    "max_arena_bytes": 4096,
    "max_latency_ms": 2.0,
    "min_sparsity": 0.5,
    "allowed_ops": ("CONV_2D", "SOFTMAX"),
}


def test_without_a_baseline_nothing_is_chosen_unless_a_first_release_is_allowed():
    evaluation = decide(Budget(**_OWN), {"int8": model()}, first=True)
    assert evaluation.held("int8")
    assert evaluation.chosen is None
    assert "no baseline" in evaluation.reason


def test_a_first_release_is_held_against_the_limits_that_need_no_baseline_and_says_so():
    evaluation = decide(Budget(**_COMPARING, **_OWN, allow_first=True), {"int8": model()}, {}, first=True)
    assert len(evaluation.verdicts["int8"]) == len(_OWN)
    assert evaluation.chosen == "int8"
    assert evaluation.reason == (
        "int8 holds every limit. It is a first release (allow_first): there was no baseline to compare it with."
    )


def test_a_first_release_that_misses_a_limit_is_none():
    budget = Budget(**_OWN, allow_first=True)
    evaluation = decide(budget, {"int8": model(arena_bytes=4097)}, {}, first=True)
    assert evaluation.chosen is None
    assert "bytes of arena" in evaluation.reason


def test_with_a_baseline_allow_first_changes_nothing():
    candidates = {"int8": model(metrics={"accuracy": 0.5})}
    for limits in ({**_COMPARING, **_OWN}, _OWN):
        plain = decide(Budget(**limits), candidates)
        first = decide(Budget(**limits, allow_first=True), candidates)
        assert (first.verdicts, first.chosen, first.reason) == (plain.verdicts, plain.chosen, plain.reason)
        assert "first release" not in first.reason


@pytest.mark.parametrize("name", _COMPARING)
def test_a_limit_that_needs_a_baseline_is_not_held_without_one_and_says_why(name):
    said = verdict(Budget(**{name: _COMPARING[name]}), Comparison(), first=True)
    assert (said.held, said.measured, said.note) == (False, None, "there is no baseline")


@pytest.mark.parametrize(
    ("objective", "chosen"),
    [("most_accurate", "good"), ("smallest", "small"), ("fastest", "fast"), ("weighted", "good")],
)
def test_a_first_release_is_chosen_by_the_objective_too(objective, chosen):
    candidates = {
        "small": model(metrics={"accuracy": 0.5}, bytes=1, bytes_gzip=400),
        "fast": model(metrics={"accuracy": 0.5}, latency_ms=1.0),
        "good": model(metrics={"accuracy": 0.875}),
    }
    weights = {"bytes": 0.0, "latency": 0.0, "drop": 1.0}
    budget = Budget(allow_first=True, objective=objective, weights=weights)
    assert decide(budget, candidates, {}, first=True).chosen == chosen


# Candidates that fail


def failed(why: str) -> Measured:
    return Measured(
        kind="tflite",
        uri="/broken",
        bytes=1,
        bytes_gzip=1,
        latency_ms=None,
        latency_spread_ms=None,
        failure=why,
    )


def test_a_candidate_that_does_not_run_has_one_verdict_and_the_others_are_judged_as_without_it():
    budget = Budget(**_COMPARING, **_OWN)
    comparison = Comparison(
        drops={"accuracy": Drop(value=0.0, upper=0.0, relative=0.0, relative_upper=0.0)},
        slice_drops={"a": {"accuracy": Drop(value=0.0, upper=0.0, rows=100)}},
        behaviour={"": Behaviour(agreement=1.0, divergence=0.0)},
    )
    both = decide(budget, {"broken": failed("unsupported op TANH"), "good": model()}, {"good": comparison})
    alone = decide(budget, {"good": model()}, {"good": comparison})
    (only,) = both.verdicts["broken"]
    assert (only.held, only.note) == (False, "unsupported op TANH")
    assert both.verdicts["good"] == alone.verdicts["good"]
    assert (both.chosen, both.reason) == (alone.chosen, alone.reason) == ("good", "good holds every limit.")
    assert both.pareto == alone.pareto == ("good",)


def test_a_candidate_that_does_not_run_is_not_chosen_even_if_nothing_is_limited():
    for first in (False, True):
        evaluation = decide(Budget(allow_first=True), {"broken": failed("crashed")}, {}, first=first)
        assert (evaluation.chosen, evaluation.pareto) == (None, ())
        assert "crashed" in evaluation.reason


@pytest.mark.parametrize("objective", ["smallest", "fastest", "most_accurate", "weighted"])
def test_a_candidate_that_does_not_run_is_never_the_best(objective):
    evaluation = decide(Budget(objective=objective), {"broken": failed("crashed"), "good": model()})
    assert evaluation.chosen == "good"


def test_rows_with_nan_predictions_are_a_missed_limit_that_says_how_many():
    evaluation = decide(Budget(), {"a": model(not_finite=3), "b": model()})
    (said,) = evaluation.verdicts["a"]
    assert (said.held, said.bound, said.measured, said.margin) == (False, 0, 3, -3)
    assert "NaN" in gate.describe(said)
    assert (evaluation.verdicts["b"], evaluation.chosen) == ((), "b")


# Choosing


def test_the_weighted_objective_is_the_sum_of_size_latency_and_drop_relative_to_the_baselines_tflite_model():
    # against 2,000 bytes gzipped, 4 ms and an accuracy of 0.75
    candidates = {
        "small": model(bytes_gzip=250, latency_ms=4.0, metrics={"accuracy": 0.75 - 0.0625}),
        "fast": model(bytes_gzip=1000, latency_ms=0.5, metrics={"accuracy": 0.75 - 0.03125}),
        "good": model(bytes_gzip=1500, latency_ms=3.0, metrics={"accuracy": 0.75 + 0.0078125}),
    }
    for weights, sums in (
        (
            {"bytes": 1, "latency": 1, "drop": 8},
            {"small": 0.125 + 1 + 0.5, "fast": 0.5 + 0.125 + 0.25, "good": 0.75 + 0.75 - 0.0625},
        ),
        ({"bytes": 4, "latency": 0, "drop": 1}, {"small": 0.5625, "fast": 2.03125, "good": 2.9921875}),
        ({}, {"small": 0.125 + 1 + 6.25, "fast": 0.5 + 0.125 + 3.125, "good": 0.75 + 0.75 - 0.78125}),
    ):
        budget = Budget(objective="weighted", weights=weights, **_PLAIN)
        evaluation = decide(budget, candidates)
        assert evaluation.chosen == min(sums, key=lambda name: sums[name])
        costs = gate._Costs(budget, evaluation.baseline, candidates, evaluation.comparisons)
        assert {name: costs.objective(name)[0] for name in candidates} == pytest.approx(sums)
        assert "weighted objective of 3 candidates" in evaluation.reason


def test_a_saved_model_is_weighed_against_the_baseline_itself():
    candidates = {"pruned": model(kind="saved_model", bytes_gzip=3000, latency_ms=32.0)}
    budget = Budget(objective="weighted", **_PLAIN)
    evaluation = decide(budget, candidates)
    costs = gate._Costs(budget, evaluation.baseline, candidates, evaluation.comparisons)
    assert costs.objective("pruned")[0] == 0.75 + 0.5


def test_a_weight_of_nothing_counts_nothing_even_of_what_is_not_known():
    budget = Budget(objective="weighted", weights={"drop": 0.0})
    candidates = {"unknown": model(metrics={"accuracy": _NAN}, bytes_gzip=1), "known": model()}
    assert decide(budget, candidates).chosen == "unknown"


@pytest.mark.parametrize("count", ["example_count", "weighted_example_count", "binary/example_count"])
def test_a_number_of_examples_is_no_accuracy(count):
    candidates = {
        "bad": model(metrics={count: 100.0, "accuracy": 0.5}, bytes=1),
        "good": model(metrics={count: 100.0, "accuracy": 0.75}),
    }
    against = baseline(metrics={count: 100.0, "accuracy": 0.75})
    evaluation = decide(Budget(objective="most_accurate"), candidates, against=against)
    assert evaluation.chosen == "good"
    assert evaluation.metric_drop == {"bad": {"accuracy": 0.25}, "good": {"accuracy": 0.0}}


_COST = st.tuples(st.integers(1, 4), st.integers(1, 4), st.sampled_from([0.25, 0.5, 0.75]))


@given(st.lists(_COST, min_size=1, max_size=6))
def test_the_pareto_front_is_all_that_no_other_one_is_better_than(costs):
    candidates = {
        str(number): model(bytes_gzip=size, latency_ms=float(latency), metrics={"accuracy": accuracy})
        for number, (size, latency, accuracy) in enumerate(costs)
    }

    def better(one: tuple, other: tuple) -> bool:
        (a, b, c), (x, y, z) = one, other
        return a <= x and b <= y and c >= z and (a < x or b < y or c > z)

    front = {str(number) for number, cost in enumerate(costs) if not any(better(each, cost) for each in costs)}
    for first in (False, True):
        evaluation = decide(Budget(**_PLAIN), candidates, first=first)
        assert set(evaluation.pareto) == front
        assert front


def test_the_pareto_front_does_not_ask_for_limits():
    evaluation = decide(Budget(max_bytes=10), {"small": model(bytes=10), "good": model(metrics={"accuracy": 1.0})})
    assert (evaluation.chosen, evaluation.pareto) == ("small", ("good",))


@given(
    st.dictionaries(st.sampled_from("abcd"), _COST, min_size=2),
    st.sampled_from(["smallest", "fastest", "most_accurate", "weighted"]),
)
def test_no_other_candidate_beats_the_chosen_one_in_everything(costs, objective):
    candidates = {
        name: model(bytes=size, bytes_gzip=size, latency_ms=float(latency), metrics={"accuracy": accuracy})
        for name, (size, latency, accuracy) in costs.items()
    }
    evaluation = decide(Budget(objective=objective, **_PLAIN), candidates)
    size, latency, accuracy = costs[evaluation.chosen]
    assert not any(a < size and b < latency and c > accuracy for a, b, c in costs.values())


# The record

_NUMBERS = st.floats(allow_nan=True, allow_infinity=True, width=64)


@given(numbers=st.lists(_NUMBERS, min_size=8, max_size=8))
def test_an_evaluation_is_the_same_after_json_whatever_its_numbers(numbers):
    a, b, c, d, e, f, g, h = numbers
    layer = Layer(name="conv", size=9, sparsity=0.5, snr_db=a)
    candidate = model(
        runtime="LiteRT",
        metrics={"accuracy": b},
        slices={"colour=red, size=1": {"accuracy": c}},
        latency_ms=d,
        latency_spread_ms=e,
        latency_quantiles_ms=(f, g),
        latency_repeats=200,
        layers=(layer,),
        not_finite=2,
    )
    comparison = Comparison(
        drops={"accuracy": Drop(value=a, upper=b, relative=c, relative_upper=d, rows=7)},
        slice_drops={"colour=red": {"accuracy": Drop(value=e)}},
        behaviour={
            "": Behaviour(
                agreement=f,
                divergence=g,
                broken=1,
                mended=2,
                changes=(Change(label=0, baseline=1, candidate=2, count=3),),
            ),
            "amount": Behaviour(),
        },
    )
    evaluation = gate.decide(
        rows=100,
        baseline=baseline(),
        candidates={"a": candidate, "broken": failed("crashed")},
        budget=Budget(**_COMPARING, **_OWN, objective="weighted", allow_first=True),
        failures={"a": [Verdict(limit="threshold", bound=None, measured=h, held=False, note="low")]},
        comparisons={"a": comparison},
        seconds={"pass": h},
    )
    written = evaluation.model_dump_json()
    json.loads(written, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
    again = Evaluation.model_validate_json(written)
    assert again.model_dump_json() == written
    assert repr(again) == repr(evaluation)  # where == would not take NaN for NaN


def test_infinity_and_nan_come_back_as_numbers():
    numbers = {"a": _INF, "b": -_INF, "c": _NAN}
    evaluation = decide(Budget(), {"int8": model(metrics=numbers)})
    again = Evaluation.model_validate_json(evaluation.model_dump_json()).candidates["int8"].metrics
    assert (again["a"], again["b"], math.isnan(again["c"])) == (_INF, -_INF, True)


# The configuration


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"confidence": 0.5}, "Budget.confidence = 0.5"),
        ({"confidence": 1.0}, "Budget.confidence = 1.0"),
        ({"confidence": 95}, "Budget.confidence = 95"),
        ({"weights": {"bytes": -1.0}}, "Weights.bytes = -1.0"),
        ({"weights": {"latency": -0.5}}, "Weights.latency = -0.5"),
        ({"weights": {"drop": -100}}, "Weights.drop = -100"),
        ({"weights": {"size": 1.0}}, "Weights has no field 'size'"),
        ({"max_size": 1}, "Budget has no field 'max_size'"),
        ({"min_slice_rows": 0}, "Budget.min_slice_rows = 0"),
        ({"max_arena_bytes": 0}, "Budget.max_arena_bytes = 0"),
        ({"min_agreement": 1.5}, "Budget.min_agreement = 1.5"),
        ({"max_divergence": -0.1}, "Budget.max_divergence = -0.1"),
        ({"max_metric_drop": {"accuracy": _NAN}}, "max_metric_drop.accuracy = nan"),
        ({"max_relative_metric_drop": {"accuracy": _INF}}, "max_relative_metric_drop.accuracy = inf"),
        ({"objective": "cheapest"}, "Budget.objective = 'cheapest'"),
    ],
)
def test_a_budget_that_can_not_be_meant_is_refused_with_the_field_and_its_value(fields, named):
    with pytest.raises(ConfigError) as caught:
        Budget(**fields)
    assert named in str(caught.value)


def test_an_unknown_field_of_the_budget_is_told_which_ones_there_are():
    with pytest.raises(ConfigError, match="max_arena_bytes.*min_agreement"):
        Budget(max_arena=1)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "max_relative_metric_drop": st.just({"auc": 0.02}),
            "max_slice_metric_drop": st.just({"accuracy": 0.05}),
            "confidence": st.sampled_from([None, 0.9, 0.99]),
            "min_slice_rows": st.integers(1, 99),
            "max_arena_bytes": st.integers(1, 10**9),
            "min_agreement": st.floats(0, 1),
            "max_divergence": st.floats(0, 10),
            "allowed_ops": st.just(("CONV_2D",)),
            "objective": st.sampled_from(["smallest", "weighted"]),
            "weights": st.just({"bytes": 2.0}),
            "allow_first": st.booleans(),
        },
    )
)
def test_a_budget_is_the_same_after_json(fields):
    budget = Budget(**fields)
    assert Budget.merged(budget.to_json(), {}) == budget


def test_all_limits_of_drops_find_their_metric_whatever_its_case():
    limits = {name: {"TopKAccuracy": 0.1} for name in ("max_relative_metric_drop", "max_slice_metric_drop")}
    found = Budget(**limits).for_metrics(["top_k_accuracy"])
    assert found.limited_metrics == ["top_k_accuracy"]
    for name, limit in limits.items():
        with pytest.raises(ConfigError, match="TopKAccuracy"):
            Budget(**{name: limit}).for_metrics(["accuracy"])


def test_bounds_are_needed_only_where_drops_are_limited_with_confidence():
    drops = [{}, *({name: {"accuracy": 0.1}} for name in _COMPARING if "drop" in name)]
    for limits, confidence in itertools.product(drops, (None, 0.95)):
        assert Budget(**limits, confidence=confidence).needs_intervals == bool(limits and confidence)


def test_the_smallest_judged_slice_needs_enough_rows_too():
    """Of 40 rows not one worse excludes a drop of 0.1, and not one of 0.05."""
    comparison = Comparison(
        slice_drops={
            "size=rare": {"accuracy": Drop(value=0.0, upper=0.0, rows=40)},
            "size=common": {"accuracy": Drop(value=0.0, upper=0.0, rows=4000)},
            "size=hardly": {"accuracy": Drop(value=0.5, upper=0.9, rows=3)},
        }
    )

    def verdicts(allowed: float, **options: Any) -> list[tuple[str, bool]]:
        evaluation = gate.decide(
            rows=4043,
            baseline=baseline(),
            candidates={"a": model()},
            budget=Budget(max_slice_metric_drop={"accuracy": allowed}, **options),
            failures={},
            comparisons={"a": comparison},
        )
        return [(verdict.limit, verdict.held) for verdict in evaluation.verdicts["a"]]

    assert [held for _, held in verdicts(0.1)] == [True]
    (rows, held), (_, worst) = verdicts(0.05)
    assert (held, worst) == (False, True)
    assert "in the slice size=rare, to tell a drop of 0.05" in rows
    assert [held for _, held in verdicts(0.05, min_slice_rows=100)] == [True]
    assert [held for _, held in verdicts(0.05, confidence=None)] == [True]
