"""Errors of outputs against NumPy's correlation, and the outputs for which a correlation says nothing."""

import numpy as np
import pytest
from tfx_compression.errors import ModelError
from tfx_compression.tflite_quantizer.config import Quantization
from tfx_compression.tflite_quantizer.output_errors import output_error, require_similar
from tfx_compression.tflite_quantizer.record import LayerError

from tests.support.conversions import normal
from tests.support.errors import raises


def check(error, minimum=0.5, layers=()):
    require_similar([error], layers, Quantization(min_output_cosine=minimum), "rows")


def test_the_cosine_of_an_output_that_varies_is_a_correlation():
    x = normal(50, 1) + 3
    y = x + 0.5 * normal(50, 1, seed=1)
    y += x.mean() - y.mean()
    error = output_error("y", x, y)
    assert error.centered
    assert error.cosine == pytest.approx(np.corrcoef(x.ravel(), y.ravel())[0, 1], abs=1e-6)
    assert error.max_error == pytest.approx(np.abs(x - y).max())
    check(error)


@pytest.mark.parametrize("classes", [2, 10])
def test_one_class_for_every_row_is_far_off(classes):
    x = np.eye(classes, dtype=np.float32)[np.arange(40) % classes]
    one = np.tile(np.eye(classes, dtype=np.float32)[0], (40, 1))
    assert output_error("y", x, one).cosine == pytest.approx(0.0, abs=1e-6)
    with raises(ModelError, code="output-differs", field="Quantization.min_output_cosine"):
        check(output_error("y", x, one))


def test_a_shifted_output_is_far_off():
    x = normal(50, 4)
    assert output_error("y", x, x + 10).cosine < 0.5


def test_rounding_of_an_output_that_hardly_varies_is_close():
    """An untrained softmax varies by less than a step of 8 bits."""
    x = np.full((30, 10), 0.1, np.float32) + 0.001 * normal(30, 10)
    error = output_error("y", x, np.round(x * 256) / 256)
    assert not error.centered and error.cosine > 0.99
    assert not error.constant
    deviations = x - x.mean(axis=0)
    rounded = np.round(x * 256) / 256 - x.mean(axis=0)
    expected = np.vdot(deviations, rounded) / np.linalg.norm(deviations) / np.linalg.norm(rounded)
    assert error.centered_cosine == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_one_value_for_all_rows_is_told_from_variation_beyond_rounding(offset):
    x = offset + 0.1 * normal(50, 1)
    error = output_error("y", x, np.full_like(x, x.mean() + 0.1))
    assert error.constant and abs(error.centered_cosine) < 0.01
    assert (error.cosine < 0.01) == (offset == 0.0)
    assert not output_error("y", x, x).constant
    assert output_error("y", np.arange(5), np.zeros(5, int)).constant
    hardly = 300.0 + 1e-4 * normal(50, 1)  # float32 has steps of 3e-5 there
    error = output_error("y", hardly, np.full_like(hardly, 300.0))
    assert not error.constant and error.centered_cosine is None


@pytest.mark.parametrize("shape", [(1, 4), (8, 1), (3,)])
def test_constant_outputs_compare_by_their_values(shape):
    x = np.full(shape, 2.0, np.float32)
    assert output_error("y", x, x * 1.01).cosine == pytest.approx(1.0)
    assert output_error("y", x, -x).cosine == pytest.approx(-1.0)
    assert output_error("y", x, 0 * x).cosine == 0.0


def test_zeros_have_no_direction():
    zeros = np.zeros((3, 2), np.float32)
    error = output_error("y", zeros, zeros)
    assert error.cosine is None
    check(error)
    assert output_error("y", zeros, zeros + 1).cosine == 0.0


def test_integers_have_no_direction():
    error = output_error("y", np.array([1, 2, 3]), np.array([3, 2, 1]))
    assert (error.cosine, error.max_error) == (None, 2.0)
    check(error)


def test_values_that_become_nan_are_refused():
    x = normal(4, 2)
    y = x.copy()
    y[1, 1] = np.nan
    with raises(ModelError, code="output-differs", match="'y'.*'conv'"):
        check(output_error("y", x, y), layers=[LayerError(layer="conv", op="", snr_db=3.0, max_error=0, cosine=None)])
    check(output_error("y", x, y), minimum=None)
    assert output_error("y", y, y).max_error == 0.0
    assert output_error("y", y, x).finite


def test_without_a_limit_everything_is_accepted():
    check(output_error("y", normal(4, 2), -normal(4, 2)), minimum=None)
