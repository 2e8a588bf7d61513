"""The digits pipeline as a user runs it: once, again, with a changed value, with a budget too strict, and failing."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).parents[2]
NODES = [
    "ImportExampleGen",
    "StatisticsGen",
    "SchemaGen",
    "ExampleValidator",
    "Transform",
    "Trainer",
    "Pruner",
    "SparsityFineTuner",
    "TFLiteQuantizer.dynamic",
    "TFLiteQuantizer.float16",
    "TFLiteQuantizer.int8",
    "CompressedEvaluator.edge",
    "CompressedEvaluator.serving",
    "Pusher",
    "TFLiteStorePusher",
]

pytestmark = pytest.mark.slow


def run(folder: Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pipelines.local", "--folder", str(folder), *options]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def command_line(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tfx_compression.cli", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def nodes_that_ran(output: str) -> dict[str, bool]:
    """Returns whether each component in the output ran, or came from the cache."""
    lines = re.findall(r"✓ (\S+) +(cached|[\d.]+ s)", output)
    return {node: took != "cached" for node, took in lines}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs") / "digits"


@pytest.fixture(scope="module")
def first(folder):
    """The first run. The other tests check it and run again in its folder."""
    process = run(folder)
    assert process.returncode == 0, process.stdout + process.stderr
    return process


@pytest.fixture(scope="module")
def summary(first, folder):
    return json.loads((folder / "summary.json").read_text())


def test_every_component_runs_and_the_results_exist(first, folder):
    assert nodes_that_ran(first.stdout) == dict.fromkeys(NODES, True)
    for name in ("metadata.sqlite", "pipeline_root", "store", "report.html", "pipeline.log", "summary.json"):
        assert (folder / name).exists(), name
    assert first.stderr == ""


def test_the_terminal_shows_a_short_summary_and_the_log_has_the_rest(first, folder):
    assert len(first.stdout.splitlines()) < 50
    assert max(map(len, first.stdout.splitlines())) < 120
    assert "INFO" not in first.stdout
    assert "INFO absl: Component Trainer is running." in (folder / "pipeline.log").read_text()


def test_the_summary_has_baseline_candidates_and_release(summary, folder):
    assert summary["warnings"] == []
    assert set(summary) == {"baseline", "candidates", "warnings", "chosen", "blessed", "serving", "store"}
    assert set(summary["candidates"]) == {"dynamic", "float16", "int8", "pruned"}
    for candidate in summary["candidates"].values():
        assert {"metrics", "metric_drop", "bytes", "bytes_gzip", "latency_ms", "sparsity", "verdict"} <= set(candidate)
        assert candidate["sparsity"] == pytest.approx(0.8, abs=0.01)
    assert summary["candidates"]["float16"]["verdict"] == "refused"  # It has more bytes than the budget allows.
    assert summary["candidates"][summary["chosen"]]["verdict"] == "held"
    assert summary["blessed"] is True
    assert summary["store"] == {"uri": str(folder / "store"), "name": "digits", "version": 1}
    assert Path(summary["serving"]["path"]).name == str(summary["serving"]["version"])
    assert summary["baseline"]["metrics"]["sparse_categorical_accuracy"] > 0.95


def eval_rows(folder: Path) -> tuple[list[bytes], np.ndarray, np.ndarray]:
    import tensorflow as tf

    records = [record.numpy() for record in tf.data.TFRecordDataset(str(folder / "data/eval/digits.tfrecord"))]
    features = [tf.train.Example.FromString(record).features.feature for record in records]
    images = np.array([feature["image"].float_list.value for feature in features], np.float32)
    return records, images, np.array([feature["label"].int64_list.value[0] for feature in features])


def test_the_released_tflite_model_has_the_accuracy_in_the_summary(summary, folder, tmp_path):
    """TensorFlow's interpreter measures it row by row, and TFLite's formula quantizes the inputs."""
    import tensorflow as tf

    process = command_line("store", "pull", str(folder / "store"), "digits", str(tmp_path / "model.tflite"))
    assert process.returncode == 0, process.stderr
    _, images, labels = eval_rows(folder)
    interpreter = tf.lite.Interpreter(str(tmp_path / "model.tflite"))
    interpreter.allocate_tensors()
    (input_details,), (output_details,) = interpreter.get_input_details(), interpreter.get_output_details()
    scale, zero_point = input_details["quantization"]
    correct = 0
    for image, label in zip(images, labels, strict=True):
        value = image[None]
        if scale:
            value = np.clip(np.round(value / scale) + zero_point, -128, 127).astype(np.int8)
        interpreter.set_tensor(input_details["index"], value)
        interpreter.invoke()
        correct += interpreter.get_tensor(output_details["index"])[0].argmax() == label
    reported = summary["candidates"][summary["chosen"]]["metrics"]["sparse_categorical_accuracy"]
    assert correct / len(labels) == pytest.approx(reported, abs=1e-6)


def test_the_served_model_answers_serialized_examples_and_is_pruned(summary, folder):
    import tensorflow as tf

    records, _, labels = eval_rows(folder)
    served = tf.saved_model.load(summary["serving"]["path"])
    answers = served.signatures["serving_default"](tf.constant(records))["probabilities"].numpy()
    reported = summary["candidates"]["pruned"]["metrics"]["sparse_categorical_accuracy"]
    assert np.mean(answers.argmax(axis=1) == labels) == pytest.approx(reported, abs=1e-6)
    kernels = [variable.numpy() for variable in served.variables if variable.shape.rank >= 2]
    zeros = sum(np.count_nonzero(kernel == 0) for kernel in kernels) / sum(kernel.size for kernel in kernels)
    assert zeros == pytest.approx(0.8, abs=0.01)


def test_the_report_needs_no_network_and_shows_the_decision(first, summary, folder):
    html = (folder / "report.html").read_text()
    markup = re.sub(r"<script>.*?</script>|<style>.*?</style>", " ", html, flags=re.DOTALL)
    assert not re.search(r"\b(src|href)=|@import|url\(", markup)
    text = re.sub(r"<[^>]+>", " ", markup)
    assert f"Chosen for release. {summary['chosen']} is the smallest of 2 candidates" in re.sub(r"\s+", " ", text)
    assert "model size at most 150,000 bytes: not held" in text
    assert "digits/conv_2" in text


def test_tfma_opens_the_evaluation_of_each_candidate(first, folder):
    import tensorflow_model_analysis as tfma

    (evaluation,) = (folder / "pipeline_root/CompressedEvaluator.edge/evaluation").iterdir()
    for name in ("dynamic", "float16", "int8", "baseline"):
        metrics = tfma.load_eval_result(str(evaluation), model_name=name).get_metrics_for_slice()
        assert metrics["example_count"]["doubleValue"] == 500


def test_lineage_leads_from_the_store_back_to_the_data(first, summary, folder):
    process = command_line("lineage", str(folder / "store"), "digits", "1", "--json")
    assert process.returncode == 0, process.stderr
    steps = {step["title"]: step["details"] for step in json.loads(process.stdout)}
    assert list(steps) == ["released", "chosen", "quantized", "fine-tuned", "pruned", "trained", "data"]
    assert steps["chosen"]["candidate"] == summary["chosen"]
    reported = summary["candidates"][summary["chosen"]]["metrics"]["sparse_categorical_accuracy"]
    assert steps["chosen"]["metric_sparse_categorical_accuracy"] == pytest.approx(reported)
    assert steps["chosen"]["compared_with"].startswith(steps["trained"]["model"])
    assert steps["quantized"]["config"]["mode"] == summary["chosen"]
    assert steps["pruned"]["plan"]["sparsity"] == 0.8
    assert Path(steps["data"]["examples"]).parts[-3:-1] == ("ImportExampleGen", "examples")
    shown = command_line("lineage", str(folder / "store"), "digits", "1")
    assert "pruned by Pruner" in shown.stdout
    missing = command_line("lineage", str(folder / "store"), "digits", "7")
    assert missing.returncode == 1
    assert "digits 7" in missing.stderr


def test_a_second_run_is_cached_and_releases_nothing(first, folder):
    before = (folder / "summary.json").read_text()
    process = run(folder)
    assert process.returncode == 0, process.stdout
    assert nodes_that_ran(process.stdout) == dict.fromkeys(NODES, False)
    assert (folder / "summary.json").read_text() == before
    assert [path.name for path in (folder / "store/digits/versions").iterdir()] == ["1"]


def test_a_changed_plan_reruns_only_the_components_that_depend_on_it(first, folder):
    process = run(folder, "--sparsity", "0.7")
    assert process.returncode == 0, process.stdout
    cached = {"ImportExampleGen", "StatisticsGen", "SchemaGen", "ExampleValidator", "Transform", "Trainer"}
    assert nodes_that_ran(process.stdout) == {node: node not in cached for node in NODES}
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["store"]["version"] == 2
    assert summary["candidates"]["pruned"]["sparsity"] == pytest.approx(0.7, abs=0.01)


def test_a_budget_that_no_candidate_meets_pushes_nothing_and_explains_it(first, folder):
    served = sorted(path.name for path in (folder / "serving/digits").iterdir())
    stored = sorted(path.name for path in (folder / "store/digits/versions").iterdir())
    process = run(folder, "--max-drop", "-1")
    assert process.returncode == 0, process.stdout
    assert "No candidate holds every limit" in process.stdout
    assert "sparse_categorical_accuracy drop (95% confidence bound) at most -1: not held" in process.stdout
    assert process.stdout.count("nothing pushed") == 2
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["chosen"], summary["blessed"], summary["serving"], summary["store"]) == (None, False, None, None)
    assert {candidate["verdict"] for candidate in summary["candidates"].values()} == {"refused"}
    assert sorted(path.name for path in (folder / "serving/digits").iterdir()) == served
    assert sorted(path.name for path in (folder / "store/digits/versions").iterdir()) == stored


def test_a_failing_component_is_shown_with_its_error_and_the_log(tmp_path):
    module = tmp_path / "code" / "broken.py"
    module.parent.mkdir()
    module.write_text("def preprocessing_fn(inputs):\n    raise ValueError('no feature called color')\n")
    process = run(tmp_path / "digits", "--module-file", str(module))
    assert process.returncode == 1
    assert "Transform failed: ValueError:" in process.stdout
    assert "no feature called color" in process.stdout
    assert str(tmp_path / "digits/pipeline.log") in process.stdout
    assert "Traceback" not in process.stdout + process.stderr
    assert "Traceback" in (tmp_path / "digits/pipeline.log").read_text()
    assert not (tmp_path / "digits/store").exists()


def test_invalid_settings_are_refused_before_anything_runs(tmp_path):
    process = run(tmp_path / "digits", "--sparsity", "1.5")
    assert process.returncode == 1
    assert "ConfigError: PruningPlan.sparsity = 1.5" in process.stdout
    assert nodes_that_ran(process.stdout) == {}


def test_a_store_that_cannot_be_written_is_refused_before_anything_runs(tmp_path):
    folder = tmp_path / "digits"
    folder.mkdir()
    (folder / "store").write_text("a file where the store should be")
    process = run(folder)
    assert process.returncode == 1
    assert f"StoreError: The store {folder / 'store'}" in process.stdout
    assert nodes_that_ran(process.stdout) == {}
