"""Mode cluster: few values per kernel, which train."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tfx_compression import model_handle
from tfx_compression.sparsity_fine_tuner.config import FineTuning
from tfx_compression.sparsity_fine_tuner.fine_tune import fine_tune

from tests.support import helpers, nets

MSE = {"loss": "mse", "learning_rate": 0.02}


@pytest.mark.parametrize("kind", nets.EVERY_KIND)
@pytest.mark.parametrize("clusters", [2, 5])
def test_kernels_keep_few_values_and_their_zeros(kind, clusters, tmp_path):
    pruned = nets.pruned(nets.dense(kind, tmp_path), sparsity=0.5)
    recorder = nets.recorder(pruned.handle)
    config = FineTuning(mode="cluster", clusters=clusters, epochs=1, optimizer="adam", **MSE)
    fine_tune(pruned, nets.points(), config, callbacks=[recorder])
    for kernels in recorder.kernels[1:]:
        for name, mask in pruned.masks.items():
            assert np.unique(kernels[name]).size <= clusters
            assert not kernels[name][~mask].any()
    assert np.unique(recorder.kernels[-1]["hidden"]).size == clusters
    assert (recorder.kernels[1]["hidden"] != recorder.kernels[-1]["hidden"]).any()  # the values train


def test_dense_model_is_clustered():
    model = nets.dense("keras2", None)
    config = FineTuning(mode="cluster", clusters=3, epochs=1, learning_rate=0.01)
    tuned = fine_tune(model, nets.points(32), config)
    assert not tuned.masks
    assert {np.unique(value).size for value in nets.kernels(model).values()} == {3}


def test_clusters_train_by_the_mean_gradient_of_their_weights():
    """Compares with one step of SGD by hand."""
    model = nets.dense("keras2", None)
    before = nets.kernels(model)
    x, y = helpers.points(32)
    config = FineTuning(mode="cluster", clusters=4, epochs=1, learning_rate=1e-30)
    fine_tune(model, nets.points(32, size=32), config)
    held = nets.kernels(model)
    kernel = tf.Variable(held["hidden"])
    network = model.model
    with tf.GradientTape() as tape:
        hidden = tf.nn.relu(x @ kernel + network.get_layer("hidden").bias)
        loss = tf.reduce_mean((network.get_layer("y")(hidden) - y) ** 2)
    gradient = tape.gradient(loss, kernel).numpy()
    expected = held["hidden"].copy()
    for value in np.unique(held["hidden"]):
        place = held["hidden"] == value
        assert value == pytest.approx(before["hidden"][place].mean(), rel=1e-5)
        expected[place] -= 0.1 * gradient[place].mean()
    config = FineTuning(mode="cluster", clusters=4, epochs=1, learning_rate=0.1)
    fine_tune(model, nets.points(32, size=32), config)
    np.testing.assert_allclose(nets.kernels(model)["hidden"], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("clusters", [2, 3, 4])
def test_shared_weights_are_clustered_once(clusters):
    first = tf_keras.layers.Dense(4, name="first")
    second = tf_keras.layers.Dense(4, name="second")
    x = tf_keras.Input((4,))
    first.build((None, 4))
    second.build((None, 4))
    second.kernel = first.kernel
    model = tf_keras.Model(x, second(tf_keras.layers.ReLU()(first(x))))
    model.compile("adam", "mse", run_eagerly=True)
    assert model_handle.wrap(model).tied == {"second": "first"}
    pruned = nets.pruned(model, sparsity=0.5)
    data = helpers.batches(*2 * (helpers.points(32)[0],))
    config = FineTuning(mode="cluster", clusters=clusters, epochs=1, learning_rate=0.01)
    tuned = fine_tune(pruned, data, config)
    values = pruned.model.get_layer("first").kernel.numpy()
    np.testing.assert_array_equal(pruned.model.get_layer("second").kernel.numpy(), values)
    assert np.unique(values).size == clusters
    assert np.mean(values == 0) == 0.5
    assert set(tuned.masks) == {"first"}
