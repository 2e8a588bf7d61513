"""The error of each layer of a quantized model against the float model, on the same rows."""

import dataclasses
import math
from collections.abc import Iterator, Mapping

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from tfx_compression.errors import ModelError
from tfx_compression.tflite import flatbuffer
from tfx_compression.tflite.features import fit_feature, is_string, pad_rows
from tfx_compression.tflite.interpreter import Interpreter
from tfx_compression.tflite.modes import PRECISIONS, precision_of_types
from tfx_compression.tflite_quantizer.record import LayerError

_BATCH = 32  # rows at once, if the models take any number
_LARGEST_DB = 999.0  # in both directions: JSON has no infinity for a float layer that returns only zeros
_FLOAT32 = schema.TensorType.FLOAT32
_WEIGHT_TYPES = {spec.weights for spec in PRECISIONS.values()}
_COPIES = ("QUANTIZE", "DEQUANTIZE", "DENSIFY")  # the same numbers in another type or encoding


def compare(float_content: bytes, content: bytes, columns: Mapping[str, np.ndarray]) -> tuple[LayerError, ...]:
    """Returns the error of each operator of the float model that returns floats, in their order.

    A layer's counterpart in the quantized model is the one at the same place, if both models have the same operators in
    the same order; otherwise, the one whose output tensor has the same name. The models' outputs are matched by their
    names in the signature. Layers that only one model has (the other fused them) are left out, and so are layers where
    the float model returns infinities, and loops, whose results the runtime doesn't show. Both run on LiteRT with the
    kernels that devices run: without XNNPACK, blockwise 4-bit weights compute something else. The signal-to-noise ratio
    is `10 log10(sum x^2 / sum (x - y)^2)` over all rows, with the float model's values x and the quantized model's
    dequantized values y, and at most 999 dB in both directions.

    Args:
      float_content: The float32 model that the other one was made from, equalized if that one is.
      content: The quantized model.
      columns: [rows, …] real values by input. If a model's batch is fixed, the last row fills it up.

    Returns:
      The errors; none if a model needs TensorFlow's own operators, which LiteRT doesn't have.

    Raises:
      ModelError: If a model can't run on the columns, or a quantized layer returns values that aren't finite.
    """
    original, quantized = _TracedModel(float_content), _TracedModel(content)
    if original.needs_tensorflow or quantized.needs_tensorflow:
        return ()
    original.load()
    quantized.load()
    pairs = list(_matched(original, quantized))
    for batch in _batches(original.interpreter, quantized.interpreter, columns):
        original.interpreter.predict(batch)
        quantized.interpreter.predict(batch)
        for pair in list(pairs):
            x, y = original.values(pair.place), quantized.values(pair.counterpart)
            if x is None or y is None:
                pairs.remove(pair)
            else:
                pair.add(x, y)
    return tuple(pair.error(quantized) for pair in pairs if math.isfinite(pair.signal))


class _TracedModel:
    """The main graph of a TFLite model whose tensors keep their values when it runs."""

    interpreter: Interpreter

    def __init__(self, content: bytes):
        self._content = content
        model = flatbuffer.parse(content)
        graph = model.subgraphs[0]
        self.needs_tensorflow = any((code.customCode or b"").startswith(b"Flex") for code in model.operatorCodes)
        self.operators = flatbuffer.operators(model)
        self.types = [tensor.type for tensor in graph.tensors]
        self.names = [tensor.name.decode() for tensor in graph.tensors]
        self.ranks = [len(tensor.shape) if tensor.shape is not None else 0 for tensor in graph.tensors]
        self.constant = [
            data is not None and len(data) > 0
            for data in (model.buffers[tensor.buffer].data for tensor in graph.tensors)
        ]
        # The runtime may leave out unused tensors.
        self.used = {int(place) for place in graph.outputs}.union(*(each.inputs for each in self.operators))
        self.producer = {place: operator for operator in self.operators for place in operator.outputs}
        signature = next((each for each in model.signatureDefs or () if each.subgraphIndex == 0), None)
        if signature is None:
            raise ModelError(
                "The TFLite model's main graph has no signature. Remedy: convert it from one.", code="no-signature"
            )
        self.outputs = {tensor.name.decode(): int(tensor.tensorIndex) for tensor in signature.outputs}

    def load(self) -> None:
        """Loads the model into an interpreter."""
        self.interpreter = Interpreter(self._content, preserve_tensors=True, trusted=True)

    @property
    def computing(self) -> list[flatbuffer.Operator]:
        """Operators other than those that only change the type or encoding."""
        return [operator for operator in self.operators if operator.op not in _COPIES]

    def values(self, place: int) -> np.ndarray | None:
        """Returns the values of a tensor after a run; None if the runtime doesn't show them, as in loops."""
        values = self.interpreter.tensor_values(place)
        return None if values is None else np.asarray(values, np.float64).ravel()

    def source(self, place: int) -> int:
        """Returns the tensor that holds the same numbers before their type or encoding changed."""
        while place in self.producer and self.producer[place].op in _COPIES:
            place = self.producer[place].inputs[0]
        return place

    def precision(self, place: int) -> str | None:
        """Returns the precision of the operator that returns a tensor, as far as its types show it."""
        place = self.source(place)
        if place not in self.producer:
            return None
        weights = {
            (self._type(self.source(tensor)), self.source(tensor) != tensor)
            for tensor in self.producer[place].inputs
            if tensor >= 0 and self.constant[self.source(tensor)] and self.ranks[tensor] >= 2
        }
        candidates = [(dtype, unpacked) for dtype, unpacked in weights if dtype in _WEIGHT_TYPES]
        if len(candidates) > 1:
            return None
        dtype, unpacked = candidates[0] if candidates else (None, False)
        return precision_of_types(self._type(place), dtype, unpacked)

    def _type(self, place: int) -> str:
        return str(flatbuffer_utils.type_to_name(self.types[place])).lower()


@dataclasses.dataclass
class _Pair:
    """A tensor of the float model and its counterpart, with sums over the rows so far."""

    operator: flatbuffer.Operator
    place: int
    counterpart: int
    signal: float = 0.0
    noise: float = 0.0
    quantized_signal: float = 0.0
    product: float = 0.0
    largest: float = 0.0

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """Adds a batch."""
        if x.size != y.size:
            raise ModelError(
                f"The layer {self.operator.layer!r} returns {x.size} values in the float model and {y.size} in the "
                "quantized one. Remedy: compare models of the same network.",
                code="different-networks",
            )
        difference = x - y
        self.signal += float(x @ x)
        self.noise += float(difference @ difference)
        self.quantized_signal += float(y @ y)
        self.product += float(x @ y)
        self.largest = max(self.largest, float(np.abs(difference).max(initial=0.0)))

    def error(self, quantized: _TracedModel) -> LayerError:
        """Returns the error over all batches."""
        if not math.isfinite(self.noise):
            raise ModelError(
                f"The layer {self.operator.layer!r} ({self.operator.op}) returns values that aren't finite, unlike the "
                "float model's: with its inputs rounded, it overflows, or divides by zero, or takes the logarithm of "
                "zero. Remedy: mode 'dynamic', whose activations are floats, or mode 'mixed' with rules that leave it "
                "and the layers before it in float32.",
                code="not-finite",
            )
        power = math.sqrt(self.signal) * math.sqrt(self.quantized_signal)
        return LayerError(
            layer=self.operator.layer,
            op=self.operator.op,
            precision=quantized.precision(self.counterpart),
            snr_db=_decibels(self.signal, self.noise) if self.noise else None,
            max_error=self.largest,
            cosine=self.product / power if power else None,
        )


def _decibels(signal: float, noise: float) -> float:
    if not signal:
        return -_LARGEST_DB
    return min(10.0 * (math.log10(signal) - math.log10(noise)), _LARGEST_DB)


def _matched(original: _TracedModel, quantized: _TracedModel) -> Iterator[_Pair]:
    """Yields the layers that both models have."""
    # The name of a layer may have gone to its dequantized kernel.
    by_name = {
        quantized.names[place]: place
        for place in quantized.producer
        if place in quantized.used and not quantized.constant[quantized.source(place)]
    }
    outputs = {place: quantized.outputs.get(name) for name, place in original.outputs.items()}
    layers, counterparts = original.computing, quantized.computing
    if [(each.op, len(each.outputs)) for each in layers] == [(each.op, len(each.outputs)) for each in counterparts]:
        for layer, counterpart in zip(layers, counterparts, strict=True):
            places = zip(layer.outputs, counterpart.outputs, strict=True)
            by_name |= {original.names[place]: match for place, match in places}
    for operator in original.operators:
        for place in operator.outputs:
            match = outputs.get(place, by_name.get(original.names[place]))
            if place in original.used and original.types[place] == _FLOAT32 and match in quantized.producer:
                yield _Pair(operator, place, int(match))


def _batches(
    original: Interpreter, quantized: Interpreter, columns: Mapping[str, np.ndarray]
) -> Iterator[Mapping[str, np.ndarray]]:
    """Yields the rows in batches that both models take at once."""
    feeds = {
        name: fit_feature(name, columns, tensor.shape, is_string(tensor.dtype), "TFLite model")
        for name, tensor in original.inputs.items()
    }
    fixed = [size for size in (original.batch_size, quantized.batch_size) if size is not None]
    size = max(fixed, default=_BATCH)
    rows = min(map(len, feeds.values()))
    for start in range(0, rows, size):
        batch = {name: feed[start : min(start + size, rows)] for name, feed in feeds.items()}
        yield {name: pad_rows(feed, size) if fixed else feed for name, feed in batch.items()}
