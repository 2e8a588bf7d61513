"""Operators and weights in TFLite models."""

import numpy as np
import pytest
from tfx_compression.errors import ModelError
from tfx_compression.tflite.contents import read_contents

from tests.support import by_hand, tflite_layers
from tests.support.by_hand import Op
from tests.support.errors import raises

MODES = {
    "float32": ("float32", "float32"),
    "float16": ("float16", "float32"),
    "dynamic": ("dynamic", "float32"),
    "int8": ("int8", "integer"),
    "int8 with float io": ("int8", "float32"),
}


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_contents_have_the_networks_kernels_and_all_their_zeros(converted, cnn, mode):
    """TFLite puts the output channel first (last in a depthwise kernel). Int8 rounds some more weights to zero."""
    contents = read_contents(converted(*MODES[mode]))
    kernels = {
        "conv": cnn.get_layer("conv").kernel.numpy().transpose(3, 0, 1, 2),
        "depthwise": cnn.get_layer("separable").depthwise_kernel.numpy().transpose(3, 0, 1, 2),
        "pointwise": cnn.get_layer("separable").pointwise_kernel.numpy().transpose(3, 0, 1, 2),
        "dense": cnn.get_layer("dense").kernel.numpy().T,
        "probabilities": cnn.get_layer("probabilities").kernel.numpy().T,
    }
    assert sum(weight.size for weight in contents.weights.values()) == sum(kernel.size for kernel in kernels.values())
    by_shape = {weight.shape: weight for weight in contents.weights.values()}
    for name, kernel in kernels.items():
        assert not by_shape[kernel.shape][kernel == 0].any(), name
    for layer in ("dense", "probabilities"):
        (weight,) = [weight for name, weight in contents.weights.items() if name.split("/")[-1] == layer]
        assert weight.shape == kernels[layer].shape
    zeros = sum(int((kernel == 0).sum()) for kernel in kernels.values())
    size = sum(kernel.size for kernel in kernels.values())
    assert zeros / size <= contents.sparsity < zeros / size + 0.01
    if mode in ("float32", "float16"):
        assert contents.sparsity == zeros / size


@pytest.mark.slow
def test_operators_are_counted_and_those_that_return_floats(converted):
    layers = {"CONV_2D": 2, "DEPTHWISE_CONV_2D": 1, "MAX_POOL_2D": 1, "FULLY_CONNECTED": 2, "SOFTMAX": 1}
    contents = {mode: read_contents(converted(*names)) for mode, names in MODES.items()}
    for mode in MODES:
        assert {name: contents[mode].ops[name] for name in layers} == layers
    for mode in ("float32", "float16", "dynamic"):
        assert {name: contents[mode].float_ops[name] for name in layers} == layers
    assert contents["float16"].ops["DEQUANTIZE"] == contents["float16"].float_ops["DEQUANTIZE"] > 0
    assert contents["int8"].float_ops == {}
    assert contents["int8 with float io"].float_ops == {"DEQUANTIZE": 1}
    assert contents["int8 with float io"].ops["QUANTIZE"] == 1


def test_a_model_without_weights_has_no_sparsity():
    contents = read_contents(by_hand.model(by_hand.one_operator(Op.FLOOR)))
    assert (contents.ops, contents.float_ops) == ({"FLOOR": 1}, {"FLOOR": 1})
    assert (contents.weights, contents.sparsity) == ({}, 0.0)


@pytest.mark.parametrize("columns", [7, 8])
@pytest.mark.parametrize("scales", tflite_layers.SCALES.values(), ids=tflite_layers.SCALES)
@pytest.mark.parametrize("bits", [4, 2])
def test_sub_byte_weights_are_unpacked_with_their_scales(bits, scales, columns):
    content, weights = tflite_layers.sub_byte_layer(bits, scales, by_hand.Type.INT8, columns)
    contents = read_contents(content)
    ((name, stored),) = contents.weights.items()
    np.testing.assert_array_equal(stored, weights)
    np.testing.assert_allclose(contents.real_weights(name), weights * np.float32(scales)[:, None])
    assert contents.sparsity == (weights == 0).mean()


@pytest.mark.parametrize("share", [0.003, 0.1, 0.5, 0.9])
def test_a_truncated_file_is_refused(share):
    content, _ = tflite_layers.sub_byte_layer(4, [0.1], by_hand.Type.INT8, columns=200)
    with raises(ModelError, match="TFLite"):
        read_contents(content[: int(share * len(content))])
