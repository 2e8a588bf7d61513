"""The ranges of a float TFLite model's tensors, measured on rows."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfx_compression.errors import ModelError
from tfx_compression.tflite import features, flatbuffer, interpreter
from tfx_compression.tflite_quantizer.config import Calibration
from tfx_compression.tflite_quantizer.record import InputRange

Columns = Mapping[str, np.ndarray]

_FLOAT32 = schema.TensorType.FLOAT32
_SHIFT = 17  # bits of a float32 that a bin leaves open: the sign, the exponent and 6 bits of the mantissa are kept
_BINS = 1 << (32 - _SHIFT)
_NEGATIVE = _BINS >> 1  # the bins from here on are of negative numbers
_LEVELS = 256
_COARSE = 2.0 ** -(np.arange(41) / 2)  # of the outermost values: the ends that are tried
_FINE = 2.0 ** (np.arange(-8, 9) / 16)  # of the best of them


@dataclasses.dataclass(frozen=True)
class Ranges:
    """What floats lie between.

    Attributes:
      tensors: by name, lower and upper end of every float tensor of the main graph that depends on the inputs. Zero is
        in there only where it was seen: both quantizers widen a range to it.
      inputs: by name in the signature, the float inputs; `range` has zero in it, as what is quantized has.
    """

    tensors: dict[str, tuple[float, float]]
    inputs: dict[str, InputRange]


def observe(content: bytes, columns: Columns, calibration: Calibration) -> Ranges:
    """Runs a float model on rows and makes a range of what each tensor held.

    `min_max`: the smallest and the largest value.

    `percentile`: of the values other than zero (which is exact in any range, and most of what a ReLU returns), the
    outermost are left out until `calibration.percentile` percent remain: half of them at each end, or all at the one
    end away from zero where the values have one sign. Interpolated like `numpy.percentile`, to within a bin.

    `mse`: the range with zero in it whose 256 levels lose least, by rounding inside and clipping outside, as the
    quantizers lay them (zero is a level). What is minimized is the squared error of a row's values by the sum of their
    squares, the mean over the rows: with the bare squared error a single row that is 1,000 times as large as the others
    would have the range to itself, since eight bits round finely enough that clipping it never pays. The trade between
    rounding and clipping is that of Banner et al. 2019 ("Post training 4-bit quantization of convolutional networks for
    rapid-deployment", arXiv:1810.05723), on a histogram as in TensorFlow's `HISTOGRAM_MSE_BRUTEFORCE`.

    The histograms have a bin for each sign, exponent and 6 bits of mantissa of a float32, so 64 to each power of two:
    a bin is at most 1.6 % of its values wide at any scale, which an outlier doesn't change, and one pass will do. They
    take 256 kB a tensor, and rows run one by one (a model of a fixed batch: so many at a time, the last one repeated to
    fill it), so memory grows with the model only.

    Args:
      content: the flatbuffer; float32, with free or fixed batch.
      columns: by input name, [rows, …] values.
      calibration: `ranges` and `percentile` of it.

    Raises:
      ModelError: where an input is missing, doesn't fit or is not finite, or a tensor becomes NaN or infinite.
    """
    model = _Model(content)
    feeds = model.feeds(columns)
    observed: dict[str, _Extremes] = {}
    kind = {"min_max": _Extremes, "percentile": _Histogram, "mse": _Energies}[calibration.ranges]
    for tensors in model.run(feeds):
        for name, values in tensors:
            observed.setdefault(name, kind()).add(values)
    chosen = {name: found.range(calibration) for name, found in observed.items() if found.minimum <= found.maximum}
    inputs = {}
    for name, tensor in model.float_inputs.items():
        if tensor in chosen:
            found, (low, high) = observed[tensor], chosen[tensor]
            inputs[name] = InputRange(
                input=name, minimum=found.minimum, maximum=found.maximum, range=(min(low, 0.0), max(high, 0.0))
            )
    return Ranges(chosen, inputs)


def require_finite(name: str, values: np.ndarray) -> None:
    """Refuses rows, [rows, …], of which some are NaN or infinite."""
    if values.dtype.kind != "f":
        return
    bad = np.flatnonzero(~np.isfinite(values).all(axis=tuple(range(1, values.ndim))))
    if bad.size:
        raise ModelError(
            f"The input {name!r} is NaN or infinite in {bad.size} of {len(values)} calibration rows, row {bad[0]} "
            "first. Remedy: clean or fill in the feature, or calibrate on another split."
        )


def outside(ranges: Ranges, columns: Columns) -> dict[str, float]:
    """By float input, the share of the values of other rows that lie outside its range, or are NaN."""
    found = {}
    for name, seen in ranges.inputs.items():
        if name not in columns:
            raise ModelError(
                f"The rows to compare with the calibrated ranges have no {name!r}. Remedy: add the column."
            )
        values = np.asarray(columns[name], np.float32)
        low, high = np.float32(seen.range[0]), np.float32(seen.range[1])
        found[name] = 1.0 - float(np.mean((values >= low) & (values <= high))) if values.size else 0.0
    return found


class _Model:
    """A float model that shows its tensors.

    Attributes:
      float_inputs: by name in the signature, the float inputs' tensor.
    """

    def __init__(self, content: bytes):
        from ai_edge_litert import interpreter as litert

        parsed = flatbuffer.parse(content)
        self._inputs = interpreter.Interpreter(content, trusted=True).inputs  # names as the signature has them
        self._interpreter = litert.Interpreter(
            model_content=content,
            experimental_preserve_all_tensors=True,
            experimental_op_resolver_type=litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )
        graph = parsed.subgraphs[0]
        self._names = {int(index): graph.tensors[index].name.decode() for index in _floats(parsed)}
        self.float_inputs = {
            name: self._names[tensor.index] for name, tensor in self._inputs.items() if tensor.index in self._names
        }

    def feeds(self, columns: Columns) -> dict[str, np.ndarray]:
        """The columns as the model takes them: whole batches of it, the last one filled up."""
        found = {}
        for name, tensor in self._inputs.items():
            strings = tensor.dtype.kind in "OSU"
            values = features.fit_feature(name, columns, tensor.shape, strings, "TFLite model")
            if not strings:
                values = values.astype(tensor.dtype)
            require_finite(name, values)
            found[name] = values
        sizes = {len(values) for values in found.values()}
        if len(sizes) != 1 or 0 in sizes:
            raise ModelError(f"The columns have {sorted(sizes)} rows; they must have as many each, and one at least.")
        return found

    def run(self, feeds: Mapping[str, np.ndarray]) -> Iterator[Iterator[tuple[str, np.ndarray]]]:
        """For each batch, the float tensors by name."""
        rows = len(next(iter(feeds.values())))
        batch = max([1, *(tensor.shape[0] for tensor in self._inputs.values() if tensor.shape)])
        try:
            for name, tensor in self._inputs.items():
                self._interpreter.resize_tensor_input(tensor.index, (batch, *feeds[name].shape[1:]))
            self._interpreter.allocate_tensors()
            for start in range(0, rows, batch):
                places = np.minimum(np.arange(start, start + batch), rows - 1)
                for name, tensor in self._inputs.items():
                    self._interpreter.set_tensor(tensor.index, feeds[name][places])
                self._interpreter.invoke()
                yield self._tensors()
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"The float TFLite model can't be calibrated, as it doesn't run: {error}") from error

    def _tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        for index, name in self._names.items():
            try:
                values = self._interpreter.get_tensor(index)
            except ValueError:  # the runtime doesn't show it, as within a loop
                continue
            if not np.isfinite(values).all():
                raise ModelError(
                    f"The float model's tensor {name!r} is NaN or infinite on calibration rows whose inputs are not, "
                    "so it has no range. Remedy: mend the layer (a division by zero, the logarithm of zero, a mask of "
                    "-inf: a large negative number does the same), or convert without calibration."
                )
            yield name, values


def _floats(model: Any) -> list[int]:
    """The float tensors of the main graph that are given or computed, in their order."""
    graph = model.subgraphs[0]
    computed = (place for operator in flatbuffer.operators(model) for place in operator.outputs)
    moving = dict.fromkeys((*map(int, graph.inputs), *computed))
    return [index for index in moving if graph.tensors[index].type == _FLOAT32]


class _Extremes:
    """The smallest and the largest value of a tensor."""

    def __init__(self) -> None:
        self.minimum, self.maximum = np.inf, -np.inf

    def add(self, values: np.ndarray) -> None:
        if values.size:
            self.minimum = min(self.minimum, float(values.min()))
            self.maximum = max(self.maximum, float(values.max()))

    def range(self, calibration: Calibration) -> tuple[float, float]:
        return self.minimum, self.maximum


class _Histogram(_Extremes):
    """How often values other than zero fell into each bin."""

    def __init__(self) -> None:
        super().__init__()
        self._weights = np.zeros(_BINS)

    def add(self, values: np.ndarray) -> None:
        super().add(values)
        self._weights += np.bincount(_bins(values[values != 0]), minlength=_BINS) * self._weight(values)

    def _weight(self, values: np.ndarray) -> float:
        return 1.0

    def _filled(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Lower end, upper end and weight of the bins that aren't empty, ascending, within what was seen."""
        places = np.flatnonzero(self._weights)
        order = np.concatenate([places[places >= _NEGATIVE][::-1], places[places < _NEGATIVE]])
        low, high = _edges(order)
        return np.maximum(low, self.minimum), np.minimum(high, self.maximum), self._weights[order]

    def range(self, calibration: Calibration) -> tuple[float, float]:
        low, high, counts = self._filled()
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


class _Energies(_Histogram):
    """A histogram in which each row has the weight of one by the sum of its squares."""

    def _weight(self, values: np.ndarray) -> float:
        return 1.0 / (float(np.square(values, dtype=np.float64).sum()) or 1.0)

    def range(self, calibration: Calibration) -> tuple[float, float]:
        if self.minimum == self.maximum:
            return self.minimum, self.maximum
        bins = self._filled()
        whole = (min(self.minimum, 0.0), max(self.maximum, 0.0))
        ends = list(whole)
        # The error is nearly convex in the two ends: rounding goes with the square of their distance, and clipping has
        # the weight beyond an end as its second derivative. So one end after the other leads to the smallest.
        for factors, start in ((_COARSE, whole),) * 3 + ((_FINE, ends),) * 2:
            for side in (1, 0):
                if whole[side]:
                    candidates = np.clip(start[side] * factors, *whole).tolist()
                    pairs = [(ends[0], end) if side else (end, ends[1]) for end in candidates]
                    ends[side] = candidates[int(np.argmin([_error(*bins, *pair) for pair in pairs]))]
        return ends[0] if self.minimum < 0 else self.minimum, ends[1] if self.maximum > 0 else self.maximum


def _bins(values: np.ndarray) -> np.ndarray:
    """The bin of each float32: its upper bits."""
    return np.ascontiguousarray(values, np.float32).view(np.uint32).ravel() >> _SHIFT


def _edges(bins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lower and upper ends of bins, in float64; the last ones before infinity end at the largest float32."""
    largest = np.float64(np.finfo(np.float32).max)

    def number(upper_bits: np.ndarray) -> np.ndarray:
        bits = (np.asarray(upper_bits, np.uint64) << np.uint64(_SHIFT)).astype(np.uint32)
        return np.clip(bits.view(np.float32).astype(np.float64), -largest, largest)

    near, far = number(bins), number(bins + 1)
    return np.minimum(near, far), np.maximum(near, far)


def _quantile(low: np.ndarray, high: np.ndarray, counts: np.ndarray, share: float) -> float:
    """What `share` of the values lie below: linear between two values, which are spread evenly in their bins."""
    upto = np.cumsum(counts)
    place = share * (upto[-1] - 1)
    ranks = np.array([np.floor(place), np.ceil(place)])
    index = np.searchsorted(upto, ranks, side="right")
    inside = (ranks - upto[index] + counts[index] + 0.5) / counts[index]
    below, above = low[index] + inside * (high[index] - low[index])
    return float(below + (place - ranks[0]) * (above - below))


def _error(low: np.ndarray, high: np.ndarray, weights: np.ndarray, lower: float, upper: float) -> float:
    """The weighted squared error of values spread evenly in bins, on 256 levels of which zero is one."""
    scale = (upper - lower) / (_LEVELS - 1)
    if scale <= 0:
        return np.inf
    below = np.clip(np.rint(-lower / scale), 0, _LEVELS - 1)  # levels below zero: the zero point, nudged
    lower, upper = -below * scale, (_LEVELS - 1 - below) * scale
    inner_low, inner_high = np.clip(low, lower, upper), np.clip(high, lower, upper)
    rounding = scale**3 * (_rounding(inner_high / scale) - _rounding(inner_low / scale))
    clipping = (
        np.clip(high - upper, 0.0, None) ** 3
        - np.clip(low - upper, 0.0, None) ** 3
        + np.clip(lower - low, 0.0, None) ** 3
        - np.clip(lower - high, 0.0, None) ** 3
    ) / 3
    width = high - low
    middle = (low + high) / 2
    nearest = np.clip(np.rint(middle / scale) * scale, lower, upper)
    narrow = width <= 1e-9 * np.abs(middle)  # a single value
    squared = np.where(narrow, (middle - nearest) ** 2, (rounding + clipping) / np.where(narrow, 1.0, width))
    return float(squared @ weights)


def _rounding(places: np.ndarray) -> np.ndarray:
    """The integral from 0 to each place of the squared distance to the nearest whole number: 1/12 for each of them."""
    nearest = np.rint(places)
    return nearest / 12 + (places - nearest) ** 3 / 3
