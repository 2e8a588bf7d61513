"""Confidence intervals of a whole run: how wide they are, and that they change no number."""

import math
import os
from collections.abc import Sequence

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

import apache_beam as beam
import numpy as np
import pytest
import tensorflow_model_analysis as tfma
from google.protobuf import text_format
from tensorflow_model_analysis.proto import config_pb2
from tfx_compression.compressed_evaluator import batch_evaluator, tfma_results
from tfx_compression.errors import ConfigError

pytestmark = pytest.mark.slow  # runs Beam

ROWS = 2000
ACCURACY = 0.9
MODELS = ["a", "b", "c", "baseline"]
_METRICS = ["BinaryAccuracy", "BinaryCrossentropy", "AUC"]
_METHODS = {"none": "", "jackknife": "JACKKNIFE", "bootstrap": "POISSON_BOOTSTRAP"}


def answers(seed: int) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Probabilities of models that are right in 90 % of the rows, each in its own; labels; what part a row is in."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, (ROWS, 1))
    right = {name: generator.uniform(size=(ROWS, 1)) < ACCURACY for name in MODELS}
    sure = {name: generator.uniform(0.51, 1, (ROWS, 1)) for name in MODELS}
    probabilities = {
        name: np.where(right[name] == (labels == 1), sure[name], 1 - sure[name]).astype(np.float32) for name in MODELS
    }
    part = np.array(["tenth" if row % 10 == 0 else "rest" for row in range(ROWS)], object)[:, None]
    return probabilities, labels, part


def batches(seed: int, sizes: Sequence[int]) -> list[tfma.Extracts]:
    """The same rows in batches of these sizes, and the rest in one."""
    probabilities, labels, part = answers(seed)
    cuts = np.cumsum(sizes)
    return [
        {
            tfma.INPUT_KEY: np.array([f"row {row}".encode() for row in rows], object),
            tfma.FEATURES_KEY: {"part": part[rows]},
            tfma.LABELS_KEY: labels[rows],
            tfma.PREDICTIONS_KEY: {name: values[rows] for name, values in probabilities.items()},
        }
        for rows in np.split(np.arange(ROWS), cuts)
        if len(rows)
    ]


def run(found: Sequence[tfma.Extracts], config: config_pb2.EvalConfig, path) -> None:
    """TFMA's files of these batches."""
    made = tfma.extractors.Extractor("Made", beam.Map(lambda batch: batch))
    evaluators = [batch_evaluator.batch_evaluator(config, None, made.stage_name)]
    with beam.Pipeline() as pipeline:
        (
            pipeline
            | beam.Create(found, reshuffle=False)
            | "Evaluate" >> tfma.ExtractAndEvaluate([made], evaluators)
            | "Write" >> tfma.WriteResults(tfma.default_writers(str(path), eval_config=config))
        )


def evaluated(
    path, method: str, names: Sequence[str] = _METRICS, seed: int = 0, sizes: Sequence[int] = (512, 512, 512)
) -> tfma_results.Results:
    """What is read back from a run of Beam."""
    models = " ".join(
        f'model_specs {{ name: "{name}" label_key: "label" {"is_baseline: true" if name == "baseline" else ""} }}'
        for name in MODELS
    )
    options = (
        f"options {{ compute_confidence_intervals {{ value: true }} confidence_intervals {{ method: {method} }} }}"
        if method
        else ""
    )
    config = tfma.utils.update_eval_config_with_defaults(
        text_format.Parse(
            f"""
            {models} {options}
            metrics_specs {{ {" ".join(f'metrics {{ class_name: "{name}" }}' for name in [*names, "ExampleCount"])} }}
            slicing_specs {{}} slicing_specs {{ feature_keys: "part" }}
            """,
            config_pb2.EvalConfig(),
        ),
        has_baseline=True,
    )
    run(batches(seed, sizes), config, path)
    return tfma_results.read(str(path), MODELS)


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, tfma_results.Results]:
    folder = tmp_path_factory.mktemp("intervals")
    return {name: evaluated(folder / name, method) for name, method in _METHODS.items()}


def test_intervals_change_no_number(found):
    for name in ("jackknife", "bootstrap"):
        for kind in ("values", "differences"):
            plain, sampled = getattr(found["none"], kind), getattr(found[name], kind)
            assert plain.keys() == sampled.keys()
            for model, by_slice in plain.items():
                assert by_slice.keys() == sampled[model].keys() == {"", "part=tenth", "part=rest"}
                for key, numbers in by_slice.items():
                    read = {metric: value.value for metric, value in sampled[model][key].items()}
                    assert read == pytest.approx({metric: value.value for metric, value in numbers.items()}, rel=1e-6)
                    assert all(value.error is None for value in numbers.values())
        assert found[name].metrics("a") == pytest.approx(found["none"].metrics("a"), rel=1e-6)


def test_the_numbers_are_those_of_the_answers(found):
    probabilities, labels, part = answers(0)
    for name in MODELS:
        right = (probabilities[name] > 0.5) == (labels == 1)
        assert found["none"].metrics(name)["binary_accuracy"] == pytest.approx(right.mean())
        tenth = found["none"].slices(name)["part=tenth"]
        assert tenth["binary_accuracy"] == pytest.approx(right[part == "tenth"].mean())
        assert tenth["example_count"] == ROWS / 10


@pytest.mark.parametrize("method", ["jackknife", "bootstrap"])
@pytest.mark.parametrize(("key", "rows"), [("", ROWS), ("part=tenth", ROWS / 10), ("part=rest", ROWS * 0.9)])
def test_the_error_of_the_accuracy_is_the_standard_error(found, method, key, rows):
    errors = [found[method].values[name][key]["binary_accuracy"].error for name in MODELS]
    assert np.mean(errors) == pytest.approx(math.sqrt(ACCURACY * (1 - ACCURACY) / rows), rel=0.4)
    # Each model is right in rows of its own: the errors of a difference are those of both, added as squares.
    differences = [found[method].differences[name][key]["binary_accuracy"].error for name in MODELS[:-1]]
    assert np.mean(differences) == pytest.approx(math.sqrt(2 * ACCURACY * (1 - ACCURACY) / rows), rel=0.4)


@pytest.mark.parametrize("metric", ["binary_accuracy", "binary_crossentropy", "auc"])
def test_the_bound_of_a_drop_narrows_with_more_rows_and_widens_with_confidence(found, metric):
    def margin(key: str, confidence: float) -> float:
        drops = [found["jackknife"].drops(name, "baseline", confidence)[key][metric] for name in MODELS[:-1]]
        return float(np.mean([drop.upper - drop.value for drop in drops]))

    assert 0 < margin("", 0.95) < margin("part=tenth", 0.95) / 2
    assert margin("", 0.8) < margin("", 0.95) < margin("", 0.99)


def test_drops_have_their_rows_and_relative_bounds(found):
    drops = found["jackknife"].drops("a", "baseline", 0.95)
    assert {key: drop["auc"].rows for key, drop in drops.items()} == {"": 2000, "part=tenth": 200, "part=rest": 1800}
    assert "example_count" not in drops[""]
    drop, before = drops[""]["binary_accuracy"], found["none"].metrics("baseline")["binary_accuracy"]
    after = found["none"].metrics("a")["binary_accuracy"]
    assert (drop.value, drop.relative) == pytest.approx((before - after, (before - after) / before), abs=1e-6)
    assert drop.relative_upper == pytest.approx(drop.upper / before, abs=1e-6)
    plain = found["none"].drops("a", "baseline", 0.95)[""]["binary_accuracy"]
    assert (plain.upper, plain.relative_upper) == (None, None)
    assert found["jackknife"].drops("a", "baseline", None)[""]["binary_accuracy"].upper is None


def test_intervals_are_as_wide_of_batches_of_few_rows(tmp_path):
    found = evaluated(tmp_path, "JACKKNIFE", ["BinaryAccuracy"], sizes=[7] * 280)
    errors = [found.values[name][""]["binary_accuracy"].error for name in MODELS]
    assert np.mean(errors) == pytest.approx(math.sqrt(ACCURACY * (1 - ACCURACY) / ROWS), rel=0.4)


# What is read


def read(path, config: str, labels, predictions, weights=None) -> tfma_results.Results:
    """What is read back of a run of one model, called `only`."""
    batch = {
        tfma.INPUT_KEY: np.array([b"a", b"b", b"c"], object),
        tfma.FEATURES_KEY: {},
        tfma.LABELS_KEY: labels,
        tfma.PREDICTIONS_KEY: predictions,
        **({} if weights is None else {tfma.EXAMPLE_WEIGHTS_KEY: weights}),
    }
    parsed = text_format.Parse(config, config_pb2.EvalConfig())
    run([batch], tfma.utils.update_eval_config_with_defaults(parsed, has_baseline=False, rubber_stamp=True), path)
    return tfma_results.read(str(path), ["only"])


_LABELS, _SCORES = np.array([[1], [1], [0]]), np.array([[0.9], [0.1], [0.1]], np.float32)


def test_a_metric_with_and_without_weights_has_two_names(tmp_path):
    found = read(
        tmp_path,
        """
        model_specs { label_key: "label" example_weight_key: "weight" }
        metrics_specs {
          metrics { class_name: "BinaryAccuracy" }
          metrics { class_name: "WeightedExampleCount" }
          metrics { class_name: "ExampleCount" }
          example_weights { weighted: true unweighted: true }
        }
        """,
        _LABELS,
        _SCORES,
        np.array([[10.0], [1.0], [1.0]]),
    )
    numbers = found.metrics("only")
    assert numbers["binary_accuracy"] == pytest.approx(11 / 12)
    assert numbers["binary_accuracy@unweighted"] == pytest.approx(2 / 3)
    assert numbers["example_count"] == 3
    assert all(drop.rows == 3 for drop in found.drops("only", "only", None)[""].values())
    assert set(found.drops("only", "only", None)[""]) == {"binary_accuracy", "binary_accuracy@unweighted"}


def test_rows_are_counted_where_only_outputs_are(tmp_path):
    found = read(
        tmp_path,
        """
        model_specs { label_keys { key: "a" value: "a" } label_keys { key: "b" value: "b" } }
        metrics_specs {
          output_names: ["a", "b"]
          metrics { class_name: "BinaryAccuracy" }
          metrics { class_name: "ExampleCount" }
        }
        """,
        {"a": _LABELS, "b": _LABELS},
        {"a": _SCORES, "b": 1 - _SCORES},
    )
    drops = found.drops("only", "only", None)[""]
    assert {name: drop.rows for name, drop in drops.items()} == {"a/binary_accuracy": 3, "b/binary_accuracy": 3}


@pytest.mark.parametrize("name", ["ExampleCount", "WeightedExampleCount"])
def test_an_evaluation_that_only_counts_compares_nothing(tmp_path, name):
    config = f'model_specs {{ label_key: "label" }} metrics_specs {{ metrics {{ class_name: "{name}" }} }}'
    with pytest.raises(ConfigError, match="no metric on the whole split"):
        read(tmp_path, config, _LABELS, _SCORES)


def test_a_candidate_with_nan_predictions_does_not_stop_the_evaluation_of_the_others(tmp_path):
    config = text_format.Parse(
        """
        model_specs { name: "broken" label_key: "label" }
        model_specs { name: "baseline" label_key: "label" is_baseline: true }
        metrics_specs {
          metrics { class_name: "AUC" }
          metrics { class_name: "Calibration" }
          metrics { class_name: "CalibrationPlot" }
          metrics { class_name: "BinaryCrossentropy" }
          metrics { class_name: "ExampleCount" }
        }
        options { compute_confidence_intervals { value: true } confidence_intervals { method: JACKKNIFE } }
        """,
        config_pb2.EvalConfig(),
    )
    (batch,) = batches(0, [])
    scores = batch[tfma.PREDICTIONS_KEY]["baseline"]
    broken = np.where(np.arange(ROWS)[:, None] % 100 == 0, np.nan, scores)
    run(
        [{**batch, tfma.PREDICTIONS_KEY: {"broken": broken, "baseline": scores}}],
        tfma.utils.update_eval_config_with_defaults(config, has_baseline=True),
        tmp_path,
    )
    found = tfma_results.read(str(tmp_path), ["broken", "baseline"])
    assert math.isnan(found.metrics("broken")["binary_crossentropy"])
    assert 0.5 < found.metrics("broken")["auc"] < found.metrics("baseline")["auc"]
    assert math.isfinite(found.metrics("baseline")["binary_crossentropy"])
    drop = found.drops("broken", "baseline", 0.95)[""]["binary_crossentropy"]
    assert math.isnan(drop.value) and drop.upper is None
