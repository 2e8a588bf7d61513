"""The memory arena of a TFLite model, laid out as TFLite's planner does."""

import math
from typing import Any

from tfx_compression.tflite.flatbuffer import BITS, builtin_name

_ALIGNMENT = 64  # bytes; TFLite's kDefaultTensorAlignment


def arena_bytes(model: Any) -> int:
    """Returns the bytes of the main graph's arena, with a batch of one.

    The layout is that of TFLite's ArenaPlanner (Pisarchyk and Lee 2020, "Efficient memory management for deep neural
    net inference"): greedy by size, each tensor in the smallest gap that fits it. Tensors that live from the first
    operator to the end come first, in their own order. The result doesn't include what a kernel needs besides its
    inputs and outputs, nor what it saves by overwriting its input, nor dequantized constants, which TFLite keeps
    elsewhere and XNNPACK doesn't need.

    Args:
      model: The parsed flatbuffer.
    """
    graph = model.subgraphs[0]
    dequantized_constants = {
        int(operator.outputs[0])
        for operator in graph.operators
        if builtin_name(model, operator) == "DEQUANTIZE"
        and model.buffers[graph.tensors[operator.inputs[0]].buffer].data is not None
    }
    lifetimes = {index: steps for index, steps in _lifetimes(graph).items() if index not in dequantized_constants}
    sizes = {index: _bytes(graph.tensors[index]) for index in lifetimes}
    entire = (0, len(graph.operators))
    placed: list[tuple[int, int, int, int]] = []  # start, end, first and last operator
    for index in sorted(
        lifetimes,
        key=lambda index: (0, index, 0) if lifetimes[index] == entire else (1, -sizes[index], lifetimes[index][0]),
    ):
        first, last = lifetimes[index]
        occupied = [(start, end) for start, end, born, freed in sorted(placed) if born <= last and first <= freed]
        offset = _best_offset(sizes[index], occupied)
        placed.append((offset, offset + sizes[index], first, last))
    return max((_align(end) for _, end, _, _ in placed), default=0)


def _best_offset(size: int, occupied: list[tuple[int, int]]) -> int:
    """Returns the start of the smallest gap that fits a tensor, or the first free place after all others.

    Args:
      size: Bytes of the tensor.
      occupied: Start and end of the tensors that live at the same time, sorted.
    """
    offset, smallest, free = None, math.inf, 0
    for start, end in occupied:
        if _align(free) + size <= start and start - _align(free) < smallest:
            offset, smallest = _align(free), start - free
        free = max(free, end)
    return _align(free) if offset is None else offset


def _lifetimes(graph: Any) -> dict[int, tuple[int, int]]:
    """Returns the first and the last operator that need a tensor; if it is never freed, the number of operators."""
    never = len(graph.operators)
    lifetimes = {int(index): (0, never) for index in graph.inputs}
    last_uses: dict[int, int] = {int(index): never for index in (*graph.inputs, *graph.outputs)}
    for step, operator in enumerate(graph.operators):
        for index in map(int, operator.inputs):
            last_uses[index] = max(last_uses.get(index, 0), step)
        for index in map(int, operator.outputs):
            lifetimes.setdefault(index, (step, never))
    return {index: (first, last_uses.get(index, never)) for index, (first, _) in lifetimes.items()}


def _bytes(tensor: Any) -> int:
    """Returns the bytes of a tensor; a free size counts as one."""
    count = math.prod(max(int(size), 1) for size in tensor.shape) if tensor.shape is not None else 1
    return -(-count * BITS.get(tensor.type, 0) // 8)


def _align(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT
