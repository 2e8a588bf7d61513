"""Training data: class weights, weights of rows, and data that is empty or never ends."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tfx_compression.errors import ConfigError, ModelError
from tfx_compression.sparsity_fine_tuner.config import FineTuning
from tfx_compression.sparsity_fine_tuner.fine_tune import fine_tune
from tfx_compression.sparsity_fine_tuner.training_data import seeded_passes

from tests.support import helpers, nets
from tests.support.errors import raises
from tests.support.fine_tuning import LIBRARIES, class_batches, classifier, pruned_dense, require_same_training

slow = pytest.mark.slow


@pytest.mark.slow
@pytest.mark.parametrize("library", LIBRARIES)
def test_class_weights_equal_keras_fit(library):
    weights = {0: 0.2, 1: 3.0, 2: 1.0}
    config = FineTuning(epochs=2, learning_rate=0.1, class_weights=weights)
    history, fitted = require_same_training(library, "sgd", class_batches(), config, class_weight=weights)
    np.testing.assert_allclose([logs["val_loss"] for logs in history], fitted["val_loss"], rtol=1e-5)


@pytest.mark.parametrize("library", LIBRARIES)
def test_sample_weights_equal_keras_fit(library):
    require_same_training(library, "sgd", class_batches(weights=True), FineTuning(epochs=1, learning_rate=0.1))


def test_sample_and_class_weights_multiply():
    config = FineTuning(epochs=1, learning_rate=0.1, class_weights={0: 0.2, 1: 3.0})
    table = tf.constant([0.2, 3.0, 1.0])
    both, by_row = classifier(tf_keras), classifier(tf_keras)
    fine_tune(both, class_batches(weights=True), config, masks={})
    weighted = class_batches(weights=True).map(lambda x, y, weight: (x, y, weight * tf.gather(table, y)))
    fine_tune(by_row, weighted, FineTuning(epochs=1, learning_rate=0.1), masks={})
    for one, other in zip(both.get_weights(), by_row.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@slow
def test_classes_without_a_weight_and_one_hot_labels():
    plain = classifier(tf_keras)
    encoded = classifier(tf_keras, loss="categorical_crossentropy")
    config = FineTuning(epochs=1, learning_rate=0.1, class_weights={1: 3.0})
    fine_tune(plain, class_batches(), config, masks={})
    fine_tune(encoded, class_batches().map(lambda x, y: (x, tf.one_hot(y, 3))), config, masks={})
    fitted = classifier(tf_keras, tf_keras.optimizers.SGD(0.1))
    fitted.fit(class_batches(), class_weight={0: 1.0, 1: 3.0, 2: 1.0}, shuffle=False, verbose=0)
    for one, two, three in zip(plain.get_weights(), encoded.get_weights(), fitted.get_weights(), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(one, three, rtol=1e-5, atol=1e-7)


def test_class_weights_of_several_outputs_are_refused():
    data = nets.points().map(lambda x, y: (x, {"y": y, "z": y}))
    with raises(ConfigError, field="FineTuning.class_weights", code="several-outputs"):
        fine_tune(nets.dense("keras2", None), data, FineTuning(class_weights={0: 2.0}))


def test_class_weights_of_several_labels_per_row_are_refused():
    data = nets.points().map(lambda x, y: (x, tf.zeros([16, 5, 3])))
    with raises(ConfigError, field="FineTuning.class_weights", code="several-labels"):
        fine_tune(nets.dense("keras2", None), data, FineTuning(class_weights={0: 2.0}))


@pytest.mark.parametrize("steps_per_epoch", [None, 3])
def test_empty_training_data_is_refused(steps_per_epoch):
    config = FineTuning(steps_per_epoch=steps_per_epoch)
    with raises(ModelError, code="training-data-empty"):
        fine_tune(nets.dense("keras2", None), nets.points().take(0), config)


def test_empty_evaluation_data_is_refused():
    with raises(ModelError, code="evaluation-data-empty"):
        fine_tune(nets.dense("keras2", None), nets.points(), FineTuning(), validation_data=nets.points().take(0))


@pytest.mark.parametrize(
    ("endless", "code"), [("data", "training-data-infinite"), ("validation_data", "evaluation-data-infinite")]
)
def test_infinite_data_requires_steps_per_epoch(endless, code):
    data = {"data": nets.points(), "validation_data": nets.points()}
    data[endless] = data[endless].repeat()
    with raises(ModelError, field="FineTuning.steps_per_epoch", code=code):
        fine_tune(pruned_dense(), config=FineTuning(epochs=1), **data)


def test_arrays_are_shuffled_for_each_pass():
    rows = np.arange(100)
    passes = seeded_passes((rows, rows), FineTuning(seed=3))
    first, again, second = (np.concatenate([x for x, _ in passes(number)]) for number in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert sorted(first) == sorted(second) == rows.tolist()
    assert (first != rows).any() and (first != second).any()


def test_arrays_train_and_the_result_trains_on():
    x, y = helpers.points(40)
    tuned = fine_tune(nets.pruned(nets.dense("keras2", None).model, sparsity=0.5), (x, y), FineTuning(epochs=1))
    masks = {name: mask.copy() for name, mask in tuned.masks.items()}
    again = fine_tune(tuned, (x, y), FineTuning(epochs=1), validation_data=(x, y))
    assert "val_loss" in again.history[0]
    for name, values in nets.kernels(again.model).items():
        assert not values[masks[name] == 0].any()
