"""Walks over the operations of a tf.Graph and the nodes of a GraphDef, backward and forward."""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class BackwardWalk:
    """The result of a walk from tensors to what they depend on.

    Attributes:
      operations: Operations behind the tensors, each once, in the order of the walk.
      stops: Tensors at which the walk stopped, by name. Their operations aren't walked.
    """

    operations: list[tf.Operation]
    stops: dict[str, tf.Tensor]


def walk_back(ends: Iterable[tf.Tensor], stop: Callable[[tf.Tensor], bool] = lambda tensor: False) -> BackwardWalk:
    """Walks from tensors back to everything that they depend on; control dependencies don't count.

    Args:
      ends: Tensors of one graph at which the walk starts.
      stop: Whether the walk stops at a tensor. It is called for the starting tensors too.
    """
    operations: dict[str, tf.Operation] = {}
    stops: dict[str, tf.Tensor] = {}
    pending = list(ends)
    while pending:
        tensor = pending.pop()
        if stop(tensor):
            stops[tensor.name] = tensor
        elif tensor.op.name not in operations:
            operations[tensor.op.name] = tensor.op
            pending += tensor.op.inputs
    return BackwardWalk(list(operations.values()), stops)


def source(tensor: tf.Tensor, through: Collection[str] = ("Identity",)) -> tf.Tensor:
    """Returns the tensor that `tensor` comes from, along first inputs of operations of the types in `through`."""
    while tensor.op.inputs and tensor.op.type in through:
        tensor = tensor.op.inputs[0]
    return tensor


def consumers(tensor: tf.Tensor) -> Iterator[tuple[tf.Operation, int]]:
    """Yields the operations that take a tensor, with the index of that input; an operation may take it twice."""
    for op in {op.name: op for op in tensor.consumers()}.values():  # TensorFlow lists an operation for each input
        yield from ((op, index) for index, taken in enumerate(op.inputs) if taken.name == tensor.name)


def called_op_types(graph: tf.Graph, operations: Iterable[tf.Operation]) -> Iterator[str]:
    """Yields the types of the operations in the functions that operations call, such as the bodies of loops."""
    library = {function.signature.name: function for function in graph.as_graph_def().library.function}
    if not library:
        return
    seen: set[str] = set()
    pending = [op.node_def for op in operations]
    while pending:
        for value in pending.pop().attr.values():
            for name in {called.name for called in (value.func, *value.list.func)} & (library.keys() - seen):
                seen.add(name)
                pending += library[name].node_def
                yield from (node.op for node in library[name].node_def)


def required_nodes(definition: Any, outputs: Iterable[str]) -> Any:
    """Returns the part of a GraphDef that nodes depend on, control dependencies included.

    Args:
      definition: The GraphDef.
      outputs: Names of the nodes.
    """
    nodes = {node.name: node for node in definition.node}
    required: set[str] = set()
    pending = list(outputs)
    while pending:
        name = pending.pop()
        if name not in required:
            required.add(name)
            pending += [taken.lstrip("^").split(":")[0] for taken in nodes[name].input]
    part = tf.compat.v1.GraphDef(versions=definition.versions, library=definition.library)
    part.node.extend(node for node in definition.node if node.name in required)
    for node in part.node:
        node.attr.pop("_class", None)  # colocation with nodes that may be missing now
    return part
