"""The numbers are those of TFX's own Evaluator, whatever the task, the slices and the metrics."""

import json
import os

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_analysis as tfma
import tfx_compression as tfc
from google.protobuf import json_format, text_format
from tensorflow_metadata.proto.v0 import schema_pb2
from tensorflow_model_analysis.proto import config_pb2

pytestmark = pytest.mark.slow  # runs Beam

ROWS = 211  # no multiple of anything


def features(seed: int = 0) -> dict[str, np.ndarray]:
    """Rows with a point, weights, two features to slice by and a label for each task."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(ROWS, 4)).astype(np.float32)
    score = x @ np.array([1.0, -0.5, 0.25, 0.0], np.float32)
    noisy = score + generator.normal(size=ROWS).astype(np.float32)
    return {
        "x": x,
        "weight": generator.uniform(0.1, 3, (ROWS, 1)).astype(np.float32),
        "colour": generator.choice([b"red", b"green", b"blue"], (ROWS, 1)),
        "size": generator.integers(0, 3, (ROWS, 1)),
        "class": np.digitize(noisy, [-0.7, 0.7])[:, None],
        "binary": (noisy > 0).astype(np.int64)[:, None],
        "tags": (x[:, :3] + generator.normal(size=(ROWS, 3)) > 0).astype(np.float32),
        "amount": noisy[:, None],
    }


def write(folder, columns: dict[str, np.ndarray]) -> None:
    """Two files of tf.Examples in `Split-eval`."""
    os.makedirs(folder / "Split-eval")

    def feature(values: np.ndarray) -> tf.train.Feature:
        if values.dtype.kind == "f":
            return tf.train.Feature(float_list=tf.train.FloatList(value=values))
        if values.dtype.kind == "i":
            return tf.train.Feature(int64_list=tf.train.Int64List(value=values))
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))

    for part in range(2):
        options = tf.io.TFRecordOptions(compression_type="GZIP")
        with tf.io.TFRecordWriter(str(folder / "Split-eval" / f"part-{part}.gz"), options) as writer:
            for row in range(part, ROWS, 2):
                named = {name: feature(values[row]) for name, values in columns.items()}
                writer.write(tf.train.Example(features=tf.train.Features(feature=named)).SerializeToString())


def save(path, outputs: dict[str, tuple[int, str]], seed: int) -> str:
    """A SavedModel on tf.Examples that is right more often than not; by output its width and activation."""
    generator = np.random.default_rng(seed)
    module = tf.Module()
    direction = np.array([1.0, -0.5, 0.25, 0.0])
    module.kernels = {
        name: tf.Variable(
            (direction[:, None] * np.linspace(-1, 1, width or 1) if width > 1 else direction[:, None])
            + 0.3 * generator.normal(size=(4, width)),
            dtype=tf.float32,
        )
        for name, (width, _) in outputs.items()
    }

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def serve(examples):
        x = tf.io.parse_example(examples, {"x": tf.io.FixedLenFeature([4], tf.float32)})["x"]
        functions = {"softmax": tf.nn.softmax, "sigmoid": tf.sigmoid, "linear": tf.identity}
        return {name: functions[kind](x @ module.kernels[name]) for name, (_, kind) in outputs.items()}

    tf.saved_model.save(module, str(path / "Format-Serving"), signatures={"serving_default": serve})
    return str(path)


def model_artifact(uri: str, number: int):
    from tfx.types import standard_artifacts

    found = standard_artifacts.Model()
    found.uri, found.id = uri, number
    return found


def stock(candidate: str, baseline: str | None, examples, schema_folder, config, output) -> str:
    """TFX's Evaluator, run by its executor."""
    from tfx.components.evaluator import executor
    from tfx.dsl.components.base import base_beam_executor
    from tfx.types import artifact_utils, standard_artifacts

    data = standard_artifacts.Examples()
    data.uri, data.split_names = str(examples), artifact_utils.encode_split_names(["eval"])
    schema = standard_artifacts.Schema()
    schema.uri = str(schema_folder)
    evaluation, blessing = standard_artifacts.ModelEvaluation(), standard_artifacts.ModelBlessing()
    evaluation.uri, blessing.uri = str(output / "evaluation"), str(output / "blessing")
    context = base_beam_executor.BaseBeamExecutor.Context(beam_pipeline_args=[], tmp_dir=str(output), unique_id="1")
    executor.Executor(context).Do(
        {
            "model": [model_artifact(candidate, 1)],
            **({"baseline_model": [model_artifact(baseline, 2)]} if baseline else {}),
            "examples": [data],
            "schema": [schema],
        },
        {"evaluation": [evaluation], "blessing": [blessing]},
        {"eval_config": json_format.MessageToJson(config), "example_splits": json.dumps(["eval"])},
    )
    return evaluation.uri


def numbers(path: str) -> dict[tuple, object]:
    """Everything that TFMA's files say of metrics, by slice and metric."""
    found = {}
    for entry in tfma.load_metrics(path):
        for item in entry.metric_keys_and_values:
            key = (str(entry.slice_key), str(entry.cross_slice_key), str(item.key))
            value = json.loads(json_format.MessageToJson(item.value))
            found[key] = value
    return found


def require_equal(ours: object, theirs: object, place: str) -> None:
    if isinstance(theirs, dict):
        assert set(ours) == set(theirs), place
        for key in theirs:
            require_equal(ours[key], theirs[key], f"{place} {key}")
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs), place
        for number, (left, right) in enumerate(zip(ours, theirs, strict=True)):
            require_equal(left, right, f"{place} [{number}]")
    elif isinstance(theirs, float | int) and not isinstance(theirs, bool):
        assert ours == pytest.approx(theirs, abs=1e-6, rel=1e-6), place
    else:
        assert ours == theirs, place


SLICES = """
    slicing_specs {}
    slicing_specs { feature_keys: "colour" }
    slicing_specs { feature_keys: "colour" feature_keys: "size" }
    slicing_specs { feature_keys: "colour" feature_values { key: "size" value: "1" } }
"""
TASKS = {
    "classes, sparse labels, thresholds": (
        {"probabilities": (3, "softmax")},
        """
        model_specs { name: "candidate" label_key: "class" }
        model_specs { name: "baseline" label_key: "class" is_baseline: true }
        metrics_specs {
          metrics { class_name: "SparseCategoricalAccuracy"
            threshold { value_threshold { lower_bound { value: 0.1 } } change_threshold { absolute { value: -0.5 } } }
            per_slice_thresholds {
              slicing_specs { feature_keys: "colour" }
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
          baseline_spec {} slicing_specs { feature_keys: "colour" }
        }
        """
        + SLICES,
    ),
    "binary, example weights": (
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
    "several labels at once": (
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
        options { min_slice_size { value: 20 } }
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
    "queries of several rows": (
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
    folder = tmp_path_factory.mktemp("data")
    write(folder, features())
    schema = text_format.Parse(
        "\n".join(
            f'feature {{ name: "{name}" type: {kind} presence {{ min_fraction: 1.0 }} '
            f"shape {{ dim {{ size: {size} }} }} }}"
            for name, kind, size in (
                ("x", "FLOAT", 4),
                ("weight", "FLOAT", 1),
                ("colour", "BYTES", 1),
                ("size", "INT", 1),
                ("class", "INT", 1),
                ("binary", "INT", 1),
                ("tags", "FLOAT", 3),
                ("amount", "FLOAT", 1),
            )
        ),
        schema_pb2.Schema(),
    )
    os.makedirs(folder / "schema")
    (folder / "schema" / "schema.pbtxt").write_text(text_format.MessageToString(schema))
    return folder, schema


@pytest.mark.parametrize("task", TASKS)
def test_every_number_is_the_stock_evaluators(data, tmp_path, task):
    folder, schema = data
    outputs, text = TASKS[task]
    config = text_format.Parse(text, config_pb2.EvalConfig())
    candidate = save(tmp_path / "candidate", outputs, 1)
    # The stock Evaluator's queries of several rows fail where there are two models.
    baseline = save(tmp_path / "baseline", outputs, 2) if len(config.model_specs) > 1 else None
    theirs = stock(candidate, baseline, folder, folder / "schema", config, tmp_path / "stock")
    tfc.evaluate(
        {"candidate": f"{candidate}/Format-Serving"},
        str(folder / "Split-eval" / "*"),
        baseline=f"{baseline}/Format-Serving" if baseline else None,
        schema=schema,
        eval_config=config,
        output_path=str(tmp_path / "ours"),
    )
    ours = numbers(str(tmp_path / "ours"))
    wanted = numbers(theirs)
    assert len(wanted) > 4
    found = {key: value for key, value in ours.items() if key in wanted}
    added = {key for key in ours if key not in wanted and "example_count" not in key[2]}
    assert not added
    require_equal(found, wanted, task)
    validation = [tfma.load_validation_result(path) for path in (theirs, str(tmp_path / "ours"))]
    assert validation[0].validation_ok == validation[1].validation_ok
    failed = [
        sorted(
            (str(each.slice_key), failure.metric_key.name, failure.metric_key.model_name)
            for each in result.metric_validations_per_slice
            for failure in each.failures
        )
        for result in validation
    ]
    assert failed[0] == failed[1]
    assert bool(failed[0]) == ("thresholds" in task)
