"""The decision: which candidates hold the budget, and which of them is chosen."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tfx_compression.compressed_evaluator import budget as budgets
from tfx_compression.compressed_evaluator import gate
from tfx_compression.compressed_evaluator.budget import Verdict, metric_drop
from tfx_compression.compressed_evaluator.evaluation import Evaluation, Measured

_NAN = float("nan")


def Budget(**limits: Any) -> budgets.Budget:
    """Limits on the drops themselves: their confidence bounds have tests of their own."""
    return budgets.Budget(**{"confidence": None, **limits})


def model(**changes: Any) -> Measured:
    """A TFLite model of round numbers, exact in floating point, but for `changes`."""
    known: dict[str, Any] = {
        "kind": "tflite",
        "uri": "/candidate",
        "metrics": {"accuracy": 0.75},
        "bytes": 1000,
        "bytes_gzip": 500,
        "latency_ms": 2.0,
        "latency_spread_ms": 0.25,
        "sparsity": 0.5,
    }
    return Measured(**{**known, **changes})


def baseline(**changes: Any) -> Measured:
    """A SavedModel that takes 64 ms for a row, and 4 ms as the float TFLite model it converts to."""
    known = {"kind": "saved_model", "uri": "/baseline", "latency_ms": 64.0, "tflite": model(latency_ms=4.0)}
    return model(**{**known, **changes})


_BASELINE = baseline()


def decide(
    budget: budgets.Budget,
    baseline: Measured | None = _BASELINE,
    failures: dict[str, list[Verdict]] | None = None,
    **candidates: Measured,
) -> Evaluation:
    return gate.decide(rows=100, baseline=baseline, candidates=candidates, budget=budget, failures=failures or {})


def verdict(budget: budgets.Budget, candidate: Measured, baseline: Measured | None = _BASELINE) -> Verdict:
    """The verdict of a budget of one limit."""
    (only,) = decide(budget, baseline, int8=candidate).verdicts["int8"]
    return only


# Each limit

_LIMITS = {
    "metric drop": (Budget(max_metric_drop={"accuracy": 0.25}), "metrics", {"accuracy": 0.5}, {"accuracy": 0.4375}),
    "no drop allowed": (Budget(max_metric_drop={"accuracy": 0.0}), "metrics", {"accuracy": 0.75}, {"accuracy": 0.74}),
    "gain demanded": (Budget(max_metric_drop={"accuracy": -0.125}), "metrics", {"accuracy": 0.875}, {"accuracy": 0.86}),
    "bytes": (Budget(max_bytes=1000), "bytes", 1000, 1001),
    "bytes gzipped": (Budget(max_bytes_gzip=500), "bytes_gzip", 500, 501),
    "latency": (Budget(max_latency_ms=2.0), "latency_ms", 2.0, math.nextafter(2.0, 3.0)),
    "speedup": (Budget(min_speedup=2.0), "latency_ms", 2.0, 2.03125),
    "sparsity": (Budget(min_sparsity=0.5), "sparsity", 0.5, math.nextafter(0.5, 0.0)),
}
each_limit = pytest.mark.parametrize(("budget", "field", "at_bound", "beyond"), _LIMITS.values(), ids=_LIMITS.keys())


@each_limit
def test_a_limit_is_held_at_its_bound_exactly(budget, field, at_bound, beyond):
    candidate = model(**{field: at_bound})
    held = verdict(budget, candidate)
    assert (held.held, held.measured, held.margin) == (True, held.bound, 0.0)
    assert decide(budget, int8=candidate).chosen == "int8"


@each_limit
def test_a_limit_is_not_held_beyond_its_bound(budget, field, at_bound, beyond):
    candidate = model(**{field: beyond})
    missed = verdict(budget, candidate)
    assert not missed.held
    assert missed.margin is not None and missed.margin < 0
    evaluation = decide(budget, int8=candidate)
    assert evaluation.chosen is None
    assert evaluation.reason == f"No candidate holds every limit: int8: {gate.describe(missed)}"


@pytest.mark.parametrize(
    ("budget", "candidate", "margin"),
    [
        (Budget(max_bytes=1500), model(), 500),
        (Budget(max_bytes=400), model(), -600),
        (Budget(min_sparsity=0.25), model(), 0.25),
        (Budget(min_sparsity=0.75), model(), -0.25),
        (Budget(min_speedup=1.5), model(), 0.5),
        (Budget(min_speedup=4.0), model(), -2.0),
        (Budget(max_metric_drop={"accuracy": 0.5}), model(metrics={"accuracy": 0.5}), 0.25),
        (Budget(max_metric_drop={"accuracy": 0.125}), model(metrics={"accuracy": 0.5}), -0.125),
        (Budget(max_metric_drop={"accuracy": 0.125}), model(metrics={"accuracy": 1.0}), 0.375),
    ],
)
def test_the_margin_is_positive_where_a_limit_is_held_and_negative_where_not(budget, candidate, margin):
    assert verdict(budget, candidate).margin == margin


def test_what_is_not_limited_has_no_verdict():
    evaluation = decide(Budget(), int8=model(bytes=10**9, latency_ms=1e6, metrics={"accuracy": 0.0}))
    assert evaluation.verdicts == {"int8": ()}
    assert evaluation.chosen == "int8"


def test_every_limit_has_a_verdict_and_one_that_is_missed_refuses():
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
    evaluation = decide(Budget(**limits), baseline(metrics=metrics), **candidates)
    missed = {
        name: [verdict.limit for verdict in verdicts if not verdict.held]
        for name, verdicts in evaluation.verdicts.items()
    }
    assert {len(verdicts) for verdicts in evaluation.verdicts.values()} == {7}
    assert missed == {
        "good": [],
        "slow": ["milliseconds for one row at most", "times as fast as the baseline, at least"],
        "worse": ["auc drops at most"],
    }
    assert [evaluation.held(name) for name in candidates] == [True, False, False]
    assert evaluation.chosen == "good"


# What was not measured


@pytest.mark.parametrize(
    ("budget", "candidate", "against"),
    [
        (Budget(max_metric_drop={"accuracy": 1.0}), model(metrics={"accuracy": _NAN}), _BASELINE),
        (Budget(max_metric_drop={"accuracy": 1.0}), model(), baseline(metrics={"accuracy": _NAN})),
        (Budget(max_metric_drop={"loss": 1.0}), model(metrics={"loss": _NAN}), baseline(metrics={"loss": 0.5})),
        (Budget(max_latency_ms=1e9), model(latency_ms=_NAN), _BASELINE),
        (Budget(min_speedup=1e-9), model(latency_ms=_NAN), _BASELINE),
        (Budget(min_sparsity=0.0), model(sparsity=_NAN), _BASELINE),
    ],
    ids=["candidate's metric", "baseline's metric", "loss", "latency", "speedup", "sparsity"],
)
def test_what_is_not_a_number_holds_no_limit(budget, candidate, against):
    missed = verdict(budget, candidate, against)
    assert not missed.held
    assert math.isnan(missed.measured)
    evaluation = decide(budget, against, int8=candidate)
    assert evaluation.chosen is None
    assert "not held (measured nan)" in evaluation.reason


@pytest.mark.parametrize(
    ("budget", "candidate", "against", "note"),
    [
        (Budget(max_metric_drop={"auc": 1.0}), model(), _BASELINE, "the baseline or the candidate lacks this metric"),
        (Budget(min_sparsity=0.0), model(sparsity=None), _BASELINE, "its weights can't be seen"),
        (Budget(min_speedup=1e-9), model(), baseline(tflite=None), "the baseline is not to be had as a tflite model"),
    ],
    ids=["metric", "sparsity", "speedup"],
)
def test_what_could_not_be_measured_holds_no_limit_and_says_why(budget, candidate, against, note):
    missed = verdict(budget, candidate, against)
    assert (missed.held, missed.measured, missed.margin) == (False, None, None)
    assert note in missed.note
    assert gate.describe(missed) == f"{missed.limit}: not held, {missed.note}"
    evaluation = decide(budget, against, int8=candidate)
    assert evaluation.chosen is None
    assert note in evaluation.reason


def test_what_was_measured_has_no_note():
    assert verdict(Budget(min_sparsity=0.75), model()).note == ""


# Metrics


@pytest.mark.parametrize(
    "metric", ["accuracy", "sparse_categorical_accuracy", "auc", "precision", "recall", "f1_score", "true_positives"]
)
def test_less_of_a_score_is_a_drop(metric):
    assert metric_drop(metric, 0.75, 0.5) == 0.25
    assert metric_drop(metric, 0.5, 0.75) == -0.25


@pytest.mark.parametrize(
    "metric",
    [
        "loss",
        "mean_squared_error",
        "mean_absolute_percentage_error",
        "binary_crossentropy",
        "kullback_leibler_divergence",
        "hinge",
        "poisson",
        "false_positives",
        "false_negatives",
        "fall_out",
        "miss_rate",
    ],
)
def test_more_of_a_loss_is_a_drop(metric):
    assert metric_drop(metric, 0.5, 0.75) == 0.25
    assert metric_drop(metric, 0.75, 0.5) == -0.25


def test_a_candidate_is_refused_for_more_loss_and_not_for_less():
    budget, against = Budget(max_metric_drop={"loss": 0.125}), baseline(metrics={"loss": 0.5})
    evaluation = decide(budget, against, more=model(metrics={"loss": 0.75}), less=model(metrics={"loss": 0.25}))
    assert evaluation.metric_drop == {"more": {"loss": 0.25}, "less": {"loss": -0.25}}
    assert [evaluation.held(name) for name in ("more", "less")] == [False, True]
    assert evaluation.chosen == "less"


def test_drops_are_of_the_metrics_that_both_models_have():
    metrics = {"accuracy": 0.5, "auc": 0.5, "example_count": 100.0}
    against = baseline(metrics={"accuracy": 0.75, "recall": 0.75, "example_count": 100.0})
    evaluation = decide(Budget(), against, int8=model(metrics=metrics))
    assert evaluation.metric_drop == {"int8": {"accuracy": 0.25}}
    assert evaluation.metrics == {"int8": metrics}


# Speed


def test_a_tflite_candidate_is_compared_with_the_baselines_float_tflite_twin():
    assert gate.speedup(_BASELINE, model(latency_ms=2.0)) == 2.0


def test_a_saved_model_is_compared_with_the_baseline_itself():
    assert gate.speedup(_BASELINE, model(kind="saved_model", latency_ms=32.0)) == 2.0


def test_a_tflite_candidate_is_compared_with_a_tflite_baseline_itself():
    assert gate.speedup(model(latency_ms=8.0), model(latency_ms=2.0)) == 4.0


@pytest.mark.parametrize(
    ("against", "candidate"),
    [(None, model()), (baseline(tflite=None), model()), (model(), model(kind="saved_model"))],
    ids=["no baseline", "no twin", "another format"],
)
def test_without_a_model_of_the_same_format_there_is_no_speedup(against, candidate):
    assert gate.speedup(against, candidate) is None


# The choice


def test_without_a_baseline_nothing_is_chosen_and_the_reason_says_so():
    evaluation = decide(Budget(max_bytes=1000), None, int8=model())
    assert evaluation.held("int8")
    assert (evaluation.chosen, evaluation.reason) == (
        None,
        "There is no baseline to compare with, so nothing is chosen.",
    )
    assert evaluation.metric_drop == {"int8": {}}


def test_a_missed_threshold_of_the_eval_config_refuses():
    missed = Verdict(limit="threshold on accuracy for digit=8", bound=None, measured=0.5, held=False, note="too low")
    candidates = {"small": model(bytes=1), "large": model(bytes=2)}
    evaluation = decide(Budget(max_bytes=10), failures={"small": [missed]}, **candidates)
    assert evaluation.verdicts["small"][-1] == missed
    assert len(evaluation.verdicts["large"]) == 1
    assert evaluation.chosen == "large"
    refused = decide(Budget(), failures={"small": [missed]}, small=model())
    assert (refused.chosen, refused.reason) == (
        None,
        "No candidate holds every limit: small: threshold on accuracy for digit=8: not held (measured 0.5)",
    )


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
        evaluation = decide(Budget(objective=objective), **candidates)
        assert evaluation.chosen == "winner"
        assert evaluation.reason == (
            f"winner is the {objective.replace('_', ' ')} of 2 candidates that hold every limit."
        )


@pytest.mark.parametrize("objective", ["smallest", "fastest", "most_accurate"])
def test_of_candidates_alike_the_first_is_chosen(objective):
    assert decide(Budget(objective=objective), b=model(), a=model()).chosen == "b"


def test_the_most_accurate_is_judged_by_the_budgets_first_metric():
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
        assert decide(budget, baseline(metrics=metrics), **candidates).chosen == chosen


def test_a_metric_that_is_not_a_number_is_the_least_accurate():
    candidates = {"broken": model(metrics={"accuracy": _NAN}, bytes=1), "bad": model(metrics={"accuracy": 0.0})}
    assert decide(Budget(objective="most_accurate"), **candidates).chosen == "bad"


def test_the_only_candidate_that_holds_is_chosen_whatever_the_objective():
    evaluation = decide(Budget(max_bytes=1000, objective="fastest"), big=model(bytes=1001, latency_ms=1.0), ok=model())
    assert (evaluation.chosen, evaluation.reason) == ("ok", "ok holds every limit.")


def test_the_reason_for_choosing_none_names_a_limit_of_every_candidate():
    reason = decide(Budget(max_bytes=800, max_bytes_gzip=400), a=model(bytes_gzip=1), b=model(bytes=1)).reason
    assert reason == (
        "No candidate holds every limit: a: bytes at most 800: not held (measured 1,000); "
        "b: bytes gzipped at most 400: not held (measured 500)"
    )


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
def test_the_chosen_one_is_the_best_of_those_that_hold_every_limit(budget, candidates):
    def holds(candidate: Measured) -> bool:
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

    evaluation = decide(budget, **candidates)
    held = [name for name in candidates if holds(candidates[name])]
    assert [name for name in candidates if evaluation.held(name)] == held
    if held:
        assert evaluation.chosen in held
        assert cost(evaluation.chosen) == min(map(cost, held))
    else:
        assert evaluation.chosen is None


# In words


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            Verdict(limit="bytes at most", bound=2000, measured=1500, held=True),
            "bytes at most 2,000: held (measured 1,500)",
        ),
        (Verdict(limit="x at least", bound=0.5, measured=0.25, held=False), "x at least 0.5: not held (measured 0.25)"),
        (Verdict(limit="x", bound=1, measured=None, held=False, note="blind"), "x: not held, blind"),
        (Verdict(limit="x", bound=1, measured=None, held=False), "x: not held, not measured"),
        (Verdict(limit="threshold", bound=None, measured=0.5, held=False), "threshold: not held (measured 0.5)"),
    ],
)
def test_a_verdict_in_words_has_the_limit_and_what_was_measured(said, words):
    assert gate.describe(said) == words


# Names of metrics


@pytest.mark.parametrize(
    "metric", ["loss", "mse", "MeanSquaredError", "mean_absolute_error", "fnr", "false_positives", "logcosh", "poisson"]
)
def test_a_rise_of_a_metric_that_is_better_when_smaller_is_a_drop(metric):
    assert metric_drop(metric, 0.1, 0.3) == pytest.approx(0.2)


@pytest.mark.parametrize("metric", ["auc", "recall_at_false_positive_rate", "precision", "accuracy", "f1_score"])
def test_a_fall_of_a_metric_that_is_better_when_larger_is_a_drop(metric):
    assert metric_drop(metric, 0.3, 0.1) == pytest.approx(0.2)


def test_a_drop_that_is_its_bound_but_for_rounding_is_held():
    against = baseline(metrics={"accuracy": 0.96})
    assert verdict(Budget(max_metric_drop={"accuracy": 0.01}), model(metrics={"accuracy": 0.95}), against).held
    assert not verdict(Budget(max_metric_drop={"accuracy": 0.01}), model(metrics={"accuracy": 0.9499}), against).held


def test_a_budgets_metrics_are_found_whatever_their_case_and_keep_their_order():
    budget = Budget(max_metric_drop={"SparseCategoricalAccuracy": 0.1, "AUC": 0.2})
    found = budgets.Budget.merged(budget.to_json(), {}).for_metrics(["auc", "sparse_categorical_accuracy"])
    assert list(found.max_metric_drop.items()) == [("sparse_categorical_accuracy", 0.1), ("auc", 0.2)]


def test_an_evaluation_with_a_metric_that_is_no_number_can_be_read_again():
    evaluation = decide(Budget(), baseline(), a=model(metrics={"accuracy": float("nan")}))
    again = Evaluation.model_validate_json(evaluation.model_dump_json())
    assert math.isnan(again.candidates["a"].metrics["accuracy"])
