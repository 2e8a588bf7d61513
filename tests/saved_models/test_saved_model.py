"""Kernels of SavedModels without layers, found in their graphs."""

import keras
import numpy as np
import tensorflow as tf
from tfx_compression import kernels
from tfx_compression.errors import ModelError
from tfx_compression.saved_models import saved_model

from tests.support import helpers, kinds
from tests.support.errors import raises


def save_and_load(tmp_path, function, shape, **sizes):
    """The SavedModel of `function(x, **variables)`, with variables of the given sizes."""
    variables = {
        name: tf.Variable(np.random.default_rng(0).normal(size=size), dtype=tf.float32, name=name)
        for name, size in sizes.items()
    }
    spec = tf.TensorSpec(shape, tf.float32, name="x")
    path = helpers.save_function(lambda x: {"y": function(x, **variables)}, [spec], tmp_path / "model", **variables)
    return saved_model.load(path)


def test_variables_that_multiply_otherwise_are_unrecognized(tmp_path):
    model = saved_model.load(kinds.module(tmp_path / "model"))
    assert list(model.kernels) == ["first", "second"]
    assert model.unrecognized == ("scale",)


def test_variables_of_the_same_name_are_both_kernels(tmp_path):
    variables = [tf.Variable(np.ones([4, 4], np.float32), name="same") for _ in range(3)]
    spec = tf.TensorSpec([None, 4], tf.float32, name="x")

    def function(x):
        return {"y": x @ variables[0] @ variables[1] @ variables[2]}

    path = helpers.save_function(function, [spec], tmp_path / "model", weights=variables)
    assert list(saved_model.load(path).kernels) == ["same", "same_1", "same_2"]


def test_the_graph_has_the_kernels_that_the_layers_have(tmp_path):
    layers = keras.layers
    image = keras.Input((8, 8, 1), name="image")
    x = layers.SeparableConv2D(4, 3, name="separable")(layers.Conv2D(8, 3, name="conv")(image))
    x = layers.Reshape((64, 3))(layers.Conv2DTranspose(3, 2, strides=2, name="transposed")(x))
    x = layers.LSTM(5, name="lstm")(layers.MultiHeadAttention(2, 4, name="attention")(x, x))
    model = keras.Model(image, layers.Dense(3, name="out")(x))
    model.export(str(tmp_path / "model"), verbose=False)
    actual = saved_model.load(str(tmp_path / "model")).kernels
    by_values = {kernel.values.tobytes(): kernel for kernel in actual.values()}
    expected = kernels.find_kernels(model)
    assert len(actual) == len(expected)
    for kernel in expected.values():
        same = by_values[kernel.values.tobytes()]
        assert (same.input_axes, same.output_axes) == (kernel.input_axes, kernel.output_axes)


def test_kernels_in_branches_are_found_and_slices_in_loops_are_unrecognized(tmp_path):
    def function(x, a, b, c):
        x = tf.cond(tf.reduce_sum(x) > 0, lambda: x @ a, lambda: x @ b)
        return tf.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, y @ c[i]), (0, x))[1]

    model = save_and_load(tmp_path, function, [None, 8], a=(8, 8), b=(8, 8), c=(3, 8, 8))
    assert list(model.kernels) == ["a", "b"]
    assert model.unrecognized == ("c",)


def test_integers_that_multiply_are_unrecognized(tmp_path):
    quantized, table = (tf.Variable(np.ones([4, 4]), dtype=tf.int32, name=name) for name in ("quantized", "table"))
    scaled = tf.Variable(np.ones([4, 4]), dtype=tf.uint8, name="scaled")

    def serve(x):
        y = x @ tf.cast(quantized, tf.float32) @ (tf.cast(scaled, tf.float32) / 255.0)
        return {"y": y, "found": tf.gather(table, tf.cast(x, tf.int32))}

    specs = [tf.TensorSpec([None, 4], tf.float32, name="x")]
    path = helpers.save_function(serve, specs, tmp_path / "model", weights=[quantized, table, scaled])
    assert set(saved_model.load(path).unrecognized) == {"quantized", "scaled"}


def test_the_first_and_last_kernels_follow_the_data_and_not_the_order_of_reading(tmp_path):
    def function(x, last, middle, first):
        read = tf.transpose(tf.transpose(last))
        return tf.nn.relu(x @ first) @ middle @ read

    model = save_and_load(tmp_path, function, [None, 4], last=(8, 2), middle=(8, 8), first=(4, 8))
    assert model.first_and_last_kernels == (("first",), ("last",))


def test_a_measure_counts_all_variables_and_the_first_signatures_macs(tmp_path):
    size = saved_model.load(kinds.module(tmp_path / "model")).measure()
    layers = {layer.name: (layer.type, layer.parameters, layer.macs) for layer in size.layers}
    assert layers == {"first": ("MatMul", 32, 32), "second": ("MatMul", 16, 16), "scale": ("Mul", 8, 0)}
    assert (size.parameters, size.macs) == (56, 48)


def test_serving_default_is_the_first_signature(tmp_path):
    module = tf.Module()
    module.serve = tf.function(lambda x: {"y": x}, input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    signatures = dict.fromkeys(("another", "serving_default", "zero"), module.serve)
    tf.saved_model.save(module, str(tmp_path), signatures=signatures)
    assert list(saved_model.load(str(tmp_path)).signatures) == ["serving_default", "another", "zero"]


def test_a_saved_model_without_signatures_is_rejected(tmp_path):
    tf.saved_model.save(tf.Module(), str(tmp_path / "model"))
    with raises(ModelError, code="no-signatures", match="serving_default"):
        saved_model.load(str(tmp_path / "model"))


def test_a_folder_without_a_saved_model_is_rejected(tmp_path):
    with raises(ModelError, code="no-saved-model"):
        saved_model.load(str(tmp_path))


def test_a_damaged_saved_model_is_rejected(tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"damaged")
    with raises(ModelError, code="damaged-saved-model"):
        saved_model.load(str(tmp_path))
