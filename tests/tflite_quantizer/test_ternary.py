"""Scales of 2-bit weights, against a search among many."""

import numpy as np
import pytest
import tf_keras
from tfx_compression.tflite import flatbuffer
from tfx_compression.tflite_quantizer.precision_graph import PrecisionGraph
from tfx_compression.tflite_quantizer.ternary import clip_for_two_bits, ternary_scales

from tests.support import helpers
from tests.support.conversions import dense_layers


def squared_error(rows, scale):
    return np.sum((np.clip(np.rint(rows / scale), -1, 1) * scale - rows) ** 2, axis=1)


@pytest.mark.parametrize("spread", [1.0, 8.0])
def test_the_scale_has_the_least_squared_error(spread):
    rows = np.random.default_rng(0).normal(size=(20, 60)) ** 3 * spread
    scales = ternary_scales(rows)
    assert scales.shape == (20, 1)
    best = squared_error(rows, scales)
    for factor in np.linspace(0.01, 1, 400):
        assert np.all(best <= squared_error(rows, factor * np.abs(rows).max(axis=1, keepdims=True)) + 1e-9)


def test_the_scale_is_the_mean_of_the_large_weights():
    np.testing.assert_allclose(ternary_scales(np.array([[4.0, -6.0, 0.1, -0.2]])), [[5.0]])


@pytest.mark.slow  # converts models
@pytest.mark.parametrize("per_channel", [True, False])
def test_kernels_are_clipped_to_their_scale(per_channel):
    content = helpers.to_tflite(helpers.small_dense(), "float32")
    kernels = PrecisionGraph(content).kernels.values()
    clipped = clip_for_two_bits(content, kernels, per_channel)
    for (before, _), (after, _) in zip(dense_layers(content), dense_layers(clipped), strict=True):
        scales = ternary_scales(before if per_channel else before.reshape(1, -1))
        np.testing.assert_allclose(after, np.clip(before, -scales, scales), rtol=1e-6)


@pytest.mark.slow  # converts models
def test_kernels_in_one_buffer_stay_as_they_are():
    x = tf_keras.Input((4,), name="x")
    layers = [tf_keras.layers.Dense(4, use_bias=False) for _ in range(2)]
    model = tf_keras.Model(x, layers[1](layers[0](x)))
    content = helpers.to_tflite(model, "float32")
    kernels = list(PrecisionGraph(content).kernels.values())
    parsed = flatbuffer.parse(content)
    first, second = (parsed.subgraphs[0].tensors[place] for place in kernels)
    second.buffer = first.buffer
    shared = flatbuffer.serialize(parsed)
    clipped = clip_for_two_bits(shared, kernels, per_channel=True)
    for (before, _), (after, _) in zip(dense_layers(shared), dense_layers(clipped), strict=True):
        np.testing.assert_array_equal(after, before)
