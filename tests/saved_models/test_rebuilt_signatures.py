"""A narrower network takes the place of the one that was trained, and the signatures take what they took."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tfx_compression import model_handle
from tfx_compression.errors import ModelError
from tfx_compression.saved_models import rebuilt_signatures

from tests.support import (
    helpers,  # first: sets which Keras tf.keras is
    kinds,
)

pytestmark = pytest.mark.slow  # Transform, and a SavedModel in almost every test


def serve_and_compare(path: str, network, output: str = "outputs") -> None:
    """The signature's answers on tf.Examples are those of the network on the same numbers, divided by 4."""
    rows = kinds.examples()
    a, b = (np.array([_value(row, name) for row in rows], np.float32)[:, None] / 4 for name in kinds.FEATURES)
    answer = helpers.answers(path, examples=rows)
    assert list(answer) == [output]
    np.testing.assert_allclose(answer[output], network([a, b]), atol=1e-5)


def _value(row: bytes, name: str) -> float:
    found = tf.train.Example.FromString(row).features.feature[name].float_list.value
    return found[0] if found else 0.5  # the default of `b`


@pytest.fixture(scope="module")
def transform(tmp_path_factory):
    return kinds.transform_graph(tmp_path_factory.mktemp("transform") / "graph")


@pytest.fixture(scope="module", params=["keras2", "keras3"])
def trained_path(request, tmp_path_factory, transform):
    """A model behind Transform, of Keras 2 with metadata, or of Keras 3 with its `.keras` file."""
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
    serve_and_compare(str(tmp_path / "narrow"), narrow)
    before, after = (
        helpers.answers(place, "transform_features", examples=kinds.examples())
        for place in (trained_path, str(tmp_path / "narrow"))
    )
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)
    again = model_handle.load(str(tmp_path / "narrow"))
    assert again.kind == model.kind
    assert again.kernels["hidden"].shape == (2, 5)
    again.save(str(tmp_path / "again"))  # and once more, as SparsityFineTuner does
    serve_and_compare(str(tmp_path / "again"), narrow)


def test_weights_pruned_in_place_answer_the_examples_signature(tmp_path, trained_path):
    model = model_handle.load(trained_path)
    for kernel in model.kernels.values():
        kernel.variable.assign(kernel.values * (np.abs(kernel.values) > 0.3))
    model.save(str(tmp_path / "pruned"))
    serve_and_compare(str(tmp_path / "pruned"), model.network)


def test_keras_2s_transform_layer_comes_with_the_model(tmp_path, transform):
    path = kinds.penguin(tmp_path / "model", kinds.two_features(tf_keras), transform)
    narrow = kinds.two_features(tf_keras, units=5, seed=3)
    model_handle.load(path).save(str(tmp_path / "narrow"), network=narrow)
    serve_and_compare(str(tmp_path / "narrow"), narrow)


def test_a_layer_that_takes_the_only_feature_works_too(tmp_path):
    path = helpers.save_with_examples_signature(helpers.small_dense(), tmp_path / "model", "x", (4,))
    narrow = tf_keras.Sequential([tf_keras.Input((4,), name="x"), tf_keras.layers.Dense(2, name="y")])
    model_handle.load(path).save(str(tmp_path / "narrow"), network=narrow)
    x, _ = helpers.points(5)
    answer = helpers.answers(str(tmp_path / "narrow"), examples=helpers.serialized({"x": x}))
    np.testing.assert_allclose(answer["probabilities"], narrow(x / helpers.LARGEST), atol=1e-5)


def test_a_raw_tensor_signature_keeps_its_names(tmp_path):
    model = helpers.small_dense()

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="numbers")])
    def serve(numbers):
        return {"answer": model(numbers)}

    model.save(tmp_path / "model", save_format="tf", signatures={"serving_default": serve})
    narrow = tf_keras.Sequential([tf_keras.Input((4,), name="x"), tf_keras.layers.Dense(2, name="y")])
    model_handle.load(str(tmp_path / "model")).save(str(tmp_path / "narrow"), network=narrow)
    x, _ = helpers.points(5)
    np.testing.assert_allclose(helpers.answers(str(tmp_path / "narrow"), numbers=x)["answer"], narrow(x), atol=1e-5)


def test_several_outputs_keep_their_names_by_what_they_are(tmp_path):
    x = tf_keras.Input((4,), name="x")

    def network(units):
        hidden = tf_keras.layers.Dense(units)(x)
        return tf_keras.Model(x, [tf_keras.layers.Dense(2, name=name)(hidden) for name in ("one", "two")])

    model = network(8)

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")])
    def serve(x):
        one, two = model(x)
        return {"a": two, "b": one}

    model.save(tmp_path / "model", save_format="tf", signatures={"serving_default": serve})
    narrow = network(3)
    model_handle.load(str(tmp_path / "model")).save(str(tmp_path / "narrow"), network=narrow)
    values, _ = helpers.points(5)
    answer = helpers.answers(str(tmp_path / "narrow"), x=values)
    np.testing.assert_allclose(answer["a"], narrow(values)[1], atol=1e-5)
    np.testing.assert_allclose(answer["b"], narrow(values)[0], atol=1e-5)


def postprocessed(tmp_path) -> tuple[str, tf_keras.Model]:
    """A signature that does more than parse, transform and predict."""
    model = helpers.small_dense()

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")])
    def serve(x):
        return {"class": tf.argmax(model(x), -1)}

    model.save(tmp_path / "model", save_format="tf", signatures={"serving_default": serve})
    return str(tmp_path / "model"), model


def test_a_signature_that_does_more_is_refused_with_the_remedy(tmp_path):
    path, _ = postprocessed(tmp_path)
    narrow = tf_keras.Sequential([tf_keras.Input((4,), name="x"), tf_keras.layers.Dense(2, name="y")])
    with pytest.raises(ModelError, match=r"serving_default.*'class' equals 0 outputs.*Remedy: a signatures_fn"):
        model_handle.load(path).save(str(tmp_path / "narrow"), network=narrow)


def test_signatures_fn_overrides_everything(tmp_path):
    path, _ = postprocessed(tmp_path)
    narrow = tf_keras.Sequential([tf_keras.Input((4,), name="x"), tf_keras.layers.Dense(2, name="y")])

    def signatures_fn(model, tf_transform_output):
        assert tf_transform_output is None
        spec = [tf.TensorSpec([None, 4], tf.float32, name="x")]
        return {"serving_default": tf.function(lambda x: {"class": tf.argmax(model(x), -1)}, input_signature=spec)}

    model_handle.load(path).save(str(tmp_path / "narrow"), network=narrow, signatures_fn=signatures_fn)
    x, _ = helpers.points(5)
    np.testing.assert_array_equal(helpers.answers(str(tmp_path / "narrow"), x=x)["class"], np.argmax(narrow(x), -1))


def test_signatures_fn_that_returns_none_is_refused():
    with pytest.raises(ModelError, match="returned no signatures"):
        rebuilt_signatures.user_signatures(lambda model, transform: None, None, None)


def test_a_saved_model_without_layers_takes_no_other_network(tmp_path):
    model = model_handle.load(kinds.module(tmp_path / "model"))
    with pytest.raises(ModelError, match=r"no graph of layers.*\.keras"):
        model.save(str(tmp_path / "narrow"), network=helpers.small_dense())


def test_the_optimizer_and_loss_go_over_to_the_new_network(tmp_path):
    model = helpers.small_dense()
    model.compile(tf_keras.optimizers.Adam(0.01), "mse")
    narrow = tf_keras.Sequential([tf_keras.Input((4,), name="x"), tf_keras.layers.Dense(2, name="y")])
    model_handle.wrap(model).save(str(tmp_path / "narrow"), network=narrow)
    again = model_handle.load(str(tmp_path / "narrow")).model
    x, y = helpers.points(8)
    assert again.evaluate(x, y, verbose=0) == pytest.approx(np.mean((narrow(x) - y) ** 2), rel=1e-4)


def dense(library, columns: int, **more):
    """`columns` numbers, `x`, to two."""
    x = library.Input((columns,), name="x")
    hidden = library.layers.Dense(more.get("units", 8), activation="relu", name="hidden")(x)
    return library.Model(x, library.layers.Dense(2, name="y")(hidden))


def words(units: int = 8) -> tf_keras.Model:
    """A word of a vocabulary, `x`, to two."""
    x = tf_keras.Input((1,), name="x", dtype=tf.string)
    found = tf_keras.layers.StringLookup(vocabulary=["red", "green"], output_mode="one_hot", name="lookup")(x)
    hidden = tf_keras.layers.Dense(units, name="hidden")(found)
    return tf_keras.Model(x, tf_keras.layers.Dense(2, name="y")(hidden))


FRONT_ENDS = {
    "missing": (tf.float32, lambda x: tf.where(x < 0, 0.5, x)),
    "capped": (tf.float32, lambda x: tf.minimum(x, 1.0)),
    "nan": (tf.float32, lambda x: tf.where(tf.math.is_nan(x), 0.5, x)),
    "scaled": (tf.float32, lambda x: tf.cond(tf.reduce_max(x) > 1, lambda: x / 255.0, lambda: x)),
    "whole capped": (tf.int64, lambda x: tf.cast(tf.minimum(x, 1), tf.float32)),
    "whole missing": (tf.int64, lambda x: tf.cast(tf.maximum(x, 0), tf.float32)),
    "lower": (tf.string, tf.strings.lower),
    "stripped": (tf.string, tf.strings.strip),
}


@pytest.mark.parametrize("name", list(FRONT_ENDS))
def test_a_front_end_that_changes_some_values_only_is_refused(tmp_path, name):
    dtype, front = FRONT_ENDS[name]
    model, narrow = (words(), words(3)) if dtype == tf.string else (dense(tf_keras, 4), dense(tf_keras, 4, units=3))

    @tf.function(input_signature=[tf.TensorSpec([None, *model.inputs[0].shape[1:]], dtype, name="x")])
    def serve(x):
        return {"y": model(front(x))}

    model.save(tmp_path / "model", save_format="tf", signatures={"serving_default": serve})
    with pytest.raises(ModelError, match="Remedy: a signatures_fn"):
        model_handle.load(str(tmp_path / "model")).save(str(tmp_path / "narrow"), network=narrow)


def test_a_front_end_that_changes_what_examples_lack_is_refused(tmp_path):
    model = dense(tf_keras, 4)
    spec = {"x": tf.io.FixedLenFeature([4], tf.float32, default_value=[777.0] * 4)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def serve(examples):
        x = tf.io.parse_example(examples, spec)["x"]
        return {"y": model(tf.where(x == 777.0, 0.0, x))}

    model.save(tmp_path / "model", save_format="tf", signatures={"serving_default": serve})
    with pytest.raises(ModelError, match="Remedy: a signatures_fn"):
        model_handle.load(str(tmp_path / "model")).save(str(tmp_path / "narrow"), network=dense(tf_keras, 4, units=3))


def test_what_the_original_does_not_answer_proves_nothing(tmp_path):
    def network(units):
        place, x = tf_keras.Input((), dtype=tf.int64, name="place"), tf_keras.Input((2,), name="x")
        joined = tf_keras.layers.Concatenate()([tf_keras.layers.Embedding(2, 3, name="embedding")(place), x])
        return tf_keras.Model([place, x], dense(tf_keras, 5, units=units)(joined))

    network(8).save(tmp_path / "model", save_format="tf")
    narrow = network(3)
    model_handle.load(str(tmp_path / "model")).save(str(tmp_path / "narrow"), network=narrow)
    feed = {"place": np.array([0, 1]), "x": np.array([[1.0, -2.0], [300.0, 4.0]], np.float32)}
    (answer,) = helpers.answers(str(tmp_path / "narrow"), **feed).values()
    np.testing.assert_allclose(answer, narrow([feed["place"], feed["x"]]), rtol=1e-5)
