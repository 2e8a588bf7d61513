"""What a function multiplies its variables with: read off its graph, whoever made it."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow as tf

from tfx_compression.kernels import KernelKind
from tfx_compression.tf_graphs import walks
from tfx_compression.tf_graphs.inlining import inline_calls, variable_spec

# What a variable passes on its way to a multiplication without being changed.
_SAME = (
    *("ReadVariableOp", "Identity", "Cast", "Enter", "Switch", "Merge", "StopGradient", "Snapshot"),
    *("FakeQuantWithMinMaxVars", "FakeQuantWithMinMaxVarsPerChannel"),  # of quantization-aware training
)
_RESHAPING = ("Reshape", "Squeeze", "ExpandDims")
_ADDING = ("Add", "AddV2", "Sub", "Mul", "RealDiv", "ClipByValue", "Maximum", "Minimum", "Mean")
_REARRANGING = ("ConcatV2", "StridedSlice", "Transpose", "GatherV2", "Pack", "Unpack")
_UNIMPORTANT = ("Shape", "NextIteration")
UNKNOWN_OP = "Unknown"  # the operation of a use that can't be seen

Axes = tuple[tuple[int, ...], ...]  # for each axis of a tensor, the variable's axes that it is made of


@dataclasses.dataclass(frozen=True)
class VariableUse:
    """An operation that takes a variable.

    Attributes:
      op: TensorFlow's name for it.
      kind: of the multiplication; None where it is none, or not one that is known.
      input_axes: the variable's axes that are summed over.
      output_axes: the others.
      macs: multiply-accumulates for one row; None where a size is free.
    """

    op: str
    kind: KernelKind | None = None
    input_axes: tuple[int, ...] = ()
    output_axes: tuple[int, ...] = ()
    macs: int | None = None


def output_op_type(function: Any) -> str:
    """The type of the operation that makes a function's or signature's first output: `Softmax`, `BiasAdd`.

    What scales, shifts, clips, averages or rearranges its result is passed over.
    """
    output = _same_tensor(inline_calls(function).graph, function.outputs[0])
    return str(walks.source(output, (*_SAME, *_RESHAPING, *_ADDING, *_REARRANGING)).op.type)


def resource_handle(variable: Any) -> Any:
    """The eager handle of a tf.Variable or a Keras 3 Variable; of a tensor, which has none, itself."""
    inner = getattr(variable, "_value", variable)
    if replicas := getattr(inner, "values", None):  # of a tf.distribute strategy
        inner = replicas[0]
    return getattr(inner, "handle", inner)


def find_uses(function: Any) -> dict[int, list[VariableUse]]:
    """What a concrete function uses its variables for, by the id of their handle; unknown where it can't be seen."""
    try:
        flat = inline_calls(function)
    except (ValueError, tf.errors.OpError):  # a graph that Grappler takes apart in a way that can't be imported
        variables = [external for external, _ in function.graph.captures if variable_spec(external) is not None]
        return {id(external): [VariableUse(UNKNOWN_OP)] for external in variables}
    return {captured: [use for _, _, use in _uses(flat.graph, tensor)] for captured, tensor in flat.handles.items()}


def first_and_last_kernels(function: Any, kernels: set[int]) -> tuple[set[int], set[int]]:
    """Which kernels, by the id of their handle, are first and last on the way from a function's inputs to its outputs.

    First are those that multiply what depends on no other kernel, last those from which an output comes without another
    kernel between. None are where the graph can't be seen.
    """
    try:
        flat = inline_calls(function)
    except (ValueError, tf.errors.OpError):
        return set(), set()
    sites: dict[str, dict[int, set[int]]] = {}  # by operation, its kernels, and which of its inputs they are
    for captured, tensor in flat.handles.items():
        for op, index, use in _uses(flat.graph, tensor):
            if captured in kernels and use.kind is not None:
                sites.setdefault(op.name, {}).setdefault(captured, set()).add(index)
    first = set()
    for name, kernels_here in sites.items():
        op = flat.graph.get_operation_by_name(name)
        for captured, own in kernels_here.items():
            data = [tensor for index, tensor in enumerate(op.inputs) if index not in own]
            if not _nearest_kernels(data, sites) - {captured}:
                first.add(captured)
    return first, _nearest_kernels([_same_tensor(flat.graph, output) for output in function.outputs], sites)


def _nearest_kernels(ends: Iterable[tf.Tensor], sites: Mapping[str, Mapping[int, set[int]]]) -> set[int]:
    """Returns the kernels in `sites` that come first on all ways back from tensors."""
    stops = walks.walk_back(ends, lambda tensor: tensor.op.name in sites).stops
    return {kernel for tensor in stops.values() for kernel in sites[tensor.op.name]}


def _same_tensor(graph: tf.Graph, output: tf.Tensor) -> tf.Tensor:
    """Returns the tensor of an inlined graph that is a function's output."""
    return graph.get_operation_by_name(output.op.name).outputs[output.value_index]


def total_macs(uses: list[VariableUse]) -> int | None:
    """Multiply-accumulates of one row in all uses of a variable, or None where those of one are not known."""
    macs = [use.macs for use in uses]
    return None if None in macs or not macs else sum(count for count in macs if count is not None)


def _uses(graph: tf.Graph, variable: tf.Tensor) -> list[tuple[tf.Operation, int, VariableUse]]:
    """The operations that take a variable, as which of their inputs, and what for."""
    shape = tf.TensorShape(variable.op.get_attr("shape"))
    if shape.rank is None:
        return []
    start: Axes = tuple((axis,) for axis in range(shape.rank))
    found, seen = [], set()
    places: list[tuple[tf.Tensor, Axes | None, str]] = [(variable, start, "")]
    while places:
        tensor, axes, loop = places.pop()
        if tensor.name in seen:
            continue
        seen.add(tensor.name)
        for op, index in walks.consumers(tensor):
            if op.type in (*_SAME, "Transpose", *_RESHAPING) and index == 0:
                frame = op.get_attr("frame_name").decode() if op.type == "Enter" else loop
                moved = _moved(op, axes)
                places += [(output, moved, frame) for output in op.outputs[: 2 if op.type == "Switch" else 1]]
            elif op.type not in _UNIMPORTANT:
                use = _use(op, index, axes, shape)
                found.append((op, index, _repeated(graph, use, shape, loop) if loop else use))
    return found


def _moved(op: tf.Operation, axes: Axes | None) -> Axes | None:
    """Where the variable's axes are behind an operation that changes none of its values."""
    if op.type in _SAME or axes is None:
        return axes
    if op.type == "Transpose":
        order = tf.get_static_value(op.inputs[1])
        return None if order is None else tuple(axes[axis] for axis in order)
    before, after = op.inputs[0].shape, op.outputs[0].shape
    if not before.is_fully_defined() or not after.is_fully_defined():
        return None
    return _regrouped(axes, before.as_list(), after.as_list())


def _regrouped(axes: Axes, before: list[int], after: list[int]) -> Axes | None:
    """The axes behind a reshape that joins neighbours or adds and removes axes of size 1; None where it splits one."""
    result, place = [], 0
    for size in after:
        group: tuple[int, ...] = ()
        have = 1
        while place < len(before) and (have < size or (not group and size == before[place] == 1)):
            have *= before[place]
            group += axes[place]
            place += 1
        if have != size:
            return None
        result.append(group)
    return tuple(result)


def _use(op: tf.Operation, index: int, axes: Axes | None, shape: tf.TensorShape) -> VariableUse:
    if (op.type == "ResourceGather" and index == 0) or (op.type == "GatherV2" and index == 0 and axes is not None):
        return VariableUse(op.type, "embedding", (), tuple(range(shape.rank)), 0)
    split = _split(op, index, axes) if axes is not None and shape.rank >= 2 else None
    if axes is None or split is None:
        return VariableUse(op.type)
    kind, summed = split
    inputs = tuple(axis for place in summed for axis in axes[place])
    outputs = tuple(axis for axis in range(shape.rank) if axis not in inputs)
    return VariableUse(op.type, kind, inputs, outputs, _macs(op, kind, [shape[axis] for axis in inputs], shape))


def _split(op: tf.Operation, index: int, axes: Axes) -> tuple[KernelKind, tuple[int, ...]] | None:
    """The kind of a multiplication, and the axes of the tensor at `index` that it sums over."""
    rank = len(axes)
    every = tuple(range(rank))
    match op.type, index:
        case "MatMul", (0 | 1):
            return "dense", (_row(op.get_attr(("transpose_a", "transpose_b")[index]), index, rank),)
        case (("BatchMatMul" | "BatchMatMulV2" | "BatchMatMulV3"), (0 | 1)):
            kind: KernelKind = "dense" if rank == 2 else "einsum"
            return kind, (_row(op.get_attr(("adj_x", "adj_y")[index]), index, rank),)
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


def _row(transposed: bool, index: int, rank: int) -> int:
    """The axis of a matrix that a product sums over: the right one of the left factor, unless it is transposed."""
    return rank - 1 if (index == 0) != transposed else rank - 2


def _macs(op: tf.Operation, kind: KernelKind, summed: list[int], shape: tf.TensorShape) -> int | None:
    """Each number that comes out takes one multiplication per weight that it sums over; transposed: each that goes in
    takes one per weight that it is spread over.
    """
    places = op.inputs[2].shape if kind == "transposed" else _undilated(op.outputs[0]).shape
    if not places.is_fully_defined():
        return None
    if kind == "transposed":
        return int(places.num_elements() * shape.num_elements() // shape[-1])
    return int(places.num_elements() * math.prod(summed))


def _undilated(tensor: tf.Tensor) -> tf.Tensor:
    """The result of a convolution; of a dilated one, which TensorFlow takes apart and pads, it put together again."""
    for op in tensor.consumers():
        if op.type == "BatchToSpaceND":
            return op.outputs[0]
        if op.type == "Squeeze":
            return _undilated(op.outputs[0])
    return tensor


def _repeated(graph: tf.Graph, use: VariableUse, shape: tf.TensorShape, loop: str) -> VariableUse:
    """A use inside a loop: once for each step of the sequence that the loop reads, where its length is fixed."""
    lengths = {
        enter.inputs[0].op.inputs[0].shape[0]
        for enter in graph.get_operations()
        if enter.type == "Enter" and enter.get_attr("frame_name").decode() == loop
        if enter.inputs[0].op.type == "TensorListFromTensor" and enter.inputs[0].op.inputs[0].shape.rank
    }
    steps = lengths.pop() if len(lengths) == 1 else None
    if use.kind != "dense":
        return dataclasses.replace(use, macs=None)
    # The sizes of what goes round are lost: a step of a recurrent layer multiplies one row.
    weights = int(shape.num_elements())
    return dataclasses.replace(use, kind="recurrent", macs=None if steps is None else steps * weights)
