"""Feature signatures become TFLite models with the same answers under the same names."""

import tempfile

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tfx_compression.errors import DataError, ModelError
from tfx_compression.saved_models import feature_signatures
from tfx_compression.tflite import conversion
from tfx_compression.tflite.interpreter import Interpreter

from tests.support import helpers, kinds
from tests.support.conversions import normal
from tests.support.errors import raises

pytestmark = pytest.mark.slow  # converts models

ROWS = 6


def converted(signature: feature_signatures.FeatureSignature) -> Interpreter:
    with tempfile.TemporaryDirectory() as folder:
        signature.save(folder)
        return Interpreter(conversion.to_tflite(folder, conversion.ConversionOptions("float32")))


def assert_same_answers(path: str, columns, batch_size: int | None = None, name: str = "serving_default") -> None:
    """Asserts that the TFLite model of a signature on tensors has its names and gives its answers."""
    signature = feature_signatures.feature_signature(path, name, batch_size=batch_size)
    lite = converted(signature)
    expected = helpers.answers(path, name, **columns)
    assert set(lite.inputs) == set(signature.features) == set(columns)
    assert set(lite.outputs) == set(signature.outputs) == set(expected)
    answers = lite.predict(columns)
    for output, values in expected.items():
        np.testing.assert_allclose(answers[output], values, rtol=1e-4, atol=1e-5)


def saved(library_model, path) -> str:
    """Saves a Keras model with its own signature; returns the path."""
    if isinstance(library_model, tf_keras.Model):
        library_model.save(path, save_format="tf")
    else:
        library_model.export(path, verbose=False)
    return str(path)


def two_in_two_out(library):
    inputs = {name: library.Input((3,), name=name) for name in ("left", "right")}
    joined = library.layers.Concatenate()([inputs["left"], inputs["right"]])
    hidden = library.layers.Dense(5, activation="relu")(joined)
    outputs = [library.layers.Dense(2, name="score")(hidden), library.layers.Dense(1, name="risk")(hidden)]
    return library.Model(inputs, outputs)


def test_several_inputs_and_outputs_keep_their_names(tmp_path):
    path = saved(two_in_two_out(tf_keras), tmp_path / "saved")
    assert_same_answers(path, {"left": normal(ROWS, 3), "right": normal(ROWS, 3, seed=1)})


def test_a_saved_model_without_keras_is_converted(tmp_path):
    assert_same_answers(kinds.module(tmp_path / "module"), {"x": normal(ROWS, 4)})


def test_an_export_of_keras_3_is_converted(tmp_path):
    path = saved(kinds.keras3_dense(), tmp_path / "exported")
    (name,) = tf.saved_model.load(path).signatures["serving_default"].structured_input_signature[1]
    assert_same_answers(path, {name: normal(ROWS, 4)})
    assert_same_answers(path, {name: normal(ROWS, 4)}, name="serve")


def test_scalars_and_booleans_per_row_are_converted(tmp_path):
    specs = [tf.TensorSpec([None], tf.float32, "x"), tf.TensorSpec([None], tf.int32, "count")]
    specs.append(tf.TensorSpec([None, 2], tf.bool, "flags"))

    def function(x, count, flags):
        return {"y": x * tf.cast(count, tf.float32), "any": tf.reduce_any(flags, 1)}

    path = helpers.save_function(function, specs, tmp_path / "saved")
    flags = np.array([[True, False], [False, False]] * 3)
    assert_same_answers(path, {"x": normal(ROWS), "count": np.arange(ROWS, dtype=np.int32), "flags": flags})


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_static_batch_is_in_every_shape(tmp_path, batch_size):
    path = helpers.save_with_examples_signature(helpers.small_cnn(), tmp_path / "model")
    signature = feature_signatures.feature_signature(path, batch_size=batch_size)
    pixels, _ = helpers.images(ROWS)
    lite = converted(signature)
    assert lite.inputs["image"].shape == (batch_size, *helpers.IMAGE)
    assert lite.outputs["probabilities"].shape == (batch_size, helpers.CLASSES)
    expected = helpers.answers(path, examples=helpers.serialized({"image": pixels}))["probabilities"]
    np.testing.assert_allclose(lite.predict({"image": pixels})["probabilities"], expected, rtol=1e-4, atol=1e-5)


def recurrent(library, layer: str):
    """Returns a network from five steps of three numbers to two numbers."""
    library.utils.set_random_seed(1)
    layers = library.layers
    layer_of_kind = {
        "LSTM": lambda: layers.LSTM(4),
        "GRU": lambda: layers.GRU(4),
        "Bidirectional": lambda: layers.Bidirectional(layers.LSTM(4, return_sequences=True)),
    }[layer]()
    x = library.Input((5, 3), name="x")
    hidden = layer_of_kind(x)
    hidden = layers.Flatten()(hidden) if layer == "Bidirectional" else hidden
    return library.Model(x, layers.Dense(2, name="y")(hidden))


@pytest.mark.parametrize("layer", ["LSTM", "GRU", "Bidirectional"])
@pytest.mark.parametrize("library", [tf_keras, keras], ids=["keras2", "keras3"])
def test_recurrent_layers_with_a_static_batch_are_converted(tmp_path, library, layer):
    path = saved(recurrent(library, layer), tmp_path / "saved")
    (name,) = feature_signatures.feature_signature(path, batch_size=2).features
    assert_same_answers(path, {name: normal(ROWS, 5, 3)}, batch_size=2)


def test_recurrent_layers_without_a_static_batch_are_refused(tmp_path):
    path = saved(recurrent(tf_keras, "LSTM"), tmp_path / "saved")
    with raises(ModelError, code="free-loop-rows", match="batch_size=1"):
        converted(feature_signatures.feature_signature(path))


def test_lists_of_other_elements_than_rows_stay_as_they_are(tmp_path):
    """The loop collects elements of three numbers, a size that the graph leaves open; they are not batches of two."""

    def function(x):
        rows = tf.TensorArray(tf.float32, 2, element_shape=[None])
        rows = tf.while_loop(lambda i, _: i < 2, lambda i, list_: (i + 1, list_.write(i, x[i])), (0, rows))[1]
        return {"y": rows.stack() * 2.0}

    path = helpers.save_function(function, [tf.TensorSpec([None, 3], tf.float32, "x")], tmp_path / "saved")
    signature = feature_signatures.feature_signature(path, batch_size=2)
    x = normal(2, 3)
    np.testing.assert_allclose(signature.function(tf.constant(x))["y"], 2 * x)


def test_a_loop_whose_length_is_data_is_converted(tmp_path):
    def function(x, turns):
        return {"y": tf.while_loop(lambda i, y: i < turns[0], lambda i, y: (i + 1, y * 2.0), (0, x))[1]}

    specs = [tf.TensorSpec([1, 2], tf.float32, "x"), tf.TensorSpec([1], tf.int32, "turns")]
    path = helpers.save_function(function, specs, tmp_path / "saved")
    lite = converted(feature_signatures.feature_signature(path))
    x = normal(1, 2)
    np.testing.assert_allclose(lite.predict({"x": x, "turns": np.array([3], np.int32)})["y"], 8 * x)


def test_several_signatures_are_in_one_file(tmp_path):
    weight = tf.Variable(normal(4, 2))
    module = tf.Module()
    module.weight = weight
    spec = tf.TensorSpec([None, 4], tf.float32, name="x")
    module.plain = tf.function(lambda x: {"y": x @ weight}, input_signature=[spec])
    module.doubled = tf.function(lambda x: {"twice": 2 * (x @ weight)}, input_signature=[spec])
    path = str(tmp_path / "model")
    tf.saved_model.save(module, path, signatures={"plain": module.plain, "doubled": module.doubled})
    signatures = {name: feature_signatures.feature_signature(path, name) for name in ("plain", "doubled")}
    feature_signatures.save_signatures(signatures, str(tmp_path / "saved"))
    converter = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "saved"), signature_keys=["plain", "doubled"])
    lite = tf.lite.Interpreter(model_content=converter.convert())
    assert lite.get_signature_list() == {
        "plain": {"inputs": ["x"], "outputs": ["y"]},
        "doubled": {"inputs": ["x"], "outputs": ["twice"]},
    }
    x = normal(1, 4)
    np.testing.assert_allclose(lite.get_signature_runner("plain")(x=x)["y"], x @ weight.numpy(), rtol=1e-5)
    np.testing.assert_allclose(lite.get_signature_runner("doubled")(x=x)["twice"], 2 * x @ weight.numpy(), rtol=1e-5)


@pytest.fixture(scope="module")
def transform(tmp_path_factory):
    return kinds.transform_graph(tmp_path_factory.mktemp("transform") / "graph")


def raw_columns() -> dict[str, np.ndarray]:
    words = np.array([["one"], ["two"], ["none"]] * ROWS, object)[:ROWS]
    return {"a": normal(ROWS, 1), "b": normal(ROWS, 1, seed=1), "word": words}


@pytest.mark.parametrize("library", [tf_keras, keras], ids=["keras2", "keras3"])
def test_transform_inside_and_outside_give_the_same_answers(tmp_path, library, transform):
    path = kinds.penguin(tmp_path / "model", kinds.two_features(library), transform)
    raw = raw_columns()
    expected = helpers.answers(path, examples=helpers.serialized(raw))["outputs"]
    inside = feature_signatures.feature_signature(path)
    outside = feature_signatures.feature_signature(path, transform="outside")
    for signature in (inside, outside):
        assert set(signature.features) == set(signature.raw_features) == {"a", "b"}
        columns = signature.preprocess({name: raw[name] for name in signature.raw_features})
        np.testing.assert_allclose(columns["a"], raw["a"] / (1 if signature is inside else 4), rtol=1e-6)
        answers = converted(signature).predict(columns)
        np.testing.assert_allclose(answers["outputs"], expected, rtol=1e-4, atol=1e-5)


def looked_up(path, transform: str) -> str:
    """Saves a network on `a` and the place of `word` in Transform's vocabulary, and on `b` without Transform."""
    word = tf_keras.Input((1,), name="word", dtype=tf.int64)
    a, b = (tf_keras.Input((1,), name=name) for name in kinds.FEATURES)
    embedded = tf_keras.layers.Flatten()(tf_keras.layers.Embedding(4, 3)(word + 1))
    y = tf_keras.layers.Dense(2, name="y")(tf_keras.layers.Concatenate()([a, b, embedded]))
    model = tf_keras.Model([a, b, word], y)
    import tensorflow_transform as tft

    model.tft_layer = tft.TFTransformOutput(transform).transform_features_layer()
    spec = {name: tf.io.FixedLenFeature([1], tf.float32) for name in kinds.FEATURES}
    spec["word"] = tf.io.FixedLenFeature([1], tf.string)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def serve(examples):
        parsed = tf.io.parse_example(examples, spec)
        transformed = model.tft_layer(parsed)
        return {"y": model([transformed["a"], parsed["b"], transformed["word"]])}

    model.save(path, save_format="tf", signatures={"serving_default": serve})
    return str(path)


def test_a_vocabulary_of_transform_must_stay_outside(tmp_path, transform):
    path = looked_up(tmp_path / "model", transform)
    with raises(ModelError, code="lookup-table", match="LookupTableFindV2.*word"):
        feature_signatures.feature_signature(path)
    signature = feature_signatures.feature_signature(path, transform="outside", batch_size=2)
    assert set(signature.features) == {"a", "b", "word"}
    assert {name: spec.dtype for name, spec in signature.raw_features.items()} == {
        "a": tf.float32,
        "b": tf.float32,
        "word": tf.string,
    }
    raw = raw_columns()
    columns = signature.preprocess(raw)
    np.testing.assert_allclose(columns["a"], raw["a"] / 4, rtol=1e-6)
    np.testing.assert_array_equal(columns["b"], raw["b"])  # Transform doesn't see it
    np.testing.assert_array_equal(columns["word"].ravel(), [1, 0, -1] * 2)  # the most frequent word is 0
    expected = helpers.answers(path, examples=helpers.serialized(raw))["y"]
    np.testing.assert_allclose(converted(signature).predict(columns)["y"], expected, rtol=1e-4, atol=1e-5)


def test_a_feature_of_any_size_can_not_be_read_from_examples(tmp_path):
    kernel = normal(3, 3, 3, 4, seed=1)
    path = helpers.save_function(
        lambda x: {"y": tf.reduce_mean(tf.nn.conv2d(x, kernel, 1, "VALID"), [1, 2])},
        [tf.TensorSpec([None, None, None, 3], tf.float32, "x")],
        tmp_path / "any",
    )
    signature = feature_signatures.feature_signature(path)
    with raises(DataError, code="free-size", match="x"):
        signature.read_examples(helpers.serialized({"x": normal(2, 8, 8, 3)}))


def parsing(path, spec, call) -> str:
    """Saves a signature that parses tf.Examples and calls a function on the features; returns the path."""
    module = tf.Module()

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def serve(examples):
        return {"y": call(tf.io.parse_example(examples, spec))}

    module.serve = serve
    tf.saved_model.save(module, str(path), signatures={"serving_default": serve})
    return str(path)


def test_a_missing_feature_has_the_signatures_default(tmp_path):
    spec = {name: tf.io.FixedLenFeature([2], tf.float32, [7.0, 8.0]) for name in ("a", "b")}
    path = parsing(tmp_path / "defaults", spec, lambda parsed: parsed["a"] * parsed["b"])
    columns = feature_signatures.feature_signature(path).read_examples(helpers.serialized({"a": normal(3, 2)}))
    np.testing.assert_array_equal(columns["b"], [[7.0, 8.0]] * 3)
    np.testing.assert_array_equal(columns["a"], normal(3, 2))


def test_sparse_features_need_transform_outside(tmp_path):
    """A schema without shapes makes features sparse, as in TFX's taxi example."""
    path = kinds.save_sparse_transform_model(tmp_path)
    with raises(ModelError, code="free-shape", match="a, b"):
        feature_signatures.feature_signature(path)
    signature = feature_signatures.feature_signature(path, transform="outside")
    rows = helpers.serialized({name: normal(6, 1, seed=index) for index, name in enumerate(kinds.FEATURES)})
    assert set(signature.read_examples(rows)) == set(signature.example_features) == {"a", "b"}
    with raises(ModelError, code="free-shape"):
        signature.preprocess({})
