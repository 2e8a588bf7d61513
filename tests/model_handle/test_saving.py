"""Writing Keras networks: what they are compiled with, and what their signatures use."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tfx_compression import model_handle

from tests.support import helpers, kinds


def test_user_losses_and_metrics_are_copied_to_a_keras_3_network():
    class DoubledError(keras.losses.Loss):
        def call(self, y_true, y_pred):
            return 2 * keras.ops.mean((y_true - y_pred) ** 2, -1)

    def metric(y_true, y_pred):
        return keras.ops.mean(y_pred, -1)

    class Descent(keras.optimizers.SGD):
        pass

    x, _ = helpers.points(7)
    source, target = kinds.keras3_dense(), kinds.keras3_dense(units=3)
    source.compile(Descent(0.5), DoubledError(), loss_weights=[2.0], metrics=[metric, "mae"])
    y = np.ones((len(x), 2), np.float32)
    source.fit(x, y, verbose=0)
    model_handle.copy_compilation(source, target)
    assert (type(target.optimizer), float(target.optimizer.learning_rate)) == (Descent, 0.5)
    expected = 2 * 2 * np.mean((np.asarray(target(x)) - y) ** 2)
    results = target.evaluate(x, y, verbose=0, return_dict=True)
    assert results["loss"] == pytest.approx(expected, rel=1e-4)
    assert {"metric", "mae"} <= set(results)


def test_the_table_of_a_lookup_layer_is_saved_with_a_keras_3_network(tmp_path):
    word = keras.Input((1,), dtype="string", name="word")
    one_hot = keras.layers.StringLookup(vocabulary=["red", "green"], output_mode="one_hot")(word)
    model = keras.Model(word, keras.layers.Dense(2, name="y")(one_hot))
    model_handle.wrap(model).save(str(tmp_path / "model"))
    words = tf.constant([["red"], ["green"], ["none"]])
    np.testing.assert_allclose(helpers.answers(str(tmp_path / "model"), word=words)["y"], model(words), atol=1e-6)


def test_an_error_of_a_layer_arrives_as_the_layer_raised_it(tmp_path):
    class Failing(tf_keras.layers.Layer):
        def call(self, inputs):
            raise LookupError("no value")

    model = helpers.small_dense()
    model.failing = Failing()
    model.call = lambda inputs, **_: model.failing(inputs)
    with pytest.raises(LookupError, match=r"^no value$"):
        model_handle.wrap(model).save(str(tmp_path / "model"))


def test_the_optimizer_and_loss_of_a_keras_2_model_go_over_to_the_new_network(tmp_path):
    model = helpers.small_dense()
    model.compile(tf_keras.optimizers.Adam(0.01), "mse")
    narrow = tf_keras.Sequential([tf_keras.Input((4,), name="x"), tf_keras.layers.Dense(2, name="y")])
    model_handle.wrap(model).save(str(tmp_path / "narrow"), network=narrow)
    again = model_handle.load(str(tmp_path / "narrow")).model
    x, y = helpers.points(8)
    assert again.evaluate(x, y, verbose=0) == pytest.approx(np.mean((narrow(x) - y) ** 2), rel=1e-4)
