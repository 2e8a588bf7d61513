"""Functions cut out of a frozen graph."""

import numpy as np
import pytest
import tensorflow as tf
from tfx_compression.tf_graphs import inlining
from tfx_compression.tf_graphs.subgraphs import call_on_columns, subgraph_function

X = np.arange(6, dtype=np.float32).reshape(3, 2)


@pytest.fixture(scope="module")
def frozen():
    """hidden = exp(x @ w); y = hidden + 1, behind an assertion."""
    variable = tf.Variable([[1.0, 0.0], [0.0, 0.1]])

    @tf.function(autograph=False)
    def call(x):
        hidden = tf.exp(x @ variable, name="hidden")
        with tf.control_dependencies([tf.debugging.assert_less(x, 1e9)]):
            return tf.add(hidden, 1.0, name="y")

    return inlining.freeze(call.get_concrete_function(tf.TensorSpec([None, 2], tf.float32)))


def spec(name: str) -> tf.TensorSpec:
    return tf.TensorSpec([None, 2], tf.float32, name)


def test_parts_of_a_graph_compute_what_the_whole_does(frozen):
    hidden = frozen.graph.get_tensor_by_name("hidden:0")
    first = subgraph_function(frozen, {"x": spec("x")}, {"x": frozen.inputs}, {"h": hidden})
    second = subgraph_function(frozen, {"h": spec("h")}, {"h": [hidden]}, {"y": frozen.outputs[0]})
    columns = call_on_columns(first, {"x": spec("x")}, {"x": X})
    expected = np.exp(X @ np.array([[1.0, 0.0], [0.0, 0.1]], np.float32))
    np.testing.assert_allclose(columns["h"], expected, rtol=1e-6)
    answers = call_on_columns(second, {"h": spec("h")}, columns)
    np.testing.assert_allclose(answers["y"], expected + 1, rtol=1e-6)


def test_parts_have_no_assertions_and_no_more_than_they_need(frozen):
    hidden = frozen.graph.get_tensor_by_name("hidden:0")
    function = subgraph_function(frozen, {"h": spec("h")}, {"h": [hidden]}, {"y": frozen.outputs[0]})
    types = {op.type for op in function.get_concrete_function().graph.get_operations()}
    assert not types & {"Assert", "MatMul", "If", "StatelessIf", "Exp"}


def test_a_tensor_that_is_fed_and_fetched_is_passed_on(frozen):
    function = subgraph_function(frozen, {"x": spec("x")}, {"x": frozen.inputs}, {"x": frozen.inputs[0]})
    np.testing.assert_array_equal(call_on_columns(function, {"x": spec("x")}, {"x": X})["x"], X)


def test_tables_are_captured():
    table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(["a", "b"], [1, 2]), -1)
    function = tf.function(lambda word: table.lookup(word) * 10, autograph=False)
    frozen = inlining.freeze(function.get_concrete_function(tf.TensorSpec([None], tf.string)))
    specs = {"word": tf.TensorSpec([None], tf.string)}
    part = subgraph_function(frozen, specs, {"word": frozen.inputs}, {"number": frozen.outputs[0]})
    answers = call_on_columns(part, specs, {"word": np.array([b"b", b"c"], object)})
    np.testing.assert_array_equal(answers["number"], [20, -10])
