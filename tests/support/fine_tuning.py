"""Small models, data and comparisons for tests of fine-tuning."""

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tfx_compression.pruning.plan import PruningPlan
from tfx_compression.pruning.prune import prune
from tfx_compression.sparsity_fine_tuner.config import FineTuning
from tfx_compression.sparsity_fine_tuner.fine_tune import fine_tune

from tests.support import helpers, nets

LIBRARIES = [pytest.param(tf_keras, id="keras2"), pytest.param(keras, id="keras3")]


@contextlib.contextmanager
def running_eagerly() -> Iterator[None]:
    """Runs all functions eagerly: Python code in a step sees values, and no time is spent on tracing."""
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


def unprotected_plan(**fields: Any) -> PruningPlan:
    """Returns a plan that may prune every layer."""
    return PruningPlan(protect=(), **fields)


# A regression of four numbers.


def squared_error(labels: Any, predictions: Any) -> Any:
    """Returns a loss that Keras has no name for."""
    return tf.reduce_mean(tf.square(labels - predictions), axis=-1)


def pruned_dense(
    optimizer: Any = "adam", loss: Any = "mse", dropout: float = 0.0, run_eagerly: bool = True
) -> tf_keras.Model:
    """Returns a compiled `small_dense` with half of its weights pruned. It is eager: tracing takes longer."""
    model = helpers.small_dense(dropout=dropout)
    model.compile(optimizer, loss, run_eagerly=run_eagerly)
    return prune(model, unprotected_plan(sparsity=0.5)).model


def dense_gradients(values: Mapping[str, np.ndarray], network: Any, x: Any, y: Any) -> dict[str, np.ndarray]:
    """Returns the gradients of the mean squared error of `nets.dense` with respect to kernels of these values."""
    kernels = {name: tf.Variable(values[name]) for name in nets.KERNELS}
    _, bias, _, last_bias = (tf.convert_to_tensor(weight) for weight in network.get_weights())
    with tf.GradientTape() as tape:
        hidden = tf.nn.relu(x @ kernels["hidden"] + bias)
        loss = tf.reduce_mean((hidden @ kernels["y"] + last_bias - y) ** 2)
    return {name: value.numpy() for name, value in tape.gradient(loss, kernels).items()}


def rigl_update(weights: np.ndarray, growth: np.ndarray, active: np.ndarray, fraction: float) -> set[tuple[int, ...]]:
    """Returns the active elements after one update of RigL, by the paper's rule element by element."""
    places = [tuple(place) for place in np.argwhere(active)]
    count = math.floor(fraction * len(places))
    dropped = sorted(places, key=lambda place: weights[place])[:count]
    stays = set(places) - set(dropped)
    empty = [place for place in np.ndindex(*active.shape) if place not in stays]
    grown = sorted(empty, key=lambda place: -growth[place])[:count]
    return stays | set(grown)


# Classification of four numbers, in eager mode and in both Keras.


def classifier(library: Any, optimizer: Any = "sgd", seed: int = 3, **compiled: Any) -> Any:
    """Returns a compiled model from four numbers to the probabilities of three classes."""
    library.utils.set_random_seed(seed)
    x = library.Input((4,), name="x")
    hidden = library.layers.Dense(8, activation="relu", name="hidden")(x)
    model = library.Model(x, library.layers.Dense(3, activation="softmax", name="y")(hidden))
    compiled = {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"], **compiled}
    model.compile(optimizer=optimizer, run_eagerly=True, **compiled)
    return model


def class_batches(rows: int = 48, size: int = 16, weights: bool = False) -> tf.data.Dataset:
    """Returns batches for `classifier`, with sample weights on request."""
    x, y = helpers.points(rows)
    labels = (y[:, 0] > 0).astype(np.int64) + (y[:, 1] > 0)
    parts = (x, labels, np.linspace(0.0, 2.0, rows).astype(np.float32)) if weights else (x, labels)
    return tf.data.Dataset.from_tensor_slices(parts).batch(size)


def optimizer_of(library: Any, name: str) -> Any:
    """Returns an optimizer of a Keras library."""
    return {
        "sgd": lambda: library.optimizers.SGD(0.1, momentum=0.9),
        "adam": lambda: library.optimizers.Adam(0.05),
        "ema": lambda: library.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9),
    }[name]()


def require_same_training(
    library: Any, optimizer: str, data: tf.data.Dataset, config: FineTuning, **fit: Any
) -> tuple[Any, Any]:
    """Asserts that fine_tune without masks trains a `classifier` like Keras' `fit`. Returns both histories."""
    tuned_model, fitted = (classifier(library, optimizer_of(library, optimizer)) for _ in range(2))
    before = tuned_model.get_weights()
    for one, other in zip(before, fitted.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    tuned = fine_tune(tuned_model, data, config, masks={}, validation_data=class_batches(32))
    history = fitted.fit(
        data, epochs=config.epochs, shuffle=False, verbose=0, validation_data=class_batches(32), **fit
    ).history
    for one, other, old in zip(tuned_model.get_weights(), fitted.get_weights(), before, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)
        assert (one != old).any()
    return tuned.history, history


# Classification of eight numbers.


def class_rows() -> tuple[np.ndarray, np.ndarray]:
    """Returns 96 rows of eight numbers and their classes."""
    x = np.random.default_rng(0).normal(size=(96, 8)).astype(np.float32)
    return x, (x[:, :3].argmax(axis=1)).astype(np.int64)


def wide_batches(size: int = 16) -> tf.data.Dataset:
    """Returns the rows of `class_rows` in batches."""
    return helpers.batches(*class_rows(), size=size)


def softmax_classifier(optimizer: Any = "adam", run_eagerly: bool = True) -> tf_keras.Model:
    """Returns a compiled model from eight numbers to the probabilities of three classes."""
    tf_keras.utils.set_random_seed(1)
    layers = tf_keras.layers
    stack = [layers.Dense(16, activation="relu"), layers.Dense(3, activation="softmax")]
    model = tf_keras.Sequential([tf_keras.Input((8,)), *stack])
    model.compile(optimizer, "sparse_categorical_crossentropy", ["accuracy"], run_eagerly=run_eagerly)
    return model


def evaluate(model: Any) -> dict[str, float]:
    """Returns loss and metrics of a `softmax_classifier` on its rows."""
    return model.evaluate(wide_batches(), verbose=0, return_dict=True)
