"""Models of every origin, as a SavedModel, cut to features and converted: the same answers under the same names."""

import tempfile

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tfx_compression.errors import ModelError
from tfx_compression.saved_models import feature_signatures
from tfx_compression.tflite import conversion
from tfx_compression.tflite.interpreter import Interpreter
from tfx_compression.tflite_quantizer import sources

from tests.support import helpers, kinds

pytestmark = pytest.mark.slow

ROWS = 6


def converted(signature: feature_signatures.FeatureSignature) -> Interpreter:
    with tempfile.TemporaryDirectory() as folder:
        signature.save(folder)
        return Interpreter(conversion.to_tflite(folder, conversion.ConversionOptions("float32")))


def assert_same_answers(path: str, columns, batch_size: int | None = None, name: str = "serving_default") -> None:
    """The TFLite model of a signature that takes tensors has its names and gives its answers."""
    signature = feature_signatures.feature_signature(path, name, batch_size=batch_size)
    lite = converted(signature)
    expected = helpers.answers(path, name, **columns)
    assert set(lite.inputs) == set(signature.features) == set(columns)
    assert set(lite.outputs) == set(signature.outputs) == set(expected)
    found = lite.predict(columns)
    for output, values in expected.items():
        np.testing.assert_allclose(found[output], values, rtol=1e-4, atol=1e-5)


def two_in_two_out(library):
    inputs = {name: library.Input((3,), name=name) for name in ("left", "right")}
    joined = library.layers.Concatenate()([inputs["left"], inputs["right"]])
    hidden = library.layers.Dense(5, activation="relu")(joined)
    return library.Model(
        inputs, [library.layers.Dense(2, name="score")(hidden), library.layers.Dense(1, name="risk")(hidden)]
    )


class Subclassed3(keras.Model):
    def __init__(self):
        super().__init__()
        self.inner = keras.layers.Dense(2)

    def call(self, inputs):
        return {"sum": self.inner(inputs["a"]) + self.inner(inputs["b"])}


class Subclassed2(tf_keras.Model):
    def __init__(self):
        super().__init__()
        self.inner = tf_keras.layers.Dense(2)

    def call(self, inputs):
        return {"sum": self.inner(inputs["a"]) + self.inner(inputs["b"])}


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("library", [tf_keras, keras], ids=["keras2", "keras3"])
@pytest.mark.parametrize("how", ["memory", ".keras", ".h5"])
def test_a_keras_model_of_several_inputs_and_outputs_keeps_its_names(tmp_path, library, how):
    model = source = two_in_two_out(library)
    if how != "memory":
        source = str(tmp_path / f"model{how}")
        model.save(source)
    path = sources.saved_model_of(source, str(tmp_path / "saved"))
    columns = {"left": normal(ROWS, 3), "right": normal(ROWS, 3, seed=1)}
    score, risk = model(columns)
    found = helpers.answers(path, **columns)
    np.testing.assert_allclose(found["score"], score, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["risk"], risk, rtol=1e-5, atol=1e-6)
    assert_same_answers(path, columns)


@pytest.mark.parametrize("kind", [Subclassed2, Subclassed3])
def test_a_subclassed_model_keeps_the_names_of_its_dicts(tmp_path, kind):
    model = kind()
    columns = {"a": normal(ROWS, 4), "b": normal(ROWS, 4, seed=1)}
    expected = model(columns)["sum"]
    path = sources.saved_model_of(model, str(tmp_path / "saved"))
    np.testing.assert_allclose(helpers.answers(path, **columns)["sum"], expected, rtol=1e-5, atol=1e-6)
    assert_same_answers(path, columns)


@pytest.mark.parametrize("kind", [Subclassed2, Subclassed3])
def test_a_subclassed_model_that_was_never_called_is_refused_with_the_remedy(tmp_path, kind):
    with pytest.raises(ModelError, match=r"can't be saved.*Remedy: call it once"):
        sources.saved_model_of(kind(), str(tmp_path / "saved"))


def test_a_saved_model_is_its_own(tmp_path):
    path = kinds.module(tmp_path / "module")
    assert sources.saved_model_of(path, str(tmp_path / "not_written")) == path
    assert not (tmp_path / "not_written").exists()
    assert_same_answers(path, {"x": normal(ROWS, 4)})


def test_what_keras_3_exports_is_converted(tmp_path):
    path = str(tmp_path / "exported")
    kinds.keras3_dense().export(path, verbose=False)
    (name,) = tf.saved_model.load(path).signatures["serving_default"].structured_input_signature[1]
    assert_same_answers(path, {name: normal(ROWS, 4)})
    assert_same_answers(path, {name: normal(ROWS, 4)}, name="serve")


def test_numbers_without_a_dimension_of_their_own_and_flags_are_converted(tmp_path):
    specs = [tf.TensorSpec([None], tf.float32, "x"), tf.TensorSpec([None], tf.int32, "count")]
    specs.append(tf.TensorSpec([None, 2], tf.bool, "flags"))

    def function(x, count, flags):
        return {"y": x * tf.cast(count, tf.float32), "any": tf.reduce_any(flags, 1)}

    path = helpers.save_function(function, specs, tmp_path / "saved")
    flags = np.array([[True, False], [False, False]] * 3)
    assert_same_answers(path, {"x": normal(ROWS), "count": np.arange(ROWS, dtype=np.int32), "flags": flags})


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_static_batch_is_in_the_shape_of_every_input_and_output(tmp_path, batch_size):
    path = helpers.save_with_examples_signature(helpers.small_cnn(), tmp_path / "model")
    signature = feature_signatures.feature_signature(path, batch_size=batch_size)
    pixels, _ = helpers.images(ROWS)
    lite = converted(signature)
    assert lite.inputs["image"].shape == (batch_size, *helpers.IMAGE)
    assert lite.outputs["probabilities"].shape == (batch_size, helpers.CLASSES)
    expected = helpers.answers(path, examples=helpers.serialized({"image": pixels}))["probabilities"]
    np.testing.assert_allclose(lite.predict({"image": pixels})["probabilities"], expected, rtol=1e-4, atol=1e-5)


def recurrent(library, layer: str):
    """Five steps of three numbers to two."""
    library.utils.set_random_seed(1)
    layers = library.layers
    made = {
        "LSTM": lambda: layers.LSTM(4),
        "GRU": lambda: layers.GRU(4),
        "Bidirectional": lambda: layers.Bidirectional(layers.LSTM(4, return_sequences=True)),
    }[layer]()
    x = library.Input((5, 3), name="x")
    hidden = made(x)
    hidden = layers.Flatten()(hidden) if layer == "Bidirectional" else hidden
    return library.Model(x, layers.Dense(2, name="y")(hidden))


@pytest.mark.parametrize("layer", ["LSTM", "GRU", "Bidirectional"])
@pytest.mark.parametrize("library", [tf_keras, keras], ids=["keras2", "keras3"])
def test_recurrent_layers_of_a_static_batch_are_converted(tmp_path, library, layer):
    path = sources.saved_model_of(recurrent(library, layer), str(tmp_path / "saved"))
    assert_same_answers(path, {"x": normal(ROWS, 5, 3)}, batch_size=2)


def test_recurrent_layers_of_any_batch_are_refused_with_the_remedy(tmp_path):
    path = sources.saved_model_of(recurrent(tf_keras, "LSTM"), str(tmp_path / "saved"))
    with pytest.raises(ModelError, match="how many rows a recurrent layer.*Remedy: batch_size=1"):
        converted(feature_signatures.feature_signature(path))


def test_lists_whose_elements_are_no_rows_are_left_as_they_are(tmp_path):
    """What a loop collects has three numbers each, of a size that the graph leaves open: no batch of two."""

    def function(x):
        rows = tf.TensorArray(tf.float32, 2, element_shape=[None])
        rows = tf.while_loop(lambda i, _: i < 2, lambda i, kept: (i + 1, kept.write(i, x[i])), (0, rows))[1]
        return {"y": rows.stack() * 2.0}

    path = helpers.save_function(function, [tf.TensorSpec([None, 3], tf.float32, "x")], tmp_path / "saved")
    signature = feature_signatures.feature_signature(path, batch_size=2)
    x = normal(2, 3)
    np.testing.assert_allclose(signature.function(tf.constant(x))["y"], 2 * x)


def test_a_loop_of_as_many_turns_as_the_data_says_is_converted(tmp_path):
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
    taken = {name: feature_signatures.feature_signature(path, name) for name in ("plain", "doubled")}
    feature_signatures.save_signatures(taken, str(tmp_path / "saved"))
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
        found = converted(signature).predict(columns)
        np.testing.assert_allclose(found["outputs"], expected, rtol=1e-4, atol=1e-5)


def looked_up(path, transform: str) -> str:
    """A network on `a` and the place of `word` in Transform's vocabulary, and on `b` as it is, around Transform."""
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


def test_a_vocabulary_of_transform_is_looked_up_outside_and_refused_inside(tmp_path, transform):
    path = looked_up(tmp_path / "model", transform)
    with pytest.raises(
        ModelError, match=r'LookupTableFindV2 in the Transform layer \(of word\).*transform="outside".*preprocessing_fn'
    ):
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
    np.testing.assert_array_equal(columns["b"], raw["b"])  # goes around Transform
    np.testing.assert_array_equal(columns["word"].ravel(), [1, 0, -1] * 2)  # the most frequent word is 0
    expected = helpers.answers(path, examples=helpers.serialized(raw))["y"]
    np.testing.assert_allclose(converted(signature).predict(columns)["y"], expected, rtol=1e-4, atol=1e-5)
