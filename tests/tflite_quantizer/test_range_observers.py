"""Ranges from histograms, against searches on the values themselves and a computation by hand."""

import numpy as np
import pytest
from tfx_compression.tflite_quantizer.config import Calibration
from tfx_compression.tflite_quantizer.range_observers import OBSERVERS, EnergyHistogram, squared_error

from tests.support.conversions import squared_rounding_error

DISTRIBUTIONS = {
    "laplace": lambda generator, shape: generator.laplace(size=shape),
    "normal": lambda generator, shape: generator.normal(0.3, 1.0, size=shape),
    "lognormal": lambda generator, shape: generator.lognormal(0.0, 1.5, size=shape),
    "uniform": lambda generator, shape: generator.uniform(-3, 5, size=shape),
    "negative": lambda generator, shape: -generator.gamma(1.0, size=shape),
}


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_mse_is_the_best_range_for_any_distribution(distribution):
    values = DISTRIBUTIONS[distribution](np.random.default_rng(0), (50, 2000)).astype(np.float32)
    histogram = EnergyHistogram()
    for row in values:
        histogram.add(row)
    ends = histogram.range(Calibration(ranges="mse"))
    lows = np.unique(min(float(values.min()), 0.0) * 2.0 ** -np.linspace(0, 4, 33))
    highs = np.unique(max(float(values.max()), 0.0) * 2.0 ** -np.linspace(0, 4, 33))
    best = min(squared_rounding_error(values, low, high) for low in lows for high in highs if high > low)
    assert squared_rounding_error(values, *ends) <= 1.02 * best
    if distribution == "uniform":
        np.testing.assert_allclose(ends, (values.min(), values.max()), rtol=0.02)
    if distribution in ("laplace", "lognormal"):
        assert ends[1] < 0.9 * values.max()


def test_the_error_of_a_bin_is_the_mean_over_the_values_in_it():
    """By hand, with levels 0, 1, … 255.

    From 0.25 to 0.75 the distance to a level goes from 0.25 to 0.5 and back: the mean of its square is 7/48. From 255
    to 257, all values are clipped to 255: 4/3. The value 3.25 alone: 1/16.
    """
    low, high = np.array([0.25, 255.0, 3.25]), np.array([0.75, 257.0, 3.25])
    for weights, expected in (
        ([1, 0, 0], 7 / 48),
        ([0, 1, 0], 4 / 3),
        ([0, 0, 1], 1 / 16),
        ([2, 1, 1], 7 / 24 + 4 / 3 + 1 / 16),
    ):
        assert squared_error(low, high, np.array(weights), 0.0, 255.0) == pytest.approx(expected)


@pytest.mark.parametrize("ranges", OBSERVERS)
@pytest.mark.parametrize("value", [0.0, 3.0, -3.0])
def test_a_constant_tensor_has_its_value_as_range(ranges, value):
    observer = OBSERVERS[ranges]()
    observer.add(np.full(10, value, np.float32))
    observer.add(np.zeros(0, np.float32))
    assert observer.range(Calibration(ranges=ranges)) == (value, value)


@pytest.mark.parametrize(("sign", "ends"), [(1, (0.0, 90.0)), (-1, (-90.0, 0.0))])
def test_percentiles_of_values_with_one_sign_cut_the_end_away_from_zero(sign, ends):
    observer = OBSERVERS["percentile"]()
    observer.add(sign * np.arange(101, dtype=np.float32))
    low, high = observer.range(Calibration(ranges="percentile", percentile=90.0))
    assert (low, high) == (pytest.approx(ends[0], abs=1.5), pytest.approx(ends[1], rel=0.02))
