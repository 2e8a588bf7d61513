"""Clones of layers and inputs."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tfx_compression.keras_models import clone


@pytest.fixture(params=[tf_keras, keras], ids=["keras2", "keras3"])
def library(request):
    return request.param


def clone_as_is(layer):
    return clone.clone_layer(layer, layer.get_config())


def test_a_clone_has_the_changed_configuration_and_no_weights(library):
    layer = library.layers.Dense(4, activation="relu", name="dense")
    layer.build((None, 3))
    cloned = clone.clone_layer(layer, {**layer.get_config(), "units": 2})
    assert (cloned.name, cloned.units, cloned.weights) == ("dense", 2, [])
    assert cloned(np.zeros([1, 3], np.float32)).shape == (1, 2)


def test_user_functions_need_no_registered_name(library):
    def negative(x):
        return -x

    x = np.float32([[1.0, 2.0]])
    np.testing.assert_array_equal(clone_as_is(library.layers.Activation(negative))(x), -x)


def test_user_classes_inside_a_layer_need_no_registered_name(library):
    class Doubled(library.layers.Dense):
        def call(self, inputs):
            return 2 * super().call(inputs)

    layer = library.layers.TimeDistributed(Doubled(2, kernel_initializer="ones"))
    np.testing.assert_array_equal(clone_as_is(layer)(np.ones([1, 1, 3], np.float32)), [[[6.0, 6.0]]])


def test_a_lambda_keeps_its_globals(library):
    x = np.float32([[1.0, -2.0]])
    cloned = clone_as_is(library.layers.Lambda(lambda value: tf.abs(value) + 0.0, output_shape=(2,), name="absolute"))
    assert cloned.name == "absolute"
    np.testing.assert_array_equal(cloned(x), np.abs(x))


def test_attention_can_be_built_for_another_shape(library):
    layer = library.layers.MultiHeadAttention(2, 3)
    layer(*[np.zeros([1, 5, 4], np.float32)] * 2)
    cloned = clone_as_is(layer)
    assert cloned(*[np.zeros([1, 5, 8], np.float32)] * 2).shape == (1, 5, 8)


def test_a_vocabulary_is_copied(library):
    layer = library.layers.StringLookup(vocabulary=["red", "green"])
    assert np.asarray(clone_as_is(layer)(tf.constant(["green", "blue"]))).tolist() == [2, 0]


def test_a_vocabulary_of_a_loaded_saved_model_is_copied(tmp_path):
    """Keras 2 restores the look-up, but not the vocabulary in its configuration."""
    given = tf_keras.Input((1,), dtype="string")
    look_up = tf_keras.layers.StringLookup(vocabulary=["red", "green"], name="look_up")
    tf_keras.Model(given, look_up(given)).save(tmp_path / "model", save_format="tf")
    layer = tf_keras.models.load_model(tmp_path / "model").get_layer("look_up")
    assert np.asarray(clone_as_is(layer)(tf.constant(["green", "blue"]))).tolist() == [2, 0]


def test_a_vocabulary_that_was_lost_is_named(tmp_path):
    layer = keras.layers.StringLookup(name="look_up")
    layer.adapt(["red", "green"])
    keras.Sequential([keras.Input((1,), dtype="string"), layer]).save(tmp_path / "model.h5")
    loaded = keras.models.load_model(tmp_path / "model.h5").get_layer("look_up")
    with pytest.raises(ValueError, match="'look_up' is empty"):
        clone_as_is(loaded)


def test_an_adapted_normalization_is_complete_once_its_weights_are_set(library):
    layer = library.layers.Normalization()
    layer.adapt(np.float32([[1.0], [3.0]]))
    cloned = clone_as_is(layer)
    cloned.build((None, 1))
    cloned.set_weights(layer.get_weights())
    clone.finalize_state(cloned)
    np.testing.assert_allclose(cloned(np.float32([[3.0]])), [[1.0]], atol=1e-6)
    clone.finalize_state(library.layers.ReLU())  # has no such state


def test_trainable_is_copied_for_inner_layers_too(library):
    def bidirectional():
        layer = library.layers.Bidirectional(library.layers.LSTM(2))
        layer.build((None, 3, 2))
        return layer

    source, target = bidirectional(), bidirectional()
    source.forward_layer.trainable = False
    clone.copy_trainable(source, target)
    assert (target.forward_layer.trainable, target.backward_layer.trainable) == (False, True)


@pytest.mark.parametrize("kind", ["dense", "sparse", "ragged"])
def test_an_input_keeps_its_kind(kind):
    kinds = {} if kind == "dense" else {kind: True}
    old = tf_keras.Input((None,) if kind == "ragged" else (4,), name="old", **kinds)
    new = clone.input_like(old, (None, 6), "new")
    assert type(new.type_spec) is type(old.type_spec)
    assert (new.name, tuple(new.shape)) == ("new", (None, 6))


def test_an_input_of_keras_3_keeps_its_type():
    new = clone.input_like(keras.Input((4,), dtype="int32"), (None, 6), "new")
    assert (new.name, new.dtype, tuple(new.shape)) == ("new", "int32", (None, 6))
