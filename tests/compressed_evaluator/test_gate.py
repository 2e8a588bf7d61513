"""The gate: which candidates hold the budget, and which of them is chosen."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tfx_compression.compressed_evaluator import budget as budgets
from tfx_compression.compressed_evaluator.records import (
    BaselineComparison,
    LimitVerdict,
    MetricDrop,
    ModelMeasurements,
    OutputComparison,
)

from tests.support.evaluations import baseline, decide, failed_model, model, verdict

_NAN = math.nan


def Budget(**limits: Any) -> budgets.Budget:
    """Limits on the drops themselves, without confidence bounds."""
    return budgets.Budget(**{"confidence": None, **limits})


def test_without_limits_there_are_no_verdicts():
    evaluation = decide(Budget(), {"int8": model(bytes=10**9, latency_ms=1e6, metrics={"accuracy": 0.0})})
    assert evaluation.verdicts == {"int8": ()}
    assert evaluation.chosen == "int8"


def test_every_limit_has_a_verdict_and_a_missed_one_refuses():
    limits = {
        "max_metric_drop": {"accuracy": 0.25, "auc": 0.25},
        "max_bytes": 1000,
        "max_bytes_gzip": 500,
        "max_latency_ms": 2.0,
        "min_speedup": 2.0,
        "min_sparsity": 0.5,
    }
    metrics = {"accuracy": 0.75, "auc": 0.75}
    candidates = {
        "good": model(metrics=metrics),
        "slow": model(metrics=metrics, latency_ms=3.0, bytes=1),
        "worse": model(metrics={"accuracy": 0.75, "auc": 0.25}, bytes=1),
    }
    evaluation = decide(Budget(**limits), candidates, against=baseline(metrics=metrics))
    missed = {
        name: [(verdict.field, verdict.metric) for verdict in verdicts if not verdict.held]
        for name, verdicts in evaluation.verdicts.items()
    }
    assert {len(verdicts) for verdicts in evaluation.verdicts.values()} == {7}
    assert missed == {
        "good": [],
        "slow": [("max_latency_ms", ""), ("min_speedup", "")],
        "worse": [("max_metric_drop", "auc")],
    }
    assert [evaluation.held(name) for name in candidates] == [True, False, False]
    assert evaluation.chosen == "good"


def test_a_candidate_is_refused_for_more_loss_and_not_for_less():
    candidates = {"more": model(metrics={"loss": 0.75}), "less": model(metrics={"loss": 0.25})}
    evaluation = decide(Budget(max_metric_drop={"loss": 0.125}), candidates)
    assert evaluation.metric_drop == {"more": {"loss": 0.25}, "less": {"loss": -0.25}}
    assert [evaluation.held(name) for name in ("more", "less")] == [False, True]
    assert evaluation.chosen == "less"


def test_a_missed_threshold_of_the_eval_config_refuses():
    missed = LimitVerdict(
        field="eval_config", limit="threshold on accuracy", bound=None, measured=0.5, held=False, note="too low"
    )
    candidates = {"small": model(bytes=1), "large": model(bytes=2)}
    evaluation = decide(Budget(max_bytes=10), candidates, threshold_verdicts={"small": [missed]})
    assert evaluation.verdicts["small"][-1] == missed
    assert len(evaluation.verdicts["large"]) == 1
    assert evaluation.chosen == "large"
    refused = decide(Budget(), {"small": model()}, threshold_verdicts={"small": [missed]})
    assert (refused.chosen, refused.reason) == (
        None,
        "No candidate holds every limit: small: threshold on accuracy: not held (measured 0.5)",
    )


def test_the_effective_number_of_rows_decides_whether_there_are_enough():
    from tfx_compression.compressed_evaluator import gate

    budget = budgets.Budget(max_metric_drop={"accuracy": 0.0})
    comparisons = {"a": BaselineComparison(drops={"accuracy": MetricDrop(value=0.0, upper=0.0)})}
    evaluation = gate.decide(1000, baseline(), {"a": model()}, comparisons, budget, {}, effective_rows=19)
    assert (evaluation.rows, evaluation.chosen) == (1000, None)
    assert evaluation.verdicts["a"][0].measured == 19


# The choice and its reason


def test_a_candidate_that_alone_holds_is_chosen_whatever_the_objective():
    candidates = {"big": model(bytes=1001, latency_ms=1.0), "ok": model()}
    evaluation = decide(Budget(max_bytes=1000, objective="fastest"), candidates)
    assert (evaluation.chosen, evaluation.reason) == ("ok", "ok holds every limit.")


@pytest.mark.parametrize(
    ("objective", "superlative"),
    [
        ("smallest", "smallest"),
        ("fastest", "fastest"),
        ("most_accurate", "most accurate"),
        ("weighted", "best by the weighted objective"),
    ],
)
def test_the_reason_names_the_objective(objective, superlative):
    evaluation = decide(Budget(objective=objective), {"a": model(), "b": model()})
    assert evaluation.reason == f"a is the {superlative} of 2 candidates that hold every limit."


def test_the_reason_for_choosing_none_quotes_a_missed_limit_of_every_candidate():
    evaluation = decide(Budget(max_bytes=800, max_bytes_gzip=400), {"a": model(bytes_gzip=1), "b": model(bytes=1)})
    missed = [next(each for each in evaluation.verdicts[name] if not each.held).sentence for name in "ab"]
    assert evaluation.reason == f"No candidate holds every limit: a: {missed[0]}; b: {missed[1]}"


_models = st.builds(
    model,
    bytes=st.integers(1, 5),
    bytes_gzip=st.integers(1, 5),
    latency_ms=st.integers(1, 4).map(float),
    metrics=st.sampled_from([{"accuracy": value} for value in (0.25, 0.5, 0.75, _NAN)]),
    sparsity=st.none() | st.sampled_from([0.25, 0.5]),
)
_budgets = st.builds(
    Budget,
    max_metric_drop=st.sampled_from([{}, {"accuracy": 0.25}]),
    max_bytes=st.none() | st.integers(1, 5),
    max_latency_ms=st.none() | st.integers(1, 4),
    min_sparsity=st.none() | st.just(0.5),
    objective=st.sampled_from(["smallest", "fastest", "most_accurate"]),
)


@given(_budgets, st.dictionaries(st.sampled_from("abcd"), _models, min_size=1))
def test_the_chosen_candidate_is_the_best_of_those_that_hold_every_limit(budget, candidates):
    def holds(candidate: ModelMeasurements) -> bool:
        return not (
            (budget.max_metric_drop and not candidate.metrics["accuracy"] >= 0.5)
            or (budget.max_bytes and candidate.bytes > budget.max_bytes)
            or (budget.max_latency_ms and candidate.latency_ms > budget.max_latency_ms)
            or (budget.min_sparsity and (candidate.sparsity or 0.0) < budget.min_sparsity)
        )

    def cost(name: str) -> float:
        candidate = candidates[name]
        accuracy = candidate.metrics["accuracy"]
        wrong = 1.0 if math.isnan(accuracy) else 1.0 - accuracy
        return {"smallest": candidate.bytes, "fastest": candidate.latency_ms, "most_accurate": wrong}[budget.objective]

    evaluation = decide(budget, candidates)
    held = [name for name in candidates if holds(candidates[name])]
    assert [name for name in candidates if evaluation.held(name)] == held
    if held:
        assert evaluation.chosen in held
        assert cost(evaluation.chosen) == min(map(cost, held))
    else:
        assert evaluation.chosen is None


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


def test_the_limits_that_compare_with_a_baseline_are_known():
    assert {field for field, limit in budgets.Budget.limits().items() if limit.needs_baseline} == set(_COMPARING)
    assert set(budgets.Budget.limits()) == {*_COMPARING, *_OWN}


def test_without_a_baseline_nothing_is_chosen_unless_a_first_release_is_allowed():
    evaluation = decide(Budget(**_OWN), {"int8": model()}, first=True)
    assert evaluation.held("int8")
    assert evaluation.chosen is None
    assert evaluation.reason == "There is no baseline to compare with, so nothing is chosen."
    assert evaluation.metric_drop == {"int8": {}}


def test_a_first_release_skips_the_limits_that_need_a_baseline_and_says_so():
    budget = budgets.Budget(**_COMPARING, **_OWN, allow_first=True)
    evaluation = decide(budget, {"int8": model()}, first=True, rows=5)
    assert {verdict.field for verdict in evaluation.verdicts["int8"]} == set(_OWN)
    assert evaluation.chosen == "int8"
    assert evaluation.reason == (
        "int8 holds every limit. It is a first release (allow_first): there was no baseline to compare it with."
    )


def test_a_first_release_that_misses_a_limit_is_refused():
    evaluation = decide(Budget(**_OWN, allow_first=True), {"int8": model(arena_bytes=4097)}, first=True)
    assert evaluation.chosen is None
    assert [verdict.field for verdict in evaluation.verdicts["int8"] if not verdict.held] == ["max_arena_bytes"]


def test_with_a_baseline_allow_first_changes_nothing():
    candidates = {"int8": model(metrics={"accuracy": 0.5})}
    for limits in ({**_COMPARING, **_OWN}, _OWN):
        plain = decide(budgets.Budget(**limits), candidates)
        first = decide(budgets.Budget(**limits, allow_first=True), candidates)
        assert (first.verdicts, first.chosen, first.reason) == (plain.verdicts, plain.chosen, plain.reason)
        assert "first release" not in first.reason


@pytest.mark.parametrize("field", _COMPARING)
def test_a_limit_that_needs_a_baseline_is_not_held_without_one(field):
    missed = verdict(budgets.Budget(**{field: _COMPARING[field]}), first=True)
    assert (missed.field, missed.held, missed.measured) == (field, False, None)
    assert missed.note == "there is no baseline"


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
    assert decide(budget, candidates, first=True).chosen == chosen


# Candidates that fail


def test_a_candidate_that_does_not_run_does_not_change_the_verdicts_on_the_others():
    budget = budgets.Budget(**_COMPARING, **_OWN)
    comparison = BaselineComparison(
        drops={"accuracy": MetricDrop(value=0.0, upper=0.0, relative=0.0, relative_upper=0.0)},
        slice_drops={"a": {"accuracy": MetricDrop(value=0.0, upper=0.0, rows=100)}},
        behavior={"": OutputComparison(agreement=1.0, divergence=0.0)},
    )
    both = decide(budget, {"broken": failed_model("crashed"), "good": model()}, {"good": comparison})
    alone = decide(budget, {"good": model()}, {"good": comparison})
    assert [verdict.field for verdict in both.verdicts["broken"]] == ["failure"]
    assert both.verdicts["good"] == alone.verdicts["good"]
    assert (both.chosen, both.reason) == (alone.chosen, alone.reason) == ("good", "good holds every limit.")
    assert both.pareto == alone.pareto == ("good",)


@pytest.mark.parametrize("first", [False, True])
def test_a_candidate_that_does_not_run_is_not_chosen_even_without_limits(first):
    evaluation = decide(Budget(allow_first=True), {"broken": failed_model("crashed")}, first=first)
    assert (evaluation.chosen, evaluation.pareto) == (None, ())
    assert "crashed" in evaluation.reason


@pytest.mark.parametrize("objective", ["smallest", "fastest", "most_accurate", "weighted"])
def test_a_candidate_that_does_not_run_is_never_the_best(objective):
    candidates = {"broken": failed_model("crashed"), "good": model()}
    assert decide(Budget(objective=objective), candidates).chosen == "good"


def test_a_candidate_with_nan_predictions_is_refused_and_the_others_are_not():
    evaluation = decide(Budget(), {"a": model(not_finite=3), "b": model()})
    assert [verdict.field for verdict in evaluation.verdicts["a"]] == ["not_finite"]
    assert (evaluation.verdicts["b"], evaluation.chosen) == ((), "b")
