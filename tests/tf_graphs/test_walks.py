"""Backward and forward walks over graphs."""

import pytest
import tensorflow as tf
from tfx_compression.tf_graphs import walks


@pytest.fixture(scope="module")
def graph() -> tf.Graph:
    """y = (a + b) * (a + b) + c, where an assertion on b comes first, and an unused d."""
    with tf.Graph().as_default() as graph:
        a, b, c = (tf.compat.v1.placeholder(tf.float32, [], name) for name in "abc")
        with tf.control_dependencies([tf.identity(b, "checked")]):
            total = tf.add(a, b, "total")
        tf.add(tf.multiply(total, total, "square"), tf.identity(c, "same"), "y")
        tf.compat.v1.placeholder(tf.float32, [], "d")
    return graph


def names(operations) -> list[str]:
    return sorted(op.name for op in operations)


def test_a_walk_back_meets_every_operation_once_but_no_control_dependencies(graph):
    walk = walks.walk_back([graph.get_tensor_by_name("y:0"), graph.get_tensor_by_name("total:0")])
    assert names(walk.operations) == ["a", "b", "c", "same", "square", "total", "y"]
    assert walk.stops == {}


def test_a_walk_back_stops_at_the_tensors_that_it_is_told_to(graph):
    walk = walks.walk_back([graph.get_tensor_by_name("y:0")], lambda tensor: tensor.name in ("total:0", "d:0"))
    assert names(walk.operations) == ["c", "same", "square", "y"]
    assert list(walk.stops) == ["total:0"]


def test_a_walk_back_stops_at_its_start(graph):
    start = graph.get_tensor_by_name("y:0")
    assert walks.walk_back([start], lambda tensor: True) == walks.BackwardWalk([], {"y:0": start})


def test_the_source_is_behind_identities(graph):
    assert walks.source(graph.get_tensor_by_name("same:0")).name == "c:0"
    assert walks.source(graph.get_tensor_by_name("y:0")).name == "y:0"
    assert walks.source(graph.get_tensor_by_name("y:0"), ("AddV2", "Mul")).name == "a:0"


def test_a_consumer_appears_for_each_of_its_inputs(graph):
    consumers = walks.consumers(graph.get_tensor_by_name("total:0"))
    assert sorted((op.name, index) for op, index in consumers) == [("square", 0), ("square", 1)]


def test_required_nodes_include_control_dependencies(graph):
    part = walks.required_nodes(graph.as_graph_def(), ["total"])
    assert sorted(node.name for node in part.node) == ["a", "b", "checked", "total"]


def test_called_op_types_are_those_in_nested_functions():
    @tf.function(autograph=False)
    def function(x):
        return tf.cond(x > 0, lambda: tf.while_loop(lambda y: y < 3, tf.exp, [x])[0], lambda: tf.sin(x))

    graph = function.get_concrete_function(tf.TensorSpec([], tf.float32)).graph
    types = set(walks.called_op_types(graph, graph.get_operations()))
    assert {"Exp", "Sin", "Less"} <= types
    assert "Greater" not in types


def test_graphs_without_functions_call_nothing(graph):
    assert list(walks.called_op_types(graph, graph.get_operations())) == []
