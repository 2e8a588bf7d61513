"""Metrics, drops and thresholds read from what TFMA writes."""

import math
from typing import Any

import apache_beam as beam
import numpy as np
import pytest
import tensorflow_model_analysis as tfma
from tfx_compression.compressed_evaluator import batch_evaluator
from tfx_compression.compressed_evaluator.tfma_results import MetricResults, MetricValue, read
from tfx_compression.errors import ConfigError

from tests.support.errors import raises
from tests.support.extracts import ONE_MODEL, WEIGHTED_MODEL, eval_config, extracts, metrics

_LABELS, _SCORES = np.array([[1], [1], [0]]), np.array([[0.9], [0.1], [0.1]], np.float32)


def test_drops_are_of_the_metrics_that_both_models_have():
    def values(**metrics: float) -> dict[str, dict[str, MetricValue]]:
        return {"": {name: MetricValue(value) for name, value in metrics.items()}}

    results = MetricResults(
        {
            "int8": values(accuracy=0.5, auc=0.5, example_count=100.0),
            "baseline": values(accuracy=0.75, recall=0.75, example_count=100.0),
        },
        {"int8": {"": {"accuracy": MetricValue(-0.25, error=0.125, freedom=19)}}},
    )
    (drop,) = results.drops("int8", "baseline", 0.95)[""].values()
    assert (drop.value, drop.rows) == (0.25, 100)
    assert drop.upper == pytest.approx(0.25 + 1.729 * 0.125, abs=1e-3)  # Student's t of 19 degrees of freedom


def test_a_metric_without_an_error_has_no_bound():
    assert MetricValue(0.5).margin(0.95) is None
    assert MetricValue(0.5, math.nan, 19).margin(0.95) is None


def evaluate(path: Any, config: str, labels: Any, predictions: Any, weights: Any = None) -> MetricResults:
    """The results of a Beam run with one model, called `only`."""
    parsed = eval_config(config)
    source = tfma.extractors.Extractor("Source", beam.Map(lambda batch: batch))
    evaluators = [batch_evaluator.batch_evaluator(parsed, None, source.stage_name)]
    with beam.Pipeline() as pipeline:
        (
            pipeline
            | beam.Create([extracts(predictions, labels, weights)])
            | "Evaluate" >> tfma.ExtractAndEvaluate([source], evaluators)
            | "Write" >> tfma.WriteResults(tfma.default_writers(str(path), eval_config=parsed))
        )
    return read(str(path), ["only"])


@pytest.mark.slow
def test_a_metric_with_and_without_weights_has_two_names(tmp_path):
    results = evaluate(
        tmp_path,
        WEIGHTED_MODEL
        + metrics(
            "BinaryAccuracy",
            "WeightedExampleCount",
            "ExampleCount",
            extra="example_weights { weighted: true unweighted: true }",
        ),
        _LABELS,
        _SCORES,
        np.array([[10.0], [1.0], [1.0]]),
    )
    numbers = results.metrics("only")
    assert numbers["binary_accuracy"] == pytest.approx(11 / 12)
    assert numbers["binary_accuracy@unweighted"] == pytest.approx(2 / 3)
    assert numbers["example_count"] == 3
    drops = results.drops("only", "only", None)[""]
    assert {name: drop.rows for name, drop in drops.items()} == {"binary_accuracy": 3, "binary_accuracy@unweighted": 3}


@pytest.mark.slow
def test_rows_are_counted_if_only_outputs_have_a_count(tmp_path):
    results = evaluate(
        tmp_path,
        'model_specs { label_keys { key: "a" value: "a" } label_keys { key: "b" value: "b" } }'
        + metrics("BinaryAccuracy", "ExampleCount", extra='output_names: ["a", "b"]'),
        {"a": _LABELS, "b": _LABELS},
        {"a": _SCORES, "b": 1 - _SCORES},
    )
    drops = results.drops("only", "only", None)[""]
    assert {name: drop.rows for name, drop in drops.items()} == {"a/binary_accuracy": 3, "b/binary_accuracy": 3}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ExampleCount", "WeightedExampleCount"])
def test_an_evaluation_that_only_counts_is_refused(tmp_path, name):
    with raises(ConfigError, code="no-metrics"):
        evaluate(tmp_path, ONE_MODEL + metrics(name), _LABELS, _SCORES)
