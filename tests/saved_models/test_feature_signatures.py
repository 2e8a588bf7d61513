"""Signatures on tf.Examples as functions of features: the same answers, from features."""

import numpy as np
import pytest
import tensorflow as tf
from tfx_compression.errors import DataError, ModelError
from tfx_compression.saved_models.feature_signatures import feature_signature
from tfx_compression.saved_models.signature_graph import UnusableSignatureError

from tests.support import helpers
from tests.support.errors import raises
from tests.support.signatures import save_on_examples, transform_layer

ROWS = 5
FixedLen = tf.io.FixedLenFeature
NUMBER = tf.TensorSpec([None, 1], tf.float32)
EXAMPLES = tf.TensorSpec([None], tf.string, name="examples")


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def call(signature, columns) -> dict[str, np.ndarray]:
    """The outputs of a feature signature, called with its features in its own order."""
    feeds = [tf.constant(columns[name], spec.dtype) for name, spec in signature.features.items()]
    return {name: value.numpy() for name, value in signature.function(*feeds).items()}


def assert_same_answers(path: str, features, **options) -> None:
    """The original on rows of features, and its feature signature on the same features, give the same answers."""
    expected = helpers.answers(path, examples=helpers.serialized(features))
    signature = feature_signature(path, **options)
    answers = call(signature, signature.read_examples(helpers.serialized(features)))
    assert answers.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(answers[name], values)


def test_a_keras_models_signature_takes_its_raw_feature_and_preprocesses_it(tmp_path):
    model = helpers.small_dense()
    path = helpers.save_with_examples_signature(model, tmp_path / "model", "x", (4,))
    signature = feature_signature(path)
    assert signature.parses_examples
    assert signature.outputs == ("probabilities",)
    assert signature.features == signature.raw_features == {"x": tf.TensorSpec([None, 4], tf.float32, name="x")}
    assert signature.example_features == ("x",)
    x, _ = helpers.points(ROWS)
    answers = call(signature, signature.preprocess({"x": x}))
    np.testing.assert_allclose(answers["probabilities"], model(x / helpers.LARGEST), rtol=1e-5, atol=1e-6)


def test_features_and_outputs_keep_their_names_types_and_shapes(tmp_path):
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
    signature = feature_signature(path)
    assert {name: (feature.shape.as_list(), feature.dtype) for name, feature in signature.features.items()} == {
        "wide": ([None, 2, 3], tf.float32),
        "count": ([None], tf.int64),
        "word": ([None, 1], tf.string),
    }
    assert set(signature.outputs) == {"z_total", "a_length", "m_count"}
    assert "StringLength (of word)" in signature.needs_select_tf_ops
    words = np.array([["a" * length] for length in range(ROWS)])
    assert_same_answers(path, {"wide": normal(ROWS, 2, 3), "count": np.arange(ROWS), "word": words})


def test_unused_features_are_left_out(tmp_path):
    spec = {
        "used": FixedLen([2], tf.float32),
        "unused": FixedLen([], tf.int64),
        "sparse": tf.io.VarLenFeature(tf.string),
        "ragged": tf.io.RaggedFeature(tf.float32),
    }
    path = save_on_examples(tmp_path / "model", spec, lambda parsed: {"y": 2 * parsed["used"]})
    assert list(feature_signature(path).features) == ["used"]
    assert_same_answers(path, {"used": normal(ROWS, 2), "unused": np.arange(ROWS), "sparse": np.array(["a"] * ROWS)})


def test_a_feature_that_is_parsed_twice_is_taken_once(tmp_path):
    def serve(examples):
        raw = tf.io.parse_example(examples, {"x": FixedLen([2], tf.float32)})["x"]
        again = tf.io.parse_example(examples, {"x": FixedLen([2], tf.float32)})["x"]
        return {"y": raw + 10 * again}

    path = helpers.save_function(serve, [EXAMPLES], tmp_path / "model")
    assert_same_answers(path, {"x": normal(ROWS, 2)})


def test_rows_that_lack_a_feature_get_the_signatures_default(tmp_path):
    spec = {name: FixedLen([1], tf.float32, default_value=7.0) for name in ("a", "b")}
    path = save_on_examples(tmp_path / "model", spec, lambda parsed: {"y": parsed["a"] - parsed["b"]})
    signature = feature_signature(path)
    columns = signature.read_examples(helpers.serialized({"a": normal(ROWS, 1)}))
    np.testing.assert_array_equal(columns["b"], np.full([ROWS, 1], 7.0))


def test_several_string_arguments_read_the_same_rows(tmp_path):
    def serve(first, second):
        x = tf.io.parse_example(first, {"x": FixedLen([1], tf.float32)})["x"]
        return {"y": x + tf.io.parse_example(second, {"z": FixedLen([1], tf.float32, [9.0])})["z"]}

    specs = [tf.TensorSpec([None], tf.string, name) for name in ("first", "second")]
    signature = feature_signature(helpers.save_function(serve, specs, tmp_path / "model"))
    columns = signature.read_examples(helpers.serialized({"x": normal(ROWS, 1)}))
    np.testing.assert_array_equal(columns["x"], normal(ROWS, 1))
    np.testing.assert_array_equal(columns["z"], np.full([ROWS, 1], 9.0))


def test_a_row_that_the_signature_can_not_read_is_rejected(tmp_path):
    spec = {"x": FixedLen([1], tf.float32)}
    signature = feature_signature(save_on_examples(tmp_path / "model", spec, lambda parsed: {"y": parsed["x"] + 1}))
    with raises(DataError, code="unreadable-row", match="serving_default"):
        signature.read_examples(helpers.serialized({"another": normal(1, 1)}))


@pytest.mark.parametrize(
    "feature",
    [
        tf.io.VarLenFeature(tf.float32),
        tf.io.RaggedFeature(tf.float32),
        tf.io.FixedLenSequenceFeature([], tf.float32, allow_missing=True),
    ],
    ids=["sparse", "ragged", "sequence"],
)
def test_a_feature_of_no_fixed_shape_is_rejected_by_its_name(tmp_path, feature):
    def total(parsed):
        ratings = parsed["ratings"]
        if isinstance(ratings, tf.SparseTensor):
            return {"y": tf.sparse.reduce_sum(ratings, 1)}
        return {"y": tf.reduce_sum(ratings, 1)}

    path = save_on_examples(tmp_path / "model", {"ratings": feature, "x": FixedLen([2], tf.float32)}, total)
    with raises(UnusableSignatureError, code="free-shape", match=r"ratings\."):
        feature_signature(path)


def parse_single(examples):
    spec = {"x": FixedLen([2], tf.float32)}
    return {"y": tf.map_fn(lambda row: tf.io.parse_single_example(row, spec)["x"], examples, tf.float32)}


def parse_tensors(examples):
    return {"y": tf.io.parse_tensor(examples[0], tf.float32)}


@pytest.mark.parametrize("serve", [parse_single, parse_tensors], ids=["in a loop", "tensors"])
def test_other_parsing_is_rejected(tmp_path, serve):
    path = helpers.save_function(serve, [EXAMPLES], tmp_path / "model")
    with raises(UnusableSignatureError, code="unsupported-parsing", match="Parse"):
        feature_signature(path)


def test_tensors_beside_examples_are_rejected(tmp_path):
    def serve(examples, scale):
        return {"y": tf.io.parse_example(examples, {"x": FixedLen([1], tf.float32)})["x"] * scale}

    path = helpers.save_function(serve, [EXAMPLES, tf.TensorSpec([], tf.float32, "scale")], tmp_path / "model")
    with raises(UnusableSignatureError, code="mixed-arguments", match="takes scale"):
        feature_signature(path)


def test_raw_tensor_signatures_keep_their_arguments_by_name(tmp_path):
    specs = [tf.TensorSpec([None, 2], tf.float32, name="width"), tf.TensorSpec([None], tf.int64, name="height")]
    weight = tf.Variable([[1.0], [2.0]])

    def area(width, height):
        return {"area": (width @ weight)[:, 0] * tf.cast(height, tf.float32), "height": height}

    path = helpers.save_function(area, specs, tmp_path / "model", weight=weight)
    signature = feature_signature(path)
    assert not signature.parses_examples
    assert {name: (spec.shape.as_list(), spec.dtype) for name, spec in signature.features.items()} == {
        "width": ([None, 2], tf.float32),
        "height": ([None], tf.int64),
    }
    features = {"width": np.arange(6, dtype=np.float32).reshape(3, 2), "height": np.array([3, 5, 7])}
    answers = call(signature, signature.read_examples(helpers.serialized(features)))
    np.testing.assert_array_equal(answers["area"], [2 * 3, 8 * 5, 14 * 7])
    np.testing.assert_array_equal(answers["height"], [3, 5, 7])


@pytest.mark.parametrize("feature", ["pixels", "trip-miles", "sensor/1"])
def test_a_saved_signature_takes_features_by_their_names(tmp_path, feature):
    spec = {feature: FixedLen([2], tf.float32), "other": FixedLen([2], tf.float32)}
    path = save_on_examples(tmp_path / "model", spec, lambda parsed: {"y": 10 * parsed[feature] + parsed["other"]})
    feature_signature(path).save(str(tmp_path / "saved"))
    saved = tf.saved_model.load(str(tmp_path / "saved")).signatures["serving_default"]
    assert {spec.name for spec in saved.structured_input_signature[1].values()} == {feature, "other"}


@pytest.mark.parametrize("feature", ["trip miles", "self"])
def test_a_feature_whose_name_no_signature_can_have_is_rejected(tmp_path, feature):
    spec = {feature: FixedLen([2], tf.float32)}
    path = save_on_examples(tmp_path / "model", spec, lambda parsed: {"y": 10 * parsed[feature]})
    with raises(ModelError, code="feature-name", match=rf"\['{feature}'\]"):
        feature_signature(path)


def test_a_missing_signature_is_rejected_with_the_names_that_there_are(tmp_path):
    specs = [tf.TensorSpec([None], tf.float32, name="x")]
    path = helpers.save_function(lambda x: {"y": x}, specs, tmp_path / "model", signature="predict")
    with raises(ModelError, code="no-signature", match="'serving_default', only: predict"):
        feature_signature(path)


def save_with_lookup(path, *others: str) -> str:
    """A `serving_default` that looks up a table, and signatures on tensors that return the same."""
    module = tf.Module()
    module.table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(["a"], [1.0]), -1.0)

    @tf.function(input_signature=[EXAMPLES])
    def serve(examples):
        return {"y": module.table.lookup(tf.io.parse_example(examples, {"word": FixedLen([1], tf.string)})["word"])}

    numbers = {
        "plain": tf.function(lambda x: {"y": x * 2}, input_signature=[NUMBER]),
        "doubled": tf.function(lambda x: {"y": x * 4}, input_signature=[NUMBER]),
        "whole": tf.function(lambda x: {"y": tf.cast(x, tf.int64)}, input_signature=[NUMBER]),
        "wide": tf.function(lambda x: {"y": tf.tile(x, [1, 2])}, input_signature=[NUMBER]),
        "examples": tf.function(
            lambda rows: {"y": tf.io.parse_example(rows, {"x": FixedLen([1], tf.float32)})["x"]},
            input_signature=[EXAMPLES],
        ),
        "lookup": tf.function(lambda x: {"y": module.table.lookup(tf.strings.as_string(x))}, input_signature=[NUMBER]),
    }
    module.signatures_to_track = {"serving_default": serve, **{name: numbers[name] for name in others}}
    tf.saved_model.save(module, str(path), signatures=module.signatures_to_track)
    return str(path)


@pytest.mark.slow
def test_a_signature_that_tflite_can_not_have_is_replaced(tmp_path):
    signature = feature_signature(save_with_lookup(tmp_path / "model", "plain", "whole", "wide", "lookup", "examples"))
    (note,) = signature.notes
    assert "'plain' replaces 'serving_default'" in note and "LookupTableFindV2" in note
    np.testing.assert_array_equal(call(signature, {"x": np.ones([2, 1])})["y"], [[2], [2]])


def test_a_signature_that_nothing_can_replace_is_rejected(tmp_path):
    with raises(UnusableSignatureError, code="lookup-table"):
        feature_signature(save_with_lookup(tmp_path / "model", "whole"))


def test_several_possible_replacements_are_rejected(tmp_path):
    with raises(ModelError, code="ambiguous-signature", match="doubled, plain"):
        feature_signature(save_with_lookup(tmp_path / "model", "plain", "doubled"))


NUMBERS = {name: FixedLen([1], tf.float32) for name in ("a", "b")}


def halve(features):
    return {name: value / 2 for name, value in features.items()}


def behind_transform(path, function, transform=halve, spec=None) -> str:
    """A signature with a Transform layer, which it hands on to a function of (layer, parsed)."""
    layer = transform_layer(transform, a=NUMBER, b=NUMBER)
    return save_on_examples(path, spec or NUMBERS, lambda parsed: function(layer, parsed), tft_layer=layer)


def test_transform_stays_outside(tmp_path):
    path = behind_transform(tmp_path / "model", lambda layer, parsed: {"y": layer(parsed)["a"] + 3 * parsed["b"]})
    signature = feature_signature(path, transform="outside", batch_size=ROWS)
    raw = {"a": normal(ROWS, 1), "b": normal(ROWS, 1, seed=1)}
    columns = signature.preprocess(raw)
    np.testing.assert_array_equal(columns["a"], raw["a"] / 2)
    np.testing.assert_array_equal(columns["b"], raw["b"])  # goes around Transform
    assert signature.features["a"].shape == [ROWS, 1]
    assert signature.example_features == ("a", "b")
    assert_same_answers(path, raw, transform="outside")


def test_transform_of_a_signature_on_tensors_stays_outside(tmp_path):
    layer = transform_layer(halve, a=NUMBER, b=NUMBER)
    specs = [tf.TensorSpec([None, 1], tf.float32, name) for name in ("a", "b")]
    path = helpers.save_function(
        lambda a, b: {"y": layer({"a": a, "b": b})["a"] + 1.0}, specs, tmp_path / "model", tft_layer=layer
    )
    signature = feature_signature(path, transform="outside")
    assert list(signature.raw_features) == ["a"]
    a = normal(ROWS, 1)
    columns = signature.read_examples(helpers.serialized({"a": a}))
    np.testing.assert_array_equal(columns["a"], a / 2)
    np.testing.assert_array_equal(call(signature, columns)["y"], a / 2 + 1)


def test_sparse_features_stay_outside_with_transform(tmp_path):
    def total(features):
        return {"a": tf.ensure_shape(tf.sparse.reduce_sum(features["a"], 1, keepdims=True), [None, 1])}

    layer = transform_layer(total, a=tf.SparseTensorSpec([None, None], tf.float32))
    spec = {"a": tf.io.VarLenFeature(tf.float32)}
    path = save_on_examples(tmp_path / "model", spec, lambda parsed: {"y": 2 * layer(parsed)["a"]}, tft_layer=layer)
    signature = feature_signature(path, transform="outside")
    assert signature.features == {"a": tf.TensorSpec([None, 1], tf.float32, name="a")}
    assert (signature.raw_features, signature.example_features) == ({}, ("a",))
    with raises(UnusableSignatureError, code="free-shape", match="a"):
        signature.preprocess({})
    assert_same_answers(path, {"a": normal(ROWS, 3)}, transform="outside")


def test_a_feature_as_parsed_and_as_transformed_is_rejected(tmp_path):
    path = behind_transform(tmp_path / "model", lambda layer, parsed: {"y": layer(parsed)["a"] + parsed["a"]})
    with raises(ModelError, code="ambiguous-feature", match="takes a both"):
        feature_signature(path, transform="outside")


def test_a_cut_that_changes_answers_is_rejected(tmp_path):
    """Two random numbers are computed alike, and yet differ."""

    def noisy(features):
        return {"a": features["a"] + tf.random.uniform([1])}

    path = behind_transform(tmp_path / "model", lambda layer, parsed: {"y": layer(parsed)["a"] * 2}, noisy)
    with raises(ModelError, code="not-equivalent", match="'y'"):
        feature_signature(path, transform="outside")


def test_a_signature_that_answers_nothing_can_not_be_cut_behind_transform(tmp_path):
    def function(layer, parsed):
        checked = tf.debugging.assert_greater(parsed["a"], 1e9)
        with tf.control_dependencies([checked]):
            return {"y": layer(parsed)["a"] * 2}

    with raises(ModelError, code="no-answer", match="serving_default"):
        feature_signature(behind_transform(tmp_path / "model", function), transform="outside")


def test_nothing_replaces_a_signature_whose_transform_stays_outside(tmp_path):
    def serve(examples):
        return {"y": tf.io.parse_tensor(examples[0], tf.float32)}

    path = helpers.save_function(serve, [EXAMPLES], tmp_path / "model")
    with raises(UnusableSignatureError, code="unsupported-parsing"):
        feature_signature(path, transform="outside")
