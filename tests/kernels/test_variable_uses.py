"""Uses of variables in graphs: kinds, axes, multiply-accumulates, and the first and last kernels."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from tfx_compression.kernels import variable_uses
from tfx_compression.kernels.variable_uses import VariableUse, find_uses, variable_id


def trace(function, shape, **sizes):
    """Returns the concrete function of `function(x, **variables)`, and its variables, of the given sizes, by name."""
    variables = {
        name: tf.Variable(np.random.default_rng(0).normal(size=size), dtype=tf.float32, name=name)
        for name, size in sizes.items()
    }
    traced = tf.function(lambda x: function(x, **variables), autograph=False)
    return traced.get_concrete_function(tf.TensorSpec(shape, tf.float32, name="x")), variables


def uses_by_name(function, shape, **sizes):
    traced, variables = trace(function, shape, **sizes)
    uses = find_uses(traced)
    return {name: uses[variable_id(variable)] for name, variable in variables.items()}


def conv2d_transpose(x, w):
    return tf.nn.conv2d_transpose(x, w, [1, 10, 10, 4], 2)


def depthwise(x, w):
    return tf.nn.depthwise_conv2d(x, w, [1] * 4, "SAME")


def conv3d(x, w):
    return tf.nn.conv3d(x, w, [1] * 5, "SAME")


@pytest.mark.parametrize(
    ("function", "shape", "size", "kind", "inputs", "macs"),
    [
        (lambda x, w: x @ w, [None, 4], (4, 3), "dense", (0,), 12),
        (lambda x, w: tf.matmul(x, w, transpose_b=True), [None, 4], (3, 4), "dense", (1,), 12),
        (lambda x, w: tf.matmul(w, x, transpose_b=True), [None, 4], (3, 4), "dense", (1,), 12),
        (lambda x, w: x @ tf.transpose(w), [None, 4], (3, 4), "dense", (1,), 12),
        (lambda x, w: tf.reshape(x, [-1, 4]) @ tf.reshape(w, [4, 6]), [None, 4], (4, 2, 3), "dense", (0,), 24),
        (lambda x, w: tf.einsum("ab,cbd->acd", x, w), [None, 4], (2, 4, 3), None, (1,), 24),
        (lambda x, w: tf.nn.conv2d(x, w, 1, "SAME"), [None, 5, 5, 2], (3, 3, 2, 4), "convolution", (0, 1, 2), 25 * 72),
        (lambda x, w: tf.nn.conv1d(x, w, 1, "SAME"), [None, 5, 2], (3, 2, 4), "convolution", (0, 1), 5 * 24),
        (conv3d, [None, 3, 3, 3, 2], (1, 1, 1, 2, 4), "convolution", (0, 1, 2, 3), 27 * 8),
        (depthwise, [None, 5, 5, 2], (3, 3, 2, 2), "depthwise", (0, 1), 25 * 36),
        (conv2d_transpose, [1, 5, 5, 2], (2, 2, 4, 2), "transposed", (0, 1, 3), 25 * 32),
        (lambda x, w: tf.gather(w, tf.cast(x, tf.int32)), [None], (10, 4), "embedding", (), 0),
    ],
)
def test_multiplications_have_their_kind_axes_and_macs(function, shape, size, kind, inputs, macs):
    (use,) = uses_by_name(function, shape, w=size)["w"]
    assert kind in (use.kind, None)  # TensorFlow computes some einsums by other operations
    assert (use.input_axes, use.macs) == (inputs, macs)
    assert sorted(use.input_axes + use.output_axes) == list(range(len(size)))


def test_a_vectorized_product_sums_over_its_axis():
    (use,) = uses_by_name(lambda x, w: tf.vectorized_map(lambda row: tf.linalg.matvec(w, row), x), [5, 4], w=(3, 4))[
        "w"
    ]
    assert use.input_axes == (1,)


def test_an_operation_that_is_no_multiplication_has_no_kind():
    (use,) = uses_by_name(lambda x, w: x + w, [None, 4], w=(1, 4))["w"]
    assert use == VariableUse("AddV2")


def test_a_reshape_that_splits_an_axis_hides_the_axes():
    (use,) = uses_by_name(lambda x, w: x @ tf.reshape(w, [4, 3]), [None, 4], w=(12, 1))["w"]
    assert use == VariableUse("MatMul")


@pytest.mark.slow
def test_uses_in_calls_branches_and_loops_are_found():
    @tf.function
    def inner(x, w):
        return tf.cond(tf.reduce_sum(x) > 0, lambda: x @ w, lambda: x @ w + 1)

    def outer(x, first, second):
        return tf.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, y @ second), (0, inner(x, first)))[1]

    uses = uses_by_name(outer, [None, 4], first=(4, 3), second=(3, 3))
    assert [use.kind for use in uses["first"]] == ["dense", "dense"]
    assert [(use.kind, use.macs) for use in uses["second"]] == [("recurrent", None)]


def test_total_macs_are_unknown_if_those_of_one_use_are():
    known, unknown = VariableUse("MatMul", "dense", macs=12), VariableUse("MatMul", "dense")
    assert variable_uses.total_macs([known, known]) == 24
    assert variable_uses.total_macs([known, unknown]) is None
    assert variable_uses.total_macs([]) is None


def test_a_graph_that_grappler_breaks_has_unknown_uses(monkeypatch):
    def fail(function):
        raise ValueError("no such node")

    monkeypatch.setattr(variable_uses, "inline_calls", fail)
    traced, variables = trace(lambda x, w: x @ w, [None, 4], w=(4, 3))
    assert find_uses(traced) == {variable_id(variables["w"]): [VariableUse(variable_uses.UNKNOWN_OP)]}
    assert variable_uses.first_and_last_kernels(traced, {variable_id(variables["w"])}) == (set(), set())


def test_a_keras_3_variable_has_the_id_of_the_variable_inside():
    weight = keras.Variable(np.ones([2, 2]))
    assert variable_id(weight) == variable_id(weight.value)
    assert variable_id(keras.Variable(np.ones([2, 2]))) != variable_id(weight)


@pytest.mark.parametrize(
    ("last", "op"),
    [
        (tf.nn.softmax, "Softmax"),
        (lambda y: tf.nn.softmax(y) * 100.0 + 1.0, "Softmax"),
        (lambda y: tf.concat([tf.clip_by_value(tf.sigmoid(y), 0.1, 0.9), y], 1), "Sigmoid"),
        (lambda y: tf.nn.bias_add(y, [1.0, 2.0, 3.0]), "BiasAdd"),
    ],
    ids=["plain", "scaled", "clipped and joined", "bias"],
)
def test_the_output_operation_is_found_behind_rearrangements(last, op):
    traced, _ = trace(lambda x, w: last(x @ w), [None, 4], w=(4, 3))
    assert variable_uses.output_op_type(traced) == op


def first_and_last(function, shape, **sizes):
    traced, variables = trace(function, shape, **sizes)
    names = {variable_id(variable): name for name, variable in variables.items()}
    first, last = variable_uses.first_and_last_kernels(traced, set(names))
    return {names[key] for key in first}, {names[key] for key in last}


def test_first_and_last_kernels_follow_the_data_and_not_the_order_of_reading():
    def function(x, last, middle, first):
        read = tf.transpose(tf.transpose(last))
        return tf.nn.relu(x @ first) @ middle @ read

    assert first_and_last(function, [None, 4], last=(8, 2), middle=(8, 8), first=(4, 8)) == ({"first"}, {"last"})


def test_every_tower_and_every_head_has_first_and_last_kernels():
    sizes = {"a1": (2, 8), "a2": (8, 8), "b1": (2, 8), "b2": (8, 8), "mid": (16, 8), "one": (8, 2), "two": (8, 3)}

    def function(x, a1, a2, b1, b2, mid, one, two):
        towers = tf.concat([tf.nn.relu(x[:, :2] @ a1) @ a2, tf.nn.relu(x[:, 2:] @ b1) @ b2], 1)
        hidden = tf.nn.relu(towers @ mid)
        return tf.concat([hidden @ one, tf.nn.softmax(hidden @ two)], 1)

    assert first_and_last(function, [None, 4], **sizes) == ({"a1", "b1"}, {"one", "two"})


def test_a_kernel_in_a_loop_is_between_the_first_and_the_last():
    def function(x, into, again, out):
        hidden = tf.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, y @ again), (0, x @ into))[1]
        return hidden @ out

    assert first_and_last(function, [None, 4], into=(4, 8), again=(8, 8), out=(8, 2)) == ({"into"}, {"out"})
