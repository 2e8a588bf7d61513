"""Scales of channels and blocks whose weights are zero, or far smaller than their bias.

The quantizer's scale follows from the largest absolute weight of a channel or block. For zeros it is about 1e-10, so
that a 32-bit bias, whose scale is the input's times the weights', saturates; in float16, the type of the scales of
blocks, it is 0, which no runtime loads. Such a group gets one larger weight before quantization, which sets its scale,
and that weight's own value afterwards.
"""

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfx_compression.tflite import constants, flatbuffer
from tfx_compression.tflite.modes import PRECISIONS
from tfx_compression.tflite_quantizer.litert import tfl_flatbuffer_utils
from tfx_compression.tflite_quantizer.precision_graph import PrecisionGraph
from tfx_compression.tflite_quantizer.recipe import PrecisionChoice, has_channel_scales

# Half of what 32 bits hold, with 8-bit weights. Kernels don't use the 64 bits of a bias beside 16-bit activations, and
# kernels for 4-bit weights multiply everything by 16.
_LARGEST_BIAS = 2.0**30
_LARGEST_WEIGHT = 127
_SMALLEST_RANGE = 1e-9  # the quantizer's own bound
_SMALLEST_IN_BLOCK = 2.0**-17  # a seventh of it is a scale that float16 holds


@dataclasses.dataclass(frozen=True)
class RaisedWeight:
    """A weight that was made larger.

    Attributes:
      kernel: Tensor of the main graph.
      place: Index into the kernel's flat values.
      value: The weight's own value.
    """

    kernel: int
    place: int
    value: float


def raise_scales(
    content: bytes,
    graph: PrecisionGraph,
    choices: Mapping[int, PrecisionChoice],
    ranges: Mapping[str, tuple[float, float]],
    per_channel: bool,
) -> tuple[bytes, tuple[RaisedWeight, ...]]:
    """Returns the model with one larger weight in each group that would get too small a scale, and these weights.

    A group is what shares a scale: a channel, a block or a kernel. A group of zeros gets the scale of the kernel's
    largest weight. A group whose bias would exceed 32 bits gets the smallest scale that holds it.

    Args:
      content: A float flatbuffer.
      graph: Its graph.
      choices: Precision by the operator's index.
      ranges: Smallest and largest value of each calibrated activation, by the tensor's name.
      per_channel: Whether each output channel of a kernel has a scale.
    """
    model = flatbuffer.parse(content)
    tensors = model.subgraphs[0].tensors
    raised: list[RaisedWeight] = []
    for index, kernel in graph.kernels.items():
        choice = choices.get(index)
        if choice is None or not PRECISIONS[choice.precision].weights.startswith("int"):
            continue
        weights = floats(model, tensors[kernel])
        groups = _groups(model, graph, index, choice, per_channel)
        largest = np.abs(weights.ravel()[groups]).max(axis=1).astype(np.float64)
        smallest = _smallest(model, graph, index, choice, ranges, len(groups))
        wanted = np.maximum(largest, smallest)
        wanted[largest == 0] = np.maximum(wanted, wanted.max() or 1.0)[largest == 0]
        affected = np.flatnonzero(wanted > largest)
        if not affected.size:
            continue
        place = unshared(model, index, graph.operators[index].inputs.index(kernel))
        changed = weights.ravel().copy()
        for group in affected:
            weight = int(groups[group][0])
            raised.append(RaisedWeight(place, weight, float(changed[weight])))
            changed[weight] = wanted[group]
        model.buffers[tensors[place].buffer].data = np.frombuffer(changed.tobytes(), np.uint8)
    return (flatbuffer.serialize(model), tuple(raised)) if raised else (content, ())


def restore_weights(content: bytes, raised: tuple[RaisedWeight, ...]) -> bytes:
    """Returns the quantized model with the weights' own values, rounded to their groups' scales."""
    if not raised:
        return content
    model = flatbuffer.parse(content)
    graph = model.subgraphs[0]
    for kernel in dict.fromkeys(weight.kernel for weight in raised):
        tensor = graph.tensors[kernel]
        values = constants.stored_values(bytes(model.buffers[tensor.buffer].data), tensor).copy()
        zero_points, scales = (
            np.broadcast_to(each, values.shape) for each in constants.affine_parameters(model, graph, tensor)
        )
        for weight in raised:
            if weight.kernel == kernel:
                step = np.rint(weight.value / scales.flat[weight.place])
                values.flat[weight.place] = step + zero_points.flat[weight.place]
        data = constants.packed_values(values, tensor)
        model.buffers[tensor.buffer].data = np.frombuffer(data, np.uint8)
    return flatbuffer.serialize(model)


def _groups(model: Any, graph: PrecisionGraph, index: int, choice: PrecisionChoice, per_channel: bool) -> np.ndarray:
    """Returns [groups, weights] indices into the flat kernel."""
    shape = model.subgraphs[0].tensors[graph.kernels[index]].shape
    places = np.arange(int(np.prod(shape)))
    if choice.block_size:
        return places.reshape(-1, choice.block_size)
    kind = graph.kind(index)
    if not has_channel_scales(kind, choice, per_channel):
        return places.reshape(1, -1)
    options = model.subgraphs[0].operators[index].builtinOptions
    last = len(shape) - (2 if getattr(options, "adjY", False) else 1)  # a matrix product's
    axis = tfl_flatbuffer_utils.TFL_OP_TO_WEIGHT_QUANTIZED_DIM.get(kind, last)
    return np.moveaxis(places.reshape(shape), axis, 0).reshape(shape[axis], -1)


def _smallest(
    model: Any,
    graph: PrecisionGraph,
    index: int,
    choice: PrecisionChoice,
    ranges: Mapping[str, tuple[float, float]],
    groups: int,
) -> np.ndarray:
    """Returns the smallest acceptable largest weight of each group."""
    operator = graph.operators[index]
    constant = [place for place in operator.inputs if graph.is_float(place) and graph.is_constant(place)]
    biases = [place for place in constant if place != graph.kernels[index]]
    if choice.block_size:
        return np.full(groups, _SMALLEST_IN_BLOCK)
    if not PRECISIONS[choice.precision].calibrated or not biases:
        return np.zeros(groups)
    bias = np.abs(floats(model, model.subgraphs[0].tensors[biases[0]])).astype(np.float64)
    (source,) = graph.activations(operator.inputs)
    low, high = ranges.get(graph.name(source), (0.0, 0.0))
    spec = PRECISIONS[choice.precision]
    input_scale = max(high, -low, 0.0, _SMALLEST_RANGE) / 2**spec.activation_bits  # at least half of it
    scales = bias / (input_scale * _LARGEST_BIAS)
    return (scales if groups == len(bias) else np.full(groups, scales.max())) * _LARGEST_WEIGHT


def unshared(model: Any, index: int, place: int) -> int:
    """Returns the tensor of an operator's input, after giving it a tensor and a buffer of its own where it has none."""
    graph = model.subgraphs[0]
    kernel = int(graph.operators[index].inputs[place])
    tensor = graph.tensors[kernel]
    readers = sum(int(each == kernel) for operator in graph.operators for each in operator.inputs)
    users = collections.Counter(each.buffer for subgraph in model.subgraphs for each in subgraph.tensors)
    if readers == 1 and users[tensor.buffer] == 1:
        return kernel
    copy = schema.TensorT()
    copy.__dict__.update(tensor.__dict__)
    copy.name = tensor.name + f"/operator{index}".encode()
    copy.buffer = len(model.buffers)
    model.buffers.append(schema.BufferT())
    graph.tensors.append(copy)
    graph.operators[index].inputs[place] = len(graph.tensors) - 1
    return len(graph.tensors) - 1


def floats(model: Any, tensor: Any) -> np.ndarray:
    """Returns the values of a constant of 32-bit floats."""
    return np.frombuffer(bytes(model.buffers[tensor.buffer].data), np.float32).reshape(tensor.shape)
