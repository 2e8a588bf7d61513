"""The ranges of a float TFLite model's tensors, measured on rows."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfx_compression.errors import DataError, ModelError
from tfx_compression.tflite import flatbuffer
from tfx_compression.tflite.features import fit_feature, is_string, pad_rows
from tfx_compression.tflite.interpreter import Interpreter
from tfx_compression.tflite_quantizer.config import Calibration
from tfx_compression.tflite_quantizer.range_observers import OBSERVERS, Extremes
from tfx_compression.tflite_quantizer.record import InputRange

Columns = Mapping[str, np.ndarray]

_FLOAT32 = schema.TensorType.FLOAT32


@dataclasses.dataclass(frozen=True)
class Ranges:
    """Ranges of a model's floats.

    Attributes:
      tensors: Lower and upper end, by name, of every float tensor of the main graph that depends on the inputs. A range
        includes zero only if zero was seen: both quantizers widen it to zero.
      inputs: Range of each float input, by its name in the signature. These include zero, as the quantized range does.
    """

    tensors: dict[str, tuple[float, float]]
    inputs: dict[str, InputRange]


def measure_ranges(content: bytes, columns: Columns, calibration: Calibration) -> Ranges:
    """Runs a float model on rows and returns a range for the values of each tensor.

    `range_observers` describes how `calibration.ranges` turns values into a range. Rows run one by one; a model with a
    fixed batch runs that many at a time, with the last row repeated to fill it. Memory grows with the model only, by
    256 kB per tensor for histograms.

    Args:
      content: A float32 flatbuffer, with a free or fixed batch.
      columns: [rows, …] values by input.
      calibration: `ranges` and `percentile` are used.

    Raises:
      DataError: If an input is missing in the rows or not finite, or the numbers of rows differ.
      ModelError: If the model doesn't run, or a tensor becomes NaN or infinite.
    """
    model = _ObservedModel(content)
    observers: dict[str, Extremes] = {}
    for tensors in model.run(columns):
        for name, values in tensors:
            observers.setdefault(name, OBSERVERS[calibration.ranges]()).add(values)
    ranges = {
        name: observer.range(calibration)
        for name, observer in observers.items()
        if observer.minimum <= observer.maximum
    }
    inputs = {
        name: _input_range(name, observers[tensor].minimum, observers[tensor].maximum, ranges[tensor])
        for name, tensor in model.float_inputs.items()
        if tensor in ranges
    }
    return Ranges(ranges, inputs)


def input_ranges(columns: Columns) -> dict[str, InputRange]:
    """Returns the range of each column of floats, as TensorFlow's converter calibrates it: all values."""
    extremes = {
        name: (float(values.min()), float(values.max())) for name, values in columns.items() if is_float(values)
    }
    return {name: _input_range(name, low, high, (low, high)) for name, (low, high) in extremes.items()}


def share_outside(ranges: Mapping[str, InputRange], columns: Columns) -> dict[str, float]:
    """Returns, by float input, the share of the values of other rows that lie outside its range, or are NaN.

    Raises:
      DataError: If the rows lack an input.
    """
    shares = {}
    for name, seen in ranges.items():
        if name not in columns:
            raise DataError(
                f"The rows to compare with the calibrated ranges have no {name!r}. Remedy: add the column.",
                code="missing-feature",
            )
        values = np.asarray(columns[name], np.float32)
        low, high = np.float32(seen.range[0]), np.float32(seen.range[1])
        shares[name] = 1.0 - float(np.mean((values >= low) & (values <= high))) if values.size else 0.0
    return shares


def require_finite(name: str, values: np.ndarray) -> None:
    """Checks that [rows, …] values of an input are finite.

    Raises:
      DataError: If some are NaN or infinite.
    """
    if not is_float(values):
        return
    bad = np.flatnonzero(~np.isfinite(values).all(axis=tuple(range(1, values.ndim))))
    if bad.size:
        raise DataError(
            f"The input {name!r} is NaN or infinite in {bad.size} of {len(values)} calibration rows, row {bad[0]} "
            "first. Remedy: clean or fill in the feature, or calibrate on another split.",
            code="not-finite",
        )


def is_float(values: np.ndarray) -> bool:
    """Returns whether an array holds floats."""
    return bool(values.dtype.kind == "f")


def _input_range(name: str, minimum: float, maximum: float, ends: tuple[float, float]) -> InputRange:
    return InputRange(input=name, minimum=minimum, maximum=maximum, range=(min(ends[0], 0.0), max(ends[1], 0.0)))


class _ObservedModel:
    """A float model that shows its tensors.

    Attributes:
      float_inputs: Name of the tensor of each float input, by the input's name in the signature.
    """

    def __init__(self, content: bytes):
        model = flatbuffer.parse(content)
        tensors = model.subgraphs[0].tensors
        self._names = {index: tensors[index].name.decode() for index in _float_tensors(model)}
        # The built-in kernels keep the values of every tensor; XNNPACK fuses operators.
        self._interpreter = Interpreter(content, xnnpack=False, preserve_tensors=True, trusted=True)
        self.float_inputs = {
            name: self._names[tensor.index]
            for name, tensor in self._interpreter.inputs.items()
            if tensor.index in self._names
        }

    def run(self, columns: Columns) -> Iterator[Iterator[tuple[str, np.ndarray]]]:
        """Yields the float tensors by name for each batch of [rows, …] columns."""
        feeds = self._feeds(columns)
        rows = len(next(iter(feeds.values())))
        size = self._interpreter.batch_size or 1
        for start in range(0, rows, size):
            batch = {name: pad_rows(values[start : start + size], size) for name, values in feeds.items()}
            try:
                self._interpreter.predict(batch)
            except ModelError as error:
                raise ModelError(
                    f"The float TFLite model can't be calibrated: {error} Remedy: mend the model, or convert without "
                    "calibration.",
                    code="not-runnable",
                ) from error
            yield self._tensors()

    def _feeds(self, columns: Columns) -> dict[str, np.ndarray]:
        feeds = {}
        for name, tensor in self._interpreter.inputs.items():
            strings = is_string(tensor.dtype)
            values = fit_feature(name, columns, tensor.shape, strings, "TFLite model")
            feeds[name] = values if strings else values.astype(tensor.dtype)
            require_finite(name, feeds[name])
        sizes = {len(values) for values in feeds.values()}
        if len(sizes) != 1 or 0 in sizes:
            raise DataError(
                f"The columns have {sorted(sizes)} rows. Remedy: pass the same number for each, at least one.",
                code="rows",
            )
        return feeds

    def _tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        for index, name in self._names.items():
            values = self._interpreter.tensor_values(index)
            if values is None:  # in a loop
                continue
            if not np.isfinite(values).all():
                raise ModelError(
                    f"The float model's tensor {name!r} is NaN or infinite on calibration rows whose inputs are "
                    "finite, so it has no range. Remedy: mend the layer (a division by zero, the logarithm of zero, a "
                    "mask of -inf instead of a large negative number), or convert without calibration.",
                    code="not-finite",
                )
            yield name, values


def _float_tensors(model: Any) -> list[int]:
    """Returns the float inputs and computed tensors of the main graph, in their order."""
    graph = model.subgraphs[0]
    outputs = (place for operator in flatbuffer.operators(model) for place in operator.outputs)
    computed = dict.fromkeys((*map(int, graph.inputs), *outputs))
    return [index for index in computed if graph.tensors[index].type == _FLOAT32]
