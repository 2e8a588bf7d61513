"""Data that doesn't fit a model is refused before Keras sees it, and nothing else is."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tfx_compression.data.batches import as_batches
from tfx_compression.errors import DataError
from tfx_compression.keras_models.data_check import explained_labels, require_fitting

from tests.support.errors import raises

X, CLASSES = np.zeros((6, 4, 2), np.float32), np.arange(6) % 3
ONE_HOT = np.eye(3, dtype=np.float32)[CLASSES]
TEXT = np.array(["a"] * 6)


@pytest.fixture(params=[tf_keras, keras], ids=["keras2", "keras3"])
def library(request):
    return request.param


def net(library, loss="sparse_categorical_crossentropy"):
    inputs = library.Input((4, 2), name="x")
    outputs = library.layers.Dense(3, activation="softmax")(library.layers.Flatten()(inputs))
    model = library.Model(inputs, outputs)
    model.compile("sgd", loss)
    return model


def dataset(*parts):
    return tf.data.Dataset.from_tensor_slices(parts)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (None, "not-batches"),
        (dataset(X, CLASSES), "not-batches"),
        (dataset(X, ONE_HOT), "not-batches"),
        (dataset(X[:, :3], CLASSES).batch(2), "feature-shape"),
        (dataset(X[:, :, 0], CLASSES).batch(2), "feature-shape"),
        (dataset({"y": X}, CLASSES).batch(2), "missing-feature"),
        (dataset(np.full(X.shape, "a"), CLASSES).batch(2), "feature-type"),
        (dataset(X).batch(2), "no-labels"),
        (dataset(X, TEXT).batch(2), "string-labels"),
        (dataset(X, ONE_HOT).batch(2), "label-shape"),
    ],
)
def test_data_that_does_not_fit_is_refused(library, data, code):
    with raises(DataError, code=code, field="data"):
        require_fitting(net(library), data)


@pytest.mark.parametrize("as_function", [False, True])
def test_one_hot_losses_take_one_hot_labels(library, as_function):
    model = net(library, library.losses.categorical_crossentropy if as_function else "categorical_crossentropy")
    require_fitting(model, as_batches((X, ONE_HOT)))
    with raises(DataError, code="label-shape", field="validation_data"):
        require_fitting(model, as_batches((X, CLASSES)), "validation_data")


@pytest.mark.parametrize(
    "data",
    [
        dataset(X, CLASSES).batch(2),
        dataset(X, CLASSES[:, None], np.ones(6)).batch(2),
        dataset({"x": X, "more": X}, CLASSES).batch(2),
        dataset(X[..., None], CLASSES).batch(2),
        dataset(X, CLASSES).repeat().batch(2, drop_remainder=True),
        tf.data.Dataset.from_generator(lambda: [(X, CLASSES)], (tf.float32, tf.int64)),
    ],
    ids=["batches", "weights", "by name", "last axis of 1", "fixed batch", "unknown shapes"],
)
def test_data_that_fits_is_not(library, data):
    require_fitting(net(library), data)


def test_a_label_out_of_range_is_named(library):
    model = net(library)
    with raises(DataError, code="label-range", match="12"), explained_labels():
        model.train_on_batch(X, CLASSES + 10)
