"""Models that train: optimizers, and losses of SavedModels."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tfx_compression.errors import ConfigError, ModelError
from tfx_compression.saved_models import saved_model
from tfx_compression.sparsity_fine_tuner import training_model
from tfx_compression.sparsity_fine_tuner.config import FineTuning
from tfx_compression.sparsity_fine_tuner.fine_tune import fine_tune

from tests.support import helpers, nets
from tests.support.errors import raises
from tests.support.fine_tuning import (
    LIBRARIES,
    class_batches,
    class_rows,
    classifier,
    pruned_dense,
    softmax_classifier,
    wide_batches,
)

slow = pytest.mark.slow
layers = tf_keras.layers


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("name", ["rmsprop", *(pytest.param(name, marks=slow) for name in ("adam", "SGD", "AdamW"))])
def test_optimizer_by_name_replaces_the_models_own(library, name):
    tuned, fitted = classifier(library, library.optimizers.SGD(1.0)), classifier(library, "sgd")
    fine_tune(tuned, class_batches(), FineTuning(epochs=1, optimizer=name, learning_rate=0.02), masks={})
    optimizer = library.optimizers.get(name)
    optimizer.learning_rate = 0.02
    fitted.compile(optimizer=optimizer, loss="sparse_categorical_crossentropy", run_eagerly=True)
    fitted.fit(class_batches(), shuffle=False, verbose=0)
    for one, other in zip(tuned.get_weights(), fitted.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_learning_rate_replaces_the_trainers_schedule():
    schedule = tf_keras.optimizers.schedules.ExponentialDecay(0.1, decay_steps=100, decay_rate=0.9)
    model = pruned_dense(tf_keras.optimizers.SGD(schedule))
    before = model.get_weights()
    fine_tune(model, nets.points(16), FineTuning(epochs=1, learning_rate=1e-30))
    for weight, values in zip(model.get_weights(), before, strict=True):
        np.testing.assert_allclose(weight, values, atol=1e-12)


@pytest.mark.slow
def test_variables_excluded_from_weight_decay_stay_excluded():
    optimizer = tf_keras.optimizers.AdamW(weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias", "kernel"])
    model = softmax_classifier(optimizer)
    before = [weight.copy() for weight in model.get_weights()]
    weightless = wide_batches().map(lambda x, y: (x, y, tf.zeros(tf.shape(y))))
    fine_tune(model, weightless, FineTuning(epochs=2, learning_rate=0.1), masks={})
    for weight, values in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, values)


# Losses of SavedModels.


@pytest.mark.parametrize("softmax", [True, False])
def test_cross_entropy_by_name_detects_logits(softmax, tmp_path):
    weights = tf.Variable(tf.random.stateless_normal([4, 3], [1, 2]))

    def serve(x):
        logits = tf.identity(tf.reshape(x @ weights, [-1, 3]))
        return {"y": tf.nn.softmax(logits) if softmax else logits}

    path = helpers.save_function(
        serve, [tf.TensorSpec([None, 4], tf.float32, name="x")], tmp_path / "m", weights=weights
    )
    model = training_model.from_signature(saved_model.load(path), FineTuning(loss="sparse_categorical_crossentropy"))
    x, _ = helpers.points(32)
    labels = np.arange(32) % 3
    expected = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)(labels, x @ weights)
    loss = model.evaluate(helpers.batches({"x": x}, labels, size=32), verbose=0, return_dict=True)["loss"]
    assert loss == pytest.approx(float(expected), rel=1e-4)


def _signature(path, answer) -> str:
    weights = tf.Variable(3 * tf.random.stateless_normal([8, 3], [1, 2]))

    def serve(x):
        return {"y": answer(x @ weights)}

    return helpers.save_function(serve, [tf.TensorSpec([None, 8], tf.float32, name="x")], path, weights=weights)


def _clipped(logits):
    return tf.clip_by_value(tf.cast(tf.cast(logits, tf.float64), tf.float32), -90, 90)


def _shifted(logits):
    return tf.concat([logits - tf.reduce_mean(logits, -1, keepdims=True)], -1)


def _probabilities(logits):
    return tf.nn.softmax(logits) + 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("answer", [_clipped, _shifted, _probabilities])
def test_logits_are_detected_behind_elementwise_operations(answer, tmp_path):
    path = _signature(tmp_path / "m", answer)
    x, y = class_rows()
    logits = tf.saved_model.load(path).signatures["serving_default"](x=tf.constant(x))["y"]
    expected = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=answer is not _probabilities)(y, logits)
    named = tf.data.Dataset.from_tensor_slices(({"x": x}, y)).batch(96)
    config = FineTuning(epochs=1, learning_rate=1e-9, loss="sparse_categorical_crossentropy")
    assert fine_tune(path, named, config, masks={}).history[0]["loss"] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.slow
def test_undetectable_outputs_are_refused(tmp_path):
    path = _signature(tmp_path / "m", lambda logits: tf.exp(logits) / tf.reduce_sum(tf.exp(logits), -1, keepdims=True))
    config = FineTuning(epochs=1, loss="sparse_categorical_crossentropy")
    with raises(ModelError, field="FineTuning.loss", code="logits-or-probabilities", match="Exp"):
        fine_tune(path, wide_batches(), config, masks={})


@pytest.mark.slow
def test_loss_of_the_batch_refuses_sample_weights(tmp_path):
    path = _signature(tmp_path / "m", tf.identity)
    weighted = wide_batches().map(lambda x, y: ({"x": x}, y, tf.ones(tf.shape(y))))
    with raises(ConfigError, field="loss_fn", code="loss-not-by-row"):
        fine_tune(
            path, weighted, FineTuning(epochs=1), masks={}, loss_fn=lambda y, outputs: tf.reduce_mean(outputs["y"])
        )
