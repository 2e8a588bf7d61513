"""Objectives: which candidate they prefer, ties, and the Pareto front."""

import math
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tfx_compression.compressed_evaluator import budget as budgets
from tfx_compression.compressed_evaluator.objectives import OBJECTIVES, ObjectiveName, ObjectiveWeights, costs_of

from tests.support.evaluations import baseline, comparison, decide, model

_NAN = math.nan


def Budget(**fields: Any) -> budgets.Budget:
    """A budget without confidence bounds."""
    return budgets.Budget(**{"confidence": None, **fields})


def weighted_cost(candidate: Any, **weights: float) -> float:
    costs = costs_of(candidate, baseline(), comparison(baseline(), candidate), [])
    return OBJECTIVES["weighted"].cost(costs, ObjectiveWeights(**weights))


def test_every_objective_is_in_the_table():
    assert set(OBJECTIVES) == set(get_args(ObjectiveName))


_A = {"bytes": 1000, "bytes_gzip": 500, "latency_ms": 2.0, "metrics": {"accuracy": 0.5}}
_CHOICES = {
    "smallest": ("smallest", {"bytes": 999, "latency_ms": 9.0, "metrics": {"accuracy": 0.25}}),
    "smallest, tie": ("smallest", {"bytes_gzip": 499, "latency_ms": 9.0, "metrics": {"accuracy": 0.25}}),
    "fastest": ("fastest", {"latency_ms": 1.5, "bytes": 9999, "metrics": {"accuracy": 0.25}}),
    "fastest, tie": ("fastest", {"bytes": 999, "metrics": {"accuracy": 0.25}}),
    "fastest, tie in bytes too": ("fastest", {"bytes_gzip": 499, "metrics": {"accuracy": 0.25}}),
    "most accurate": ("most_accurate", {"metrics": {"accuracy": 0.5625}, "bytes": 9999, "latency_ms": 9.0}),
    "most accurate, tie": ("most_accurate", {"bytes": 999, "latency_ms": 9.0}),
}


@pytest.mark.parametrize(("objective", "better"), _CHOICES.values(), ids=_CHOICES.keys())
def test_the_objective_chooses_and_the_smaller_file_breaks_ties(objective, better):
    winner, other = model(**{**_A, **better}), model(**_A)
    for candidates in ({"winner": winner, "other": other}, {"other": other, "winner": winner}):
        assert decide(Budget(objective=objective), candidates).chosen == "winner"


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_first_of_equal_candidates_is_chosen(objective):
    assert decide(Budget(objective=objective), {"b": model(), "a": model()}).chosen == "b"


def test_the_most_accurate_is_judged_by_the_first_limited_metric():
    metrics = {"accuracy": 0.75, "auc": 0.75, "loss": 0.5}
    candidates = {
        "by_accuracy": model(metrics={"accuracy": 0.75, "auc": 0.5, "loss": 1.0}),
        "by_auc": model(metrics={"accuracy": 0.5, "auc": 0.75, "loss": 1.0}),
        "by_loss": model(metrics={"accuracy": 0.5, "auc": 0.5, "loss": 0.25}),
    }
    for drops, chosen in (
        ({}, "by_accuracy"),
        ({"accuracy": 1.0, "auc": 1.0}, "by_accuracy"),
        ({"auc": 1.0, "accuracy": 1.0}, "by_auc"),
        ({"loss": 1.0}, "by_loss"),
    ):
        budget = Budget(objective="most_accurate", max_metric_drop=drops)
        assert decide(budget, candidates, against=baseline(metrics=metrics)).chosen == chosen


def test_a_metric_that_is_nan_is_the_least_accurate():
    candidates = {"broken": model(metrics={"accuracy": _NAN}, bytes=1), "bad": model(metrics={"accuracy": 0.0})}
    assert decide(Budget(objective="most_accurate"), candidates).chosen == "bad"


@pytest.mark.parametrize("count", ["example_count", "weighted_example_count", "binary/example_count"])
def test_a_number_of_examples_is_not_an_accuracy(count):
    candidates = {
        "bad": model(metrics={count: 100.0, "accuracy": 0.5}, bytes=1),
        "good": model(metrics={count: 100.0, "accuracy": 0.75}),
    }
    evaluation = decide(Budget(objective="most_accurate"), candidates)
    assert evaluation.chosen == "good"
    assert evaluation.metric_drop == {"bad": {"accuracy": 0.25}, "good": {"accuracy": 0.0}}


# The weighted objective


@pytest.mark.parametrize(
    ("weights", "sums"),
    [
        (
            {"bytes": 1, "latency": 1, "drop": 8},
            {"small": 0.125 + 1 + 0.5, "fast": 0.5 + 0.125 + 0.25, "good": 0.75 + 0.75 - 0.0625},
        ),
        ({"bytes": 4, "latency": 0, "drop": 1}, {"small": 0.5625, "fast": 2.03125, "good": 2.9921875}),
        ({}, {"small": 0.125 + 1 + 6.25, "fast": 0.5 + 0.125 + 3.125, "good": 0.75 + 0.75 - 0.78125}),
    ],
)
def test_the_weighted_objective_adds_size_latency_and_drop_relative_to_the_baselines_tflite_model(weights, sums):
    # The baseline's TFLite model has 2,000 bytes gzipped, 4 ms and an accuracy of 0.75.
    candidates = {
        "small": model(bytes_gzip=250, latency_ms=4.0, metrics={"accuracy": 0.75 - 0.0625}),
        "fast": model(bytes_gzip=1000, latency_ms=0.5, metrics={"accuracy": 0.75 - 0.03125}),
        "good": model(bytes_gzip=1500, latency_ms=3.0, metrics={"accuracy": 0.75 + 0.0078125}),
    }
    budget = Budget(objective="weighted", weights=weights)
    assert decide(budget, candidates).chosen == min(sums, key=lambda name: sums[name])
    assert {name: weighted_cost(each, **weights) for name, each in candidates.items()} == pytest.approx(sums)


def test_a_saved_model_is_weighed_against_the_baseline_itself():
    assert weighted_cost(model(kind="saved_model", bytes_gzip=3000, latency_ms=32.0)) == 0.75 + 0.5


def test_a_weight_of_zero_ignores_even_an_unknown_value():
    budget = Budget(objective="weighted", weights={"drop": 0.0})
    candidates = {"unknown": model(metrics={"accuracy": _NAN}, bytes_gzip=1), "known": model()}
    assert decide(budget, candidates).chosen == "unknown"


# The Pareto front

_COST = st.tuples(st.integers(1, 4), st.integers(1, 4), st.sampled_from([0.25, 0.5, 0.75]))


@given(st.lists(_COST, min_size=1, max_size=6))
def test_the_pareto_front_has_every_candidate_that_no_other_one_beats(costs):
    candidates = {
        str(number): model(bytes_gzip=size, latency_ms=float(latency), metrics={"accuracy": accuracy})
        for number, (size, latency, accuracy) in enumerate(costs)
    }

    def better(one: tuple, other: tuple) -> bool:
        (a, b, c), (x, y, z) = one, other
        return a <= x and b <= y and c >= z and (a < x or b < y or c > z)

    front = {str(number) for number, cost in enumerate(costs) if not any(better(each, cost) for each in costs)}
    assert front
    for first in (False, True):
        assert set(decide(Budget(), candidates, first=first).pareto) == front


def test_the_pareto_front_ignores_the_limits():
    evaluation = decide(Budget(max_bytes=10), {"small": model(bytes=10), "good": model(metrics={"accuracy": 1.0})})
    assert (evaluation.chosen, evaluation.pareto) == ("small", ("good",))


@given(st.dictionaries(st.sampled_from("abcd"), _COST, min_size=2), st.sampled_from(list(OBJECTIVES)))
def test_no_other_candidate_beats_the_chosen_one_in_everything(costs, objective):
    candidates = {
        name: model(bytes=size, bytes_gzip=size, latency_ms=float(latency), metrics={"accuracy": accuracy})
        for name, (size, latency, accuracy) in costs.items()
    }
    size, latency, accuracy = costs[decide(Budget(objective=objective), candidates).chosen]
    assert not any(a < size and b < latency and c > accuracy for a, b, c in costs.values())
