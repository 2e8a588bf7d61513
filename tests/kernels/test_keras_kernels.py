"""Kernels of Keras models: names, axes, and the layers that hold them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tfx_compression import kernels
from tfx_compression.kernels import Kernel

L = tf_keras.layers


def test_kernels_of_nested_models_go_by_all_their_names():
    inner = [tf_keras.Sequential([tf_keras.Input((4,)), L.Dense(4, name="same")], name=name) for name in ("one", "two")]
    model = tf_keras.Sequential([tf_keras.Input((4,)), *inner, L.Dense(2, name="outside")])
    assert list(kernels.find_kernels(model)) == ["one/same", "two/same", "outside"]


def test_a_layer_that_is_called_twice_has_one_kernel():
    shared = L.Conv2D(3, 3, padding="same", name="shared")
    inputs = [tf_keras.Input((8, 8, 1)), tf_keras.Input((4, 4, 1))]
    pooled = [L.GlobalAveragePooling2D()(shared(image)) for image in inputs]
    assert list(kernels.find_kernels(tf_keras.Model(inputs, L.Concatenate()(pooled)))) == ["shared"]


@pytest.mark.parametrize("library", [tf_keras, keras])
def test_each_kind_of_layer_sums_over_its_input_axes(library):
    layers = library.layers
    image, words = library.Input((8, 8, 2)), library.Input((5,))
    x = layers.Conv2D(3, 2, name="conv")(image)
    x = layers.DepthwiseConv2D(2, name="depthwise")(x)
    x = layers.SeparableConv2D(4, 2, name="separable")(x)
    x = layers.Conv2DTranspose(5, 2, name="transposed")(x)
    y = layers.LSTM(3, name="lstm")(layers.Embedding(10, 4, name="embedding")(words))
    y = layers.Dense(6, name="dense")(y)
    z = layers.EinsumDense("ab,cbd->acd", (2, 3), name="einsum")(y)
    actual = kernels.find_kernels(library.Model([image, words], [x, z]))
    assert {name: (kernel.kind, kernel.input_axes, kernel.output_axes) for name, kernel in actual.items()} == {
        "conv": ("convolution", (0, 1, 2), (3,)),
        "depthwise": ("depthwise", (0, 1), (2, 3)),
        "separable/depthwise_kernel": ("depthwise", (0, 1), (2, 3)),
        "separable/pointwise_kernel": ("convolution", (0, 1, 2), (3,)),
        "transposed": ("transposed", (0, 1, 3), (2,)),
        "embedding": ("embedding", (), (0, 1)),
        "lstm/lstm_cell/kernel": ("dense", (0,), (1,)),
        "lstm/lstm_cell/recurrent_kernel": ("recurrent", (0,), (1,)),
        "dense": ("dense", (0,), (1,)),
        "einsum": ("einsum", (1,), (0, 2)),
    }
    assert {name for name, kernel in actual.items() if not kernel.prunable} == {
        "depthwise",
        "separable/depthwise_kernel",
    }


def test_a_kernel_becomes_a_matrix_of_inputs_and_outputs_and_back():
    values = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    kernel = Kernel("transposed", tf.Variable(values), "transposed", (0, 1, 3), (2,))
    matrix = kernel.to_matrix(values)
    assert matrix.shape == (2 * 3 * 5, 4)
    np.testing.assert_array_equal(matrix[:5, 1], values[0, 0, 1])  # the last input axis is contiguous
    np.testing.assert_array_equal(kernel.from_matrix(matrix), values)
    assert (kernel.shape, kernel.itemsize) == ((2, 3, 4, 5), 4)
