"""Rewrites of graphs for TFLite."""

import numpy as np
import pytest
import tensorflow as tf
from tfx_compression.tf_graphs import rewriting


def graph_def(*nodes: tuple[str, list[str]]) -> tf.compat.v1.GraphDef:
    """A GraphDef of nodes by name and inputs."""
    definition = tf.compat.v1.GraphDef()
    for name, inputs in nodes:
        definition.node.add(name=name, op="NoOp" if not inputs else "Identity", input=inputs)
    return definition


def inputs(definition) -> dict[str, list[str]]:
    return {node.name: list(node.input) for node in definition.node}


def test_control_dependencies_are_dropped():
    definition = graph_def(("check", []), ("x", []), ("y", ["x:1", "^check"]))
    rewriting.drop_control_dependencies(definition)
    assert inputs(definition) == {"check": [], "x": [], "y": ["x:1"]}


def test_control_dependencies_stay_in_loops_of_tensorflow_1():
    definition = graph_def(("check", []), ("x", []), ("y", ["x", "^check"]))
    definition.node.add(name="enter", op="Enter", input=["x"])
    rewriting.drop_control_dependencies(definition)
    assert inputs(definition)["y"] == ["x", "^check"]


def test_names_lose_the_calls_that_they_were_inlined_from():
    definition = graph_def(
        ("PartitionedCall/x", []),
        ("StatefulPartitionedCall_1/PartitionedCall/y", ["^PartitionedCall/x", "z"]),
        ("z", []),
    )
    names = rewriting.shorten_names(definition)
    assert names == {"PartitionedCall/x": "x", "StatefulPartitionedCall_1/PartitionedCall/y": "y", "z": "z"}
    assert inputs(definition) == {"x": [], "y": ["^x", "z"], "z": []}


@pytest.mark.parametrize("other", ["x", "PartitionedCall_1/x"], ids=["taken", "twice"])
def test_names_that_would_be_ambiguous_stay(other):
    definition = graph_def(("PartitionedCall/x", []), (other, []))
    assert rewriting.shorten_names(definition) == {"PartitionedCall/x": "PartitionedCall/x", other: other}


def collecting(shape: list[int | None]):
    """A function whose loop collects its argument, of a shape, in a list in each step."""

    def call(x):
        rows = tf.TensorArray(tf.float32, 3, element_shape=shape)
        return tf.while_loop(lambda i, _: i < 3, lambda i, kept: (i + 1, kept.write(i, x)), (0, rows))[1].stack()

    return tf.function(call, autograph=False).get_concrete_function(tf.TensorSpec(shape, tf.float32))


@pytest.mark.parametrize(
    ("shape", "has_rows"),
    [([None, 2], True), ([4, 2], False), ([None, None], False)],
    ids=["any rows", "fixed", "any columns too"],
)
def test_lists_of_rows_are_found(shape, has_rows):
    assert rewriting.has_lists_of_rows(collecting(shape).graph.as_graph_def()) == has_rows


def test_list_elements_get_a_number_of_rows_and_functions_new_names():
    function = collecting([None, 2])
    definition = function.graph.as_graph_def()
    before = {inner.signature.name for inner in definition.library.function}
    rewriting.set_list_rows(definition, 4)
    assert not rewriting.has_lists_of_rows(definition)
    assert {inner.signature.name for inner in definition.library.function} == {f"{name}_4" for name in before}

    @tf.function(autograph=False)
    def rewritten(x):
        return tf.graph_util.import_graph_def(
            definition, {function.inputs[0].name: x}, [function.outputs[0].name], name=""
        )[0]

    x = np.arange(8, dtype=np.float32).reshape(4, 2)
    np.testing.assert_array_equal(rewritten(tf.constant(x)), [x, x, x])
