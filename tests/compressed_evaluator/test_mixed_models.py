"""Whole evaluations: of models of every kind at once, of models that fail, of rows that are not as they should be."""

import json
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

import apache_beam as beam
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_analysis as tfma
import tfx_compression as tfc
from ai_edge_litert import interpreter as litert
from apache_beam.options.pipeline_options import PipelineOptions
from google.protobuf import text_format
from tensorflow_model_analysis.proto import config_pb2
from tfx_compression.compressed_evaluator import evaluate
from tfx_compression.errors import ConfigError, DataError, ModelError

from tests.support.helpers import write_examples

pytestmark = pytest.mark.slow  # converts models, and runs Beam

ROWS, CLASSES = 400, 3
ACCURACY = "sparse_categorical_accuracy"


def made_rows(rows: int = ROWS, seed: int = 1) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(rows, 4)).astype(np.float32)
    label = (np.argmax(x[:, :CLASSES], axis=1)).astype(np.int64)
    return {"x": x, "label": label[:, None], "group": np.where(np.arange(rows) % 4 == 0, b"rare", b"common")[:, None]}


def network(noise: float = 0.0) -> tf.Module:
    """Right about every row, but for `noise` in its kernel."""
    module = tf.Module()
    kernel = np.eye(4, CLASSES) * 3 + noise * np.random.default_rng(5).normal(size=(4, CLASSES))
    module.kernel = tf.Variable(kernel, dtype=tf.float32)
    return module


def save(path, answer, module: tf.Module | None = None, batch: int | None = None) -> str:
    """A SavedModel whose `serving_default` takes `x`, and one beside it, `path.examples`, that takes tf.Examples."""
    module = module or network()

    @tf.function(input_signature=[tf.TensorSpec([batch, 4], tf.float32, name="x")])
    def raw(x):
        return {"probabilities": answer(module, x)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def parsed(examples):
        x = tf.io.parse_example(examples, {"x": tf.io.FixedLenFeature([4], tf.float32, [0.0] * 4)})["x"]
        return {"probabilities": answer(module, x)}

    tf.saved_model.save(module, str(path), signatures={"serving_default": raw})
    if batch is None:
        tf.saved_model.save(module, f"{path}.examples", signatures={"serving_default": parsed})
    return str(path)


def softmax(module, x):
    return tf.nn.softmax(x @ module.kernel)


def convert(saved: str, mode: str, rows: np.ndarray) -> bytes:
    converter = tf.lite.TFLiteConverter.from_saved_model(saved, signature_keys=["serving_default"])
    if mode != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ({"x": row[None]} for row in rows[:100])
    if mode == "int8":
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
    if mode == "int16x8":
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        ]
    return bytes(converter.convert())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Paths of models and rows."""
    folder = tmp_path_factory.mktemp("mixed")
    rows = made_rows()
    write_examples(folder / "rows.tfrecord", rows)
    paths = {"rows": str(folder / "rows.tfrecord")}
    free, one = save(folder / "free", softmax, network(0.8)), save(folder / "one", softmax, network(0.8), batch=1)
    paths |= {"raw": free, "examples": f"{free}.examples"}
    for name, saved, mode in (
        ("float32", free, "float32"),
        ("int8", free, "int8"),
        ("int16x8", free, "int16x8"),
        ("one_row", one, "int8"),
    ):
        paths[name] = str(folder / f"{name}.tflite")
        Path(paths[name]).write_bytes(convert(saved, mode, rows["x"]))
    return paths


def answers(path: str, x: np.ndarray) -> np.ndarray:
    """LiteRT row by row, as a device would, with the saturating formula of TFLite's specification."""
    interpreter = litert.Interpreter(path)
    interpreter.allocate_tensors()
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
    scale, zero_point = taken["quantization"]
    found = []
    for row in x:
        stored = row
        if scale:
            limits = np.iinfo(taken["dtype"])
            stored = np.clip(np.round(row / np.float32(scale)) + zero_point, limits.min, limits.max)
        interpreter.set_tensor(taken["index"], stored[None].astype(taken["dtype"]))
        interpreter.invoke()
        found.append(interpreter.get_tensor(given["index"])[0].argmax())
    return np.array(found)


def test_models_of_every_kind_are_evaluated_in_one_pass(made, tmp_path):
    kinds = ["float32", "int8", "int16x8", "one_row", "raw"]
    found = tfc.evaluate(
        {name: made[name] for name in kinds},
        made["rows"],
        "label",
        baseline=made["examples"],
        budget=tfc.Budget(max_metric_drop={ACCURACY: 0.1}, min_agreement=0.8, max_divergence=0.5),
        output_path=str(tmp_path),
    )
    rows = made_rows()
    for name in ("float32", "int8", "int16x8", "one_row"):
        right = np.mean(answers(made[name], rows["x"]) == rows["label"][:, 0])
        assert found.metrics[name][ACCURACY] == pytest.approx(right, abs=1e-6), name
        assert found.candidates[name].runtime.startswith("LiteRT")
        assert "XNNPACK" in found.candidates[name].runtime
    assert found.metrics["raw"] == pytest.approx(found.baseline.metrics)
    assert found.comparisons["raw"].agreement == 1
    assert found.comparisons["raw"].divergence == pytest.approx(0, abs=1e-6)
    assert found.comparisons["int8"].agreement > 0.9
    assert 0 < found.comparisons["int8"].divergence < 0.1
    assert all(found.held(name) for name in kinds)
    assert found.rows == ROWS
    for name in ("baseline", *kinds):
        result = tfma.load_eval_result(str(tmp_path), model_name=name)
        assert len(result.slicing_metrics) == 1
    assert tfma.load_validation_result(str(tmp_path)) is not None
    assert found.seconds["interpreter"] < found.seconds["pass"]


def test_a_tflite_model_is_a_baseline_too(made):
    found = tfc.evaluate({"int8": made["int8"], "raw": made["raw"]}, made["rows"], "label", baseline=made["float32"])
    assert found.baseline.kind == "tflite"
    assert found.baseline.tflite is None
    assert found.comparisons["raw"].agreement == 1
    assert found.chosen is not None


def test_reference_kernels_are_run_where_asked_and_recorded(made):
    found = tfc.evaluate({"int8": made["int8"]}, made["rows"], "label", reference_kernels=True)
    assert "reference kernels" in found.candidates["int8"].runtime


def test_slices_are_compared_and_the_worst_is_a_limit(made, tmp_path):
    """A candidate that fails the rare rows only: hardly seen on the whole split."""

    def rare_is_wrong(module, x):
        rare = tf.cast(tf.range(tf.shape(x)[0]) % 4 == 0, tf.float32)[:, None]
        return tf.nn.softmax((x @ module.kernel) * (1 - 2 * rare))

    config = text_format.Parse(
        """
        model_specs { label_key: "label" }
        metrics_specs { metrics { class_name: "SparseCategoricalAccuracy" } }
        slicing_specs {} slicing_specs { feature_keys: "group" }
        """,
        config_pb2.EvalConfig(),
    )
    found = tfc.evaluate(
        {"unfair": save(tmp_path / "unfair", rare_is_wrong, network(0.8))},
        made["rows"],
        baseline=made["raw"],
        eval_config=config,
        budget=tfc.Budget(max_metric_drop={ACCURACY: 0.4}, max_slice_metric_drop={ACCURACY: 0.1}),
    )
    comparison = found.comparisons["unfair"]
    name, drop = comparison.worst_slice(ACCURACY)
    assert name == "group=rare"
    assert drop.rows == ROWS / 4
    assert drop.upper > drop.value > 0.5
    assert comparison.slice_drops["group=common"][ACCURACY].value == 0
    whole, worst = found.verdicts["unfair"]
    assert whole.held
    assert not worst.held
    assert "group=rare" in worst.limit
    behaviour = comparison.behaviour[""]
    assert behaviour.broken - behaviour.mended == round(drop.value * drop.rows)


def test_a_split_too_small_for_the_confidence_blesses_nothing(made):
    budget = tfc.Budget(max_metric_drop={ACCURACY: 0.005})
    found = tfc.evaluate({"same": made["raw"]}, made["rows"], "label", baseline=made["examples"], budget=budget)
    assert found.chosen is None
    assert "examples, to tell a drop of 0.005" in found.reason
    sure = tfc.Budget(max_metric_drop={ACCURACY: 0.005}, confidence=None)
    assert (
        tfc.evaluate({"same": made["raw"]}, made["rows"], "label", baseline=made["examples"], budget=sure).chosen
        == "same"
    )


def test_not_finite_predictions_are_counted_and_fail_the_candidate(made, tmp_path):
    def broken(module, x):
        return tf.where(x[:, :1] > 1, tf.constant(np.nan, tf.float32), softmax(module, x))

    found = tfc.evaluate(
        {"broken": save(tmp_path / "broken", broken), "sound": made["raw"]},
        made["rows"],
        "label",
        baseline=made["examples"],
    )
    wanted = int((made_rows()["x"][:, 0] > 1).sum())
    assert found.candidates["broken"].not_finite == wanted > 10
    assert not found.held("broken")
    assert found.verdicts["broken"][0].measured == wanted
    assert found.candidates["sound"].not_finite == 0
    assert found.chosen == "sound"


def test_a_damaged_candidate_has_failed_and_the_others_are_judged(made, tmp_path):
    cut = tmp_path / "cut.tflite"
    cut.write_bytes(Path(made["int8"]).read_bytes()[:700])
    found = tfc.evaluate({"cut": str(cut), "int8": made["int8"]}, made["rows"], "label", baseline=made["examples"])
    assert "damaged TFLite model of 700 bytes" in found.candidates["cut"].failure
    assert [verdict.held for verdict in found.verdicts["cut"]] == [False]
    assert found.chosen == "int8"
    alone = tfc.evaluate({"cut": str(cut)}, made["rows"], "label", baseline=made["examples"])
    assert alone.chosen is None
    assert "cut: runs in the interpreter: not held" in alone.reason
    with pytest.raises(ModelError, match=r"baseline in .*cut.tflite can't be compared with: .*damaged"):
        tfc.evaluate({"int8": made["int8"]}, made["rows"], "label", baseline=str(cut))


def without(rows: dict[str, np.ndarray], feature: str, missing: int, path: Path) -> str:
    """The rows, but the last `missing` of them lack a feature."""
    whole = len(rows["x"]) - missing
    write_examples(path.with_suffix(".1"), {name: values[:whole] for name, values in rows.items()})
    rest = {name: values[whole:] for name, values in rows.items() if name != feature}
    write_examples(path.with_suffix(".2"), rest)
    return f"{path.with_suffix('')}.[12]"


def test_rows_without_a_label_are_an_error_that_counts_them(made, tmp_path):
    rows = without(made_rows(), "label", 7, tmp_path / "rows.x")
    with pytest.raises(DataError, match=r"label 'label' is missing in 7 of 7 .*rows\.2.*Remedy"):
        tfc.evaluate({"int8": made["int8"]}, rows, "label", baseline=made["examples"])


def test_rows_without_a_feature_are_an_error_for_tflite_and_the_default_for_a_saved_model(made, tmp_path):
    rows = without(made_rows(), "x", 5, tmp_path / "rows.x")
    with pytest.raises(ModelError, match="'x'"):
        tfc.evaluate({"int8": made["int8"]}, rows, "label", baseline=made["examples"])
    assert tfc.evaluate({"examples": made["examples"]}, rows, "label").rows == ROWS


def test_the_first_release_needs_a_word_and_says_so(made):
    limits = {"max_bytes": 10_000_000, "min_speedup": 2.0, "max_metric_drop": {ACCURACY: 0.01}}
    with pytest.raises(ConfigError, match="allow_first"):
        tfc.evaluate({"int8": made["int8"]}, made["rows"], "label", budget=tfc.Budget(**limits))
    found = tfc.evaluate({"int8": made["int8"]}, made["rows"], "label", budget=tfc.Budget(**limits, allow_first=True))
    assert found.chosen == "int8"
    assert "first release" in found.reason
    assert [verdict.limit for verdict in found.verdicts["int8"]] == ["bytes at most"]


@pytest.mark.parametrize("mode", ["multi_threading", "multi_processing"])
def test_several_workers_find_the_same(made, tmp_path, mode):
    def run(folder: str, *options: str) -> tfc.Evaluation:
        config = config_pb2.EvalConfig()
        config.CopyFrom(evaluate._accuracy())
        config.model_specs.add().label_key = "label"
        return evaluate.run(
            {"int8": made["int8"]},
            made["examples"],
            [made["rows"]],
            None,
            config,
            tfc.Budget(max_metric_drop={ACCURACY: 0.1}),
            str(tmp_path / folder),
            lambda: beam.Pipeline(options=PipelineOptions([*options])),
        )

    one = run("one")
    two = run("two", "--direct_num_workers=2", f"--direct_running_mode={mode}")
    assert two.metrics["int8"] == pytest.approx(one.metrics["int8"])
    assert two.comparisons["int8"].behaviour == one.comparisons["int8"].behaviour
    drops = [found.comparisons["int8"].drops[ACCURACY] for found in (one, two)]
    assert drops[1].upper == pytest.approx(drops[0].upper)  # but for the order of the sums


def test_the_command_prints_the_decision_and_writes_the_report(made, tmp_path):
    command = Path(sys.executable).with_name("tfx-compression")

    def run(*arguments: object) -> subprocess.CompletedProcess:
        return subprocess.run([command, "evaluate", *map(str, arguments)], capture_output=True, text=True, check=False)

    common = ["--baseline", made["examples"], "--examples", made["rows"], "--label", "label", "--output"]
    done = run(f"small={made['int8']}", made["float32"], *common, tmp_path / "held")
    assert (done.returncode, done.stderr) == (0, "")
    assert "is the smallest of 2 candidates that hold every limit" in done.stdout
    assert "<html" in (tmp_path / "held/report.html").read_text()
    recorded = json.loads((tmp_path / "held/evaluation.json").read_text())
    assert set(recorded["candidates"]) == {"small", "float32"}
    (tmp_path / "budget.json").write_text('{"max_bytes": 10}')
    refused = run(made["int8"], *common, tmp_path / "refused", "--budget", tmp_path / "budget.json", "--json")
    assert refused.returncode == 2
    assert json.loads(refused.stdout)["chosen"] is None
    wrong = run(made["int8"], made["int8"], *common, tmp_path / "wrong")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert "Two candidates are called 'int8'" in wrong.stderr
