"""Any model runs on a batch of tf.Examples."""

import os

import numpy as np
import pytest
import tensorflow as tf
from tfx_compression.compressed_evaluator import predictors
from tfx_compression.errors import ModelError

from tests.support import helpers
from tests.support.errors import raises
from tests.support.predictors import saved_model_of_examples, saved_model_of_tensors

X = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
EXAMPLES = np.array(helpers.serialized({"x": X}), object)


def test_a_saved_model_of_examples_is_fed_the_examples(tmp_path):
    model = saved_model_of_examples(tmp_path, {"x": tf.io.FixedLenFeature([3], tf.float32)})
    assert (model.kind, model.outputs) == ("saved_model", {"y": (3,)})
    np.testing.assert_array_equal(model.predict(EXAMPLES, {})["y"], 2 * X)
    np.testing.assert_array_equal(model.prepare(EXAMPLES, {})()["y"], 2 * X)
    assert model.seconds > 0


def test_a_feature_with_a_default_value_may_be_missing(tmp_path):
    model = saved_model_of_examples(
        tmp_path,
        {
            "x": tf.io.FixedLenFeature([3], tf.float32),
            "offset": tf.io.FixedLenFeature([3], tf.float32, default_value=[1.0, 2.0, 3.0]),
        },
    )
    np.testing.assert_array_equal(model.predict(EXAMPLES, {"x": X})["y"], 2 * (X + np.float32([1, 2, 3])))


def test_a_required_feature_that_an_example_lacks_is_named(tmp_path):
    model = saved_model_of_examples(tmp_path, {"color": tf.io.FixedLenFeature([3], tf.float32)})
    with raises(ModelError, code="failed-batch", match="color"):
        model.predict(EXAMPLES, {"x": X})


def test_a_saved_model_of_tensors_is_fed_the_features_by_name(tmp_path):
    model = saved_model_of_tensors(tmp_path, y=3)
    for same in (X, X.astype(np.float64), X.reshape(7, 1, 3)):
        np.testing.assert_array_equal(model.predict(EXAMPLES, {"x": same, "unused": X})["y"], 2 * X)


def test_free_sizes_follow_the_features(tmp_path):
    spec = tf.TensorSpec([None, None], tf.int64, name="tokens")
    path = helpers.save_function(lambda tokens: {"total": tf.reduce_sum(tokens, 1)}, [spec], tmp_path)
    model = predictors.load(path)
    for shape in ((3, 5), (2, 1)):
        total = model.predict(EXAMPLES, {"tokens": np.ones(shape, np.int64)})["total"]
        assert total.tolist() == [shape[1]] * shape[0]


def test_a_saved_model_of_strings_is_fed_the_feature_and_not_the_examples(tmp_path):
    spec = tf.TensorSpec([None], tf.string, name="text")
    model = predictors.load(helpers.save_function(lambda text: {"length": tf.strings.length(text)}, [spec], tmp_path))
    texts = np.array([b"a", b"bcd"], object)
    assert model.predict(EXAMPLES[:2], {"text": texts})["length"].tolist() == [1, 3]
    with raises(ModelError, code="missing-feature", match="'text'.*: x"):
        model.predict(EXAMPLES, {"x": X})


@pytest.mark.parametrize(
    ("features", "code", "named"),
    [
        ({"z": X}, "missing-feature", "'x'.*: z"),
        ({"x": np.array([X[0], None], object)}, "incomplete-feature", "'x'"),
        ({"x": None}, "incomplete-feature", "'x'"),
        ({"x": np.zeros([2, 4])}, "feature-shape", r"'x'.*\(2, 4\).*\(-1, 3\)"),
        ({"x": np.zeros([4, 6])}, "feature-shape", r"'x'.*\(4, 6\)"),
        ({"x": np.array([[b"a", b"b", b"c"]], object)}, "feature-type", "'x'"),
    ],
    ids=["missing", "missing in a row", "missing in every row", "another shape", "twice the size", "strings"],
)
def test_a_feature_that_does_not_fit_is_named(tmp_path, features, code, named):
    with raises(ModelError, code=code, match=named):
        saved_model_of_tensors(tmp_path, y=3).predict(EXAMPLES, features)


def test_a_saved_model_without_serving_default_is_refused_with_its_signatures(tmp_path):
    spec = tf.TensorSpec([None, 3], tf.float32, name="x")
    path = helpers.save_function(lambda x: {"y": x}, [spec], tmp_path, signature="score")
    with raises(ModelError, code="no-serving-default", match="score"):
        predictors.load(path)


def test_a_model_that_can_not_be_loaded_is_named(tmp_path):
    with raises(ModelError, code="unreadable-model", match=str(tmp_path)):
        predictors.load(str(tmp_path))
    (tmp_path / "model.tflite").write_bytes(b"no model")
    with raises(ModelError, match=r"model\.tflite"):
        predictors.load(str(tmp_path / "model.tflite"))


@pytest.mark.parametrize(("cores", "workers", "threads"), [(8, 1, 8), (8, 3, 2), (2, 8, 1), (8, 0, 8), (None, 1, 1)])
def test_the_threads_of_all_workers_together_use_each_core_once(monkeypatch, cores, workers, threads):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert predictors.threads(workers) == threads
