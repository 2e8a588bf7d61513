"""Cross-layer equalization of a float TFLite model (Nagel et al. 2019, arXiv:1906.04721, section 4.1).

If only ReLU and operators that treat every channel alike lie between two layers, dividing an output channel of the
first layer by a positive number and multiplying the second layer's weights for that channel by the same number changes
no output. It can make the ranges of the channels alike, so that one scale suits all of them.
"""

import collections
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfx_compression.tflite import flatbuffer
from tfx_compression.tflite_quantizer.record import EqualizedPair

_SWEEPS = 100
_DEAD = 1e-6  # relative to the largest channel; scaling such a channel up would let its bias dominate the range
_CONVERGED = 1e-3  # largest logarithm of a scale in a sweep
_LINEAR = (schema.ActivationFunctionType.NONE, schema.ActivationFunctionType.RELU)  # f(s x) = s f(x) for s > 0
_OUTPUT_AXIS = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 0}
_BETWEEN = (
    "RELU",
    "LEAKY_RELU",
    "PAD",
    "MAX_POOL_2D",
    "AVERAGE_POOL_2D",
    "MEAN",
    "RESHAPE",
    "RESIZE_BILINEAR",
    "RESIZE_NEAREST_NEIGHBOR",
)


class _Pair(NamedTuple):
    first: int
    second: int


def equalize(content: bytes) -> tuple[bytes, tuple[EqualizedPair, ...]]:
    """Scales the channels between layers so that the ranges of the weights on both sides are the same.

    A pair is a convolution, depthwise convolution or dense layer, with ReLU or no activation, and another one that is
    the only reader of its output; paddings, poolings and a flattening may lie between. A channel is divided by
    `sqrt(r1 r2) / r2` (equation 11), where r1 and r2 are the largest absolute weights on either side. This is repeated
    pair by pair until nothing changes. A channel is scaled less if its bias would otherwise exceed twice the sum of the
    layer's largest weight and largest bias, because it would dominate the range of the output. Channels that are zero
    on one side stay as they are, and so do kernels that are used twice.

    Args:
      content: A float flatbuffer.

    Returns:
      The flatbuffer, which computes the same up to rounding, and the pairs in the order in which they run.

    Raises:
      ModelError: If `content` is not a TFLite model.
    """
    model = flatbuffer.parse(content)
    layers = _Layers(model)
    pairs = list(layers.pairs())
    if not pairs:
        return content, ()
    spreads = [_spread(layers.output_ranges(pair.first)) for pair in pairs]
    for _ in range(_SWEEPS):
        if max(layers.balance(pair) for pair in pairs) < _CONVERGED:
            break
    layers.write()
    record = tuple(
        EqualizedPair(
            first=layers.operators[pair.first].layer,
            second=layers.operators[pair.second].layer,
            spread_before=spread,
            spread_after=_spread(layers.output_ranges(pair.first)),
        )
        for pair, spread in zip(pairs, spreads, strict=True)
    )
    return flatbuffer.serialize(model), record


def _spread(ranges: np.ndarray) -> float:
    """Returns the largest range divided by the smallest one; dead channels don't count."""
    alive = ranges[ranges > 0]
    return float(alive.max() / alive.min()) if alive.size else 1.0


class _Layers:
    """The weights of a parsed model that can be scaled, in float64 until they are written back."""

    def __init__(self, model: Any):
        self._model = model
        self._graph = model.subgraphs[0]
        self.operators = flatbuffer.operators(model)
        self._readers: dict[int, list[flatbuffer.Operator]] = collections.defaultdict(list)
        for operator in self.operators:
            for tensor in operator.inputs:
                self._readers[tensor].append(operator)
        self._users = collections.Counter(tensor.buffer for graph in model.subgraphs for tensor in graph.tensors)
        self._kernels: dict[int, np.ndarray] = {}
        self._biases: dict[int, np.ndarray] = {}
        for operator in self.operators:
            if operator.op in _OUTPUT_AXIS:
                self._read(operator)
        self._limits = {
            index: 2 * (np.abs(bias).max() + np.abs(self._kernels[index]).max()) or 1.0
            for index, bias in self._biases.items()
        }

    def pairs(self) -> Iterator[_Pair]:
        """Yields the layers that can be scaled against each other."""
        for index in self._kernels:
            operator = self.operators[index]
            if self._option(operator, "fusedActivationFunction") not in _LINEAR:
                continue
            if len(operator.inputs) > 2 and operator.inputs[2] >= 0 and index not in self._biases:
                continue
            second = self._next(operator, self._channels(index))
            if second is not None:
                yield _Pair(index, second)

    def balance(self, pair: _Pair) -> float:
        """Makes the ranges of a pair's channels equal, and returns the largest logarithm of their scales."""
        first, second = self.output_ranges(pair.first), self._input_ranges(pair)
        alive = (first > _DEAD * first.max()) & (second > _DEAD * second.max())
        scale = np.where(alive, np.sqrt(first / np.where(alive, second, 1.0)), 1.0)  # sqrt(r1 r2) / r2
        if pair.first in self._biases:
            scale = np.maximum(scale, np.minimum(1.0, np.abs(self._biases[pair.first]) / self._limits[pair.first]))
        shape = [1] * self._kernels[pair.first].ndim
        shape[_OUTPUT_AXIS[self.operators[pair.first].op]] = -1
        self._kernels[pair.first] /= scale.reshape(shape)
        if pair.first in self._biases:
            self._biases[pair.first] /= scale
        self._kernels[pair.second] *= scale[self._channel_of_weight(pair)]
        return float(np.abs(np.log(scale)).max())

    def output_ranges(self, index: int) -> np.ndarray:
        """Returns the largest absolute weight of each output channel."""
        kernel = np.abs(self._kernels[index])
        axis = _OUTPUT_AXIS[self.operators[index].op]
        return kernel.max(axis=tuple(place for place in range(kernel.ndim) if place != axis))

    def write(self) -> None:
        """Writes the weights into the model."""
        for index, kernel in self._kernels.items():
            self._put(self._graph.tensors[self.operators[index].inputs[1]], kernel)
        for index, bias in self._biases.items():
            operator = self._graph.operators[index]
            tensor = self._graph.tensors[operator.inputs[2]]
            if np.array_equal(self._values(tensor), bias.astype(np.float32)):
                continue
            if len(self._readers[operator.inputs[2]]) > 1 or self._users[tensor.buffer] > 1:
                operator.inputs[2] = self._copied(tensor, f"{index}")
                tensor = self._graph.tensors[operator.inputs[2]]
            self._put(tensor, bias)

    def _read(self, operator: flatbuffer.Operator) -> None:
        kernel = self._graph.tensors[operator.inputs[1]]
        if len(self._readers[operator.inputs[1]]) > 1 or self._users[kernel.buffer] > 1 or kernel.sparsity is not None:
            return
        if self._option(operator, "weightsFormat"):  # shuffled
            return
        values = self._values(kernel)
        if values is None:
            return
        self._kernels[operator.index] = values.astype(np.float64)
        if len(operator.inputs) > 2 and operator.inputs[2] >= 0:
            bias = self._values(self._graph.tensors[operator.inputs[2]])
            if bias is not None:
                self._biases[operator.index] = bias.astype(np.float64)

    def _values(self, tensor: Any) -> np.ndarray | None:
        data = self._model.buffers[tensor.buffer].data
        if data is None or tensor.type != schema.TensorType.FLOAT32:
            return None
        return np.frombuffer(bytes(data), np.float32).reshape(tensor.shape)

    def _put(self, tensor: Any, values: np.ndarray) -> None:
        data = np.ascontiguousarray(values, np.float32)
        self._model.buffers[tensor.buffer].data = np.frombuffer(data.tobytes(), np.uint8)

    def _copied(self, tensor: Any, suffix: str) -> int:
        """Adds a copy of a tensor with a buffer of its own, because the converter lets layers share equal constants."""
        copy = schema.TensorT()
        copy.__dict__.update(tensor.__dict__)
        copy.name = tensor.name + f"/equalized{suffix}".encode()
        copy.buffer = len(self._model.buffers)
        self._model.buffers.append(schema.BufferT())
        self._graph.tensors.append(copy)
        return len(self._graph.tensors) - 1

    def _channels(self, index: int) -> int:
        return int(self._kernels[index].shape[_OUTPUT_AXIS[self.operators[index].op]])

    def _next(self, operator: flatbuffer.Operator, channels: int) -> int | None:
        """Returns the only layer that reads the output of `operator`, if its weights can be scaled by channel."""
        (tensor,) = operator.outputs
        readers = self._readers[tensor]
        if tensor in self._graph.outputs or len(readers) != 1 or readers[0].inputs[0] != tensor:
            return None
        (reader,) = readers
        if reader.index in self._kernels:
            return reader.index if self._can_scale_inputs(reader, channels) else None
        return self._next(reader, channels) if self._preserves_channels(reader, channels) else None

    def _can_scale_inputs(self, operator: flatbuffer.Operator, channels: int) -> bool:
        """Returns whether the last axis of a kernel cycles through the channels; a grouped kernel's doesn't."""
        kernel = self._kernels[operator.index]
        if operator.op == "FULLY_CONNECTED":
            return kernel.shape[-1] % channels == 0
        input_size = int(self._graph.tensors[operator.inputs[0]].shape[-1])
        if operator.op == "CONV_2D":
            return input_size == kernel.shape[-1] and input_size % channels == 0
        return kernel.shape[-1] % input_size == 0 and input_size % channels == 0

    def _preserves_channels(self, operator: flatbuffer.Operator, channels: int) -> bool:
        """Returns whether an operator commutes with the scales of channels and keeps the channels in order."""
        if operator.op not in _BETWEEN or len(operator.outputs) != 1:
            return False
        if self._option(operator, "fusedActivationFunction") not in (None, *_LINEAR):
            return False
        last = int(self._graph.tensors[operator.outputs[0]].shape[-1])
        if operator.op == "RESHAPE":
            return last % channels == 0
        return last == int(self._graph.tensors[operator.inputs[0]].shape[-1]) and self._spares_last_axis(operator)

    def _spares_last_axis(self, operator: flatbuffer.Operator) -> bool:
        """Returns whether a mean or padding leaves the last axis alone."""
        if operator.op not in ("MEAN", "PAD"):
            return True
        data = self._model.buffers[self._graph.tensors[operator.inputs[1]].buffer].data
        if data is None:
            return False
        values = np.frombuffer(bytes(data), np.int32)
        rank = len(self._graph.tensors[operator.inputs[0]].shape)
        return not values[-2:].any() if operator.op == "PAD" else not np.isin(values, (-1, rank - 1)).any()

    def _channel_of_weight(self, pair: _Pair) -> np.ndarray:
        """Returns the pair's channel of each place along the last axis of the second kernel."""
        operator = self.operators[pair.second]
        places = np.arange(self._kernels[pair.second].shape[-1])
        if operator.op == "DEPTHWISE_CONV_2D":  # an input channel has depth_multiplier consecutive filters
            places //= len(places) // int(self._graph.tensors[operator.inputs[0]].shape[-1])
        return places % self._channels(pair.first)

    def _input_ranges(self, pair: _Pair) -> np.ndarray:
        """Returns the largest absolute weight of the second layer for each channel of the pair."""
        kernel = np.abs(self._kernels[pair.second])
        ranges = np.zeros(self._channels(pair.first))
        np.maximum.at(ranges, self._channel_of_weight(pair), kernel.reshape(-1, kernel.shape[-1]).max(axis=0))
        return ranges

    def _option(self, operator: flatbuffer.Operator, name: str) -> Any:
        return getattr(self._graph.operators[operator.index].builtinOptions, name, None)
