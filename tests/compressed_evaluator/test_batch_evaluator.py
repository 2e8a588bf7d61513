"""Beam runs of the evaluator of batches."""

import math
from collections.abc import Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pytest
import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.proto import config_pb2
from tfx_compression.compressed_evaluator import batch_evaluator
from tfx_compression.compressed_evaluator.tfma_results import MetricResults, read

from tests.support.extracts import eval_config, metrics

ROWS = 2000
ACCURACY = 0.9
MODELS = ["a", "b", "baseline"]
_METRICS = ["BinaryAccuracy", "BinaryCrossentropy"]
# The samples of an AUC, with its 10,000 buckets, take most of the time.
_RUNS = {
    "none": ("", [*_METRICS, "AUC"]),
    "jackknife": ("JACKKNIFE", [*_METRICS, "AUC"]),
    "bootstrap": ("POISSON_BOOTSTRAP", _METRICS),
}


def answers(seed: int) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Probabilities of models that are independently right in 90% of the rows; labels; a feature to slice by."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, (ROWS, 1))
    right = {name: generator.uniform(size=(ROWS, 1)) < ACCURACY for name in MODELS}
    sure = {name: generator.uniform(0.51, 1, (ROWS, 1)) for name in MODELS}
    probabilities = {
        name: np.where(right[name] == (labels == 1), sure[name], 1 - sure[name]).astype(np.float32) for name in MODELS
    }
    part = np.array(["tenth" if row % 10 == 0 else "rest" for row in range(ROWS)], object)[:, None]
    return probabilities, labels, part


def answer_batches(seed: int, sizes: Sequence[int]) -> list[tfma.Extracts]:
    """The answers in batches of these sizes, and the rest in one batch."""
    probabilities, labels, part = answers(seed)
    return [
        {
            tfma.INPUT_KEY: np.array([f"row {row}".encode() for row in rows], object),
            tfma.FEATURES_KEY: {"part": part[rows]},
            tfma.LABELS_KEY: labels[rows],
            tfma.PREDICTIONS_KEY: {name: values[rows] for name, values in probabilities.items()},
        }
        for rows in np.split(np.arange(ROWS), np.cumsum(sizes))
        if len(rows)
    ]


def run(batches: Sequence[tfma.Extracts], config: config_pb2.EvalConfig, path: Any) -> None:
    """Writes TFMA's files of these batches."""
    source = tfma.extractors.Extractor("Source", beam.Map(lambda batch: batch))
    evaluators = [batch_evaluator.batch_evaluator(config, None, source.stage_name)]
    with beam.Pipeline() as pipeline:
        (
            pipeline
            | beam.Create(batches, reshuffle=False)
            | "Evaluate" >> tfma.ExtractAndEvaluate([source], evaluators)
            | "Write" >> tfma.WriteResults(tfma.default_writers(str(path), eval_config=config))
        )


def evaluated(path: Any, method: str, names: Sequence[str], sizes: Sequence[int] = (512, 512, 512)) -> MetricResults:
    """The results of a Beam run."""
    models = " ".join(
        f'model_specs {{ name: "{name}" label_key: "label" {"is_baseline: true" if name == "baseline" else ""} }}'
        for name in MODELS
    )
    options = (
        f"options {{ compute_confidence_intervals {{ value: true }} confidence_intervals {{ method: {method} }} }}"
        if method
        else ""
    )
    slices = 'slicing_specs {} slicing_specs { feature_keys: "part" }'
    config = eval_config(models + options + metrics(*names, "ExampleCount") + slices)
    run(answer_batches(0, sizes), config, path)
    return read(str(path), MODELS)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, MetricResults]:
    folder = tmp_path_factory.mktemp("intervals")
    return {name: evaluated(folder / name, *arguments) for name, arguments in _RUNS.items()}


@pytest.mark.slow
def test_intervals_do_not_change_the_metrics(results):
    for name in ("jackknife", "bootstrap"):
        for kind in ("values", "differences"):
            without, sampled = getattr(results["none"], kind), getattr(results[name], kind)
            assert without.keys() == sampled.keys()
            for model, by_slice in without.items():
                assert by_slice.keys() == sampled[model].keys() == {"", "part=tenth", "part=rest"}
                for key, numbers in by_slice.items():
                    actual = {metric: value.value for metric, value in sampled[model][key].items()}
                    without_auc = name == "bootstrap"
                    expected = {
                        metric: value.value
                        for metric, value in numbers.items()
                        if not (without_auc and metric == "auc")
                    }
                    assert actual == pytest.approx(expected, rel=1e-6)
                    assert all(value.error is None for value in numbers.values())


@pytest.mark.slow
def test_metrics_are_those_of_the_answers(results):
    probabilities, labels, part = answers(0)
    for name in MODELS:
        right = (probabilities[name] > 0.5) == (labels == 1)
        assert results["none"].metrics(name)["binary_accuracy"] == pytest.approx(right.mean())
        tenth = results["none"].slices(name)["part=tenth"]
        assert tenth["binary_accuracy"] == pytest.approx(right[part == "tenth"].mean())
        assert tenth["example_count"] == ROWS / 10


@pytest.mark.slow
@pytest.mark.parametrize("method", ["jackknife", "bootstrap"])
@pytest.mark.parametrize(("key", "rows"), [("", ROWS), ("part=tenth", ROWS / 10), ("part=rest", ROWS * 0.9)])
def test_the_error_of_the_accuracy_is_its_standard_error(results, method, key, rows):
    errors = [results[method].values[name][key]["binary_accuracy"].error for name in MODELS]
    assert np.mean(errors) == pytest.approx(math.sqrt(ACCURACY * (1 - ACCURACY) / rows), rel=0.4)
    # The models are independent, so the squared errors of a difference add up.
    differences = [results[method].differences[name][key]["binary_accuracy"].error for name in MODELS[:-1]]
    assert np.mean(differences) == pytest.approx(math.sqrt(2 * ACCURACY * (1 - ACCURACY) / rows), rel=0.4)


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["binary_accuracy", "binary_crossentropy", "auc"])
def test_the_bound_of_a_drop_narrows_with_more_rows_and_widens_with_confidence(results, metric):
    def margin(key: str, confidence: float) -> float:
        drops = [results["jackknife"].drops(name, "baseline", confidence)[key][metric] for name in MODELS[:-1]]
        return float(np.mean([drop.upper - drop.value for drop in drops]))

    assert 0 < margin("", 0.95) < margin("part=tenth", 0.95) / 2
    assert margin("", 0.8) < margin("", 0.95) < margin("", 0.99)


@pytest.mark.slow
def test_drops_have_their_rows_and_relative_bounds(results):
    drops = results["jackknife"].drops("a", "baseline", 0.95)
    assert {key: drop["auc"].rows for key, drop in drops.items()} == {"": 2000, "part=tenth": 200, "part=rest": 1800}
    assert "example_count" not in drops[""]
    drop, before = drops[""]["binary_accuracy"], results["none"].metrics("baseline")["binary_accuracy"]
    after = results["none"].metrics("a")["binary_accuracy"]
    assert (drop.value, drop.relative) == pytest.approx((before - after, (before - after) / before), abs=1e-6)
    assert drop.relative_upper == pytest.approx(drop.upper / before, abs=1e-6)
    without = results["none"].drops("a", "baseline", 0.95)[""]["binary_accuracy"]
    assert (without.upper, without.relative_upper) == (None, None)
    assert results["jackknife"].drops("a", "baseline", None)[""]["binary_accuracy"].upper is None


@pytest.mark.slow
def test_small_batches_give_intervals_of_the_same_width(tmp_path):
    results = evaluated(tmp_path, "JACKKNIFE", ["BinaryAccuracy"], sizes=[7] * 280)
    errors = [results.values[name][""]["binary_accuracy"].error for name in MODELS]
    assert np.mean(errors) == pytest.approx(math.sqrt(ACCURACY * (1 - ACCURACY) / ROWS), rel=0.4)


@pytest.mark.slow
def test_nan_predictions_of_one_candidate_do_not_stop_the_evaluation(tmp_path):
    config = eval_config(
        """
        model_specs { name: "broken" label_key: "label" }
        model_specs { name: "baseline" label_key: "label" is_baseline: true }
        options { compute_confidence_intervals { value: true } confidence_intervals { method: JACKKNIFE } }
        """
        + metrics("AUC", "Calibration", "CalibrationPlot", "BinaryCrossentropy", "ExampleCount")
    )
    (batch,) = answer_batches(0, [])
    scores = batch[tfma.PREDICTIONS_KEY]["baseline"]
    broken = np.where(np.arange(ROWS)[:, None] % 100 == 0, np.nan, scores)
    run([{**batch, tfma.PREDICTIONS_KEY: {"broken": broken, "baseline": scores}}], config, tmp_path)
    results = read(str(tmp_path), ["broken", "baseline"])
    assert math.isnan(results.metrics("broken")["binary_crossentropy"])
    assert 0.5 < results.metrics("broken")["auc"] < results.metrics("baseline")["auc"]
    assert math.isfinite(results.metrics("baseline")["binary_crossentropy"])
    drop = results.drops("broken", "baseline", 0.95)[""]["binary_crossentropy"]
    assert math.isnan(drop.value) and drop.upper is None
