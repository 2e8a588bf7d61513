"""Functions cut out of a frozen graph, between tensors that are fed and tensors that are fetched."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfx_compression.tf_graphs import rewriting, walks
from tfx_compression.tf_graphs.inlining import FrozenGraph

Specs = dict[str, tf.TensorSpec]
Columns = Mapping[str, np.ndarray]  # by name, [rows, …]


def subgraph_function(
    frozen: FrozenGraph,
    specs: Specs,
    fed: Mapping[str, Sequence[tf.Tensor]],
    fetched: Mapping[str, tf.Tensor],
    list_rows: int | None = None,
) -> Any:
    """Returns a function that computes tensors of a frozen graph from other tensors of it.

    Control dependencies are dropped, and node names lose the calls that they were inlined from.

    Args:
      frozen: The graph.
      specs: Arguments of the function, by name, in order.
      fed: By argument, the tensors of the graph that the argument replaces.
      fetched: By output name, the tensor of the graph.
      list_rows: Number of rows to write into the elements of lists of rows, which loops collect. None leaves them.

    Returns:
      A tf.function from the arguments, by position, to a dict of outputs.
    """
    definition = frozen.graph.as_graph_def()
    rewriting.drop_control_dependencies(definition)
    if list_rows is not None:
        rewriting.set_list_rows(definition, list_rows)
    targets = [tensor.name for tensor in fetched.values()]
    with tf.Graph().as_default() as graph:
        placeholders = {
            name: tf.compat.v1.placeholder(spec.dtype, spec.shape, f"fed/{index}")
            for index, (name, spec) in enumerate(specs.items())
        }
        replaced = {tensor.name: placeholders[name] for name in specs for tensor in fed[name]}
        imported = tf.graph_util.import_graph_def(definition, replaced, targets, name="")
        ends = [replaced.get(name, tensor) for name, tensor in zip(targets, imported, strict=True)]
    required = walks.required_nodes(graph.as_graph_def(), [end.op.name for end in ends])
    names = rewriting.shorten_names(required)
    tables = {name: handle for name, handle in frozen.captured.items() if name in names}

    def serve(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        inputs = {place.name: tensor for place, tensor in zip(placeholders.values(), tensors, strict=True)}
        handles = {f"{names[name]}:0": tf.identity(handle) for name, handle in tables.items()}
        used = {name: tensor for name, tensor in inputs.items() if name.split(":")[0] in names}
        targets = [f"{names[end.op.name]}:{end.value_index}" for end in ends]
        results = tf.graph_util.import_graph_def(required, used | handles, targets, name="")
        return {name: inputs.get(end.name, result) for name, end, result in zip(fetched, ends, results, strict=True)}

    return tf.function(serve, input_signature=list(specs.values()), autograph=False)


def call_on_columns(function: Any, specs: Specs, columns: Columns) -> dict[str, np.ndarray]:
    """Calls a function that takes tensors by position on columns by name, and returns its outputs as arrays."""
    feeds = [tf.constant(columns[name], spec.dtype) for name, spec in specs.items()]
    return {name: value.numpy() for name, value in function(*feeds).items()}


def call_by_name(function: Any, /, **feeds: tf.Tensor) -> Mapping[str, tf.Tensor]:
    """Calls a function that takes tensors by position on tensors by name, in the same order."""
    return function(*feeds.values())
