"""Weights of 2 bits: -1, 0 or 1 times a scale."""

import collections
from collections.abc import Iterable

import numpy as np

from tfx_compression.tflite import flatbuffer


def clip_for_two_bits(content: bytes, kernels: Iterable[int], per_channel: bool) -> bytes:
    """Returns the model with kernels clipped to their ternary scales.

    The quantizer makes -1, 0 or 1 times the largest weight of each channel, so clipping sets the scale. Kernels that
    share their buffer with another tensor stay as they are.

    Args:
      content: A float flatbuffer.
      kernels: Tensors that hold dense kernels, [outputs, inputs].
      per_channel: Whether each output channel has a scale.
    """
    model = flatbuffer.parse(content)
    tensors = model.subgraphs[0].tensors
    users = collections.Counter(tensor.buffer for subgraph in model.subgraphs for tensor in subgraph.tensors)
    for place in kernels:
        tensor = tensors[place]
        buffer = model.buffers[tensor.buffer]
        if users[tensor.buffer] > 1:
            continue
        kernel = np.frombuffer(bytes(buffer.data), np.float32).reshape(tensor.shape)
        scales = ternary_scales(kernel if per_channel else kernel.reshape(1, -1))
        clipped = np.clip(kernel, -scales, scales) if per_channel else np.clip(kernel, -scales[0], scales[0])
        buffer.data = np.frombuffer(clipped.astype(np.float32).tobytes(), np.uint8)
    return flatbuffer.serialize(model)


def ternary_scales(rows: np.ndarray) -> np.ndarray:
    """Returns the scale that minimizes each row's squared error when its weights become -1, 0 or 1 times it.

    Li and Liu 2016, "Ternary weight networks", arXiv:1605.04711, equations 4 to 6, solved exactly: the k largest
    absolute weights with the largest `(sum)^2 / k` are not zero, and their mean is the scale.

    Args:
      rows: [rows, weights] weights.

    Returns:
      [rows, 1] scales.
    """
    sums = np.cumsum(-np.sort(-np.abs(rows.astype(np.float64)), axis=1), axis=1)
    counts = np.arange(1, rows.shape[1] + 1)
    best = np.argmax(sums**2 / counts, axis=1)[:, None]
    return np.take_along_axis(sums, best, 1) / (best + 1)
