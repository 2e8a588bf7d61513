"""The numbers are those of TFX's own Evaluator for every kind of task, slice and metric."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_analysis as tfma
import tfx_compression as tfc
from google.protobuf import json_format, text_format
from tensorflow_model_analysis.proto import config_pb2

from tests.support import helpers
from tests.support.extracts import require_equal

pytestmark = pytest.mark.slow  # runs Beam

ROWS = 97  # a prime number, so that nothing divides it


def features() -> dict[str, np.ndarray]:
    """Rows with a point, example weights, two features to slice by, and a label for each task."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(ROWS, 4)).astype(np.float32)
    score = x @ np.array([1.0, -0.5, 0.25, 0.0], np.float32)
    noisy = score + generator.normal(size=ROWS).astype(np.float32)
    return {
        "x": x,
        "weight": generator.uniform(0.1, 3, (ROWS, 1)).astype(np.float32),
        "color": generator.choice([b"red", b"green", b"blue"], (ROWS, 1)),
        "size": generator.integers(0, 3, (ROWS, 1)),
        "class": np.digitize(noisy, [-0.7, 0.7])[:, None],
        "binary": (noisy > 0).astype(np.int64)[:, None],
        "tags": (x[:, :3] + generator.normal(size=(ROWS, 3)) > 0).astype(np.float32),
        "amount": noisy[:, None],
    }


def save(path: Path, outputs: dict[str, tuple[int, str]], seed: int) -> str:
    """A SavedModel on tf.Examples that is right more often than not; by output its width and activation."""
    generator = np.random.default_rng(seed)
    module = tf.Module()
    direction = np.array([1.0, -0.5, 0.25, 0.0])
    module.kernels = {
        name: tf.Variable(
            (direction[:, None] * np.linspace(-1, 1, width) if width > 1 else direction[:, None])
            + 0.3 * generator.normal(size=(4, width)),
            dtype=tf.float32,
        )
        for name, (width, _) in outputs.items()
    }

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def serve(examples):
        x = tf.io.parse_example(examples, {"x": tf.io.FixedLenFeature([4], tf.float32)})["x"]
        activations = {"softmax": tf.nn.softmax, "sigmoid": tf.sigmoid, "linear": tf.identity}
        return {name: activations[kind](x @ module.kernels[name]) for name, (_, kind) in outputs.items()}

    tf.saved_model.save(module, str(path / "Format-Serving"), signatures={"serving_default": serve})
    return str(path)


def run_stock_evaluator(
    candidate: str, baseline: str | None, folder: Path, config: config_pb2.EvalConfig, output: Path
) -> str:
    """Runs the executor of TFX's Evaluator, and returns the folder of TFMA's files."""
    from tfx.components.evaluator import executor
    from tfx.dsl.components.base import base_beam_executor
    from tfx.types import artifact_utils, standard_artifacts

    def artifact(kind: Any, uri: Any, number: int = 0) -> Any:
        result = kind()
        result.uri, result.id = str(uri), number
        return result

    examples = artifact(standard_artifacts.Examples, folder)
    examples.split_names = artifact_utils.encode_split_names(["eval"])
    evaluation = artifact(standard_artifacts.ModelEvaluation, output / "evaluation")
    context = base_beam_executor.BaseBeamExecutor.Context(beam_pipeline_args=[], tmp_dir=str(output), unique_id="1")
    executor.Executor(context).Do(
        {
            "model": [artifact(standard_artifacts.Model, candidate, 1)],
            **({"baseline_model": [artifact(standard_artifacts.Model, baseline, 2)]} if baseline else {}),
            "examples": [examples],
            "schema": [artifact(standard_artifacts.Schema, folder / "schema")],
        },
        {
            "evaluation": [evaluation],
            "blessing": [artifact(standard_artifacts.ModelBlessing, output / "blessing")],
        },
        {"eval_config": json_format.MessageToJson(config), "example_splits": json.dumps(["eval"])},
    )
    return evaluation.uri


def numbers(path: str) -> dict[tuple[str, str, str], Any]:
    """Every metric in TFMA's files by slice, cross slice and key."""
    return {
        (str(entry.slice_key), str(entry.cross_slice_key), str(item.key)): json.loads(
            json_format.MessageToJson(item.value)
        )
        for entry in tfma.load_metrics(path)
        for item in entry.metric_keys_and_values
    }


def failures(path: str) -> tuple[bool, list[tuple[str, str, str]]]:
    """TFMA's verdict and the missed thresholds."""
    result = tfma.load_validation_result(path)
    return result.validation_ok, sorted(
        (str(each.slice_key), failure.metric_key.name, failure.metric_key.model_name)
        for each in result.metric_validations_per_slice
        for failure in each.failures
    )


SLICES = """
    slicing_specs {}
    slicing_specs { feature_keys: "color" }
    slicing_specs { feature_keys: "color" feature_keys: "size" }
    slicing_specs { feature_keys: "color" feature_values { key: "size" value: "1" } }
"""
TASKS = {
    "classes with thresholds": (
        {"probabilities": (3, "softmax")},
        """
        model_specs { name: "candidate" label_key: "class" }
        model_specs { name: "baseline" label_key: "class" is_baseline: true }
        metrics_specs {
          metrics { class_name: "SparseCategoricalAccuracy"
            threshold { value_threshold { lower_bound { value: 0.1 } } change_threshold { absolute { value: -0.5 } } }
            per_slice_thresholds {
              slicing_specs { feature_keys: "color" }
              threshold { value_threshold { lower_bound { value: 0.99 } } } } }
          metrics { class_name: "SparseCategoricalCrossentropy" }
          metrics { class_name: "SparseTopKCategoricalAccuracy" config: '"k": 2, "name": "top_2"' }
          metrics { class_name: "ExampleCount" }
          metrics { class_name: "MultiClassConfusionMatrixPlot" }
        }
        metrics_specs {
          metrics { class_name: "Precision" config: '"thresholds": [0.4]' }
          metrics { class_name: "Recall" config: '"top_k": 2, "name": "recall_at_2"' }
          binarize { class_ids { values: [0, 2] } }
        }
        metrics_specs {
          metrics { class_name: "AUC" }
          aggregate { micro_average: true }
        }
        cross_slicing_specs {
          baseline_spec {} slicing_specs { feature_keys: "color" }
        }
        """
        + SLICES,
    ),
    "binary with example weights": (
        {"probability": (1, "sigmoid")},
        """
        model_specs { name: "candidate" label_key: "binary" example_weight_key: "weight" }
        model_specs { name: "baseline" label_key: "binary" example_weight_key: "weight" is_baseline: true }
        metrics_specs {
          metrics { class_name: "BinaryAccuracy" }
          metrics { class_name: "BinaryCrossentropy" }
          metrics { class_name: "AUC" }
          metrics { class_name: "AUCPrecisionRecall" }
          metrics { class_name: "Precision" }
          metrics { class_name: "Recall" config: '"thresholds": [0.3]' }
          metrics { class_name: "F1Score" }
          metrics { class_name: "Calibration" }
          metrics { class_name: "MeanLabel" }
          metrics { class_name: "CalibrationPlot" }
          metrics { class_name: "ExampleCount" }
          metrics { class_name: "WeightedExampleCount" }
          metrics { class_name: "BooleanFlipRates" }
          example_weights { weighted: true unweighted: true }
        }
        """
        + SLICES,
    ),
    "several labels": (
        {"scores": (3, "sigmoid")},
        """
        model_specs { name: "candidate" label_key: "tags" }
        model_specs { name: "baseline" label_key: "tags" is_baseline: true }
        metrics_specs {
          metrics { class_name: "BinaryCrossentropy" }
          metrics { class_name: "CategoricalAccuracy" }
        }
        metrics_specs {
          metrics { class_name: "AUC" }
          metrics { class_name: "Precision" }
          aggregate { micro_average: true class_weights { key: 0 value: 1.0 } class_weights { key: 2 value: 3.0 } }
        }
        """
        + SLICES,
    ),
    "regression": (
        {"amount": (1, "linear")},
        """
        model_specs { name: "candidate" label_key: "amount" }
        model_specs { name: "baseline" label_key: "amount" is_baseline: true }
        metrics_specs {
          metrics { class_name: "MeanSquaredError" }
          metrics { class_name: "MeanAbsoluteError" }
          metrics { class_name: "MeanAbsolutePercentageError" }
          metrics { class_name: "RootMeanSquaredError" }
          metrics { class_name: "SquaredPearsonCorrelation" }
          metrics { class_name: "MeanPrediction" }
        }
        options { min_slice_size { value: 10 } }
        """
        + SLICES,
    ),
    "several outputs": (
        {"class": (3, "softmax"), "binary": (1, "sigmoid")},
        """
        model_specs { name: "candidate"
          label_keys { key: "class" value: "class" } label_keys { key: "binary" value: "binary" } }
        model_specs { name: "baseline" is_baseline: true
          label_keys { key: "class" value: "class" } label_keys { key: "binary" value: "binary" } }
        metrics_specs { output_names: "class" metrics { class_name: "SparseCategoricalAccuracy" } }
        metrics_specs { output_names: "binary" metrics { class_name: "AUC" } metrics { class_name: "BinaryAccuracy" } }
        metrics_specs { output_names: ["class", "binary"] metrics { class_name: "ExampleCount" } }
        """
        + SLICES,
    ),
    "queries that span rows": (
        {"probability": (1, "sigmoid")},
        """
        model_specs { label_key: "binary" }
        metrics_specs {
          query_key: "size"
          metrics { class_name: "QueryStatistics" }
        }
        metrics_specs { metrics { class_name: "BinaryAccuracy" } }
        """,
    ),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The folder of an Examples artifact with its schema, and the schema."""
    folder = tmp_path_factory.mktemp("data")
    columns = features()
    for part in range(2):
        rows = {name: values[part::2] for name, values in columns.items()}
        helpers.write_examples(folder / f"Split-eval/part-{part}.gz", rows)
    kinds = {"f": "FLOAT", "i": "INT", "S": "BYTES"}
    schema = helpers.schema({name: (kinds[values.dtype.kind], values.shape[1:]) for name, values in columns.items()})
    (folder / "schema").mkdir()
    (folder / "schema/schema.pbtxt").write_text(text_format.MessageToString(schema))
    return folder, schema


@pytest.mark.parametrize("task", TASKS)
def test_every_number_equals_the_stock_evaluators(data, tmp_path, task):
    folder, schema = data
    outputs, text = TASKS[task]
    config = text_format.Parse(text, config_pb2.EvalConfig())
    candidate = save(tmp_path / "candidate", outputs, 1)
    # The stock Evaluator fails for queries that span rows if there are two models.
    baseline = save(tmp_path / "baseline", outputs, 2) if len(config.model_specs) > 1 else None
    stock = run_stock_evaluator(candidate, baseline, folder, config, tmp_path / "stock")
    ours = str(tmp_path / "ours")
    tfc.evaluate(
        {"candidate": f"{candidate}/Format-Serving"},
        str(folder / "Split-eval" / "*"),
        baseline=f"{baseline}/Format-Serving" if baseline else None,
        schema=schema,
        eval_config=config,
        output_path=ours,
    )
    expected, actual = numbers(stock), numbers(ours)
    assert len(expected) > 4
    assert {key for key in actual if key not in expected and "example_count" not in key[2]} == set()
    require_equal({key: value for key, value in actual.items() if key in expected}, expected, task)
    assert failures(ours) == failures(stock)
    assert bool(failures(ours)[1]) == ("thresholds" in task)
