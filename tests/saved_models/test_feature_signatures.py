"""The serving signature without its tf.Example parsing: the same answers, from features."""

import numpy as np
import pytest
import tensorflow as tf
from tfx_compression.errors import ModelError
from tfx_compression.saved_models import feature_signatures

from tests.support import helpers

ROWS = 5
FixedLen = tf.io.FixedLenFeature


def save_on_examples(path, spec, function) -> str:
    """A SavedModel whose signature parses `spec` out of serialized tf.Examples and hands it to `function`."""

    def serve(examples):
        return function(tf.io.parse_example(examples, spec))

    return helpers.save_function(serve, [tf.TensorSpec([None], tf.string, name="examples")], path)


def answers_of_features(path: str, features) -> dict[str, np.ndarray]:
    """What the signature that takes features answers, called with them in its own order."""
    signature = feature_signatures.feature_signature(path)
    feeds = [tf.constant(features[name], spec.dtype) for name, spec in signature.features.items()]
    return {name: value.numpy() for name, value in signature.function(*feeds).items()}


def assert_same_answers(path: str, features) -> None:
    expected = helpers.answers(path, examples=helpers.serialized(features))
    found = answers_of_features(path, features)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


def test_a_keras_models_examples_signature_takes_its_raw_feature_and_preprocesses_it(tmp_path):
    model = helpers.small_dense()
    path = helpers.save_with_examples_signature(model, tmp_path / "model", "x", (4,))
    signature = feature_signatures.feature_signature(path)
    assert signature.parses_examples
    assert signature.outputs == ("probabilities",)
    assert signature.features == {"x": tf.TensorSpec([None, 4], tf.float32, name="x")}
    x, _ = helpers.points(ROWS)
    assert_same_answers(path, {"x": x})
    np.testing.assert_allclose(
        answers_of_features(path, {"x": x})["probabilities"], model(x / helpers.LARGEST), rtol=1e-5, atol=1e-6
    )


def test_features_of_several_types_and_outputs_of_several_names_keep_them(tmp_path):
    spec = {
        "wide": FixedLen([2, 3], tf.float32),
        "count": FixedLen([], tf.int64),
        "word": FixedLen([1], tf.string),
    }

    def function(parsed):
        total = tf.reduce_sum(parsed["wide"], [1, 2])
        return {
            "z_total": total + tf.cast(parsed["count"], tf.float32),
            "a_length": tf.strings.length(parsed["word"]),
            "m_count": parsed["count"],
        }

    path = save_on_examples(tmp_path / "model", spec, function)
    signature = feature_signatures.feature_signature(path)
    assert {name: (found.shape.as_list(), found.dtype) for name, found in signature.features.items()} == {
        "wide": ([None, 2, 3], tf.float32),
        "count": ([None], tf.int64),
        "word": ([None, 1], tf.string),
    }
    assert set(signature.outputs) == {"z_total", "a_length", "m_count"}
    generator = np.random.default_rng(0)
    features = {
        "wide": generator.normal(size=(ROWS, 2, 3)).astype(np.float32),
        "count": np.arange(ROWS),
        "word": np.array([["a" * length] for length in range(ROWS)]),
    }
    assert_same_answers(path, features)


def test_features_that_are_parsed_and_not_used_are_left_out(tmp_path):
    spec = {
        "used": FixedLen([2], tf.float32),
        "unused": FixedLen([], tf.int64),
        "of_any_length": tf.io.VarLenFeature(tf.string),
    }
    path = save_on_examples(tmp_path / "model", spec, lambda parsed: {"y": 2 * parsed["used"]})
    assert list(feature_signatures.feature_signature(path).features) == ["used"]
    assert_same_answers(
        path, {"used": np.ones([ROWS, 2], np.float32), "unused": np.arange(ROWS), "of_any_length": np.array(["a"] * 5)}
    )


def test_a_ragged_feature_that_is_not_used_does_no_harm(tmp_path):
    spec = {"used": FixedLen([2], tf.float32), "of_any_length": tf.io.RaggedFeature(tf.float32)}
    path = save_on_examples(tmp_path / "model", spec, lambda parsed: {"y": 2 * parsed["used"]})
    assert list(feature_signatures.feature_signature(path).features) == ["used"]


def test_a_feature_that_is_parsed_twice_is_taken_once(tmp_path):
    """As where one part of the signature reads raw features and another hands the tf.Examples on to parse them."""

    def serve(examples):
        raw = tf.io.parse_example(examples, {"x": FixedLen([2], tf.float32)})["x"]
        again = tf.io.parse_example(examples, {"x": FixedLen([2], tf.float32)})["x"]
        return {"y": raw + 10 * again}

    path = helpers.save_function(serve, [tf.TensorSpec([None], tf.string, name="examples")], tmp_path / "model")
    assert_same_answers(path, {"x": np.arange(2 * ROWS, dtype=np.float32).reshape(ROWS, 2)})


@pytest.mark.parametrize(
    "feature",
    [
        tf.io.VarLenFeature(tf.float32),
        tf.io.RaggedFeature(tf.float32),
        tf.io.FixedLenSequenceFeature([], tf.float32, allow_missing=True),
    ],
    ids=["sparse", "ragged", "sequence"],
)
def test_a_feature_of_no_fixed_shape_is_refused_by_its_name_with_the_remedy(tmp_path, feature):
    def total(parsed):
        ratings = parsed["ratings"]
        if isinstance(ratings, tf.SparseTensor):
            return {"y": tf.sparse.reduce_sum(ratings, 1)}
        return {"y": tf.reduce_sum(ratings, 1)}

    path = save_on_examples(tmp_path / "model", {"ratings": feature, "x": FixedLen([2], tf.float32)}, total)
    with pytest.raises(ModelError, match=r"no fixed shape: ratings\..*Remedy"):
        feature_signatures.feature_signature(path)


def test_raw_tensor_signatures_keep_their_arguments_by_name(tmp_path):
    specs = [tf.TensorSpec([None, 2], tf.float32, name="width"), tf.TensorSpec([None], tf.int64, name="height")]
    weight = tf.Variable([[1.0], [2.0]])

    def area(width, height):
        return {"area": (width @ weight)[:, 0] * tf.cast(height, tf.float32), "height": height}

    path = helpers.save_function(area, specs, tmp_path / "model", weight=weight)
    signature = feature_signatures.feature_signature(path)
    assert not signature.parses_examples
    assert {name: (spec.shape.as_list(), spec.dtype) for name, spec in signature.features.items()} == {
        "width": ([None, 2], tf.float32),
        "height": ([None], tf.int64),
    }
    features = {"width": np.arange(6, dtype=np.float32).reshape(3, 2), "height": np.array([3, 5, 7])}
    expected = helpers.answers(path, **features)
    found = answers_of_features(path, features)
    np.testing.assert_array_equal(found["area"], np.array([2 * 3, 8 * 5, 14 * 7]))
    np.testing.assert_array_equal(found["area"], expected["area"])
    np.testing.assert_array_equal(found["height"], expected["height"])


@pytest.mark.parametrize("feature", ["pixels", "trip-miles", "sensor/1"])
def test_a_signature_that_is_saved_takes_features_by_their_names(tmp_path, feature):
    spec = {feature: FixedLen([2], tf.float32), "other": FixedLen([2], tf.float32)}
    path = save_on_examples(tmp_path / "model", spec, lambda parsed: {"y": 10 * parsed[feature] + parsed["other"]})
    feature_signatures.feature_signature(path).save(str(tmp_path / "saved"))
    saved = tf.saved_model.load(str(tmp_path / "saved")).signatures["serving_default"]
    assert {spec.name for spec in saved.structured_input_signature[1].values()} == {feature, "other"}


@pytest.mark.parametrize("feature", ["trip miles", "self"])
def test_a_feature_whose_name_no_signature_can_have_is_refused_with_the_remedy(tmp_path, feature):
    spec = {feature: FixedLen([2], tf.float32)}
    path = save_on_examples(tmp_path / "model", spec, lambda parsed: {"y": 10 * parsed[feature]})
    with pytest.raises(ModelError, match=rf"\['{feature}'\].*Remedy: rename"):
        feature_signatures.feature_signature(path)


def test_without_serving_default_the_error_says_which_signatures_there_are(tmp_path):
    specs = [tf.TensorSpec([None], tf.float32, name="x")]
    path = helpers.save_function(lambda x: {"y": x}, specs, tmp_path / "model", signature="predict")
    with pytest.raises(ModelError, match=r"no signature 'serving_default', only: predict\..*Remedy"):
        feature_signatures.feature_signature(path)
