"""TFLite models: what is in the file."""

import collections
import dataclasses
import math
import struct
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils  # TensorFlow 2.16's drops what its schema doesn't know

from tfx_compression.errors import ModelError

MODEL_FILE = "tflite"  # the name under Format-Serving/ that TFMA reads


@dataclasses.dataclass(frozen=True)
class ModelContents:
    """What a flatbuffer holds.

    Attributes:
      ops: how often each operator occurs.
      float_ops: those that return floats; in a model for integer hardware there should be none.
      weights: by the layer that uses them, the constants of rank 2 or more, their zero point taken off: 0 is a zero
        weight.
      scales: by the same names, what to multiply the weights with to get real numbers; broadcasts against them.
      arena_bytes: memory for the tensors between the operators, for one row, laid out as TFLite's planner does.
    """

    ops: dict[str, int]
    float_ops: dict[str, int]
    weights: dict[str, np.ndarray]
    scales: dict[str, np.ndarray]
    arena_bytes: int

    def real_weights(self, name: str) -> np.ndarray:
        """The weights called `name` as real numbers, in float32."""
        return self.weights[name].astype(np.float32) * self.scales[name]

    @property
    def sparsity(self) -> float:
        """Fraction of zeros in all weights."""
        size = sum(weight.size for weight in self.weights.values())
        return sum(weight.size - np.count_nonzero(weight) for weight in self.weights.values()) / size if size else 0.0


_DTYPES = {0: np.float32, 1: np.float16, 3: np.uint8, 9: np.int8}  # TensorType of the TFLite schema
_SUB_BYTE = {schema.TensorType.INT4: 4, schema.TensorType.INT2: 2}  # bits
_BITS = {0: 32, 1: 16, 2: 32, 3: 8, 4: 64, 6: 8, 7: 16, 9: 8, 10: 64, 12: 64, 15: 32, 16: 16, **_SUB_BYTE}
_ALIGNMENT = 64  # bytes; TFLite's kDefaultTensorAlignment
_FLOATS = (0, 1)


@dataclasses.dataclass(frozen=True)
class Operator:
    """An operator of the main graph.

    Attributes:
      index: its place in the order in which they run.
      op: `CONV_2D`, …; of a custom operator, the name that it was given.
      layer: the name of the layer that it is from, as Keras has it as far as the converter kept it; of the last one
        the output's.
      inputs, outputs: tensors of the graph; -1 is an optional input that is not there.
    """

    index: int
    op: str
    layer: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def operators(model: Any) -> list[Operator]:
    """The operators of the main graph of a parsed flatbuffer."""
    graph = model.subgraphs[0]
    outputs = {
        int(output.tensorIndex): output.name.decode()
        for signature in model.signatureDefs or ()
        if signature.subgraphIndex == 0
        for output in signature.outputs or ()
    }

    def layer(place: int) -> str:
        found = layer_name(graph.tensors[place].name.decode())
        return outputs.get(place, found) if "PartitionedCall" in found else found  # the converter renames the last

    return [
        Operator(
            index,
            _op_name(model, operator.opcodeIndex),
            layer(int(operator.outputs[0])) if len(operator.outputs) else "",
            tuple(int(place) for place in (operator.inputs if operator.inputs is not None else ())),
            tuple(int(place) for place in (operator.outputs if operator.outputs is not None else ())),
        )
        for index, operator in enumerate(graph.operators)
    ]


def _op_name(model: Any, opcode: int) -> str:
    custom = model.operatorCodes[opcode].customCode
    return custom.decode() if custom else str(flatbuffer_utils.opcode_to_name(model, opcode))


def layer_name(tensor: str) -> str:
    """The layer that returns a tensor: `digits/conv_1/Relu;digits/conv_1/BiasAdd;…` is of `digits/conv_1`.

    A tensor without scopes in its name is its own.
    """
    scopes = [part for part in tensor.split(";", maxsplit=1)[0].split("/") if "PartitionedCall" not in part]
    return "/".join(scopes[:-1]) or tensor


def read_contents(content: bytes) -> ModelContents:
    """Reads the operators and weights of a TFLite model without running it.

    Raises:
      ModelError: where `content` is no TFLite flatbuffer.
    """
    model = parse(content)
    try:
        return _contents(model)
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        raise ModelError(f"A damaged TFLite model of {len(content)} bytes: {error}") from error


def parse(content: bytes) -> Any:
    """The flatbuffer as objects, all data in it; a ModelError where it is none, or was cut off."""
    if content[4:8] != b"TFL3":
        raise ModelError(f"Not a TFLite model: {len(content)} bytes without the file identifier TFL3.")
    try:
        return flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    except (struct.error, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ModelError(f"A damaged TFLite model of {len(content)} bytes: {error}") from error


def sub_byte_tensors(model: Any) -> list[str]:
    """The names of the tensors whose numbers have less than a byte each, of a parsed flatbuffer."""
    return [tensor.name.decode() for graph in model.subgraphs for tensor in graph.tensors if tensor.type in _SUB_BYTE]


def serialize(model: Any) -> bytes:
    """The flatbuffer of what `parse` returned, changed or not; all data lies in it."""
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _contents(model: Any) -> ModelContents:
    ops: collections.Counter[str] = collections.Counter()
    float_ops: collections.Counter[str] = collections.Counter()
    weights: dict[str, np.ndarray] = {}
    scales: dict[str, np.ndarray] = {}
    for graph in model.subgraphs:
        beside = {details.scales for tensor in graph.tensors if (details := blockwise_quantization(tensor)) is not None}
        for operator in graph.operators:
            name = flatbuffer_utils.opcode_to_name(model, operator.opcodeIndex)
            ops[name] += 1
            if any(graph.tensors[index].type in _FLOATS for index in operator.outputs):
                float_ops[name] += 1
        for index, tensor in enumerate(graph.tensors):
            data = model.buffers[tensor.buffer].data
            if (
                data is None
                or not len(data)
                or tensor.shape is None
                or len(tensor.shape) < 2
                or tensor.type not in (*_DTYPES, *_SUB_BYTE)
            ):
                continue
            if index in beside:
                continue
            values = _values(bytes(data), tensor)
            layer = _layer(graph, index)
            name = layer if layer not in weights else f"{layer}/{index}"
            zero_point, scales[name] = _affine(model, graph, tensor)
            weights[name] = values - zero_point if zero_point.any() else values
    return ModelContents(dict(ops), dict(float_ops), weights, scales, arena_bytes(model))


def _values(data: bytes, tensor: Any) -> np.ndarray:
    """A constant's stored values; sub-byte ones are packed with the first in the low bits."""
    dtype, shape = tensor.type, tensor.shape
    if tensor.sparsity is not None:
        return _dense(np.frombuffer(data, _DTYPES[dtype]), tensor.sparsity, shape)
    if dtype in _DTYPES:
        return np.frombuffer(data, _DTYPES[dtype]).reshape(shape)
    bits = _BITS[dtype]
    packed = np.frombuffer(data, np.uint8)
    fields = np.stack([(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)], axis=-1).reshape(-1)
    signed = fields.astype(np.int8)
    signed[signed >= 2 ** (bits - 1)] -= 2**bits
    return signed[: math.prod(shape)].reshape(shape)


def _dense(values: np.ndarray, sparsity: Any, shape: Any) -> np.ndarray:
    """The values of a constant that is encoded sparse, with its zeros.

    SparsityParameters of the TFLite schema: the dimensions, those inside of blocks behind the others, are gone through
    in `traversalOrder`; each is all there, or has lists of what is there as in the compressed sparse row format.
    """
    positions = np.zeros(1, np.int64)
    places: list[np.ndarray] = []  # of each dimension gone through so far, by value
    sizes = {}
    for dimension, level in zip(sparsity.traversalOrder, sparsity.dimMetadata, strict=True):
        if level.format == schema.DimensionType.DENSE:
            counts = np.full(len(positions), level.denseSize)
            starts = positions * level.denseSize
        else:
            segments = np.asarray(level.arraySegments.values, np.int64)
            counts, starts = segments[positions + 1] - segments[positions], segments[positions]
        within = np.arange(counts.sum(), dtype=np.int64) - np.repeat(np.cumsum(counts) - counts, counts)
        positions = np.repeat(starts, counts) + within
        places = [np.repeat(place, counts) for place in places]
        if level.format == schema.DimensionType.DENSE:
            sizes[dimension] = level.denseSize
            places.append(within)
        else:
            places.append(np.asarray(level.arrayIndices.values, np.int64)[positions])
    by_dimension = dict(zip(sparsity.traversalOrder, places, strict=True))
    index = [by_dimension[dimension] for dimension in range(len(shape))]
    for block, dimension in enumerate(sparsity.blockMap if sparsity.blockMap is not None else ()):
        inner = len(shape) + block
        index[dimension] = index[dimension] * sizes[inner] + by_dimension[inner]
    dense = np.zeros(shape, values.dtype)
    dense[tuple(index)] = values[positions]
    return dense


def blockwise_quantization(tensor: Any) -> Any:
    """How the blocks of a constant are quantized, as the schema has it; None where it has none."""
    details = tensor.quantization.details if tensor.quantization is not None else None
    return details if isinstance(details, schema.BlockwiseQuantizationT) else None


def _affine(model: Any, graph: Any, tensor: Any) -> tuple[np.ndarray, np.ndarray]:
    """Zero point and scale of a constant, shaped to broadcast against it; 0 and 1 where it is not quantized so."""
    quantization = tensor.quantization
    if (found := blockwise_quantization(tensor)) is not None:
        stored = graph.tensors[found.scales]
        scales = _values(bytes(model.buffers[stored.buffer].data), stored).astype(np.float32)
        return np.zeros([1] * len(tensor.shape), np.int16), np.repeat(scales, found.blockSize, axis=-1)
    if quantization is None or quantization.scale is None or not len(quantization.scale):
        return np.zeros([1] * len(tensor.shape), np.int16), np.ones([1] * len(tensor.shape), np.float32)
    shape = [1] * len(tensor.shape)
    shape[quantization.quantizedDimension] = len(quantization.scale)
    zero_point = quantization.zeroPoint if quantization.zeroPoint is not None else [0] * len(quantization.scale)
    return (
        np.asarray(zero_point, np.int16).reshape(shape),
        np.asarray(quantization.scale, np.float32).reshape(shape),
    )


def arena_bytes(model: Any) -> int:
    """Returns the bytes of the main graph's arena, with a batch of one.

    Tensors are placed greedily by size, each in the smallest gap that fits it.

    As TFLite's ArenaPlanner does (Pisarchyk and Lee 2020, "Efficient memory management for deep neural net inference"):
    what lives from the first operator to the end comes first, in the order of the tensors. What a kernel needs beside
    its inputs and outputs is not in it, nor what it saves where it writes over its input, nor dequantized constants,
    which TFLite keeps elsewhere and XNNPACK does without.
    """
    graph = model.subgraphs[0]
    kept = {
        int(operator.outputs[0])
        for operator in graph.operators
        if flatbuffer_utils.opcode_to_name(model, operator.opcodeIndex) == "DEQUANTIZE"
        and model.buffers[graph.tensors[operator.inputs[0]].buffer].data is not None
    }
    lives = {index: steps for index, steps in _lives(graph).items() if index not in kept}
    sizes = {index: _bytes(graph.tensors[index]) for index in lives}
    whole = (0, len(graph.operators))
    placed: list[tuple[int, int, int, int]] = []  # offset, end, first and last step
    for index in sorted(
        lives, key=lambda index: (0, index, 0) if lives[index] == whole else (1, -sizes[index], lives[index][0])
    ):
        first, last = lives[index]
        offset, smallest, free = None, math.inf, 0
        for start, stop, born, dead in sorted(placed):
            if born <= last and first <= dead:
                if _aligned(free) + sizes[index] <= start and start - _aligned(free) < smallest:
                    offset, smallest = _aligned(free), start - free
                free = max(free, stop)
        if offset is None:
            offset = _aligned(free)
        placed.append((offset, offset + sizes[index], first, last))
    return max((_aligned(stop) for _, stop, _, _ in placed), default=0)


def _lives(graph: Any) -> dict[int, tuple[int, int]]:
    """The first and the last operator that a tensor is there for; behind the last one where it is never freed."""
    never = len(graph.operators)
    lives = {int(index): (0, never) for index in graph.inputs}
    used: dict[int, int] = {int(index): never for index in (*graph.inputs, *graph.outputs)}
    for step, operator in enumerate(graph.operators):
        for index in map(int, operator.inputs):
            used[index] = max(used.get(index, 0), step)
        for index in map(int, operator.outputs):
            lives.setdefault(index, (step, never))
    return {index: (first, used.get(index, never)) for index, (first, _) in lives.items()}


def _bytes(tensor: Any) -> int:
    """Bytes of a tensor; a free size counts as one."""
    count = math.prod(max(int(size), 1) for size in tensor.shape) if tensor.shape is not None else 1
    return -(-count * _BITS.get(tensor.type, 0) // 8)


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT


def _layer(graph: Any, weight: int) -> str:
    """The name of the layer that uses a constant: the converter names the constants `arith.constant7`, but what an
    operator returns after the layer, `digits/conv_1/Relu;digits/conv_1/BiasAdd;…`.
    """
    tensor = weight
    for operator in graph.operators:  # in the order they run, so a DEQUANTIZE comes before what uses its output
        if tensor in operator.inputs:
            tensor = operator.outputs[0]
            if len(operator.inputs) > 1:
                break
    own = graph.tensors[weight].name.decode()
    if tensor == weight:
        return own
    name = graph.tensors[tensor].name.decode()
    layer = layer_name(name)
    return layer if layer != name else own
