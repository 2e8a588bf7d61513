"""Rewrites of a GraphDef in place, for conversion to TFLite."""

import collections
import re
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context

_LOWERED_CONTROL_FLOW = ("Enter", "Switch", "Merge", "NextIteration", "Exit")  # of TensorFlow 1
_CALLS = re.compile(r"^((Stateful)?PartitionedCall(_\d+)?/)+")
_ELEMENT_SHAPE_INPUT = {  # operations on lists that take the shape of an element, and the index of that input
    "TensorListReserve": 0,
    "EmptyTensorList": 0,
    "TensorListFromTensor": 1,
    "TensorListStack": 1,
    "TensorListGetItem": 2,
}


class _ListUse(NamedTuple):
    """An operation on a list whose elements have any number of rows."""

    nodes: Any  # of the graph or function that holds the operation
    node: Any
    input_index: int  # of the input that is the shape of an element
    shape: np.ndarray


def drop_control_dependencies(definition: Any) -> None:
    """Drops control dependencies, such as those on assertions.

    Graphs with the control flow of TensorFlow 1 stay as they are, because control dependencies keep operations inside
    their loop there.
    """
    if any(node.op in _LOWERED_CONTROL_FLOW for node in definition.node):
        return
    for node in definition.node:
        data = [name for name in node.input if not name.startswith("^")]
        del node.input[:]
        node.input.extend(data)


def has_lists_of_rows(definition: Any) -> bool:
    """Returns whether a graph or its functions use lists whose elements have any number of rows."""
    return bool(_lists_of_rows(definition))


def set_list_rows(definition: Any, rows: int) -> None:
    """Writes a number of rows into the shapes of list elements, and registers the changed functions.

    Functions get new names, because TensorFlow knows the old names with the old bodies.
    """
    renamed = {function.signature.name: f"{function.signature.name}_{rows}" for function in definition.library.function}
    for function in definition.library.function:
        function.signature.name = renamed[function.signature.name]
    for nodes in (definition.node, *(function.node_def for function in definition.library.function)):
        for value in (value for node in nodes for value in node.attr.values()):
            for called in (*([value.func] if value.HasField("func") else []), *value.list.func):
                called.name = renamed.get(called.name, called.name)
    for number, use in enumerate(_lists_of_rows(definition)):
        constant = use.nodes.add(name=f"element_shape_{number}", op="Const")
        constant.attr["dtype"].type = tf.as_dtype(use.shape.dtype).as_datatype_enum
        shape = np.array([rows, *use.shape[1:]], use.shape.dtype)
        constant.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(shape))
        use.node.input[use.input_index] = constant.name if use.nodes is definition.node else f"{constant.name}:output:0"
    for function in definition.library.function:
        context.context().add_function_def(function)  # importing a graph doesn't register them


def shorten_names(definition: Any) -> dict[str, str]:
    """Removes the names of inlined calls from node names, because TFLite writes node names into the file.

    Returns:
      The new names by the old ones. A name that would become ambiguous stays as it is.
    """
    names = {node.name: _CALLS.sub("", node.name) for node in definition.node}
    counts = collections.Counter(names.values())
    names = {
        name: short if counts[short] == 1 and (short == name or short not in names) else name
        for name, short in names.items()
    }
    for node in definition.node:
        node.name = names[node.name]
        node.attr.pop("_class", None)  # colocation, by name
        for index, taken in enumerate(node.input):
            control, name, output = re.fullmatch(r"(\^?)([^:]+)(.*)", taken).groups()  # type: ignore[union-attr]
            node.input[index] = f"{control}{names[name]}{output}"
    return names


def _lists_of_rows(definition: Any) -> list[_ListUse]:
    uses = []
    for nodes in (definition.node, *(function.node_def for function in definition.library.function)):
        constants = {node.name: node for node in nodes if node.op == "Const"}
        for node in nodes:
            index = _ELEMENT_SHAPE_INPUT.get(node.op, -1)
            constant = constants.get(node.input[index].split(":")[0]) if index >= 0 else None
            if constant is not None:
                shape = tf.make_ndarray(constant.attr["value"].tensor).reshape(-1)
                if shape.size and shape[0] == -1 and -1 not in shape[1:]:
                    uses.append(_ListUse(nodes, node, index, shape))
    return uses
