"""Iteration over datasets."""

from collections.abc import Iterator
from typing import Any

import tensorflow as tf


def elements(data: tf.data.Dataset | tf.data.Iterator) -> Iterator[Any]:
    """Yields the elements of a dataset.

    A plain `for` loop reads past the end, about which TensorFlow prints a warning each time.
    """
    iterator = iter(data)
    while True:
        element = iterator.get_next_as_optional()
        if not element.has_value():
            return
        yield element.get_value()


def numpy_elements(data: tf.data.Dataset) -> Iterator[Any]:
    """Yields the elements of a dataset with NumPy arrays for tensors, as `as_numpy_iterator` does."""
    for element in elements(data):
        yield tf.nest.map_structure(lambda tensor: tensor.numpy() if hasattr(tensor, "numpy") else tensor, element)
