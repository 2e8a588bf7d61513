"""Statistics of batch normalizations after channels were removed, compared with NumPy's."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tfx_compression.errors import DataError
from tfx_compression.pruning.batch_statistics import LEAST_ROWS, recalibrate
from tfx_compression.pruning.plan import PruningPlan
from tfx_compression.pruning.prune import prune

from tests.support import helpers
from tests.support.errors import raises

both_keras = pytest.mark.parametrize("K", [tf_keras, keras], ids=["keras2", "keras3"])
EPSILON = 0.001
ROWS = 100


def network(K):
    x = K.Input((6,), name="x")
    hidden = K.layers.Dense(8, use_bias=False, name="first")(x)
    hidden = K.layers.BatchNormalization(epsilon=EPSILON, name="norm")(hidden)
    hidden = K.layers.Dropout(0.5)(K.layers.ReLU()(hidden))
    inner = K.Input((8,))
    inner = K.Model(inner, K.layers.BatchNormalization(epsilon=EPSILON, name="inner_norm")(inner), name="inner")
    return K.Model(x, K.layers.Dense(2, name="out")(inner(K.layers.Dense(8, name="second")(hidden))), name="network")


def moments(layer):
    return np.stack([layer.moving_mean.numpy(), layer.moving_variance.numpy()])


def rows(count=ROWS):
    return np.random.default_rng(0).normal(2.0, 3.0, size=(count, 6)).astype(np.float32)


@both_keras
def test_the_moments_are_those_of_all_batches(K):
    model, x = network(K), rows()
    first, (second, bias) = (
        model.get_layer("first").weights[0].numpy(),
        map(np.array, model.get_layer("second").weights),
    )

    recalibrate(model, helpers.batches(x, np.zeros(ROWS), 7), batches=60, batch_size=32)

    values = x @ first
    expected = np.stack([values.mean(axis=0), values.var(axis=0)])
    np.testing.assert_allclose(moments(model.get_layer("norm")), expected, rtol=1e-4, atol=1e-4)
    normalized = [
        (part - part.mean(axis=0)) / np.sqrt(part.var(axis=0) + EPSILON) for part in np.split(values, [32, 64, 96])
    ]
    values = np.maximum(np.concatenate(normalized), 0) @ second + bias
    expected = np.stack([values.mean(axis=0), values.var(axis=0)])
    inner = model.get_layer("inner").get_layer("inner_norm")
    np.testing.assert_allclose(moments(inner), expected, rtol=1e-4, atol=1e-4)
    assert inner.momentum == 0.99


@both_keras
def test_frozen_normalizations_and_too_few_rows_change_nothing(K):
    model = network(K)
    model.get_layer("norm").trainable = False
    recalibrate(model, helpers.batches(rows(), np.zeros(ROWS)), 60, 32)
    np.testing.assert_array_equal(moments(model.get_layer("norm")), [np.zeros(8), np.ones(8)])
    few = LEAST_ROWS - 1
    before = moments(model.get_layer("inner").get_layer("inner_norm"))
    _, (note,) = recalibrate(model, helpers.batches(rows(few), np.zeros(few)), 60, 32)
    np.testing.assert_array_equal(moments(model.get_layer("inner").get_layer("inner_norm")), before)
    assert f"{few} rows" in note


@pytest.mark.parametrize("batches", [0, 60])
def test_pruning_with_data_recalibrates_as_the_plan_says(batches):
    plan = PruningPlan(technique="neuron", protect=(), sparsity=0.5, recalibrate_batches=batches)
    pruned = prune(network(tf_keras), plan, helpers.batches(rows(), np.zeros(ROWS)))
    left = np.array([1.0] * 4, np.float32)
    assert (moments(pruned.model.get_layer("norm"))[1] == left).all() == (batches == 0)
    assert any("computed anew on 100 rows" in note for note in pruned.record.notes) == (batches > 0)
    for group in pruned.record.groups:
        assert ("computed anew" in group.inexact) == (batches > 0 and group.kept < group.elements)


@both_keras
@pytest.mark.parametrize("activation", ["sigmoid", "relu"])  # the first is averaged on the data, too
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_data_that_is_not_finite_is_refused_with_its_place(K, activation, value):
    x = K.Input((6,), name="x")
    hidden = K.layers.BatchNormalization()(K.layers.Dense(4, activation=activation)(x))
    model = K.Model(x, K.layers.Dense(2)(hidden))
    values = rows()
    values[[40, 70], 1] = value
    with raises(DataError, code="not-finite", field="data", match="'x' .* 1 of the data's first 64 rows, row 40"):
        plan = PruningPlan(technique="neuron", protect=(), sparsity=0.5, batch_size=32)
        prune(model, plan, helpers.batches(values, np.zeros(ROWS), 32))


def test_moments_that_are_not_finite_are_left_as_they_are():
    x = tf_keras.Input((6,))
    model = tf_keras.Model(x, tf_keras.layers.BatchNormalization(name="norm")(tf_keras.layers.Lambda(tf.exp)(x)))
    changed, (note,) = recalibrate(model, helpers.batches(100 * rows(), np.zeros(ROWS)), 60, 32)
    np.testing.assert_array_equal(moments(model.get_layer("norm")), [np.zeros(6), np.ones(6)])
    assert not changed and "'norm'" in note


def test_a_strategy_leaves_them_with_a_note():
    with tf.distribute.OneDeviceStrategy("cpu:0").scope():
        changed, (note,) = recalibrate(network(tf_keras), helpers.batches(rows(), np.zeros(ROWS)), 60, 32)
    assert not changed and "strategy" in note
