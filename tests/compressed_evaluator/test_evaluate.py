"""Evaluation of real models on real files: TFMA's numbers on our predictions, the decision, and bad input."""

import os

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_analysis as tfma
import tf_keras
import tfx_compression as tfc
from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2
from tensorflow_model_analysis.proto import config_pb2
from tfx_compression.errors import ConfigError, DataError, ModelError

pytestmark = pytest.mark.slow  # converts models, and runs Beam

ROWS = 300
CLASSES = 3
ACCURACY = "sparse_categorical_accuracy"


def made_rows(seed: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Points in the plane of `x`, labelled by the sector they lie in."""
    points = np.random.default_rng(seed).normal(size=(ROWS, 4)).astype(np.float32) * spread
    sector = (np.arctan2(points[:, 0], points[:, 1]) + np.pi) / (2 * np.pi) * CLASSES
    return points, np.minimum(sector.astype(np.int64), CLASSES - 1)


def write_rows(path, points: np.ndarray, labels: np.ndarray) -> None:
    def feature(**kind):
        return tf.train.Feature(**kind)

    with tf.io.TFRecordWriter(str(path)) as writer:
        for row, (point, label) in enumerate(zip(points, labels, strict=True)):
            features = {
                "x": feature(float_list=tf.train.FloatList(value=point)),
                "label": feature(int64_list=tf.train.Int64List(value=[label])),
                "group": feature(bytes_list=tf.train.BytesList(value=[b"even" if row % 2 == 0 else b"odd"])),
            }
            example = tf.train.Example(features=tf.train.Features(feature=features))
            writer.write(example.SerializeToString())


def save(path, outputs: int, points: np.ndarray | None = None, labels: np.ndarray | None = None) -> str:
    """A SavedModel on serialized tf.Examples, trained where there is data."""
    tf_keras.utils.set_random_seed(3)
    model = tf_keras.Sequential(
        [
            tf_keras.layers.Dense(16, activation="relu", input_shape=(4,)),
            tf_keras.layers.Dense(outputs, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    if points is not None:
        model.fit(points, labels, epochs=30, verbose=0)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def serve(examples):
        parsed = tf.io.parse_example(examples, {"x": tf.io.FixedLenFeature([4], tf.float32)})
        return {"probabilities": model(parsed["x"])}

    model.save(str(path), save_format="tf", signatures={"serving_default": serve})
    return str(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A trained model, its TFLite twins, rows in the range of the calibration and rows far outside it."""
    folder = tmp_path_factory.mktemp("made")
    points, labels = made_rows(0, 1.0)
    model = save(folder / "model", CLASSES, points, labels)
    rows = tf.data.Dataset.from_tensor_slices({"x": points[:100]}).batch(10)
    paths = {}
    for mode in ("float32", "int8"):
        paths[mode] = folder / f"{mode}.tflite"
        paths[mode].write_bytes(tfc.quantize(model, tfc.Quantization(mode=mode), rows))
    write_rows(folder / "within.tfrecord", *made_rows(1, 1.0))
    write_rows(folder / "outside.tfrecord", *made_rows(2, 4.0))
    return {"folder": folder, "model": model, **{name: str(path) for name, path in paths.items()}}


@pytest.fixture(scope="module")
def schema():
    return text_format.Parse(
        """
        feature { name: "x" type: FLOAT presence { min_fraction: 1.0 } shape { dim { size: 4 } } }
        feature { name: "label" type: INT presence { min_fraction: 1.0 } shape { dim { size: 1 } } }
        feature { name: "group" type: BYTES presence { min_fraction: 1.0 } shape { dim { size: 1 } } }
        """,
        schema_pb2.Schema(),
    )


def eval_config(**arguments) -> config_pb2.EvalConfig:
    metric = config_pb2.MetricConfig(class_name="SparseCategoricalAccuracy")
    return config_pb2.EvalConfig(
        model_specs=[config_pb2.ModelSpec(label_key="label")],
        metrics_specs=[config_pb2.MetricsSpec(metrics=[metric], **arguments)],
        slicing_specs=[config_pb2.SlicingSpec(), config_pb2.SlicingSpec(feature_keys=["group"])],
    )


def accuracy_in_int8(path: str, points: np.ndarray, labels: np.ndarray) -> float:
    """TensorFlow's own interpreter, row by row, with the saturating formula of TFLite's specification."""
    interpreter = tf.lite.Interpreter(path)
    interpreter.allocate_tensors()
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
    scale, zero_point = taken["quantization"]
    correct = 0
    for point, label in zip(points, labels, strict=True):
        stored = np.clip(np.round(point / scale) + zero_point, -128, 127).astype(np.int8)
        interpreter.set_tensor(taken["index"], stored[None])
        interpreter.invoke()
        correct += interpreter.get_tensor(given["index"])[0].argmax() == label
    return correct / len(labels)


@pytest.mark.parametrize(("rows", "seed", "spread"), [("within", 1, 1.0), ("outside", 2, 4.0)])
def test_metrics_are_those_of_the_models_even_outside_the_calibrated_range(made, schema, rows, seed, spread):
    points, labels = made_rows(seed, spread)
    found = tfc.evaluate(
        {"float32": made["float32"], "int8": made["int8"]},
        str(made["folder"] / f"{rows}.tfrecord"),
        "label",
        baseline=made["model"],
        schema=schema,
    )
    direct = tf.saved_model.load(made["model"])
    records = [r.numpy() for r in tf.data.TFRecordDataset(str(made["folder"] / f"{rows}.tfrecord"))]
    answers = direct.signatures["serving_default"](tf.constant(records))["probabilities"].numpy().argmax(axis=1)
    assert found.rows == ROWS
    assert found.baseline.metrics[ACCURACY] == pytest.approx(np.mean(answers == labels), abs=1e-6)
    assert found.metrics["float32"][ACCURACY] == pytest.approx(found.baseline.metrics[ACCURACY], abs=0.004)
    assert found.metrics["int8"][ACCURACY] == pytest.approx(accuracy_in_int8(made["int8"], points, labels), abs=1e-6)
    assert found.metric_drop["int8"][ACCURACY] == pytest.approx(
        found.baseline.metrics[ACCURACY] - found.metrics["int8"][ACCURACY]
    )


def test_a_budget_decides_and_the_files_open_with_tfma(made, schema, tmp_path):
    found = tfc.evaluate(
        {"float32": made["float32"], "int8": made["int8"]},
        str(made["folder"] / "within.tfrecord"),
        baseline=made["model"],
        schema=schema,
        eval_config=eval_config(),
        budget=tfc.Budget(max_metric_drop={ACCURACY: 0.5}, objective="most_accurate", max_bytes=10_000_000),
        output_path=str(tmp_path),
    )
    assert found.chosen is not None
    assert found.baseline.tflite is not None
    assert found.baseline.tflite.bytes == found.candidates["float32"].bytes
    assert all(found.held(name) for name in found.candidates)
    for name in ("baseline", "float32", "int8"):
        result = tfma.load_eval_result(str(tmp_path), model_name=name)
        slices = {key for key, _ in result.slicing_metrics}
        assert slices == {(), (("group", "even"),), (("group", "odd"),)}
    stored = tfc.Evaluation.model_validate_json((tmp_path / "evaluation.json").read_text())
    assert stored == found


def test_a_threshold_of_the_eval_config_refuses_only_the_candidate_that_misses_it(made, schema, tmp_path):
    """TFMA's validation_ok is one bit for all models; the verdicts are per candidate."""
    untrained = save(tmp_path / "untrained", CLASSES)
    config = eval_config()
    config.metrics_specs[0].metrics[0].threshold.value_threshold.lower_bound.value = 0.8
    found = tfc.evaluate(
        {"good": made["model"], "untrained": untrained},
        str(made["folder"] / "within.tfrecord"),
        baseline=made["model"],
        schema=schema,
        eval_config=config,
    )
    assert found.held("good")
    assert not found.held("untrained")
    assert found.chosen == "good"
    assert "threshold on sparse_categorical_accuracy" in found.verdicts["untrained"][0].limit


def test_without_a_baseline_it_measures_and_chooses_nothing(made):
    found = tfc.evaluate({"int8": made["int8"]}, str(made["folder"] / "within.tfrecord"), "label")
    assert found.metrics["int8"][ACCURACY] > 0.8
    assert found.chosen is None
    assert "no baseline" in found.reason


def test_outputs_of_another_shape_are_refused_by_name(made, tmp_path):
    other = save(tmp_path / "other", CLASSES + 2)
    with pytest.raises(
        ModelError, match=r"candidate 'wide' \(probabilities \[5\]\).*baseline's \(probabilities \[3\]\)"
    ):
        tfc.evaluate({"wide": other}, str(made["folder"] / "within.tfrecord"), "label", baseline=made["model"])


def test_an_empty_eval_split_is_named(made, tmp_path):
    write_rows(tmp_path / "empty.tfrecord", np.empty([0, 4]), np.empty([0]))
    with pytest.raises(DataError, match=r"not one tf.Example in .*empty.tfrecord.*Remedy"):
        tfc.evaluate({"a": made["model"]}, str(tmp_path / "empty.tfrecord"), "label", baseline=made["model"])
    with pytest.raises(DataError, match=r"not one tf\.Example"):
        tfc.evaluate({"a": made["model"]}, str(tmp_path / "nothing-*"), "label", baseline=made["model"])


def test_a_label_that_the_schema_or_the_examples_lack_is_named(made, schema):
    rows = str(made["folder"] / "within.tfrecord")
    with pytest.raises(DataError, match=r"'species' is not in the schema, whose features are: x, label, group"):
        tfc.evaluate({"a": made["model"]}, rows, "species", baseline=made["model"], schema=schema)
    with pytest.raises(DataError, match=r"'species' is not in the examples of .*; the first has: group, label, x"):
        tfc.evaluate({"a": made["model"]}, rows, "species", baseline=made["model"])


def test_a_limit_on_a_metric_that_is_not_computed_is_refused_before_anything_runs(made):
    budget = tfc.Budget(max_metric_drop={"auc": 0.01})
    with pytest.raises(ConfigError, match=r"limits the drop of 'auc'.*computes: SparseCategoricalAccuracy"):
        tfc.evaluate({"a": made["model"]}, "nowhere", "label", baseline=made["model"], budget=budget)


def test_a_path_without_a_model_is_named(made, tmp_path):
    with pytest.raises(ModelError, match=f"{tmp_path} is neither"):
        tfc.evaluate({"a": str(tmp_path)}, "nowhere", "label", baseline=made["model"])


def test_a_feature_that_a_tflite_model_takes_and_the_examples_lack_is_named(made, tmp_path):
    path = tmp_path / "other.tfrecord"
    features = {"label": tf.train.Feature(int64_list=tf.train.Int64List(value=[1]))}
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
    with pytest.raises(ModelError, match=r"takes 'x', which is no feature of the examples; they have: label"):
        tfc.evaluate({"int8": made["int8"]}, str(path), "label")
