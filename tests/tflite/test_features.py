"""Features in the shapes of a model's inputs."""

import numpy as np
import pytest
from tensorflow_model_analysis.api import types as tfma_types
from tfx_compression.errors import ModelError
from tfx_compression.tflite.features import fit_feature, pad_rows

from tests.support.errors import raises

RAGGED = tfma_types.RaggedTensorValue(np.float32([1, 2, 3]), [np.array([0, 0, 3])])  # as TFMA passes an empty row


@pytest.mark.parametrize(
    ("values", "shape", "expected"),
    [
        (np.zeros([4, 64]), (-1, 8, 8, 1), (4, 8, 8, 1)),
        (np.zeros([4, 8, 8]), (-1, 8, 8, 1), (4, 8, 8, 1)),
        (np.zeros([4]), (-1, 1), (4, 1)),
        (np.zeros([4, 1]), (-1,), (4,)),
        (np.zeros([4, 5, 3]), (-1, -1, 3), (4, 5, 3)),
        (np.zeros([4, 15]), (-1, -1, 3), (4, 5, 3)),
    ],
)
def test_a_feature_takes_the_shape_of_the_input_and_keeps_free_sizes(values, shape, expected):
    assert fit_feature("x", {"x": values}, shape, False, "model").shape == expected


@pytest.mark.parametrize("dtype", [object, bytes, str], ids=["objects", "bytes", "text"])
def test_strings_stay_as_they_are(dtype):
    values = np.array([["yes"], ["no"]], dtype)
    fitted = fit_feature("x", {"x": values}, (-1,), True, "model")
    assert fitted.tolist() == values[:, 0].tolist()


@pytest.mark.parametrize(
    ("features", "code", "place"),
    [
        ({}, "missing-feature", "'x'.*none"),
        ({"z": np.zeros([2, 3]), "y": np.zeros(2)}, "missing-feature", "'x'.*y, z"),
        ({"x": None}, "incomplete-feature", "'x'"),
        ({"x": np.array([np.zeros(3), None], object)}, "incomplete-feature", "'x'"),
        ({"x": np.array([np.zeros(3), np.zeros(2)], object)}, "incomplete-feature", "'x'"),
        ({"x": RAGGED}, "incomplete-feature", "'x'"),
        ({"x": np.zeros([2, 4])}, "feature-shape", r"'x'.*\(2, 4\).*\(-1, 3\)"),
        ({"x": np.zeros([])}, "feature-shape", "'x'"),
        ({"x": np.array([[b"a", b"b", b"c"]])}, "feature-type", "'x'"),
    ],
)
def test_a_feature_that_does_not_fit_is_named(features, code, place):
    with raises(ModelError, code=code, match=place):
        fit_feature("x", features, (-1, 3), False, "model")


def test_numbers_for_a_string_input_are_refused():
    with raises(ModelError, code="feature-type", match="'x'"):
        fit_feature("x", {"x": np.array([1])}, (-1,), True, "model")


def test_the_last_row_is_repeated():
    rows = np.arange(4).reshape(2, 2)
    assert pad_rows(rows, 2) is rows
    np.testing.assert_array_equal(pad_rows(rows, 4), [[0, 1], [2, 3], [2, 3], [2, 3]])
