"""Whole evaluations: models of every format at once, models that fail, and invalid models, rows and configurations."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_analysis as tfma
import tf_keras
import tfx_compression as tfc
from ai_edge_litert import interpreter as litert
from apache_beam.options.pipeline_options import PipelineOptions
from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2
from tensorflow_model_analysis.proto import config_pb2
from tfx_compression.compressed_evaluator import evaluate, gate
from tfx_compression.errors import ConfigError, DataError, ModelError

from tests.support.classifiers import ACCURACY, CANDIDATES, ROWS, rows, save, sliced_config
from tests.support.errors import raises
from tests.support.helpers import save_function, write_examples

pytestmark = pytest.mark.slow  # converts models and runs Beam


def interpreted(path: str, x: np.ndarray) -> np.ndarray:
    """The classes that LiteRT predicts row by row, with the saturating quantization of TFLite's specification."""
    interpreter = litert.Interpreter(path)
    interpreter.allocate_tensors()
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
    scale, zero_point = taken["quantization"]
    classes = []
    for row in x:
        stored = row
        if scale:
            limits = np.iinfo(taken["dtype"])
            stored = np.clip(np.round(row / np.float32(scale)) + zero_point, limits.min, limits.max)
        interpreter.set_tensor(taken["index"], stored[None].astype(taken["dtype"]))
        interpreter.invoke()
        classes.append(interpreter.get_tensor(given["index"])[0].argmax())
    return np.array(classes)


# Models of every format


def test_models_of_every_format_are_evaluated_in_one_pass(evaluated, paths):
    evaluation, _ = evaluated
    data = rows()
    for name in ("float32", "int8", "int16x8", "one_row"):
        accuracy = np.mean(interpreted(paths[name], data["x"]) == data["label"][:, 0])
        assert evaluation.metrics[name][ACCURACY] == pytest.approx(accuracy, abs=1e-6), name
        assert evaluation.candidates[name].runtime.startswith("LiteRT")
        assert "XNNPACK" in evaluation.candidates[name].runtime
    assert evaluation.metrics["raw"] == pytest.approx(evaluation.baseline.metrics)
    assert evaluation.comparisons["raw"].agreement == 1
    assert evaluation.comparisons["raw"].divergence == pytest.approx(0, abs=1e-6)
    assert evaluation.comparisons["int8"].agreement > 0.9
    assert 0 < evaluation.comparisons["int8"].divergence < 0.1
    assert all(evaluation.held(name) for name in CANDIDATES)
    assert evaluation.chosen is not None
    assert evaluation.rows == ROWS
    converted, float32 = evaluation.baseline.tflite, evaluation.candidates["float32"]
    assert (converted.kind, converted.ops, converted.arena_bytes) == ("tflite", float32.ops, float32.arena_bytes)
    assert converted.bytes == pytest.approx(float32.bytes, rel=0.05)  # the names in the file differ
    assert evaluation.candidates["int8"].speedup_over(evaluation.baseline) > 0
    assert evaluation.seconds["interpreter"] < evaluation.seconds["pass"]


def test_the_drop_is_the_difference_of_the_metrics(evaluated):
    evaluation, _ = evaluated
    for name in CANDIDATES:
        difference = evaluation.baseline.metrics[ACCURACY] - evaluation.metrics[name][ACCURACY]
        assert evaluation.metric_drop[name][ACCURACY] == pytest.approx(difference)


def test_tfma_opens_the_files(evaluated):
    _, output = evaluated
    for name in ("baseline", *CANDIDATES):
        result = tfma.load_eval_result(str(output), model_name=name)
        slices = {key for key, _ in result.slicing_metrics}
        assert slices == {(), (("group", "rare"),), (("group", "common"),)}
    assert tfma.load_validation_result(str(output)) is not None


def test_the_record_is_the_evaluation(evaluated):
    evaluation, output = evaluated
    assert tfc.Evaluation.model_validate_json((output / "evaluation.json").read_text()) == evaluation


def test_inputs_outside_the_calibrated_range_saturate(paths, tmp_path):
    data = rows(seed=2, spread=4.0)
    schema = text_format.Parse(
        """
        feature { name: "x" type: FLOAT presence { min_fraction: 1.0 } shape { dim { size: 4 } } }
        feature { name: "label" type: INT presence { min_fraction: 1.0 } shape { dim { size: 1 } } }
        """,
        schema_pb2.Schema(),
    )
    written = write_examples(tmp_path / "outside.tfrecord", data)
    evaluation = tfc.evaluate({"int8": paths["int8"]}, written, "label", baseline=paths["float32"], schema=schema)
    accuracy = np.mean(interpreted(paths["int8"], data["x"]) == data["label"][:, 0])
    assert evaluation.metrics["int8"][ACCURACY] == pytest.approx(accuracy, abs=1e-6)
    # The baseline is a TFLite model here.
    assert (evaluation.baseline.kind, evaluation.baseline.tflite) == ("tflite", None)
    assert evaluation.chosen == "int8"


def test_without_a_baseline_models_are_measured_and_none_is_chosen(paths):
    evaluation = tfc.evaluate({"int8": paths["int8"]}, paths["rows"], "label", reference_kernels=True)
    assert evaluation.metrics["int8"][ACCURACY] > 0.8
    assert (evaluation.chosen, evaluation.baseline, evaluation.comparisons) == (None, None, {})
    assert "reference kernels" in evaluation.candidates["int8"].runtime


@pytest.mark.parametrize("mode", ["multi_threading", "multi_processing"])
def test_several_workers_give_the_same_result(evaluated, paths, tmp_path, mode):
    """The baseline is a TFLite model here, which needs no conversion and has the accuracy of the SavedModel."""
    single, _ = evaluated
    options = PipelineOptions(["--direct_num_workers=2", f"--direct_running_mode={mode}"])
    parallel = evaluate.run(
        {"int8": paths["int8"]},
        paths["float32"],
        [paths["rows"]],
        None,
        sliced_config(),
        tfc.Budget(max_metric_drop={ACCURACY: 0.1}),
        str(tmp_path),
        lambda: beam.Pipeline(options=options),
    )
    assert parallel.metrics["int8"] == pytest.approx(single.metrics["int8"])
    outputs = [each.comparisons["int8"].behavior[""] for each in (single, parallel)]
    assert outputs[1].changes == outputs[0].changes
    assert outputs[1].divergence == pytest.approx(outputs[0].divergence, rel=1e-4)
    drops = [each.comparisons["int8"].drops[ACCURACY] for each in (single, parallel)]
    assert drops[1].upper == pytest.approx(drops[0].upper)  # sums in another order round differently


# Limits


def test_the_worst_slice_is_a_limit(paths, tmp_path):
    """The candidate fails only in the rare rows, which the whole split hardly shows."""

    def wrong_for_rare_rows(kernel, x):
        rare = tf.cast(tf.range(tf.shape(x)[0]) % 4 == 0, tf.float32)[:, None]
        return tf.nn.softmax((x @ kernel) * (1 - 2 * rare))

    evaluation = tfc.evaluate(
        {"unfair": save(tmp_path / "unfair", wrong_for_rare_rows)},
        paths["rows"],
        baseline=paths["raw"],
        eval_config=sliced_config(),
        budget=tfc.Budget(max_metric_drop={ACCURACY: 0.4}, max_slice_metric_drop={ACCURACY: 0.1}),
    )
    comparison = evaluation.comparisons["unfair"]
    name, drop = comparison.worst_slice(ACCURACY)
    assert name == "group=rare"
    assert drop.rows == ROWS / 4
    assert drop.upper > drop.value > 0.5
    assert comparison.slice_drops["group=common"][ACCURACY].value == 0
    whole_split, worst = evaluation.verdicts["unfair"]
    assert (whole_split.field, whole_split.held) == ("max_metric_drop", True)
    assert (worst.field, worst.metric, worst.slice) == ("max_slice_metric_drop", ACCURACY, "group=rare")
    assert not worst.held
    output = comparison.behavior[""]
    assert output.broken - output.mended == round(drop.value * drop.rows)


def test_a_split_too_small_for_the_confidence_releases_nothing(evaluated):
    evaluation, _ = evaluated

    def decide(**budget: Any) -> tfc.Evaluation:
        return gate.decide(
            evaluation.rows,
            evaluation.baseline,
            {"raw": evaluation.candidates["raw"]},
            {"raw": evaluation.comparisons["raw"]},
            tfc.Budget(max_metric_drop={ACCURACY: 0.005}, **budget),
            {},
        )

    assert decide().chosen is None
    assert [verdict.field for verdict in decide().verdicts["raw"] if not verdict.held] == ["confidence"]
    assert decide(confidence=None).chosen == "raw"


def test_candidates_that_fail_are_refused_and_the_others_are_judged(paths, tmp_path):
    def nan_for_large_inputs(kernel, x):
        return tf.where(x[:, :1] > 1, tf.constant(np.nan, tf.float32), tf.nn.softmax(x @ kernel))

    damaged = tmp_path / "damaged.tflite"
    damaged.write_bytes(Path(paths["int8"]).read_bytes()[:700])
    evaluation = tfc.evaluate(
        {
            "nan": save(tmp_path / "nan", nan_for_large_inputs),
            "damaged": str(damaged),
            "untrained": save(tmp_path / "untrained", noise=30.0),
            "sound": paths["raw"],
        },
        paths["rows"],
        baseline=paths["examples"],
        eval_config=sliced_config(threshold=0.65),
    )
    missed = {
        name: [verdict for verdict in verdicts if not verdict.held] for name, verdicts in evaluation.verdicts.items()
    }
    not_finite = int((rows()["x"][:, 0] > 1).sum())
    assert evaluation.candidates["nan"].not_finite == not_finite > 10
    assert (missed["nan"][0].field, missed["nan"][0].measured) == ("not_finite", not_finite)
    assert [verdict.field for verdict in missed["damaged"]] == ["failure"]
    assert "700 bytes" in evaluation.candidates["damaged"].failure
    # TFMA's validation_ok is one bit for all models; the verdicts are per candidate.
    assert {(verdict.field, verdict.metric) for verdict in missed["untrained"]} == {("eval_config", ACCURACY)}
    measured = {verdict.slice: verdict.measured for verdict in missed["untrained"]}
    untrained = evaluation.candidates["untrained"]
    slices = {"": untrained.metrics, **untrained.slices}
    assert measured == pytest.approx({name: metrics[ACCURACY] for name, metrics in slices.items()})
    assert missed["sound"] == []
    assert evaluation.candidates["sound"].not_finite == 0
    assert evaluation.chosen == "sound"


def test_a_damaged_model_alone_is_refused_and_as_the_baseline_an_error(paths, tmp_path):
    damaged = tmp_path / "damaged.tflite"
    damaged.write_bytes(Path(paths["int8"]).read_bytes()[:700])
    alone = tfc.evaluate({"damaged": str(damaged)}, paths["rows"], "label", baseline=paths["examples"])
    assert alone.chosen is None
    assert [verdict.field for verdict in alone.verdicts["damaged"]] == ["failure"]
    with raises(ModelError, code="baseline-failed", match=r"damaged\.tflite"):
        tfc.evaluate({"int8": paths["int8"]}, paths["rows"], "label", baseline=str(damaged))


def test_a_first_release_has_to_be_allowed_and_is_named_one(paths):
    limits = {"max_bytes": 10_000_000, "min_speedup": 2.0, "max_metric_drop": {ACCURACY: 0.01}}
    with raises(ConfigError, code="no-baseline", match="allow_first"):
        tfc.evaluate({"int8": paths["int8"]}, paths["rows"], "label", budget=tfc.Budget(**limits))
    budget = tfc.Budget(**limits, allow_first=True)
    evaluation = tfc.evaluate({"int8": paths["int8"]}, paths["rows"], "label", budget=budget)
    assert evaluation.chosen == "int8"
    assert "first release" in evaluation.reason
    assert [verdict.field for verdict in evaluation.verdicts["int8"]] == ["max_bytes"]


def test_a_few_heavy_rows_are_not_many(paths, tmp_path):
    data = rows(120)
    weights = np.full([120, 1], 1e-6, np.float32)
    weights[:3] = 1
    config = sliced_config()
    config.model_specs[0].example_weight_key = "weight"
    evaluation = tfc.evaluate(
        {"a": paths["raw"]},
        write_examples(tmp_path / "rows.tfrecord", {**data, "weight": weights}),
        baseline=paths["raw"],
        eval_config=config,
        budget=tfc.Budget(max_metric_drop={ACCURACY: 0.1}),
    )
    assert (evaluation.rows, evaluation.chosen) == (120, None)
    few = evaluation.verdicts["a"][0]
    assert (few.field, few.held, few.bound, few.measured) == ("confidence", False, 20, 3)


def test_a_threshold_on_a_slice_without_rows_is_not_held(paths):
    config = sliced_config()
    text_format.Merge(
        """
        metrics_specs { metrics { class_name: "SparseCategoricalCrossentropy"
          per_slice_thresholds { slicing_specs { feature_values { key: "group" value: "none" } }
            threshold { value_threshold { upper_bound { value: 9 } } } } } }
        """,
        config,
    )
    evaluation = tfc.evaluate({"a": paths["raw"]}, paths["rows"], baseline=paths["raw"], eval_config=config)
    (missed,) = evaluation.verdicts["a"]
    assert (evaluation.chosen, missed.field, missed.note) == (None, "eval_config", "no example is in it")
    assert "none" in missed.slice


def test_logits_have_no_agreement(tmp_path):
    """Only the metric knows their threshold."""
    spec = tf.TensorSpec([None, 4], tf.float32, name="x")
    logit = save_function(lambda x: {"logit": x[:, :1]}, [spec], tmp_path / "logit")
    shifted = save_function(lambda x: {"logit": x[:, :1] - 0.75}, [spec], tmp_path / "shifted")
    data = {"x": rows()["x"], "label": (rows()["x"][:, :1] > 0).astype(np.int64)}
    config = text_format.Parse(
        'model_specs { label_key: "label" } metrics_specs { metrics { '
        'class_name: "BinaryAccuracy" config: \'"threshold": 0.0\' } }',
        config_pb2.EvalConfig(),
    )
    examples = write_examples(tmp_path / "rows.tfrecord", data)
    evaluation = tfc.evaluate({"a": shifted}, examples, baseline=logit, eval_config=config)
    assert evaluation.baseline.metrics["binary_accuracy"] == 1
    assert evaluation.metrics["a"]["binary_accuracy"] < 0.9
    assert evaluation.comparisons["a"].agreement is None
    assert evaluation.comparisons["a"].behavior[""].mended is None


# Invalid rows


def rows_without(feature: str, missing: int, path: Path) -> str:
    """A pattern of files with `rows`, of which the last ones lack a feature."""
    data = rows()
    complete = len(data["x"]) - missing
    write_examples(path.with_suffix(".1"), {name: values[:complete] for name, values in data.items()})
    rest = {name: values[complete:] for name, values in data.items() if name != feature}
    write_examples(path.with_suffix(".2"), rest)
    return f"{path.with_suffix('')}.[12]"


def test_rows_without_a_label_are_counted(paths, tmp_path):
    pattern = rows_without("label", 7, tmp_path / "rows.x")
    with raises(DataError, code="missing-label", match=r"'label' .* 7 of 7 .*rows\.2"):
        tfc.evaluate({"raw": paths["raw"]}, pattern, "label", baseline=paths["raw"])


def test_a_missing_feature_is_an_error_for_tflite_and_the_default_for_a_saved_model(paths, tmp_path):
    pattern = rows_without("x", 5, tmp_path / "rows.x")
    with raises(ModelError, match="'x'"):
        tfc.evaluate({"int8": paths["int8"]}, pattern, "label")
    assert tfc.evaluate({"examples": paths["examples"]}, pattern, "label").rows == ROWS


def test_labels_that_are_not_classes_are_an_error(paths, tmp_path):
    path = write_examples(tmp_path / "rows.tfrecord", {"x": rows(9)["x"], "label": np.full([9, 1], b"red")})
    with raises(DataError, code="labels-not-classes", match="'red'"):
        tfc.evaluate({"raw": paths["raw"]}, path, "label", baseline=paths["raw"])


def test_weights_that_are_all_zero_are_an_error(paths, tmp_path):
    config = sliced_config()
    config.model_specs[0].example_weight_key = "weight"
    path = write_examples(tmp_path / "rows.tfrecord", {**rows(9), "weight": np.zeros([9, 1], np.float32)})
    with raises(DataError, code="zero-weights"):
        tfc.evaluate({"raw": paths["raw"]}, path, baseline=paths["raw"], eval_config=config)


def test_an_empty_split_is_named(paths, tmp_path):
    empty = write_examples(tmp_path / "empty.tfrecord", {name: values[:0] for name, values in rows().items()})
    for pattern in (empty, str(tmp_path / "nothing-*")):
        with raises(DataError, code="no-examples", match=Path(pattern).name.replace("*", r"\*")):
            tfc.evaluate({"a": paths["raw"]}, pattern, "label", baseline=paths["raw"])


def test_a_file_that_is_not_tfrecords_is_named(paths, tmp_path):
    (tmp_path / "rows.gz").write_bytes(b"plain")
    with raises(DataError, code="unreadable-examples", match=r"rows\.gz"):
        tfc.evaluate({"a": paths["raw"]}, str(tmp_path / "rows.gz"), "label", baseline=paths["raw"])


def test_a_file_that_two_patterns_match_counts_once(tmp_path):
    path = write_examples(tmp_path / "rows.tfrecord", rows(3))
    assert evaluate._files([str(tmp_path / "*"), str(tmp_path / "rows.*")]) == [path]


def test_a_label_that_the_schema_or_the_examples_lack_is_named(paths):
    schema = text_format.Parse('feature { name: "x" } feature { name: "label" }', schema_pb2.Schema())
    with raises(DataError, code="unknown-label", match="'species'.*x, label"):
        tfc.evaluate({"a": paths["raw"]}, paths["rows"], "species", baseline=paths["raw"], schema=schema)
    with raises(DataError, code="no-label", match="'species'.*group, label, x"):
        tfc.evaluate({"a": paths["raw"]}, paths["rows"], "species", baseline=paths["raw"])


# Invalid models and configurations


def test_outputs_of_another_shape_are_refused(paths, tmp_path):
    def four_classes(kernel, x):
        return tf.nn.softmax(tf.concat([x @ kernel, x[:, :1]], axis=1))

    with raises(ModelError, code="different-outputs", match=r"'wide' \(probabilities \[4\]\).*\(probabilities \[3\]\)"):
        tfc.evaluate({"wide": save(tmp_path / "wide", four_classes)}, paths["rows"], "label", baseline=paths["raw"])


def test_a_metric_of_classes_on_one_output_is_refused(paths, tmp_path):
    spec = tf.TensorSpec([None, 4], tf.float32, name="x")
    logit = save_function(lambda x: {"logit": x[:, :1]}, [spec], tmp_path / "logit")
    with raises(ConfigError, code="one-output", match="BinaryAccuracy"):
        tfc.evaluate({"a": logit}, paths["rows"], "label", baseline=logit)


def test_a_limit_on_a_metric_that_is_not_computed_is_refused_before_anything_runs(paths):
    budget = tfc.Budget(max_metric_drop={"auc": 0.01})
    with raises(ConfigError, code="unknown-metric", match="'auc'.*SparseCategoricalAccuracy"):
        tfc.evaluate({"a": paths["raw"]}, "nowhere", "label", baseline=paths["raw"], budget=budget)


@pytest.mark.parametrize(("names", "code"), [(["baseline"], "reserved-name"), ([""], "no-name"), ([], "no-candidates")])
def test_candidates_need_names(paths, names, code):
    with raises(ConfigError, field="candidates", code=code):
        tfc.evaluate(dict.fromkeys(names, paths["raw"]), "nowhere", "label", baseline=paths["raw"])


def test_a_path_without_a_model_is_named(paths, tmp_path):
    with raises(ModelError, match=str(tmp_path)):
        tfc.evaluate({"a": str(tmp_path)}, "nowhere", "label", baseline=paths["raw"])


def test_the_files_of_an_earlier_evaluation_are_removed_if_one_ends_early(evaluated, paths, tmp_path):
    _, earlier = evaluated
    output = shutil.copytree(earlier, tmp_path / "output")
    (output / "mine.txt").write_text("kept")
    assert tfma.load_eval_result(str(output), model_name="raw").slicing_metrics
    with raises(DataError, code="no-label"):
        tfc.evaluate({"a": paths["raw"]}, paths["rows"], "nothing", baseline=paths["raw"], output_path=str(output))
    assert [path.name for path in output.iterdir()] == ["mine.txt"]


# The command line


def test_the_command_prints_the_decision_and_writes_the_report(paths, tmp_path):
    command = Path(sys.executable).with_name("tfx-compression")

    def run(*arguments: object) -> subprocess.CompletedProcess:
        return subprocess.run([command, "evaluate", *map(str, arguments)], capture_output=True, text=True, check=False)

    common = ["--baseline", paths["float32"], "--examples", paths["rows"], "--label", "label", "--output"]
    held = run(f"small={paths['int8']}", paths["float32"], *common, tmp_path / "held")
    assert (held.returncode, held.stderr) == (0, "")
    assert "is the smallest of 2 candidates that hold every limit" in held.stdout
    assert "<html" in (tmp_path / "held/report.html").read_text()
    recorded = json.loads((tmp_path / "held/evaluation.json").read_text())
    assert set(recorded["candidates"]) == {"small", "float32"}
    (tmp_path / "budget.json").write_text('{"max_bytes": 10}')
    refused = run(paths["int8"], *common, tmp_path / "refused", "--budget", tmp_path / "budget.json", "--json")
    assert refused.returncode == 2
    assert json.loads(refused.stdout)["chosen"] is None
    wrong = run(paths["int8"], paths["int8"], *common, tmp_path / "wrong")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert "int8" in wrong.stderr


def test_the_default_metrics_fit_several_outputs(tmp_path):
    inputs = tf_keras.Input((4,), name="x")
    hidden = tf_keras.layers.Dense(8, activation="relu")(inputs)
    outputs = {name: tf_keras.layers.Dense(size, name=name)(hidden) for name, size in (("digit", 3), ("color", 2))}
    model = tf_keras.Model(inputs, outputs)
    model.save(tmp_path / "two")
    x = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    features = {"x": x, "digit": np.arange(40)[:, None] % 3, "color": np.arange(40)[:, None] % 2}
    rows = write_examples(tmp_path / "rows.tfrecord", features)
    budget = tfc.Budget(max_metric_drop={ACCURACY: 0.1}, confidence=None)
    evaluation = tfc.evaluate({"same": str(tmp_path / "two")}, rows, baseline=str(tmp_path / "two"), budget=budget)
    for name, logits in model.predict(x, verbose=0).items():
        expected = np.mean(logits.argmax(axis=1) == features[name][:, 0])
        assert evaluation.metrics["same"][f"{name}/{ACCURACY}"] == pytest.approx(expected, abs=1e-6)
    assert evaluation.chosen == "same"
    assert {verdict.metric for verdict in evaluation.verdicts["same"] if verdict.metric} == {
        f"digit/{ACCURACY}",
        f"color/{ACCURACY}",
    }
    with raises(ConfigError, code="several-outputs"):
        tfc.evaluate({"same": str(tmp_path / "two")}, rows, "digit")


def test_a_keras_file_is_refused(tmp_path):
    (tmp_path / "model.hdf5").write_bytes(b"")
    with raises(ModelError, code="keras-file", field="candidates"):
        tfc.evaluate({"keras": str(tmp_path / "model.hdf5")}, "rows", "label")


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("candidates", {"candidates": ["model.tflite"]}),
        ("candidates['a']", {"candidates": {"a": object()}}),
        ("baseline", {"baseline": object()}),
        ("examples", {"examples": None}),
        ("eval_config", {"eval_config": {}}),
        ("schema", {"schema": "schema.pbtxt"}),
    ],
)
def test_arguments_of_another_type_are_named(field, arguments):
    with raises(ConfigError, code="wrong-type", field=field):
        tfc.evaluate(**{"candidates": {"a": "model"}, "examples": "rows", **arguments})
