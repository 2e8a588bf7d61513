"""The values of constants in a TFLite model, decoded from sparse, sub-byte and quantized storage."""

import math
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfx_compression.tflite.flatbuffer import SUB_BYTE_BITS, blockwise_quantization

_DTYPES = {
    schema.TensorType.FLOAT32: np.float32,
    schema.TensorType.FLOAT16: np.float16,
    schema.TensorType.UINT8: np.uint8,
    schema.TensorType.INT8: np.int8,
}


def is_decodable(tensor: Any) -> bool:
    """Returns whether `stored_values` knows the type of a tensor."""
    return tensor.type in _DTYPES or tensor.type in SUB_BYTE_BITS


def stored_values(data: bytes, tensor: Any) -> np.ndarray:
    """Returns the values of a constant as they are stored, in its shape. Sub-byte values become int8.

    Args:
      data: Content of the tensor's buffer.
      tensor: Tensor of a parsed flatbuffer.
    """
    dtype, shape = tensor.type, tensor.shape
    if tensor.sparsity is not None:
        return _dense_values(np.frombuffer(data, _DTYPES[dtype]), tensor.sparsity, shape)
    if dtype in _DTYPES:
        return np.frombuffer(data, _DTYPES[dtype]).reshape(shape)
    bits = SUB_BYTE_BITS[dtype]
    packed = np.frombuffer(data, np.uint8)  # The first value is in the lowest bits.
    fields = np.stack([(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)], axis=-1).reshape(-1)
    signed = fields.astype(np.int8)
    signed[signed >= 2 ** (bits - 1)] -= 2**bits
    return signed[: math.prod(shape)].reshape(shape)


def packed_values(values: np.ndarray, tensor: Any) -> bytes:
    """Returns values as a dense constant stores them: the inverse of `stored_values`.

    Args:
      values: Values within the limits of the tensor's type.
      tensor: Tensor of a parsed flatbuffer.
    """
    if tensor.type in _DTYPES:
        return values.astype(_DTYPES[tensor.type]).tobytes()
    bits = SUB_BYTE_BITS[tensor.type]
    count = 8 // bits
    fields = np.zeros(-(-values.size // count) * count, np.uint8)
    fields[: values.size] = values.ravel().astype(np.uint8) & (2**bits - 1)
    shifted = fields.reshape(-1, count) << np.arange(0, 8, bits, dtype=np.uint8)
    return np.bitwise_or.reduce(shifted, axis=1).astype(np.uint8).tobytes()


def affine_parameters(model: Any, graph: Any, tensor: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns zero point and scale of a constant, shaped to broadcast against it; 0 and 1 if it is not quantized."""
    quantization = tensor.quantization
    if (blockwise := blockwise_quantization(tensor)) is not None:
        stored = graph.tensors[blockwise.scales]
        scales = stored_values(bytes(model.buffers[stored.buffer].data), stored).astype(np.float32)
        return np.zeros([1] * len(tensor.shape), np.int16), np.repeat(scales, blockwise.blockSize, axis=-1)
    if quantization is None or quantization.scale is None or not len(quantization.scale):
        return np.zeros([1] * len(tensor.shape), np.int16), np.ones([1] * len(tensor.shape), np.float32)
    shape = [1] * len(tensor.shape)
    shape[quantization.quantizedDimension] = len(quantization.scale)
    zero_point = quantization.zeroPoint if quantization.zeroPoint is not None else [0] * len(quantization.scale)
    return (
        np.asarray(zero_point, np.int16).reshape(shape),
        np.asarray(quantization.scale, np.float32).reshape(shape),
    )


def _dense_values(values: np.ndarray, sparsity: Any, shape: Any) -> np.ndarray:
    """Returns the values of a sparse constant, zeros included.

    Follows SparsityParameters of the TFLite schema: the dimensions are traversed in `traversalOrder`, in which those
    inside of blocks come after the others. Each dimension is dense, or lists its elements as in the compressed sparse
    row format.
    """
    positions = np.zeros(1, np.int64)
    indices: list[np.ndarray] = []  # for each dimension traversed so far, the index of each value
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
        indices = [np.repeat(index, counts) for index in indices]
        if level.format == schema.DimensionType.DENSE:
            sizes[dimension] = level.denseSize
            indices.append(within)
        else:
            indices.append(np.asarray(level.arrayIndices.values, np.int64)[positions])
    by_dimension = dict(zip(sparsity.traversalOrder, indices, strict=True))
    dense_index = [by_dimension[dimension] for dimension in range(len(shape))]
    for block, dimension in enumerate(sparsity.blockMap if sparsity.blockMap is not None else ()):
        inner = len(shape) + block
        dense_index[dimension] = dense_index[dimension] * sizes[inner] + by_dimension[inner]
    dense = np.zeros(shape, values.dtype)
    dense[tuple(dense_index)] = values[positions]
    return dense
