"""The records of an evaluation: arithmetic of drops and speedups, sentences, and JSON."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tfx_compression.compressed_evaluator import gate
from tfx_compression.compressed_evaluator.budget import Budget
from tfx_compression.compressed_evaluator.evaluation import Evaluation
from tfx_compression.compressed_evaluator.records import (
    AnswerChange,
    BaselineComparison,
    LayerMeasurements,
    LimitVerdict,
    MetricDrop,
    OutputComparison,
)

from tests.support.evaluations import baseline, decide, failed_model, model

_NAN, _INF = math.nan, math.inf


# Drops


def test_a_relative_drop_is_a_fraction_of_the_baselines_metric():
    accuracy = MetricDrop.between("accuracy", 0.5, 0.375, rows=10)
    assert (accuracy.value, accuracy.relative, accuracy.rows) == (0.125, 0.25, 10)
    assert (accuracy.upper, accuracy.relative_upper) == (None, None)
    loss = MetricDrop.between("loss", 0.25, 0.5, rows=10, margin=0.25)
    assert (loss.value, loss.relative, loss.upper, loss.relative_upper) == (0.25, 1.0, 0.5, 2.0)


def test_a_relative_drop_of_a_negative_metric_is_positive():
    assert MetricDrop.between("score", -2.0, -3.0, rows=10).relative == 0.5


def test_a_drop_from_zero_has_no_relative_value():
    drop = MetricDrop.between("accuracy", 0.0, 0.5, rows=10, margin=0.1)
    assert (drop.relative, drop.relative_upper) == (None, None)


def test_outputs_are_summarized_by_the_worst():
    comparison = BaselineComparison(
        behavior={
            "a": OutputComparison(agreement=0.5, divergence=0.25),
            "b": OutputComparison(agreement=0.75, divergence=0.5),
            "c": OutputComparison(),
        }
    )
    assert (comparison.agreement, comparison.divergence) == (0.5, 0.5)
    assert (BaselineComparison().agreement, BaselineComparison().divergence) == (None, None)


# Speed


def test_a_tflite_candidate_is_compared_with_the_baselines_float_tflite_model():
    assert model(latency_ms=2.0).speedup_over(baseline()) == 2.0


def test_a_saved_model_is_compared_with_the_baseline_itself():
    assert model(kind="saved_model", latency_ms=32.0).speedup_over(baseline()) == 2.0


def test_a_tflite_candidate_is_compared_with_a_tflite_baseline_itself():
    assert model(latency_ms=2.0).speedup_over(model(latency_ms=8.0)) == 4.0


@pytest.mark.parametrize(
    ("against", "candidate"),
    [
        (None, model()),
        (baseline(tflite=None), model()),
        (model(), model(kind="saved_model")),
        (baseline(), failed_model("crashed")),
    ],
    ids=["no baseline", "not converted", "another format", "not run"],
)
def test_there_is_no_speedup_without_two_latencies_in_one_format(against, candidate):
    assert candidate.speedup_over(against) is None


# Sentences


@pytest.mark.parametrize(
    ("verdict", "sentence"),
    [
        (
            LimitVerdict(field="max_bytes", limit="size at most", bound=2000, measured=1500, held=True, unit="bytes"),
            "size at most 2,000 bytes: held (measured 1,500 bytes)",
        ),
        (
            LimitVerdict(field="x", limit="x at least", bound=0.5, measured=0.25, held=False),
            "x at least 0.5: not held (measured 0.25)",
        ),
        (
            LimitVerdict(field="x", limit="x at most", bound=0.5, measured=0.25, held=True, note="it was 0.2"),
            "x at most 0.5: held (measured 0.25; it was 0.2)",
        ),
        (
            LimitVerdict(field="x", limit="x at most", bound=1, measured=None, held=False, note="no baseline"),
            "x at most 1: not held, no baseline",
        ),
        (
            LimitVerdict(field="x", limit="x at most", bound=1, measured=None, held=False),
            "x at most 1: not held, not measured",
        ),
        (
            LimitVerdict(field="eval_config", limit="threshold", bound=None, measured=0.5, held=False),
            "threshold: not held (measured 0.5)",
        ),
    ],
)
def test_a_verdict_in_words(verdict, sentence):
    assert verdict.sentence == sentence


# JSON

_NUMBERS = st.floats(allow_nan=True, allow_infinity=True, width=64)


@given(numbers=st.lists(_NUMBERS, min_size=8, max_size=8))
def test_an_evaluation_survives_json_whatever_its_numbers(numbers):
    a, b, c, d, e, f, g, h = numbers
    candidate = model(
        runtime="LiteRT",
        metrics={"accuracy": b},
        slices={"color=red, size=1": {"accuracy": c}},
        latency_ms=d,
        latency_spread_ms=e,
        latency_quantiles_ms=(f, g),
        latency_repeats=200,
        layers=(LayerMeasurements(name="conv", size=9, sparsity=0.5, snr_db=a),),
        not_finite=2,
    )
    output = OutputComparison(
        agreement=f,
        divergence=g,
        broken=1,
        mended=2,
        changes=(AnswerChange(label=0, baseline=1, candidate=2, count=3),),
    )
    comparison = BaselineComparison(
        drops={"accuracy": MetricDrop(value=a, upper=b, relative=c, relative_upper=d, rows=7)},
        slice_drops={"color=red": {"accuracy": MetricDrop(value=e)}},
        behavior={"": output, "amount": OutputComparison()},
    )
    missed = LimitVerdict(field="eval_config", limit="threshold", bound=None, measured=h, held=False, note="low")
    evaluation = gate.decide(
        rows=100,
        baseline=baseline(),
        candidates={"a": candidate, "broken": failed_model("crashed")},
        comparisons={"a": comparison},
        budget=Budget(
            max_metric_drop={"accuracy": 0.1},
            max_slice_metric_drop={"accuracy": 0.1},
            min_agreement=0.9,
            max_bytes=1000,
            allowed_ops=("CONV_2D",),
            objective="weighted",
            allow_first=True,
        ),
        threshold_verdicts={"a": [missed]},
        seconds={"pass": h},
    )
    written = evaluation.to_json()
    json.loads(written, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
    again = Evaluation.model_validate_json(written)
    assert again.to_json() == written
    assert repr(again) == repr(evaluation)  # == is false for NaN


def test_infinity_and_nan_come_back_as_numbers():
    evaluation = decide(Budget(), {"int8": model(metrics={"a": _INF, "b": -_INF, "c": _NAN})})
    metrics = Evaluation.model_validate_json(evaluation.to_json()).candidates["int8"].metrics
    assert (metrics["a"], metrics["b"], math.isnan(metrics["c"])) == (_INF, -_INF, True)


def test_the_keys_of_the_json_file():
    """Other programs read them: keys may be added, and none may be renamed."""
    evaluation = decide(
        Budget(max_bytes=1), {"a": model()}, {"a": BaselineComparison(behavior={"": OutputComparison()})}
    )
    read = json.loads(evaluation.to_json())
    assert {"rows", "baseline", "candidates", "comparisons", "verdicts", "budget", "pareto", "chosen"} <= set(read)
    assert {"reason", "seconds"} <= set(read)
    assert set(read["comparisons"]["a"]) == {"drops", "slice_drops", "behaviour"}
    assert {"field", "limit", "bound", "measured", "held", "note", "margin"} <= set(read["verdicts"]["a"][0])
