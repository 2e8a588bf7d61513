"""How far each layer of a quantized model is from the float model's, on the same rows."""

import dataclasses
import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from tfx_compression.errors import ModelError
from tfx_compression.tflite import flatbuffer
from tfx_compression.tflite.features import fit_feature, pad_rows
from tfx_compression.tflite.interpreter import TensorDetails, dequantize, quantize
from tfx_compression.tflite.modes import PRECISIONS, precision_of_types
from tfx_compression.tflite_quantizer.record import LayerError

_BATCH = 32  # rows at once, where the models take any number
_LARGEST_DB = 999.0  # either way: all noise, where the float layer returns zeros only, is no number in JSON
_FLOAT32 = schema.TensorType.FLOAT32
_WEIGHTS = tuple(getattr(schema.TensorType, spec.weights.upper()) for spec in PRECISIONS.values())
_COPIES = ("QUANTIZE", "DEQUANTIZE", "DENSIFY")  # the same numbers, stored otherwise


def compare(float_content: bytes, content: bytes, columns: Mapping[str, np.ndarray]) -> tuple[LayerError, ...]:
    """Each layer's error: the operators of the float model that return floats, in their order.

    A layer is found in the quantized model by its place, where both have the same operators in turn, or else by the
    name of the tensor that it returns; the model's outputs by their names in the signature. Layers that only one of the
    two has (the other fused them) are left out, those where the float model itself returns infinities, and loops, whose
    results the runtime doesn't show. Both run on LiteRT with the kernels that devices run: without XNNPACK blockwise
    weights of 4 bits compute something else. The signal-to-noise ratio is `10 log10(sum x^2 / sum (x - y)^2)` of the
    float model's values x and the quantized one's y, dequantized, over all rows; at most 999 dB either way.

    Args:
      float_content: the float32 model that the other one was made from, equalized where that one is.
      content: the quantized model.
      columns: by input, [rows, …] real values. Where a model's batch is of fixed size, the last row fills it up.

    Returns:
      The errors; none where a model needs TensorFlow's own operators, which LiteRT has not.

    Raises:
      ModelError: where a model can't run on the columns.
    """
    models = (flatbuffer.parse(float_content), flatbuffer.parse(content))
    if any((code.customCode or b"").startswith(b"Flex") for model in models for code in model.operatorCodes):
        return ()
    original, quantized = (
        _Graph(parsed, given) for parsed, given in zip(models, (float_content, content), strict=True)
    )
    pairs = list(_pairs(original, quantized))
    for feeds in _batches(original, quantized, columns):
        original.run(feeds)
        quantized.run(feeds)
        for pair in list(pairs):
            x, y = original.values(pair.place), quantized.values(pair.counterpart)
            if x is None or y is None:
                pairs.remove(pair)
            else:
                pair.add(x, y)
    return tuple(pair.error(quantized) for pair in pairs if math.isfinite(pair.signal))


class _Graph:
    """The main graph of a TFLite model, with all tensors kept when it runs."""

    def __init__(self, model: Any, content: bytes):
        from ai_edge_litert import interpreter as litert

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Warning: Enabling `experimental_preserve_all_tensors`")
            self._interpreter = litert.Interpreter(model_content=content, experimental_preserve_all_tensors=True)
        self._shapes: dict[int, tuple[int, ...]] = {}
        graph = model.subgraphs[0]
        self.operators = flatbuffer.operators(model)
        self.types = [tensor.type for tensor in graph.tensors]
        self.names = [tensor.name.decode() for tensor in graph.tensors]
        self.ranks = [len(tensor.shape) if tensor.shape is not None else 0 for tensor in graph.tensors]
        self.constant = [
            data is not None and len(data) > 0
            for data in (model.buffers[tensor.buffer].data for tensor in graph.tensors)
        ]
        # What nobody takes may not be there.
        self.taken = {int(place) for place in graph.outputs}.union(*(each.inputs for each in self.operators))
        self.producer = {place: operator for operator in self.operators for place in operator.outputs}
        signature = next((found for found in model.signatureDefs or () if found.subgraphIndex == 0), None)
        if signature is None:
            raise ModelError("The TFLite model's main graph has no signature. Remedy: convert it from one.")
        details = {detail["index"]: detail for detail in self._interpreter.get_tensor_details()}
        inputs = {tensor.name.decode(): int(tensor.tensorIndex) for tensor in signature.inputs}
        self.inputs = {name: self._tensor(name, details[place]) for name, place in inputs.items()}
        self.outputs = {tensor.name.decode(): int(tensor.tensorIndex) for tensor in signature.outputs}
        self._tensors = {place: self._tensor(self.names[place], details[place]) for place in self.producer}

    @property
    def computing(self) -> list[flatbuffer.Operator]:
        """The operators but those that store the same numbers otherwise."""
        return [operator for operator in self.operators if operator.op not in _COPIES]

    @staticmethod
    def _tensor(name: str, detail: Mapping[str, Any]) -> TensorDetails:
        scale, zero_point = detail["quantization"]
        shape = tuple(int(size) for size in detail.get("shape_signature", detail["shape"]))
        return TensorDetails(
            name, int(detail["index"]), np.dtype(detail["dtype"]), shape, float(scale), int(zero_point)
        )

    def run(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Runs it on real values."""
        shapes = {tensor.index: feeds[name].shape for name, tensor in self.inputs.items()}
        try:
            if shapes != self._shapes:
                for place, shape in shapes.items():
                    self._interpreter.resize_tensor_input(place, shape)
                self._interpreter.allocate_tensors()
                self._shapes = shapes
            for name, tensor in self.inputs.items():
                stored = feeds[name] if tensor.dtype.kind in "OSU" else quantize(feeds[name], tensor)
                self._interpreter.set_tensor(tensor.index, stored)
            self._interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"The TFLite model's layers can't be compared: it doesn't run: {error}") from error

    def values(self, place: int) -> np.ndarray | None:
        """What lies in a tensor after a run, as real numbers; None where the runtime keeps it to itself (of loops)."""
        try:
            stored = self._interpreter.get_tensor(place)
        except ValueError:
            return None
        return np.asarray(dequantize(stored, self._tensors[place]), np.float64).ravel()

    def source(self, place: int) -> int:
        """The tensor that holds the same numbers before they were stored otherwise."""
        while place in self.producer and self.producer[place].op in _COPIES:
            place = self.producer[place].inputs[0]
        return place

    def precision(self, place: int) -> str | None:
        """Of the operator that returns a tensor, where its weights' and output's types tell."""
        place = self.source(place)
        if place not in self.producer:
            return None
        stored = {
            (self.types[self.source(tensor)], self.source(tensor) != tensor)
            for tensor in self.producer[place].inputs
            if tensor >= 0 and self.constant[self.source(tensor)] and self.ranks[tensor] >= 2
        }
        kinds = [(kind, apart) for kind, apart in stored if kind in _WEIGHTS]
        if len(kinds) > 1:
            return None
        kind, apart = kinds[0] if kinds else (None, False)
        return precision_of_types(_name(self.types[place]), None if kind is None else _name(kind), apart)


@dataclasses.dataclass
class _Pair:
    """A tensor of the float model and its counterpart, with the sums over the rows so far."""

    operator: flatbuffer.Operator
    place: int
    counterpart: int
    signal: float = 0.0
    noise: float = 0.0
    other: float = 0.0
    product: float = 0.0
    largest: float = 0.0

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        if x.size != y.size:
            raise ModelError(
                f"The layer {self.operator.layer!r} returns {x.size} values in the float model and {y.size} in the "
                "quantized one: they are not of the same network."
            )
        difference = x - y
        self.signal += float(x @ x)
        self.noise += float(difference @ difference)
        self.other += float(y @ y)
        self.product += float(x @ y)
        self.largest = max(self.largest, float(np.abs(difference).max(initial=0.0)))

    def error(self, quantized: _Graph) -> LayerError:
        if not math.isfinite(self.noise):
            raise ModelError(
                f"The layer {self.operator.layer!r} returns values that are no finite numbers, which the float model "
                "doesn't. Remedy: a precision with a wider range for it, float32 instead of float16."
            )
        power = math.sqrt(self.signal) * math.sqrt(self.other)
        return LayerError(
            layer=self.operator.layer,
            op=self.operator.op,
            precision=quantized.precision(self.counterpart),
            snr_db=_decibels(self.signal, self.noise) if self.noise else None,
            max_error=self.largest,
            cosine=self.product / power if power else None,
        )


def _name(dtype: int) -> str:
    return str(flatbuffer_utils.type_to_name(dtype)).lower()


def _decibels(signal: float, noise: float) -> float:
    if not signal:
        return -_LARGEST_DB
    return min(10.0 * (math.log10(signal) - math.log10(noise)), _LARGEST_DB)


def _pairs(original: _Graph, quantized: _Graph) -> Iterator[_Pair]:
    # Kernels that are made floats may have the layer's name, which the converter then changes.
    names = {
        quantized.names[place]: place
        for place in quantized.producer
        if place in quantized.taken and not quantized.constant[quantized.source(place)]
    }
    outputs = {place: quantized.outputs.get(name) for name, place in original.outputs.items()}
    own, others = original.computing, quantized.computing
    if [(each.op, len(each.outputs)) for each in own] == [(each.op, len(each.outputs)) for each in others]:
        for operator, other in zip(own, others, strict=True):
            names |= {original.names[one]: two for one, two in zip(operator.outputs, other.outputs, strict=True)}
    for operator in original.operators:
        for place in operator.outputs:
            counterpart = outputs.get(place, names.get(original.names[place]))
            if place in original.taken and original.types[place] == _FLOAT32 and counterpart in quantized.producer:
                yield _Pair(operator, place, int(counterpart))


def _batches(
    original: _Graph, quantized: _Graph, columns: Mapping[str, np.ndarray]
) -> Iterator[Mapping[str, np.ndarray]]:
    """The rows in batches that both models take."""
    feeds = {
        name: fit_feature(name, columns, tensor.shape, tensor.dtype.kind in "OSU", "TFLite model")
        for name, tensor in original.inputs.items()
    }
    tensors = (*original.inputs.values(), *quantized.inputs.values())
    fixed = max((tensor.shape[0] for tensor in tensors if tensor.shape), default=-1)
    size = fixed if fixed > 0 else _BATCH
    rows = min(map(len, feeds.values()))
    for start in range(0, rows, size):
        batch = {name: feed[start : min(start + size, rows)] for name, feed in feeds.items()}
        yield {name: pad_rows(feed, size) if fixed > 0 else feed for name, feed in batch.items()}
