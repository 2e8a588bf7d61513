"""Channels, blocks and kernels of zeros in every precision, against the float model on LiteRT.

All weights are 0, -0.25 or 0.25, which every precision represents, so that only activations are rounded.
"""

import numpy as np
import pytest
import tf_keras
from tfx_compression.tflite import flatbuffer
from tfx_compression.tflite.modes import PRECISIONS
from tfx_compression.tflite_quantizer.calibration import measure_ranges
from tfx_compression.tflite_quantizer.config import Calibration
from tfx_compression.tflite_quantizer.layer_quantizer import quantize_layers
from tfx_compression.tflite_quantizer.precision_choice import choose_uniform
from tfx_compression.tflite_quantizer.precision_graph import PrecisionGraph
from tfx_compression.tflite_quantizer.zero_channels import raise_scales, restore_weights

from tests.support import helpers
from tests.support.conversions import normal, predictions

pytestmark = pytest.mark.slow  # converts models

LAYERS = tf_keras.layers
PRECISION_NAMES = [name for name, spec in PRECISIONS.items() if spec.weights.startswith("int")]


def signs(*shape, seed=0):
    return np.random.default_rng(seed).choice([-0.25, 0.25], shape).astype(np.float32)


def dense_net(kernel, bias):
    x = tf_keras.Input((len(kernel),), name="x")
    hidden = LAYERS.Dense(kernel.shape[1], "relu", name="first")(x)
    model = tf_keras.Model(x, LAYERS.Dense(5, name="second")(hidden))
    model.get_layer("first").set_weights([kernel, bias])
    model.get_layer("second").set_weights([signs(kernel.shape[1], 5, seed=1), normal(5)])
    return model, normal(40, len(kernel))


def every_second_channel():
    kernel = signs(16, 32)
    kernel[:, ::2] = 0
    return dense_net(kernel, np.full(32, 0.5))


def small_channels():
    kernel = signs(16, 32)
    kernel[:, ::2] *= 1e-9
    return dense_net(kernel, np.full(32, 0.5))


def zero_kernel():
    return dense_net(np.zeros((16, 32)), np.full(32, 0.5))


def zeros_throughout():
    return dense_net(np.zeros((16, 32)), np.zeros(32))


def zero_block():
    kernel = signs(64, 32)
    kernel[:32, 3] = kernel[32:, 4] = 0
    kernel[:32, 5] = 1e-12
    return dense_net(kernel, np.full(32, 0.5))


def convolutions():
    x = tf_keras.Input((8, 8, 3), name="x")
    hidden = LAYERS.Conv2D(8, 3, padding="same", activation="relu", name="full")(x)
    hidden = LAYERS.DepthwiseConv2D(3, activation="relu", name="depthwise")(hidden)
    hidden = LAYERS.Conv2DTranspose(4, 2, name="transpose")(hidden)
    model = tf_keras.Model(x, LAYERS.Dense(5, name="last")(LAYERS.Flatten()(hidden)))
    for layer in model.layers:
        if layer.get_weights():
            kernel, bias = layer.get_weights()
            layer.set_weights([signs(*kernel.shape), normal(*bias.shape, seed=2)])
    for name, axis in (("full", 3), ("depthwise", 2), ("transpose", 2)):
        kernel, bias = model.get_layer(name).get_weights()
        np.moveaxis(kernel, axis, 0)[::2] = 0
        model.get_layer(name).set_weights([kernel, bias])
    return model, normal(40, 8, 8, 3)


NETS = [every_second_channel, small_channels, zero_kernel, zeros_throughout, zero_block, convolutions]


@pytest.fixture(scope="module", params=NETS, ids=lambda make: make.__name__)
def net(request):
    model, rows = request.param()
    content = helpers.to_tflite(model, "float32")
    rows = {"x": rows}
    return content, rows, measure_ranges(content, rows, Calibration()).tensors


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("precision", PRECISION_NAMES)
def test_zeros_change_nothing_else(net, precision, per_channel):
    content, rows, ranges = net
    assert_close(content, rows, ranges, precision, 0, per_channel=per_channel)


def test_blocks_of_zeros_run(net):
    content, rows, ranges = net
    assert_close(content, rows, ranges, "int4_dynamic", 32)


def assert_close(content, rows, ranges, precision, block_size, **options):
    choices = choose_uniform(content, precision, block_size, options.get("per_channel", True))
    quantized = quantize_layers(content, choices, ranges, **options)
    expected = predictions(content, rows)
    np.testing.assert_allclose(predictions(quantized, rows), expected, atol=0.02 * np.abs(expected).max())


def test_kernels_of_zeros_in_one_buffer_are_raised_apart():
    model, rows = dense_net(np.zeros((16, 16)), np.full(16, 0.5))
    model = tf_keras.Model(model.input, LAYERS.Dense(16, use_bias=False, name="third")(model.get_layer("first").output))
    model.get_layer("third").set_weights([np.zeros((16, 16))])
    content = helpers.to_tflite(model, "float32")
    parsed = flatbuffer.parse(content)
    graph = PrecisionGraph(content)
    first, second = (parsed.subgraphs[0].tensors[place] for place in graph.kernels.values())
    second.buffer = first.buffer
    shared = flatbuffer.serialize(parsed)
    raised, weights = raise_scales(shared, graph, choose_uniform(shared, "int8"), {}, per_channel=True)
    assert len({weight.kernel for weight in weights}) == 2
    assert len({flatbuffer.parse(raised).subgraphs[0].tensors[weight.kernel].buffer for weight in weights}) == 2
    assert_close(shared, {"x": rows}, measure_ranges(shared, {"x": rows}, Calibration()).tensors, "int8", 0)


def test_models_without_zeros_stay_as_they_are():
    model, rows = dense_net(signs(16, 32), np.full(32, 0.5))
    content = helpers.to_tflite(model, "float32")
    ranges = measure_ranges(content, {"x": rows}, Calibration()).tensors
    choices = choose_uniform(content, "int4")
    assert raise_scales(content, PrecisionGraph(content), choices, ranges, per_channel=True) == (content, ())
    assert restore_weights(content, ()) is content
