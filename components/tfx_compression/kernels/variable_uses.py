"""The operations that use a function's variables, read off its graph. It doesn't matter what made the graph."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow as tf

from tfx_compression.kernels.kernel import KernelKind
from tfx_compression.tf_graphs import walks
from tfx_compression.tf_graphs.inlining import inline_calls, variable_spec

# Operations that a variable's values pass unchanged on their way to a multiplication.
_UNCHANGED = (
    *("ReadVariableOp", "Identity", "Cast", "Enter", "Switch", "Merge", "StopGradient", "Snapshot"),
    *("FakeQuantWithMinMaxVars", "FakeQuantWithMinMaxVarsPerChannel"),  # of quantization-aware training
)
_RESHAPING = ("Reshape", "Squeeze", "ExpandDims")
_ELEMENTWISE = ("Add", "AddV2", "Sub", "Mul", "RealDiv", "ClipByValue", "Maximum", "Minimum", "Mean")
_REARRANGING = ("ConcatV2", "StridedSlice", "Transpose", "GatherV2", "Pack", "Unpack")
_IGNORED = ("Shape", "NextIteration")
UNKNOWN_OP = "Unknown"  # operation of a use in a graph that can't be read

Axes = tuple[tuple[int, ...], ...]  # for each axis of a tensor, the axes of the variable that it consists of


@dataclasses.dataclass(frozen=True)
class VariableUse:
    """An operation that takes a variable.

    Attributes:
      op: TensorFlow's name of the operation.
      kind: Kind of the multiplication; None where the operation is no known multiplication.
      input_axes: Axes of the variable that the multiplication sums over.
      output_axes: The other axes.
      macs: Multiply-accumulates for one row; None where a size is free.
    """

    op: str
    kind: KernelKind | None = None
    input_axes: tuple[int, ...] = ()
    output_axes: tuple[int, ...] = ()
    macs: int | None = None


def find_uses(function: Any) -> dict[int, list[VariableUse]]:
    """Returns the uses of the variables of a concrete function or signature, by `variable_id`.

    In a graph that can't be read, each variable has one use, of the operation `UNKNOWN_OP`.
    """
    try:
        inlined = inline_calls(function)
    except (ValueError, tf.errors.OpError):  # Grappler splits some graphs so that they can't be imported.
        variables = [external for external, _ in function.graph.captures if variable_spec(external) is not None]
        return {id(external): [VariableUse(UNKNOWN_OP)] for external in variables}
    return {key: [use for _, _, use in _uses(inlined.graph, handle)] for key, handle in inlined.handles.items()}


def variable_id(variable: Any) -> int:
    """Returns the id of the eager handle of a tf.Variable or a Keras 3 Variable.

    It is the same for all objects that share the values. A tensor has no handle, so its own id is returned.
    """
    inner = getattr(variable, "_value", variable)
    if replicas := getattr(inner, "values", None):  # The variable belongs to a tf.distribute strategy.
        inner = replicas[0]
    return id(getattr(inner, "handle", inner))


def total_macs(uses: list[VariableUse]) -> int | None:
    """Returns the multiply-accumulates for one row over all uses; None where those of one are unknown."""
    macs = [use.macs for use in uses]
    return None if None in macs or not macs else sum(count for count in macs if count is not None)


def output_op_type(function: Any) -> str:
    """Returns the type of the operation that computes the first output: `Softmax`, `BiasAdd`.

    Operations that scale, shift, clip, average or rearrange its result are skipped.
    """
    output = _output_tensor(inline_calls(function).graph, function.outputs[0])
    return str(walks.source(output, (*_UNCHANGED, *_RESHAPING, *_ELEMENTWISE, *_REARRANGING)).op.type)


def first_and_last_kernels(function: Any, kernels: set[int]) -> tuple[set[int], set[int]]:
    """Returns the first and the last kernels on the way from a function's inputs to its outputs.

    A first kernel multiplies values that depend on no other kernel. A last one has no other kernel between itself and
    an output.

    Args:
      function: Concrete function or signature.
      kernels: The `variable_id` of each kernel.

    Returns:
      The ids of both; empty sets where the graph can't be read.
    """
    try:
        inlined = inline_calls(function)
    except (ValueError, tf.errors.OpError):
        return set(), set()
    multiplications: dict[str, dict[int, set[int]]] = {}  # by operation, its kernels and the inputs that they arrive at
    for key, handle in inlined.handles.items():
        for op, index, use in _uses(inlined.graph, handle):
            if key in kernels and use.kind is not None:
                multiplications.setdefault(op.name, {}).setdefault(key, set()).add(index)
    first = set()
    for name, kernel_inputs in multiplications.items():
        op = inlined.graph.get_operation_by_name(name)
        for key, indices in kernel_inputs.items():
            data = [tensor for index, tensor in enumerate(op.inputs) if index not in indices]
            if not _nearest_kernels(data, multiplications) - {key}:
                first.add(key)
    outputs = [_output_tensor(inlined.graph, output) for output in function.outputs]
    return first, _nearest_kernels(outputs, multiplications)


def _nearest_kernels(ends: Iterable[tf.Tensor], multiplications: Mapping[str, Mapping[int, set[int]]]) -> set[int]:
    """Returns the kernels that backward walks from tensors meet first."""
    stops = walks.walk_back(ends, lambda tensor: tensor.op.name in multiplications).stops
    return {key for tensor in stops.values() for key in multiplications[tensor.op.name]}


def _output_tensor(graph: tf.Graph, output: tf.Tensor) -> tf.Tensor:
    """Returns the tensor of an inlined graph that is an output of its function."""
    return graph.get_operation_by_name(output.op.name).outputs[output.value_index]


def _uses(graph: tf.Graph, handle: tf.Tensor) -> list[tuple[tf.Operation, int, VariableUse]]:
    """Returns the operations that take a variable, the input that it arrives at, and the use."""
    shape = tf.TensorShape(handle.op.get_attr("shape"))
    if shape.rank is None:
        return []
    start: Axes = tuple((axis,) for axis in range(shape.rank))
    uses, visited = [], set()
    pending: list[tuple[tf.Tensor, Axes | None, str]] = [(handle, start, "")]
    while pending:
        tensor, axes, loop = pending.pop()
        if tensor.name in visited:
            continue
        visited.add(tensor.name)
        for op, index in walks.consumers(tensor):
            if op.type in (*_UNCHANGED, "Transpose", *_RESHAPING) and index == 0:
                frame = op.get_attr("frame_name").decode() if op.type == "Enter" else loop
                moved = _output_axes(op, axes)
                pending += [(output, moved, frame) for output in op.outputs[: 2 if op.type == "Switch" else 1]]
            elif op.type not in _IGNORED:
                use = _use(op, index, axes, shape)
                uses.append((op, index, _use_in_loop(graph, use, shape, loop) if loop else use))
    return uses


def _output_axes(op: tf.Operation, axes: Axes | None) -> Axes | None:
    """Returns the variable's axes in the output of an operation that changes no values; None where unknown."""
    if op.type in _UNCHANGED or axes is None:
        return axes
    if op.type == "Transpose":
        order = tf.get_static_value(op.inputs[1])
        return None if order is None else tuple(axes[axis] for axis in order)
    before, after = op.inputs[0].shape, op.outputs[0].shape
    if not before.is_fully_defined() or not after.is_fully_defined():
        return None
    return _reshaped_axes(axes, before.as_list(), after.as_list())


def _reshaped_axes(axes: Axes, before: list[int], after: list[int]) -> Axes | None:
    """Returns the axes after a reshape that joins neighbors or adds and removes axes of size 1; None for a split."""
    result, place = [], 0
    for size in after:
        group: tuple[int, ...] = ()
        joined = 1
        while place < len(before) and (joined < size or (not group and size == before[place] == 1)):
            joined *= before[place]
            group += axes[place]
            place += 1
        if joined != size:
            return None
        result.append(group)
    return tuple(result)


def _use(op: tf.Operation, index: int, axes: Axes | None, shape: tf.TensorShape) -> VariableUse:
    if (op.type == "ResourceGather" and index == 0) or (op.type == "GatherV2" and index == 0 and axes is not None):
        return VariableUse(op.type, "embedding", (), tuple(range(shape.rank)), 0)
    multiplication = _multiplication(op, index, axes) if axes is not None and shape.rank >= 2 else None
    if axes is None or multiplication is None:
        return VariableUse(op.type)
    kind, summed = multiplication
    input_axes = tuple(axis for place in summed for axis in axes[place])
    output_axes = tuple(axis for axis in range(shape.rank) if axis not in input_axes)
    macs = _macs(op, kind, [shape[axis] for axis in input_axes], shape)
    return VariableUse(op.type, kind, input_axes, output_axes, macs)


def _multiplication(op: tf.Operation, index: int, axes: Axes) -> tuple[KernelKind, tuple[int, ...]] | None:
    """Returns the kind of a multiplication, and the axes of the tensor at `index` that it sums over."""
    rank = len(axes)
    every = tuple(range(rank))
    match op.type, index:
        case "MatMul", (0 | 1):
            return "dense", (_summed_axis(op.get_attr(("transpose_a", "transpose_b")[index]), index, rank),)
        case (("BatchMatMul" | "BatchMatMulV2" | "BatchMatMulV3"), (0 | 1)):
            kind: KernelKind = "dense" if rank == 2 else "einsum"
            return kind, (_summed_axis(op.get_attr(("adj_x", "adj_y")[index]), index, rank),)
        case (("Conv2D" | "Conv3D"), 1):
            return "convolution", every[:-1]
        case "DepthwiseConv2dNative", 1:
            return "depthwise", every[:-2]
        case (("Conv2DBackpropInput" | "Conv3DBackpropInputV2"), 1):
            return "transposed", (*every[:-2], rank - 1)
        case "Einsum", _:
            terms, result = op.get_attr("equation").decode().split("->")
            letters = terms.split(",")[index]
            summed = tuple(axis for axis in every if axis < len(letters) and letters[axis] not in result)
            return ("einsum", summed) if summed and "." not in letters and len(letters) == rank else None
    return None


def _summed_axis(transposed: bool, index: int, rank: int) -> int:
    """Returns the axis that a matrix product sums over: the last of an untransposed left factor."""
    return rank - 1 if (index == 0) != transposed else rank - 2


def _macs(op: tf.Operation, kind: KernelKind, summed: list[int], shape: tf.TensorShape) -> int | None:
    """Returns the multiply-accumulates of a multiplication.

    Each number of the output takes one per weight that it sums over. In a transposed convolution, each number of the
    input takes one per weight that it is multiplied with.
    """
    places = op.inputs[2].shape if kind == "transposed" else _undilated(op.outputs[0]).shape
    if not places.is_fully_defined():
        return None
    if kind == "transposed":
        return int(places.num_elements() * shape.num_elements() // shape[-1])
    return int(places.num_elements() * math.prod(summed))


def _undilated(tensor: tf.Tensor) -> tf.Tensor:
    """Returns the result of a convolution. TensorFlow splits and pads a dilated one, and joins the parts later."""
    for op in tensor.consumers():
        if op.type == "BatchToSpaceND":
            return op.outputs[0]
        if op.type == "Squeeze":
            return _undilated(op.outputs[0])
    return tensor


def _use_in_loop(graph: tf.Graph, use: VariableUse, shape: tf.TensorShape, loop: str) -> VariableUse:
    """Returns a use once per step of the sequence that its loop reads, where the sequence has a fixed length."""
    lengths = {
        enter.inputs[0].op.inputs[0].shape[0]
        for enter in graph.get_operations()
        if enter.type == "Enter" and enter.get_attr("frame_name").decode() == loop
        if enter.inputs[0].op.type == "TensorListFromTensor" and enter.inputs[0].op.inputs[0].shape.rank
    }
    steps = lengths.pop() if len(lengths) == 1 else None
    if use.kind != "dense":
        return dataclasses.replace(use, macs=None)
    # The loop loses the sizes of its variables. One step of a recurrent layer multiplies one row.
    weights = int(shape.num_elements())
    return dataclasses.replace(use, kind="recurrent", macs=None if steps is None else steps * weights)
