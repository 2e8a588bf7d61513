"""Functions with everything that they call inlined into one graph, in two forms.

`inline_calls` keeps variables and lowers loops and branches to the operations of TensorFlow 1, so that every use of a
variable is in one graph. `freeze` turns variables into constants and keeps loops and branches as functions, which is
the form that TFLite converts.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf import config_pb2, device_properties_pb2, meta_graph_pb2, rewriter_config_pb2
from tensorflow.python.framework import convert_to_constants
from tensorflow.python.grappler import cluster, tf_optimizer

from tfx_compression.tf_graphs import walks

_PREVENT_INLINING = {"api_implements", "_XlaMustCompile"}  # attributes of functions and calls


@dataclasses.dataclass(frozen=True)
class InlinedGraph:
    """The part of a function's graph that its outputs depend on, with all calls inlined.

    Attributes:
      graph: The graph. Loops and branches are Enter, Exit, Switch and Merge operations.
      handles: Resource handles of the variables in the graph, by the id of the eager handle that the function captured.
    """

    graph: tf.Graph
    handles: dict[int, tf.Tensor]


@dataclasses.dataclass(frozen=True)
class FrozenGraph:
    """A function's graph with its variables as constants and all calls inlined, except loops and branches.

    Attributes:
      graph: The graph.
      inputs: Tensors of the function's own arguments, in order.
      outputs: Tensors of the function's results, in order.
      captured: Resources that the function captures besides variables, such as tables, by the name of their
        placeholder's operation.
    """

    graph: tf.Graph
    inputs: list[tf.Tensor]
    outputs: list[tf.Tensor]
    captured: dict[str, Any]


def inline_calls(function: Any) -> InlinedGraph:
    """Inlines what a concrete function or signature calls.

    Inputs whose number of rows is free get one row, unless the graph requires another number.

    Raises:
      ValueError, tf.errors.OpError: If the graph that Grappler returns can't be imported.
    """
    outputs = [tensor.op.name for tensor in function.outputs]
    definition = walks.required_nodes(_inlined_definition(function), outputs)
    try:
        return _import(function, definition, rows=1)
    except ValueError:  # the graph requires another number of rows
        return _import(function, definition, rows=None)


def freeze(function: Any) -> FrozenGraph:
    """Freezes a concrete function or signature."""
    # Loops stay functions: TFLite has loops, and turns an LSTM's loop into one operator.
    with _virtual_cluster(), _without_collections(function.graph):
        frozen = convert_to_constants.convert_variables_to_constants_v2(
            function, lower_control_flow=False, aggressive_inlining=True
        )
    handles = {internal.op.name: external for external, internal in function.graph.captures}
    captured = {tensor.op.name: handles[tensor.op.name] for tensor in frozen.inputs if tensor.op.name in handles}
    inputs = [tensor for tensor in frozen.inputs if tensor.op.name not in captured]
    return FrozenGraph(frozen.graph, inputs, list(frozen.outputs), captured)


@contextlib.contextmanager
def _without_collections(graph: Any) -> Iterator[None]:
    """Empties a graph's collections in a block.

    TensorFlow 1's exports name the initializers of their tables there, which a signature's own graph doesn't have, so
    that Grappler refuses it.
    """
    collections = {name: graph.get_collection(name) for name in graph.get_all_collection_keys()}
    for name in collections:
        graph.clear_collection(name)
    try:
        yield
    finally:
        for name, values in collections.items():
            graph.get_collection_ref(name).extend(values)


def variable_spec(handle: Any) -> tuple[tf.DType, tf.TensorShape] | None:
    """Returns the dtype and shape of the variable behind a captured handle; None for tables and plain tensors."""
    data = getattr(handle, "_handle_data", None) if handle.dtype == tf.resource else None
    if data is None or not data.is_set or len(data.shape_and_type) != 1:
        return None
    return tf.dtypes.as_dtype(data.shape_and_type[0].dtype), tf.TensorShape(data.shape_and_type[0].shape)


def _inlined_definition(function: Any) -> Any:
    """Returns the function's GraphDef with calls inlined and loops and branches lowered by Grappler."""
    definition = function.graph.as_graph_def()
    functions = definition.library.function
    bodies = [definition.node, *(inner.node_def for inner in functions)]
    for attributes in (*(inner.attr for inner in functions), *(node.attr for nodes in bodies for node in nodes)):
        for name in _PREVENT_INLINING & set(attributes):
            del attributes[name]
    meta_graph = meta_graph_pb2.MetaGraphDef(graph_def=definition)
    kept = [tensor.name for tensor in (*function.inputs, *function.outputs)]
    meta_graph.collection_def["train_op"].node_list.value.extend(kept)
    config = config_pb2.ConfigProto()
    rewriting = config.graph_options.rewrite_options
    rewriting.min_graph_nodes = -1
    rewriting.optimizers.append("function")
    rewriting.function_optimization = rewriter_config_pb2.RewriterConfig.AGGRESSIVE
    return tf_optimizer.OptimizeGraph(config, meta_graph, cluster=_one_cpu())


def _one_cpu() -> cluster.Cluster:
    """Returns a virtual machine to optimize for. By default, Grappler starts a session, and prints that it does."""
    properties = device_properties_pb2.DeviceProperties(type="CPU", num_cores=1)
    name = "/job:localhost/replica:0/task:0/device:CPU:0"
    return cluster.Cluster(devices=[device_properties_pb2.NamedDevice(name=name, properties=properties)])


@contextlib.contextmanager
def _virtual_cluster() -> Iterator[None]:
    """Makes TensorFlow's own calls of Grappler optimize for `_one_cpu`, too, as they can't be told to."""
    optimize = tf_optimizer.OptimizeGraph
    tf_optimizer.OptimizeGraph = functools.partial(optimize, cluster=_one_cpu())
    try:
        yield
    finally:
        tf_optimizer.OptimizeGraph = optimize


def _import(function: Any, definition: Any, rows: int | None) -> InlinedGraph:
    """Imports a GraphDef whose inputs have `rows` rows where the function leaves the number free."""
    captured = {internal.name: external for external, internal in function.graph.captures}
    required = {node.name for node in definition.node}
    handles: dict[int, tf.Tensor] = {}
    fed: dict[str, tf.Tensor] = {}
    with tf.Graph().as_default() as graph:
        for index, tensor in enumerate(function.inputs):
            if tensor.op.name not in required:
                continue
            external = captured.get(tensor.name)
            if external is None:
                shape = _with_rows(tensor.shape, rows)
                fed[tensor.name] = tf.compat.v1.placeholder(tensor.dtype, shape, f"fed/{index}")
            elif (spec := variable_spec(external)) is not None:
                fed[tensor.name] = handles[id(external)] = tf.raw_ops.VarHandleOp(
                    dtype=spec[0], shape=spec[1], shared_name=f"captured_{index}", name=f"fed/{index}"
                )
        tf.graph_util.import_graph_def(definition, input_map=fed, name="")
    return InlinedGraph(graph, handles)


def _with_rows(shape: tf.TensorShape, rows: int | None) -> tf.TensorShape:
    if rows is None or not shape.rank or shape[0] is not None:
        return shape
    return tf.TensorShape([rows, *shape[1:]])
