"""Serialized tf.Examples to arrays."""

import numpy as np
import tensorflow as tf
from tfx_compression.data import example_parsing
from tfx_compression.errors import DataError

from tests.support import helpers
from tests.support.errors import raises

ROWS = 3


def test_columns_have_the_shapes_and_dtypes_that_the_model_takes():
    columns = {
        "x": np.arange(6, dtype=np.float32).reshape(ROWS, 2),
        "count": np.arange(ROWS),
        "flag": np.array([True, False, True]),
        "word": np.array([b"a", b"b", b""], object),
    }
    specs = {
        "x": tf.TensorSpec([None, 2], tf.float64),
        "count": tf.TensorSpec([None], tf.int32),
        "flag": tf.TensorSpec([None], tf.bool),
        "word": tf.TensorSpec([None], tf.string),
    }
    parsed = example_parsing.parse_columns(helpers.serialized(columns), specs)
    for name, values in columns.items():
        assert parsed[name].dtype == specs[name].dtype.as_numpy_dtype
        np.testing.assert_array_equal(parsed[name], values)


def test_rows_that_lack_a_feature_are_rejected_on_one_line():
    with raises(DataError, code="unreadable-row") as caught:
        example_parsing.parse_columns(
            helpers.serialized({"x": np.ones([1, 2])}), {"y": tf.TensorSpec([None], tf.int64)}
        )
    assert "\n" not in str(caught.value)


def test_features_of_free_size_are_rejected():
    with raises(DataError, code="free-size", match="x"):
        example_parsing.parse_columns([b""], {"x": tf.TensorSpec([None, None], tf.float32)})
