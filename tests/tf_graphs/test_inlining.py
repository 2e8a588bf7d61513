"""Functions inlined into one graph, with variables or frozen."""

import numpy as np
import pytest
import tensorflow as tf
from tfx_compression.tf_graphs import inlining


def op_types(graph: tf.Graph) -> set[str]:
    return {op.type for op in graph.get_operations()}


def fed_shapes(graph: tf.Graph) -> list[list[int | None]]:
    return [op.outputs[0].shape.as_list() for op in graph.get_operations() if op.name.startswith("fed/")]


@pytest.fixture(scope="module")
def looped():
    """A function with a variable in a loop, in a function that it calls."""
    variable = tf.Variable(np.eye(2, dtype=np.float32))
    inner = tf.function(
        lambda y: tf.while_loop(lambda y: tf.norm(y) < 9, lambda y: y @ variable * 2, [y])[0],
        experimental_attributes={"api_implements": "loop"},  # as Keras 2 marks recurrent layers
    )
    function = tf.function(lambda x: {"y": inner(x)}, autograph=False)
    return function.get_concrete_function(tf.TensorSpec([None, 2], tf.float32)), variable


def test_inlined_calls_keep_variables_and_lower_loops(looped):
    function, variable = looped
    inlined = inlining.inline_calls(function)
    types = op_types(inlined.graph)
    assert {"Enter", "Exit", "Switch", "Merge", "MatMul"} <= types
    assert not types & {"PartitionedCall", "StatefulPartitionedCall", "While", "StatelessWhile"}
    assert list(inlined.handles) == [id(variable.handle)]


def test_inlined_inputs_of_any_number_of_rows_have_one(looped):
    assert fed_shapes(inlining.inline_calls(looped[0]).graph)[0] == [1, 2]


def test_inlined_graphs_that_require_more_rows_keep_any_number():
    function = tf.function(lambda x: tf.ensure_shape(x, [3, 2]) * 2, autograph=False)
    graph = inlining.inline_calls(function.get_concrete_function(tf.TensorSpec([None, 2], tf.float32))).graph
    assert fed_shapes(graph) == [[None, 2]]


def test_unused_inputs_and_operations_are_left_out():
    def call(x, unused):
        tf.exp(unused)
        return x + 1

    spec = tf.TensorSpec([1], tf.float32)
    graph = inlining.inline_calls(tf.function(call).get_concrete_function(spec, spec)).graph
    assert "Exp" not in op_types(graph)
    assert fed_shapes(graph) == [[1]]


def test_a_frozen_graph_has_constants_and_keeps_loops(looped):
    frozen = inlining.freeze(looped[0])
    types = op_types(frozen.graph)
    assert types & {"While", "StatelessWhile"}
    assert not types & {"ReadVariableOp", "PartitionedCall", "StatefulPartitionedCall", "Enter"}
    assert len(frozen.inputs) == len(frozen.outputs) == 1
    assert frozen.captured == {}


def test_a_frozen_graph_captures_tables():
    table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(["a"], [1]), -1)
    variable = tf.Variable(2)
    function = tf.function(lambda word: table.lookup(word) * variable, autograph=False)
    frozen = inlining.freeze(function.get_concrete_function(tf.TensorSpec([None], tf.string)))
    assert [tensor.dtype for tensor in frozen.inputs] == [tf.string]
    assert list(frozen.captured.values()) == [table.resource_handle]


def test_only_variables_have_a_variable_spec():
    table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(["a"], [1]), -1)
    assert inlining.variable_spec(tf.Variable([[1.0]]).handle) == (tf.float32, tf.TensorShape([1, 1]))
    assert inlining.variable_spec(table.resource_handle) is None
    assert inlining.variable_spec(tf.constant(1.0)) is None


def test_tables_of_tensorflow_1_are_frozen(tmp_path):
    """Its exports name the table's initializer in a collection, which the signature's graph doesn't have."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.string, [None])
        keys, values = tf.constant(["one", "two"]), tf.constant([1, 2], tf.int64)
        table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, values), 0)
        session.run(v1.tables_initializer())
        v1.saved_model.simple_save(
            session, str(tmp_path / "model"), {"x": x}, {"y": table.lookup(x)}, legacy_init_op=v1.tables_initializer()
        )
    signature = tf.saved_model.load(str(tmp_path / "model")).signatures["serving_default"]
    names = {key: len(signature.graph.get_collection(key)) for key in signature.graph.get_all_collection_keys()}
    assert names["table_initializer"]
    assert "LookupTableFindV2" in op_types(inlining.freeze(signature).graph)
    assert {key: len(signature.graph.get_collection(key)) for key in names} == names
