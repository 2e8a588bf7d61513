"""Batches of arrays and datasets."""

import numpy as np
import pytest
import tensorflow as tf
from tfx_compression.data.batches import as_batches
from tfx_compression.errors import DataError

from tests.support.errors import raises

X, Y = np.arange(10.0).reshape(5, 2), np.arange(5)


def read(data, **options):
    return list(as_batches(data, **options).as_numpy_iterator())


def test_a_dataset_is_returned_itself():
    dataset = tf.data.Dataset.from_tensors(X)
    assert as_batches(dataset) is dataset


def test_arrays_are_batched_in_their_order():
    first, second, third = read(X, batch_size=2)
    assert first.dtype == np.float32
    np.testing.assert_array_equal(np.concatenate([first, second, third]), X)
    assert len(third) == 1


@pytest.mark.parametrize("container", [tuple, list])
def test_features_come_with_labels_and_weights(container):
    ((features, labels, weights),) = read(container([{"x": X, "i": Y}, Y, X[:, 0]]))
    np.testing.assert_array_equal(features["x"], X)
    assert features["i"].dtype == labels.dtype == Y.dtype
    np.testing.assert_array_equal(weights, X[:, 0])


def test_features_may_be_several_arrays():
    (((one, other), labels),) = read(([X, X + 1], Y))
    np.testing.assert_array_equal(other - one, np.ones_like(X))
    np.testing.assert_array_equal(labels, Y)


def test_a_list_of_one_array_is_its_features():
    np.testing.assert_array_equal(read([X])[0], X)


def test_a_list_of_batches_is_joined():
    first, second = read([({"x": X}, Y), ({"x": X[:2] + 9}, Y[:2])], batch_size=4)
    np.testing.assert_array_equal(np.concatenate([first[0]["x"], second[0]["x"]]), np.concatenate([X, X[:2] + 9]))
    np.testing.assert_array_equal(np.concatenate([first[1], second[1]]), np.concatenate([Y, Y[:2]]))
    with raises(DataError, code="rows"):
        as_batches([(X, Y), (X[:, :1], Y)])


@pytest.mark.parametrize("strings", [np.array([b"one", b"two"], object), np.array(["one", "two"])])
def test_strings_are_kept(strings):
    np.testing.assert_array_equal(read({"word": strings})[0]["word"], [b"one", b"two"])


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (tf.data.Dataset.from_tensor_slices((X, Y)), "not-batches"),
        ((X, Y[:3]), "rows"),
        ({"x": X, "z": Y[:3]}, "rows"),
        (X[:0], "no-examples"),
        ([], "unknown-data"),
        ("data/", "unknown-data"),
        (iter([X]), "unknown-data"),
        ([[1.0, 2.0], [3.0, 4.0]], "unknown-data"),
        ((X, Y, Y, Y), "unknown-data"),
        (np.float32(1), "unknown-data"),
        ({"x": "text"}, "unknown-data"),
        ({"x": [[1.0], [1.0, 2.0]]}, "rows"),
    ],
)
def test_other_data_is_refused(data, code):
    with raises(DataError, code=code):
        as_batches(data)
