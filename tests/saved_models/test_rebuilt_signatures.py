"""Signatures rebuilt around a narrower network take what the original takes, and answer under its names."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tfx_compression import model_handle
from tfx_compression.errors import ModelError
from tfx_compression.saved_models import rebuilt_signatures

from tests.support import helpers, kinds
from tests.support.errors import raises
from tests.support.signatures import transform_layer

pytestmark = pytest.mark.slow  # Transform, and a SavedModel in almost every test

EXAMPLES = tf.TensorSpec([None], tf.string, name="examples")
FixedLen = tf.io.FixedLenFeature


def assert_serves(path: str, network) -> None:
    """Asserts that the signature answers on tf.Examples like the network on the same numbers, divided by 4."""
    rows = kinds.examples()
    a, b = (np.array([_value(row, name) for row in rows], np.float32)[:, None] / 4 for name in kinds.FEATURES)
    answer = helpers.answers(path, examples=rows)
    assert list(answer) == ["outputs"]
    np.testing.assert_allclose(answer["outputs"], network([a, b]), atol=1e-5)


def _value(row: bytes, name: str) -> float:
    values = tf.train.Example.FromString(row).features.feature[name].float_list.value
    return values[0] if values else 0.5  # the default of `b`


@pytest.fixture(scope="module")
def transform(tmp_path_factory):
    return kinds.transform_graph(tmp_path_factory.mktemp("transform") / "graph")


@pytest.fixture(scope="module", params=["keras2", "keras3"])
def trained_path(request, tmp_path_factory, transform):
    """A model behind Transform: of Keras 2 with metadata, or of Keras 3 with its `.keras` file."""
    path = tmp_path_factory.mktemp("trained") / "model"
    library = tf_keras if request.param == "keras2" else keras
    kinds.penguin(path, kinds.two_features(library), transform)
    if library is keras:
        kinds.two_features(keras).save(path / "net.keras")
    return str(path)


def test_a_narrower_network_answers_the_examples_signature(tmp_path, trained_path, transform):
    model = model_handle.load(trained_path)
    narrow = kinds.two_features(tf_keras if model.kind == "keras2" else keras, units=5, seed=3)
    model.save(str(tmp_path / "narrow"), network=narrow, transform_graph_uri=transform)
    assert_serves(str(tmp_path / "narrow"), narrow)
    before, after = (
        helpers.answers(path, "transform_features", examples=kinds.examples())
        for path in (trained_path, str(tmp_path / "narrow"))
    )
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)
    again = model_handle.load(str(tmp_path / "narrow"))
    assert again.kind == model.kind
    assert again.kernels["hidden"].shape == (2, 5)
    again.save(str(tmp_path / "again"))  # and once more, as SparsityFineTuner does
    assert_serves(str(tmp_path / "again"), narrow)


def test_weights_pruned_in_place_answer_the_examples_signature(tmp_path, trained_path):
    model = model_handle.load(trained_path)
    for kernel in model.kernels.values():
        kernel.variable.assign(kernel.values * (np.abs(kernel.values) > 0.3))
    model.save(str(tmp_path / "pruned"))
    assert_serves(str(tmp_path / "pruned"), model.network)


def test_the_transform_layer_of_a_keras_2_model_needs_no_transform_graph(tmp_path, transform):
    path = kinds.penguin(tmp_path / "model", kinds.two_features(tf_keras), transform)
    narrow = kinds.two_features(tf_keras, units=5, seed=3)
    model_handle.load(path).save(str(tmp_path / "narrow"), network=narrow)
    assert_serves(str(tmp_path / "narrow"), narrow)


def dense(columns: int = 4, units: int = 8) -> tf_keras.Model:
    """A number of columns, `x`, to two numbers, `y`."""
    x = tf_keras.Input((columns,), name="x")
    hidden = tf_keras.layers.Dense(units, activation="relu", name="hidden")(x)
    return tf_keras.Model(x, tf_keras.layers.Dense(2, name="y")(hidden))


def words(units: int = 8) -> tf_keras.Model:
    """A word of a vocabulary, `x`, to two numbers, `y`."""
    x = tf_keras.Input((1,), name="x", dtype=tf.string)
    number = tf_keras.layers.StringLookup(vocabulary=["red", "green"], output_mode="one_hot", name="lookup")(x)
    hidden = tf_keras.layers.Dense(units, name="hidden")(number)
    return tf_keras.Model(x, tf_keras.layers.Dense(2, name="y")(hidden))


def rebuild(tmp_path, model, serve, *specs: tf.TensorSpec, narrow=None) -> tuple[str, tf_keras.Model]:
    """Saves a model with a signature, and rebuilds the signature around a narrower network.

    Returns:
      The path of the result, and the narrower network.
    """
    narrow = dense(units=3) if narrow is None else narrow
    function = tf.function(serve, input_signature=list(specs))
    model.save(tmp_path / "model", save_format="tf", signatures={"serving_default": function})
    model_handle.load(str(tmp_path / "model")).save(str(tmp_path / "narrow"), network=narrow)
    return str(tmp_path / "narrow"), narrow


def test_a_layer_that_takes_the_only_feature_is_found(tmp_path):
    path = helpers.save_with_examples_signature(helpers.small_dense(), tmp_path / "model", "x", (4,))
    narrow = dense(units=3)
    model_handle.load(path).save(str(tmp_path / "narrow"), network=narrow)
    x, _ = helpers.points(5)
    answer = helpers.answers(str(tmp_path / "narrow"), examples=helpers.serialized({"x": x}))
    np.testing.assert_allclose(answer["probabilities"], narrow(x / helpers.LARGEST), atol=1e-5)


def test_a_signature_on_tensors_keeps_its_names(tmp_path):
    model = dense()
    spec = tf.TensorSpec([None, 4], tf.float32, name="numbers")
    path, narrow = rebuild(tmp_path, model, lambda numbers: {"answer": model(numbers)}, spec)
    x, _ = helpers.points(5)
    np.testing.assert_allclose(helpers.answers(path, numbers=x)["answer"], narrow(x), atol=1e-5)


def test_several_outputs_keep_their_names_by_their_values(tmp_path):
    x = tf_keras.Input((4,), name="x")

    def network(units):
        hidden = tf_keras.layers.Dense(units)(x)
        return tf_keras.Model(x, [tf_keras.layers.Dense(2, name=name)(hidden) for name in ("one", "two")])

    model = network(8)

    def serve(x):
        one, two = model(x)
        return {"a": two, "b": one}

    path, narrow = rebuild(tmp_path, model, serve, tf.TensorSpec([None, 4], tf.float32, "x"), narrow=network(3))
    values, _ = helpers.points(5)
    answer = helpers.answers(path, x=values)
    np.testing.assert_allclose(answer["a"], narrow(values)[1], atol=1e-5)
    np.testing.assert_allclose(answer["b"], narrow(values)[0], atol=1e-5)


def test_sparse_features_of_one_value_are_parsed_alike(tmp_path):
    """As those of a schema without shapes: a row may have one value or none, and several are an error."""

    def fill(features):
        x = features["x"]
        column = tf.SparseTensor(x.indices, x.values, [x.dense_shape[0], 1])
        return {"x": tf.ensure_shape(tf.sparse.to_dense(column, 2.0), [None, 1])}

    model = dense(1)
    model.tft_layer = transform_layer(fill, x=tf.SparseTensorSpec([None, None], tf.float32))
    spec = {"x": tf.io.VarLenFeature(tf.float32)}

    def serve(examples):
        return {"y": model(model.tft_layer(tf.io.parse_example(examples, spec))["x"])}

    path, narrow = rebuild(tmp_path, model, serve, EXAMPLES, narrow=dense(1, units=3))
    rows = [*helpers.serialized({"x": np.ones([2, 1], np.float32)}), tf.train.Example().SerializeToString()]
    np.testing.assert_allclose(
        helpers.answers(path, examples=rows)["y"], narrow(np.array([[1.0], [1], [2]])), atol=1e-5
    )


def test_an_examples_signature_of_a_fixed_number_of_rows_is_rebuilt(tmp_path):
    model = dense()
    spec = {"x": FixedLen([4], tf.float32)}
    path, narrow = rebuild(
        tmp_path,
        model,
        lambda examples: {"y": model(tf.io.parse_example(examples, spec)["x"])},
        tf.TensorSpec([5], tf.string, name="examples"),
    )
    x, _ = helpers.points(5)
    np.testing.assert_allclose(helpers.answers(path, examples=helpers.serialized({"x": x}))["y"], narrow(x), atol=1e-5)


def test_draws_that_the_original_does_not_answer_are_left_out(tmp_path):
    def network(units):
        place, x = tf_keras.Input((), dtype=tf.int64, name="place"), tf_keras.Input((2,), name="x")
        joined = tf_keras.layers.Concatenate()([tf_keras.layers.Embedding(2, 3, name="embedding")(place), x])
        return tf_keras.Model([place, x], dense(5, units)(joined))

    network(8).save(tmp_path / "model", save_format="tf")
    narrow = network(3)
    model_handle.load(str(tmp_path / "model")).save(str(tmp_path / "narrow"), network=narrow)
    feed = {"place": np.array([0, 1]), "x": np.array([[1.0, -2.0], [300.0, 4.0]], np.float32)}
    (answer,) = helpers.answers(str(tmp_path / "narrow"), **feed).values()
    np.testing.assert_allclose(answer, narrow([feed["place"], feed["x"]]), rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "dtype", "front_end"),
    [
        (dense, tf.float32, lambda x: tf.cond(tf.reduce_max(x) > 1, lambda: x / 255.0, lambda: x)),
        (dense, tf.int64, lambda x: tf.cast(tf.maximum(x, 0), tf.float32)),
        (words, tf.string, tf.strings.lower),
    ],
    ids=["scaled images", "missing integers", "lowercase words"],
)
def test_a_front_end_that_changes_some_values_only_is_rejected(tmp_path, make, dtype, front_end):
    model = make()
    spec = tf.TensorSpec([None, *model.inputs[0].shape[1:]], dtype, name="x")
    with raises(ModelError, code="not-equivalent", match="signatures_fn"):
        rebuild(tmp_path, model, lambda x: {"y": model(front_end(x))}, spec, narrow=make(units=3))


def test_a_front_end_that_changes_absent_features_only_is_rejected(tmp_path):
    model = dense()
    spec = {"x": FixedLen([4], tf.float32, default_value=[777.0] * 4)}

    def serve(examples):
        x = tf.io.parse_example(examples, spec)["x"]
        return {"y": model(tf.where(x == 777.0, 0.0, x))}

    with raises(ModelError, code="not-equivalent"):
        rebuild(tmp_path, model, serve, EXAMPLES)


def postprocess(model):
    return lambda x: {"class": tf.argmax(model(x), -1)}


NUMBERS = tf.TensorSpec([None, 4], tf.float32, name="x")


def test_a_signature_that_does_more_is_rejected(tmp_path):
    model = dense()
    with raises(ModelError, code="not-equivalent", match="serving_default.*'class' equals 0 outputs"):
        rebuild(tmp_path, model, postprocess(model), NUMBERS)


def parse_ragged(examples):
    ragged = tf.io.parse_example(examples, {"x": tf.io.RaggedFeature(tf.float32)})["x"]
    return ragged.to_tensor(shape=[None, 4])


def parse_with_computed_default(examples):
    spec = {"x": FixedLen([4], tf.float32, tf.cast(tf.shape(examples)[0], tf.float32) * tf.ones([4]))}
    return tf.io.parse_example(examples, spec)["x"]


@pytest.mark.parametrize("parse", [parse_ragged, parse_with_computed_default])
def test_parsing_that_can_not_be_repeated_is_rejected(tmp_path, parse):
    model = dense()
    with raises(ModelError, code="unsupported-parsing", match=r"features: x\..*signatures_fn"):
        rebuild(tmp_path, model, lambda examples: {"y": model(parse(examples))}, EXAMPLES)


def test_examples_beside_other_arguments_are_rejected(tmp_path):
    model = dense()

    def serve(examples, scale):
        return {"y": model(tf.io.parse_example(examples, {"x": FixedLen([4], tf.float32)})["x"] * scale)}

    with raises(ModelError, code="unsupported-parsing", match="examples, scale"):
        rebuild(tmp_path, model, serve, EXAMPLES, tf.TensorSpec([], tf.float32, "scale"))


def test_signatures_fn_replaces_all_signatures(tmp_path):
    model, narrow = dense(), dense(units=3)
    serve = tf.function(postprocess(model), input_signature=[NUMBERS])
    model.save(tmp_path / "model", save_format="tf", signatures={"serving_default": serve})

    def signatures_fn(network, tf_transform_output):
        assert tf_transform_output is None
        return {"serving_default": tf.function(postprocess(network), input_signature=[NUMBERS])}

    handle = model_handle.load(str(tmp_path / "model"))
    handle.save(str(tmp_path / "narrow"), network=narrow, signatures_fn=signatures_fn)
    x, _ = helpers.points(5)
    np.testing.assert_array_equal(helpers.answers(str(tmp_path / "narrow"), x=x)["class"], np.argmax(narrow(x), -1))


def test_a_signatures_fn_that_returns_none_is_rejected():
    with raises(ModelError, code="no-signatures", field="signatures_fn"):
        rebuilt_signatures.user_signatures(lambda model, transform: None, None, None)
