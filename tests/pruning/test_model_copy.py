"""Copies of models: nothing is shared with the original, and everything it can do is kept."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tfx_compression import model_handle
from tfx_compression.errors import ModelError
from tfx_compression.pruning.model_copy import copy_model
from tfx_compression.pruning.plan import PruningPlan
from tfx_compression.pruning.prune import prune

from tests.support import helpers, kinds
from tests.support.errors import raises

BOTH = [pytest.param(tf_keras, id="keras2"), pytest.param(keras, id="keras3")]


def copied(model):
    """Returns a copy of a Keras model that shares no variable with it, after comparing their weights."""
    copy = copy_model(model_handle.wrap(model)).model
    assert type(copy) is type(model)
    assert copy.name == model.name and [layer.name for layer in copy.layers] == [layer.name for layer in model.layers]
    assert not {id(weight) for weight in copy.weights} & {id(weight) for weight in model.weights}
    assert [weight.name for weight in copy.weights] == [weight.name for weight in model.weights]
    for weight, original in zip(copy.weights, model.weights, strict=True):
        if hasattr(weight, "numpy"):
            np.testing.assert_array_equal(weight.numpy(), original.numpy())
        assert weight.trainable == original.trainable
    return copy


def equal_outputs(model, copy, *inputs):
    np.testing.assert_array_equal(np.asarray(model(*inputs)), np.asarray(copy(*inputs)))


def train(model, x):
    model.fit(x, np.zeros((len(x), 1), np.float32), verbose=0)


@pytest.mark.slow
@pytest.mark.parametrize("library", BOTH)
def test_a_functional_model_with_nested_and_repeated_layers(library):
    layers = library.layers
    inner = library.Sequential(
        [library.Input((4,)), layers.Dense(4, activation="relu"), layers.Dropout(0.5)], name="in"
    )
    x = library.Input((4,), name="x")
    repeated = layers.Dense(4, name="repeated")
    flow = layers.BatchNormalization(name="norm")(repeated(repeated(x)))
    model = library.Model(x, layers.Dense(1, name="y")(layers.Add()([inner(flow), x])), name="nested")
    model.get_layer("norm").trainable = False
    model.compile("adam", "mse")
    rows = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    train(model, rows)
    copy = copied(model)
    equal_outputs(model, copy, rows)
    before = model.get_weights()
    train(copy, rows)
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


@pytest.mark.parametrize("library", BOTH)
def test_a_sequential_model_stays_sequential_and_compiled(library):
    def loss(targets, outputs):
        return tf.reduce_mean(tf.abs(targets - outputs))

    model = library.Sequential([library.Input((4,)), library.layers.Dense(3), library.layers.Dense(1)], name="tower")
    model.compile("adam", loss, metrics=["mae"])
    x, y = np.ones((4, 4), np.float32), np.zeros((4, 1), np.float32)
    expected = model.evaluate(x, y, verbose=0)
    copy = copied(model)
    assert copy.evaluate(x, y, verbose=0) == expected
    assert copy.optimizer is not model.optimizer


@pytest.mark.parametrize("library", BOTH)
def test_the_class_of_a_functional_model_is_kept(library):
    class Scaled(library.Model):
        def train_step(self, *arguments):
            return {"loss": 0.0}

    x = library.Input((4,))
    assert copied(Scaled(x, library.layers.Dense(1)(x))).train_step() == {"loss": 0.0}


def test_a_class_with_a_constructor_of_its_own_becomes_a_plain_model():
    class Narrow(keras.Model):
        def __init__(self, units):
            x = keras.Input((4,), name="x")
            super().__init__(x, keras.layers.Dense(units, name="y")(x))

    model = Narrow(3)
    copy = copy_model(model_handle.wrap(model)).model
    assert not isinstance(copy, Narrow) and isinstance(copy, keras.Model)
    equal_outputs(model, copy, np.ones((2, 4), np.float32))


@pytest.mark.parametrize("library", BOTH)
def test_random_states_are_copied(library):
    x = library.Input((64,))
    model = library.Model(x, library.layers.Dropout(0.5)(library.layers.Dense(64, kernel_initializer="identity")(x)))
    copy = copied(model)
    if library is keras:  # Keras 2 draws from TensorFlow's global generator
        ones = np.ones((1, 64), np.float32)
        np.testing.assert_array_equal(model(ones, training=True), copy(ones, training=True))


def test_several_inputs_and_outputs_keep_their_structures_in_keras_3():
    a, b = keras.Input((2,), name="a"), keras.Input((3,), name="b")
    joined = keras.ops.relu(keras.layers.Concatenate()([a, b]))
    outputs = {"y": keras.layers.Dense(1, name="y")(joined), "z": keras.layers.Dense(2, name="z")(joined)}
    model = keras.Model({"a": a, "b": b}, outputs)
    rows = {"a": np.ones((2, 2), np.float32), "b": np.ones((2, 3), np.float32)}
    expected, actual = model(rows), copied(model)(rows)
    assert set(actual) == {"y", "z"}
    for name, value in actual.items():
        np.testing.assert_array_equal(value, expected[name])


def test_tied_weights_stay_tied():
    first, second = (tf_keras.layers.Dense(4, use_bias=False, name=name) for name in ("first", "second"))
    x = tf_keras.Input((4,))
    model = tf_keras.Model(x, second(first(x)))
    second.kernel = first.kernel
    copy = copied(model)
    assert copy.get_layer("first").kernel is copy.get_layer("second").kernel
    assert model_handle.wrap(copy).tied == {"second": "first"}


def test_an_added_loss_is_copied():
    x = tf_keras.Input((4,))
    hidden = tf_keras.layers.Dense(4)(x)
    model = tf_keras.Model(x, tf_keras.layers.Dense(1)(hidden))
    model.add_loss(tf.reduce_mean(hidden) ** 2)
    model.compile("sgd", "mse")
    rows, zeros = np.ones((4, 4), np.float32), np.zeros((4, 1), np.float32)
    assert copied(model).evaluate(rows, zeros, verbose=0) == model.evaluate(rows, zeros, verbose=0)


def test_a_vocabulary_is_copied():
    words = tf_keras.Input((), dtype=tf.string)
    lookup = tf_keras.layers.StringLookup(vocabulary=["a", "b"], output_mode="one_hot", name="lookup")
    model = tf_keras.Model(words, tf_keras.layers.Dense(2, name="y")(lookup(words)))
    equal_outputs(model, copied(model), tf.constant(["b", "a", "unknown"]))


@pytest.mark.parametrize("library", BOTH)
def test_a_subclassed_model_with_a_configuration(library):
    @library.utils.register_keras_serializable("tests")
    class Subclassed(library.Model):
        def __init__(self, units=3, **arguments):
            super().__init__(**arguments)
            self.units, self.hidden = units, library.layers.Dense(units, name="hidden")

        def call(self, x):
            return self.hidden(x)

        def get_config(self):
            return {"units": self.units}

    model = Subclassed()
    rows = np.ones((2, 4), np.float32)
    model(rows)
    pruned = prune(model, PruningPlan(protect=(), sparsity=0.5))
    assert np.count_nonzero(pruned.model.hidden.kernel.numpy()) == 6
    assert np.count_nonzero(model.hidden.kernel.numpy()) == 12


def test_a_subclassed_model_without_a_configuration_is_rejected():
    class Subclassed(keras.Model):
        def __init__(self, layer):
            super().__init__(name="mine")
            self.hidden = layer

        def call(self, x):
            return self.hidden(x)

    model = Subclassed(keras.layers.Dense(3))
    model(np.ones((2, 4), np.float32))
    with raises(ModelError, code="not-copyable", match="'mine'"):
        prune(model, PruningPlan(protect=()))


# Models with signatures


@contextlib.contextmanager
def unchanged(handle):
    before = [np.array(weight.numpy()) for weight in handle.weights]
    yield
    for weight, values in zip(handle.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), values)


@pytest.mark.slow
@pytest.mark.parametrize("by_handle", [True, False])
def test_a_loaded_keras_2_model_keeps_its_signatures(tmp_path, by_handle):
    path = helpers.save_with_examples_signature(helpers.small_dense(), tmp_path / "trained", "x", (4,))
    handle = model_handle.load(path) if by_handle else model_handle.wrap(tf_keras.models.load_model(path))
    handle.model.get_layer("hidden").bias.assign_add(tf.ones([16]))  # no longer what the files hold
    with unchanged(handle):
        pruned = prune(handle, PruningPlan(protect=(), sparsity=0.75))
    x, _ = helpers.points(5)
    pruned.save(str(tmp_path / "pruned"))
    answer = helpers.answers(str(tmp_path / "pruned"), examples=helpers.serialized({"x": x}))["probabilities"]
    np.testing.assert_allclose(answer, pruned.model(x / helpers.LARGEST), atol=1e-6)


def test_a_saved_model_without_layers(tmp_path):
    weights = tf.Variable(np.arange(1.0, 13.0).reshape(4, 3).astype(np.float32), name="w")
    serve = lambda x: {"y": x @ weights}  # noqa: E731
    path = helpers.save_function(serve, [tf.TensorSpec([None, 4], tf.float32, "x")], tmp_path / "m", w=weights)
    handle = model_handle.load(path)
    handle.model.variables["w"].assign_add(tf.ones([4, 3]))
    with unchanged(handle):
        pruned = prune(handle, PruningPlan(protect=(), sparsity=0.5))
    kept = pruned.model.variables["w"].numpy()
    np.testing.assert_array_equal(kept, np.where(pruned.masks["w"], handle.model.variables["w"].numpy(), 0))
    pruned.save(str(tmp_path / "pruned"))
    np.testing.assert_array_equal(model_handle.load(str(tmp_path / "pruned")).kernels["w"].values, kept)


@pytest.mark.parametrize("library", BOTH)
def test_a_saved_model_beside_a_keras_file(tmp_path, library):
    model = helpers.small_dense() if library is tf_keras else kinds.keras3_dense()
    model.compile("sgd", "mse")
    folder = tmp_path / "model"
    model.export(str(folder))
    model.save(str(folder / "model.keras"))
    handle = model_handle.load(str(folder))
    assert handle.matching is not None
    with unchanged(handle):
        pruned = prune(handle, PruningPlan(protect=(), sparsity=0.75))
    pruned.save(str(tmp_path / "pruned"))
    for values in model_handle.load(str(tmp_path / "pruned")).kernels.values():
        assert np.mean(values.values == 0) == 0.75
