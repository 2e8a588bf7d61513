"""Ranges of a tensor's values, from extremes or histograms.

`min_max` spans the smallest and the largest value.

`percentile` leaves out the outermost of the values other than zero (which is exact in any range, and most of what a
ReLU returns) until `Calibration.percentile` percent remain: half of them at each end, or all at the end away from zero
if the values have one sign. It interpolates like `numpy.percentile`, to within a bin.

`mse` is the range including zero whose 256 levels lose least by rounding inside and clipping outside, with the levels
where the quantizers put them (zero is a level). It minimizes the squared error of a row's values divided by the sum of
their squares, averaged over rows. With the plain squared error, a single row that is 1,000 times as large as the others
would have the range to itself, since 8 bits round finely enough that clipping it never pays. The trade-off between
rounding and clipping is that of Banner et al. 2019 ("Post training 4-bit quantization of convolutional networks for
rapid-deployment", arXiv:1810.05723), on a histogram as in TensorFlow's `HISTOGRAM_MSE_BRUTEFORCE`.

Histograms have a bin for each sign, exponent and 6 bits of mantissa of a float32, 64 per power of two. A bin is at most
1.6 % of its values wide at any scale, which outliers don't change, and one pass is enough.
"""

import numpy as np

from tfx_compression.tflite_quantizer.config import Calibration

_SHIFT = 17  # lower bits of a float32 that a bin ignores; sign, exponent and 6 bits of the mantissa remain
_BINS = 1 << (32 - _SHIFT)
_NEGATIVE = _BINS >> 1  # bins from here on hold negative numbers
_LEVELS = 256
_COARSE = 2.0 ** -(np.arange(41) / 2)  # candidate ends, relative to the outermost values
_FINE = 2.0 ** (np.arange(-8, 9) / 16)  # candidate ends, relative to the best coarse ones


class Extremes:
    """The smallest and the largest value of a tensor.

    Attributes:
      minimum, maximum: The values; infinities before any value was added.
    """

    def __init__(self) -> None:
        self.minimum, self.maximum = np.inf, -np.inf

    def add(self, values: np.ndarray) -> None:
        """Adds the values of a row."""
        if values.size:
            self.minimum = min(self.minimum, float(values.min()))
            self.maximum = max(self.maximum, float(values.max()))

    def range(self, calibration: Calibration) -> tuple[float, float]:
        """Returns the range."""
        return self.minimum, self.maximum


class Histogram(Extremes):
    """Counts of values other than zero in each bin, for ranges by percentile."""

    def __init__(self) -> None:
        super().__init__()
        self._weights = np.zeros(_BINS)

    def add(self, values: np.ndarray) -> None:
        """Adds the values of a row."""
        super().add(values)
        self._weights += np.bincount(_bins(values[values != 0]), minlength=_BINS) * self._weight(values)

    def range(self, calibration: Calibration) -> tuple[float, float]:
        """Returns the range."""
        low, high, counts = self._occupied_bins()
        left_out = 1.0 - calibration.percentile / 100.0
        if not len(counts) or not left_out:
            return self.minimum, self.maximum
        lower = upper = left_out / 2
        if low[0] >= 0:
            lower, upper = 0.0, left_out
        elif high[-1] <= 0:
            lower, upper = left_out, 0.0
        return (
            _quantile(low, high, counts, lower) if lower else self.minimum,
            _quantile(low, high, counts, 1.0 - upper) if upper else self.maximum,
        )

    def _weight(self, values: np.ndarray) -> float:
        return 1.0

    def _occupied_bins(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the lower end, upper end and weight of bins that aren't empty, ascending, within the extremes."""
        places = np.flatnonzero(self._weights)
        order = np.concatenate([places[places >= _NEGATIVE][::-1], places[places < _NEGATIVE]])
        low, high = _edges(order)
        return np.maximum(low, self.minimum), np.minimum(high, self.maximum), self._weights[order]


class EnergyHistogram(Histogram):
    """A histogram for ranges by mean squared error: each row counts with one over the sum of its squares."""

    def range(self, calibration: Calibration) -> tuple[float, float]:
        """Returns the range."""
        if self.minimum == self.maximum:
            return self.minimum, self.maximum
        bins = self._occupied_bins()
        outermost = (min(self.minimum, 0.0), max(self.maximum, 0.0))
        ends = list(outermost)
        # The error is nearly convex in the two ends: rounding grows with the square of their distance, and the second
        # derivative of clipping is the weight beyond an end. So a search on one end after the other finds the minimum.
        for factors, start in ((_COARSE, outermost),) * 3 + ((_FINE, ends),) * 2:
            for side in (1, 0):
                if outermost[side]:
                    candidates = np.clip(start[side] * factors, *outermost).tolist()
                    pairs = [(ends[0], end) if side else (end, ends[1]) for end in candidates]
                    ends[side] = candidates[int(np.argmin([squared_error(*bins, *pair) for pair in pairs]))]
        return ends[0] if self.minimum < 0 else self.minimum, ends[1] if self.maximum > 0 else self.maximum

    def _weight(self, values: np.ndarray) -> float:
        return 1.0 / (float(np.square(values, dtype=np.float64).sum()) or 1.0)


OBSERVERS: dict[str, type[Extremes]] = {"min_max": Extremes, "percentile": Histogram, "mse": EnergyHistogram}


def squared_error(low: np.ndarray, high: np.ndarray, weights: np.ndarray, lower: float, upper: float) -> float:
    """Returns the weighted squared error of values that are spread evenly in bins, on 256 levels including zero.

    Args:
      low: [bins] lower ends of the bins.
      high: [bins] upper ends of the bins.
      weights: [bins] weights of the bins.
      lower: Lower end of the range that the levels span.
      upper: Upper end of the range.
    """
    scale = (upper - lower) / (_LEVELS - 1)
    if scale <= 0:
        return np.inf
    below = np.clip(np.rint(-lower / scale), 0, _LEVELS - 1)  # levels below zero: the nudged zero point
    lower, upper = -below * scale, (_LEVELS - 1 - below) * scale
    inner_low, inner_high = np.clip(low, lower, upper), np.clip(high, lower, upper)
    rounding = scale**3 * (_rounding_integral(inner_high / scale) - _rounding_integral(inner_low / scale))
    clipping = (
        np.clip(high - upper, 0.0, None) ** 3
        - np.clip(low - upper, 0.0, None) ** 3
        + np.clip(lower - low, 0.0, None) ** 3
        - np.clip(lower - high, 0.0, None) ** 3
    ) / 3
    width = high - low
    middle = (low + high) / 2
    nearest = np.clip(np.rint(middle / scale) * scale, lower, upper)
    single = width <= 1e-9 * np.abs(middle)  # bins that hold one value
    squared = np.where(single, (middle - nearest) ** 2, (rounding + clipping) / np.where(single, 1.0, width))
    return float(squared @ weights)


def _bins(values: np.ndarray) -> np.ndarray:
    """Returns the bin of each float32: its upper bits."""
    return np.ascontiguousarray(values, np.float32).view(np.uint32).ravel() >> _SHIFT


def _edges(bins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the lower and upper ends of bins, in float64. Bins next to infinity end at the largest float32."""
    largest = np.float64(np.finfo(np.float32).max)

    def number(upper_bits: np.ndarray) -> np.ndarray:
        bits = (np.asarray(upper_bits, np.uint64) << np.uint64(_SHIFT)).astype(np.uint32)
        return np.clip(bits.view(np.float32).astype(np.float64), -largest, largest)

    near, far = number(bins), number(bins + 1)
    return np.minimum(near, far), np.maximum(near, far)


def _quantile(low: np.ndarray, high: np.ndarray, counts: np.ndarray, share: float) -> float:
    """Returns the value below which `share` of the values lie, linear between values spread evenly in their bins."""
    cumulative = np.cumsum(counts)
    place = share * (cumulative[-1] - 1)
    ranks = np.array([np.floor(place), np.ceil(place)])
    index = np.searchsorted(cumulative, ranks, side="right")
    inside = (ranks - cumulative[index] + counts[index] + 0.5) / counts[index]
    below, above = low[index] + inside * (high[index] - low[index])
    return float(below + (place - ranks[0]) * (above - below))


def _rounding_integral(places: np.ndarray) -> np.ndarray:
    """Returns the integral from 0 to each place of the squared distance to the nearest integer: 1/12 per integer."""
    nearest = np.rint(places)
    return nearest / 12 + (places - nearest) ** 3 / 3
