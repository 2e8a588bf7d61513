"""What a function multiplies its variables with: read off its graph, whoever made it."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2, rewriter_config_pb2
from tensorflow.python.grappler import tf_optimizer

from tfx_compression.kernels import KernelKind

# What a variable passes on its way to a multiplication without being changed.
_SAME = (
    *("ReadVariableOp", "Identity", "Cast", "Enter", "Switch", "Merge", "StopGradient", "Snapshot"),
    *("FakeQuantWithMinMaxVars", "FakeQuantWithMinMaxVarsPerChannel"),  # of quantization-aware training
)
_RESHAPING = ("Reshape", "Squeeze", "ExpandDims")
_KEEPS_CALLS = {"api_implements", "_XlaMustCompile"}  # attributes that keep a call from being inlined
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


@dataclasses.dataclass(frozen=True)
class InlinedGraph:
    """A function's graph with all that it calls in one piece.

    Attributes:
      graph: what its outputs need; loops and branches are Enter, Exit, Switch and Merge.
      handles: the variables' handles in the graph, by the id of the eager handle that the function captured.
    """

    graph: tf.Graph
    handles: dict[int, tf.Tensor]


def inline_calls(function: Any) -> InlinedGraph:
    """What a concrete function's or signature's outputs need, in one graph; of one row where the first size is free."""
    outputs = [tensor.op.name for tensor in function.outputs]
    definition = _needed(_inlined(function), outputs)
    try:
        return _imported(function, definition, rows=1)
    except ValueError:  # a batch of a size that the graph fixes
        return _imported(function, definition, rows=None)


def output_op_type(function: Any) -> str:
    """The type of the operation that makes a function's or signature's first output: `Softmax`, `BiasAdd`.

    What scales, shifts, clips, averages or rearranges its result is passed over.
    """
    op = inline_calls(function).graph.get_operation_by_name(function.outputs[0].op.name)
    while op.inputs and op.type in (*_SAME, *_RESHAPING, *_ADDING, *_REARRANGING):
        op = op.inputs[0].op
    return str(op.type)


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
        variables = [external for external, _ in function.graph.captures if _content(external) is not None]
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
            data = [source.op for index, source in enumerate(op.inputs) if index not in own]
            if not _behind(data, sites) - {captured}:
                first.add(captured)
    outputs = [flat.graph.get_operation_by_name(tensor.op.name) for tensor in function.outputs]
    return first, _behind(outputs, sites)


def _behind(ops: list[tf.Operation], sites: Mapping[str, Mapping[int, set[int]]]) -> set[int]:
    """The kernels that are met first on all ways back from operations."""
    found: set[int] = set()
    seen: set[str] = set()
    places = list(ops)
    while places:
        op = places.pop()
        if op.name in seen:
            continue
        seen.add(op.name)
        if op.name in sites:
            found |= set(sites[op.name])
        else:
            places += [source.op for source in op.inputs]
    return found


def total_macs(uses: list[VariableUse]) -> int | None:
    """Multiply-accumulates of one row in all uses of a variable, or None where those of one are not known."""
    macs = [use.macs for use in uses]
    return None if None in macs or not macs else sum(count for count in macs if count is not None)


def _inlined(function: Any) -> Any:
    """The function's GraphDef, with what it calls inlined and loops and branches lowered, by Grappler."""
    definition = function.graph.as_graph_def()
    for inner in definition.library.function:
        for attributes in (inner.attr, *(node.attr for node in inner.node_def)):
            for name in _KEEPS_CALLS & set(attributes):
                del attributes[name]
    for node in definition.node:
        for name in _KEEPS_CALLS & set(node.attr):
            del node.attr[name]
    meta_graph = meta_graph_pb2.MetaGraphDef(graph_def=definition)
    kept = [tensor.name for tensor in (*function.inputs, *function.outputs)]
    meta_graph.collection_def["train_op"].node_list.value.extend(kept)
    config = config_pb2.ConfigProto()
    rewriting = config.graph_options.rewrite_options
    rewriting.min_graph_nodes = -1
    rewriting.optimizers.append("function")
    rewriting.function_optimization = rewriter_config_pb2.RewriterConfig.AGGRESSIVE
    return tf_optimizer.OptimizeGraph(config, meta_graph)


def _needed(definition: Any, outputs: list[str]) -> Any:
    """The part of a GraphDef that `outputs` depend on."""
    nodes = {node.name: node for node in definition.node}
    found: set[str] = set()
    places = list(outputs)
    while places:
        name = places.pop()
        if name not in found:
            found.add(name)
            places += [source.lstrip("^").split(":")[0] for source in nodes[name].input]
    needed = tf.compat.v1.GraphDef(versions=definition.versions, library=definition.library)
    needed.node.extend(node for node in definition.node if node.name in found)
    for node in needed.node:
        node.attr.pop("_class", None)  # colocation with nodes that may be gone
    return needed


def _imported(function: Any, definition: Any, rows: int | None) -> InlinedGraph:
    captured = {internal.name: external for external, internal in function.graph.captures}
    needed = {node.name for node in definition.node}
    handles: dict[int, tf.Tensor] = {}
    fed: dict[str, tf.Tensor] = {}
    with tf.Graph().as_default() as graph:
        for place, tensor in enumerate(function.inputs):
            if tensor.op.name not in needed:
                continue
            external = captured.get(tensor.name)
            if external is None:
                fed[tensor.name] = tf.compat.v1.placeholder(tensor.dtype, _sized(tensor.shape, rows), f"fed/{place}")
            elif (content := _content(external)) is not None:
                fed[tensor.name] = handles[id(external)] = tf.raw_ops.VarHandleOp(
                    dtype=content[0], shape=content[1], shared_name=f"captured_{place}", name=f"fed/{place}"
                )
        tf.graph_util.import_graph_def(definition, input_map=fed, name="")
    return InlinedGraph(graph, handles)


def _sized(shape: tf.TensorShape, rows: int | None) -> tf.TensorShape:
    if rows is None or not shape.rank or shape[0] is not None:
        return shape
    return tf.TensorShape([rows, *shape[1:]])


def _content(captured: Any) -> tuple[tf.DType, tf.TensorShape] | None:
    """Dtype and shape of the variable behind a captured handle; None of a table or a plain tensor."""
    data = getattr(captured, "_handle_data", None) if captured.dtype == tf.resource else None
    if data is None or not data.is_set or len(data.shape_and_type) != 1:
        return None
    return tf.dtypes.as_dtype(data.shape_and_type[0].dtype), tf.TensorShape(data.shape_and_type[0].shape)


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
        for op, index in _consumers(tensor):
            if op.type in (*_SAME, "Transpose", *_RESHAPING) and index == 0:
                frame = op.get_attr("frame_name").decode() if op.type == "Enter" else loop
                moved = _moved(op, axes)
                places += [(output, moved, frame) for output in op.outputs[: 2 if op.type == "Switch" else 1]]
            elif op.type not in _UNIMPORTANT:
                use = _use(op, index, axes, shape)
                found.append((op, index, _repeated(graph, use, shape, loop) if loop else use))
    return found


def _consumers(tensor: tf.Tensor) -> Iterator[tuple[tf.Operation, int]]:
    for op in tensor.consumers():
        yield from ((op, index) for index, taken in enumerate(op.inputs) if taken.name == tensor.name)


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
