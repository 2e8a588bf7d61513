"""Statistics of a SavedModel without layers, through its signature."""

import numpy as np
import pytest
import tensorflow as tf
from tfx_compression import model_handle
from tfx_compression.errors import ModelError
from tfx_compression.pruning.signature_statistics import SignatureStatistics

from tests.support import helpers
from tests.support.errors import raises

X = np.arange(12.0).reshape(4, 3).astype(np.float32)
Y = np.ones((4, 2), np.float32)


@pytest.fixture(scope="module")
def handle(tmp_path_factory):
    """A linear model `x @ w`."""
    weights = tf.Variable(np.arange(6.0).reshape(3, 2).astype(np.float32) / 10, name="w")
    serve = lambda x: {"y": x @ weights}  # noqa: E731
    path = tmp_path_factory.mktemp("linear") / "model"
    return model_handle.load(helpers.save_function(serve, [tf.TensorSpec([None, 3], tf.float32, "x")], path, w=weights))


def squares(labels, outputs):
    return tf.reduce_mean(tf.square(outputs["y"] - labels), axis=-1)


def statistics(handle, features, loss_fn=squares):
    data = tf.data.Dataset.from_tensor_slices((features, Y)).batch(2)
    return SignatureStatistics(handle.model, data, handle.kernels, 4, 3, loss_fn)


@pytest.mark.parametrize("features", [X, {"x": X}], ids=["tensor", "by name"])
def test_gradients_equal_the_analytic_ones(handle, features):
    measured = statistics(handle, features)
    batch = next(iter(measured.batches()))
    expected = X[:3].T @ (X[:3] @ handle.kernels["w"].values - Y[:3]) / 3
    np.testing.assert_allclose(measured.gradients(batch, ["w"])["w"], expected, rtol=1e-5)


def test_the_loss_is_the_mean_over_rows(handle):
    expected = np.square(X @ handle.kernels["w"].values - Y).mean()
    assert statistics(handle, X).metrics() == {"loss": pytest.approx(expected, rel=1e-5)}


def test_what_follows_a_kernel_is_unknown(handle):
    measured = statistics(handle, X)
    batch = next(iter(measured.batches()))
    assert measured.gates(batch, ["w"]) == measured.activations(batch, ["w"]) == measured.scales() == {}


def test_a_loss_that_does_not_fit_the_outputs_is_rejected(handle):
    with raises(ModelError, field="loss_fn", code="loss-not-computable", match=r"\['x'\].*\['y'\]"):
        statistics(handle, X, lambda labels, outputs: outputs["z"]).metrics()
