"""Cross-layer equalization: the formula, networks of many kinds, and a network that is hard to quantize."""

import numpy as np
import pytest
import tf_keras
from tfx_compression.tflite import flatbuffer
from tfx_compression.tflite.interpreter import Interpreter
from tfx_compression.tflite_quantizer.calibration import measure_ranges
from tfx_compression.tflite_quantizer.config import Calibration
from tfx_compression.tflite_quantizer.equalization import equalize
from tfx_compression.tflite_quantizer.layer_quantizer import quantize_layers
from tfx_compression.tflite_quantizer.precision_choice import choose_uniform

from tests.support import helpers
from tests.support.hard_net import harden

pytestmark = pytest.mark.slow  # converts models

layers = tf_keras.layers


def converted(build, shape, seed=0):
    """Returns the flatbuffer of a net with random weights and biases, and a batch for it."""
    tf_keras.utils.set_random_seed(seed)
    image = tf_keras.Input(shape, name="image")
    model = tf_keras.Model(image, build(image))
    randomize(model, seed)
    return helpers.to_tflite(model, "float32"), np.random.default_rng(seed).normal(size=(5, *shape)).astype(np.float32)


def randomize(model, seed):
    generator = np.random.default_rng(seed)
    for weight in model.weights:
        positive = "variance" in weight.name or "gamma" in weight.name
        spread = 2.0 ** generator.uniform(-3, 3, weight.shape[-1:])
        values = generator.uniform(0.5, 1.5, weight.shape) if positive else generator.normal(size=weight.shape)
        weight.assign(values * spread / np.sqrt(np.prod(weight.shape[:-1])))


def outputs(content, batch):
    """Returns all outputs in one array."""
    return np.concatenate([value.ravel() for value in Interpreter(content).predict({"image": batch}).values()])


def assert_same_function(content, equalized, batch):
    expected = outputs(content, batch)
    np.testing.assert_allclose(outputs(equalized, batch), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def every_operator(image):
    """Layers of every kind, with every operator that can lie between two of them."""
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(image)
    x = layers.ZeroPadding2D(1)(x)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2)(x)
    x = layers.Conv2D(6, 1)(x)
    x = layers.ReLU()(layers.MaxPooling2D()(x))
    x = layers.Conv2D(5, 2, activation="relu")(x)
    x = layers.AveragePooling2D(3, strides=1)(x)
    x = layers.Dense(7, activation="relu")(layers.Flatten()(x))
    return layers.Dense(3)(x)


def separable_and_mean(image):
    x = layers.BatchNormalization()(layers.Conv2D(8, 3, use_bias=False)(image))
    x = layers.SeparableConv2D(6, 3, activation="relu")(layers.ReLU()(x))
    return layers.Dense(4)(layers.GlobalAveragePooling2D()(x))


@pytest.mark.parametrize(("build", "pairs"), [(every_operator, 5), (separable_and_mean, 3)])
def test_outputs_stay_the_same_and_channels_become_alike(build, pairs):
    content, batch = converted(build, (8, 8, 2))
    equalized, record = equalize(content)
    assert len(record) == pairs
    assert_same_function(content, equalized, batch)
    assert np.median([pair.spread_before / pair.spread_after for pair in record]) > 1.5


def test_ranges_are_the_geometric_mean_of_both_sides():
    net = lambda x: layers.Dense(3)(layers.Dense(5, activation="relu", use_bias=False)(x))  # noqa: E731
    content, batch = converted(net, (4,))
    first, second = kernels(content)
    expected = np.sqrt(np.abs(first).max(axis=1) * np.abs(second).max(axis=0))
    equalized, (pair,) = equalize(content)
    first_after, second_after = kernels(equalized)
    np.testing.assert_allclose(np.abs(first_after).max(axis=1), expected, rtol=1e-5)
    np.testing.assert_allclose(np.abs(second_after).max(axis=0), expected, rtol=1e-5)
    np.testing.assert_allclose(second_after @ first_after, second @ first, rtol=1e-4, atol=1e-6)
    spread = np.abs(first).max(axis=1)
    assert pair.spread_before == pytest.approx(spread.max() / spread.min(), rel=1e-5)
    assert pair.spread_after == pytest.approx(expected.max() / expected.min(), rel=1e-5)
    assert_same_function(content, equalized, batch)


def kernels(content):
    """Returns the kernels of the dense layers, [outputs, inputs], in order."""
    model = flatbuffer.parse(content)
    graph = model.subgraphs[0]
    tensors = [graph.tensors[operator.inputs[1]] for operator in flatbuffer.operators(model)]
    return [np.frombuffer(bytes(model.buffers[t.buffer].data), np.float32).reshape(t.shape) for t in tensors]


def obstacles(image):
    """ReLU6, tanh, two readers and an output between the convolutions."""
    x = layers.ReLU(6.0)(layers.Conv2D(4, 1)(image))
    x = layers.Conv2D(4, 1, activation="tanh")(x)
    x = layers.Conv2D(4, 1, activation="relu")(x)
    x = layers.Add()([layers.Conv2D(4, 1)(x), x])
    return [x, layers.Conv2D(2, 1)(x)]


def test_pairs_with_obstacles_are_left_alone():
    content, _ = converted(lambda image: obstacles(image)[1], (4, 4, 2))
    assert equalize(content) == (content, ())


def test_dead_channels_and_shared_biases_are_kept():
    image = tf_keras.Input((6, 6, 2), name="image")
    x = layers.Conv2D(4, 3, activation="relu", name="first")(image)
    x = layers.Conv2D(4, 1, activation="relu", name="second")(x)
    model = tf_keras.Model(image, layers.Conv2D(4, 1, name="third")(x))
    randomize(model, 1)
    for layer in model.layers[1:]:
        layer.bias.assign([0.5, -0.5, 0.25, 1.0])  # equal constants are stored once
    first, second = model.get_layer("first").kernel, model.get_layer("second").kernel
    first.assign(first.numpy() * [1, 0, 1, 1])
    second.assign(second.numpy() * np.array([1, 1, 0, 1])[:, None])
    content = helpers.to_tflite(model, "float32")
    operators = flatbuffer.operators(flatbuffer.parse(content))
    assert len({operator.inputs[2] for operator in operators}) == 1
    equalized, record = equalize(content)
    assert len(record) == 2
    assert_same_function(content, equalized, np.random.default_rng(0).normal(size=(5, 6, 6, 2)).astype(np.float32))


def test_an_equalized_hard_net_is_as_good_in_int8_as_the_easy_one():
    image = tf_keras.Input((8, 8, 3), name="image")
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(16, 3, use_bias=False)(image)))
    x = layers.ReLU()(layers.BatchNormalization()(layers.DepthwiseConv2D(3, use_bias=False)(x)))
    easy = tf_keras.Model(image, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))
    easy.layers[2].beta.assign(np.random.default_rng(0).normal(size=16))
    batch = np.random.default_rng(0).normal(size=(40, 8, 8, 3)).astype(np.float32)
    hard = harden(easy, seed=1)
    np.testing.assert_allclose(hard.predict(batch, verbose=0), easy.predict(batch, verbose=0), rtol=1e-3, atol=1e-5)

    easy_content, hard_content = (helpers.to_tflite(model, "float32") for model in (easy, hard))
    equalized, record = equalize(hard_content)
    assert record[0].spread_before > 50 > 10 > record[0].spread_after
    assert_same_function(hard_content, equalized, batch)
    errors = [int8_error(content, batch) for content in (easy_content, hard_content, equalized)]
    assert errors[1] > 4 * errors[0]
    assert errors[2] < 2 * errors[0]


def int8_error(content, batch):
    ranges = measure_ranges(content, {"image": batch}, Calibration()).tensors
    quantized = quantize_layers(content, choose_uniform(content, "int8"), ranges)
    return np.sqrt(np.mean((outputs(quantized, batch) - outputs(content, batch)) ** 2))
