"""Quantization-aware networks: which layers are quantized, and zeros after conversion to TFLite."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tfx_compression import kernels, model_handle
from tfx_compression.errors import ModelError
from tfx_compression.keras_models import model_size
from tfx_compression.sparsity_fine_tuner.quantization_aware_network import calibrate, quantization_aware
from tfx_compression.sparsity_fine_tuner.verification import zeros_after_conversion
from tfx_compression.tflite import conversion

from tests.support import helpers
from tests.support.errors import raises

L = tf_keras.layers
IMAGES = helpers.images(32)[0] / helpers.LARGEST


class CustomLayer(L.Layer):
    def build(self, shape):
        self.kernel = self.add_weight("kernel", (shape[-1], 6))

    def call(self, x, scale=1.0):
        return tf.tanh(x @ self.kernel) * scale


def _residual():
    image = tf_keras.Input(helpers.IMAGE, name="image")
    x = L.DepthwiseConv2D(3, depth_multiplier=4, use_bias=False, name="depthwise")(image)
    x = L.ReLU(6.0, name="relu6")(L.BatchNormalization(name="normalisation")(x))
    shortcut = L.Conv2D(4, 1, name="pointwise")(x)
    x = L.ReLU(name="relu")(L.Add(name="add")([x, shortcut]))
    x = L.Flatten(name="flatten")(x)
    return tf_keras.Model({"image": image}, {"y": L.Dense(3, name="y")(x)}, name="residual")


def _with_custom():
    image = tf_keras.Input(helpers.IMAGE, name="image")
    x = L.Conv2D(4, 3, activation="relu", name="conv")(image)
    x = CustomLayer(name="mine")(x, scale=2.0)
    x = L.BatchNormalization(name="alone")(x) * 0.5
    x = L.GlobalAveragePooling2D()(x)
    return tf_keras.Model(image, L.Dense(2, activation="elu", name="y")(x))


def _sequence():
    x = series = tf_keras.Input((12, 4), name="series")
    x = L.Conv1D(8, 3, activation="relu", name="conv1d")(x)
    x = L.SeparableConv1D(6, 3, name="separable")(x)
    x = L.LSTM(5, name="lstm")(x)
    return tf_keras.Model(series, L.Dense(2, name="y")(x))


def _nested():
    inside = tf_keras.Input((8, 8, 4))
    inner = tf_keras.Model(inside, L.Conv2D(4, 3, padding="same", name="conv")(inside), name="inner")
    image = tf_keras.Input(helpers.IMAGE, name="image")
    shared = L.Dense(4, name="shared")
    x = shared(shared(L.Conv2D(4, 3, padding="same", name="conv")(image)))
    x = L.Flatten()(inner(inner(x)))
    return tf_keras.Model(image, L.Dense(2, name="y")(x))


def _words():
    words = tf_keras.Input((6,), dtype="int32", name="words")
    x = L.Bidirectional(L.SimpleRNN(4), name="both")(L.Embedding(20, 8, mask_zero=True, name="embedding")(words))
    return tf_keras.Model(words, L.Dense(2, name="y")(x))


@pytest.mark.parametrize(
    ("make", "features", "floats"),
    [
        (helpers.small_cnn, IMAGES, {"separable"}),
        (_residual, {"image": IMAGES}, set()),
        (_with_custom, IMAGES, {"mine", "alone", "tf.math.multiply", "y"}),
        (
            _sequence,
            np.random.default_rng(0).normal(size=(8, 12, 4)).astype(np.float32),
            {"conv1d", "separable", "lstm"},
        ),
        (_nested, IMAGES, {"inner"}),
        pytest.param(
            _words,
            np.random.default_rng(0).integers(0, 20, (8, 6)).astype(np.int32),
            {"embedding", "both"},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_supported_layers_are_quantized_with_close_answers(make, features, floats):
    tf_keras.utils.set_random_seed(1)
    network = make()
    before = {name: kernel.values for name, kernel in kernels.find_kernels(network).items()}
    copy = quantization_aware(network)
    after = kernels.find_kernels(copy.network)
    for name, values in before.items():
        assert isinstance(after[name].variable, tf.Variable)
        np.testing.assert_array_equal(after[name].values, values)
    assert len(after) == len(before)
    noted = {name.split(".")[0] for note in copy.notes for name in note.split(":")[0].split(", ")}
    assert noted == {name.split(".")[0].removesuffix("_1") for name in floats}
    calibrate(copy.network, [features])
    expected, answers = tf.nest.flatten(network(features)), tf.nest.flatten(copy.network(features))
    for one, other in zip(expected, answers, strict=True):
        np.testing.assert_allclose(one, other, atol=0.06 * float(tf.reduce_max(abs(one))))
    assert np.array_equal(tf.nest.flatten(network(features))[0], expected[0]), "the original doesn't change"


@pytest.mark.slow
def test_convolution_before_a_relu_layer_is_rounded():
    network = quantization_aware(_residual()).network
    wrapped = {layer.name: layer for layer in network.layers if kernels.is_quantize_wrapper(layer)}
    for name in ("depthwise", "pointwise", "y"):
        assert len(wrapped[name]._weight_vars) == 1


def test_size_excludes_the_ranges():
    network = helpers.small_cnn()
    mask = helpers.zero_smallest(network, "dense", 0.5)
    before, after = model_size.measure(network), model_size.measure(quantization_aware(network).network)
    assert [(row.name, row.parameters, row.zeros) for row in after.layers] == [
        (row.name, row.parameters, row.zeros) for row in before.layers
    ]
    assert (after.parameters, after.bytes, after.sparsity) == (before.parameters, before.bytes, before.sparsity)
    assert {row.name: row.zeros for row in after.layers}["dense"] == np.count_nonzero(~mask)


def test_frozen_layers_stay_frozen():
    network = helpers.small_dense()
    network.get_layer("hidden").trainable = False
    network = quantization_aware(network).network
    assert {weight.name for weight in network.trainable_weights} == {"y/kernel:0", "y/bias:0"}
    assert model_handle.wrap(network).frozen == ("hidden",)


def test_quantization_aware_network_is_returned_itself():
    copy = quantization_aware(helpers.small_dense())
    again = quantization_aware(copy.network)
    assert again.network is copy.network


def test_keras_3_network_is_refused():
    with raises(ModelError, field="FineTuning.mode", code="keras3-not-supported"):
        quantization_aware(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))


def test_network_without_a_layer_to_quantize_is_refused():
    x = tf_keras.Input((12, 4))
    with raises(ModelError, field="FineTuning.mode", code="nothing-to-quantize", match="Conv1D"):
        quantization_aware(tf_keras.Model(x, L.Conv1D(2, 3)(x)))


def test_layer_on_which_tfmot_fails_stays_float(monkeypatch):
    monkeypatch.setattr(
        "tfx_compression.sparsity_fine_tuner.quantization_aware_network._FUSED_ACTIVATIONS", ("relu", "linear", "elu")
    )
    x = tf_keras.Input((4,))
    y = L.Dense(2, name="y")(L.Dense(3, activation="elu", name="odd")(L.Dense(3, activation="relu", name="first")(x)))
    copy = quantization_aware(tf_keras.Model(x, y))
    assert len(copy.notes) == 1 and copy.notes[0].startswith("odd: stays float, since tfmot fails: ")
    assert {layer.name for layer in copy.network.layers if kernels.is_quantize_wrapper(layer)} == {"first", "y"}


@pytest.mark.slow
def test_saved_network_keeps_its_zeros_in_tflite(tmp_path, monkeypatch):
    network = quantization_aware(helpers.small_cnn()).network
    masks = {}
    for name, kernel in kernels.find_kernels(network).items():
        if kernel.prunable:
            masks[name] = abs(kernel.values) > np.quantile(abs(kernel.values), 0.7)
            masks[name][..., 0] = False  # a whole filter
            kernel.variable.assign(kernel.values * masks[name])
    calibrate(network, [IMAGES])
    path = helpers.save_with_examples_signature(network, tmp_path / "model", scale=1.0)
    loaded = model_handle.load(path)
    np.testing.assert_allclose(loaded.model(IMAGES), network(IMAGES), atol=1e-5)
    assert loaded.measure().sparsity == model_size.measure(network).sparsity
    monkeypatch.setattr(conversion, "convert_in_worker", functools.cache(conversion.convert_in_worker))
    zeros = zeros_after_conversion(path, loaded.kernels, masks)
    assert zeros == {name: np.count_nonzero(~mask) for name, mask in masks.items()}
    wrong = {**masks, "dense": np.zeros_like(masks["dense"])}
    with raises(ModelError, code="zeros-lost-in-conversion", match="8192.*'dense'"):
        zeros_after_conversion(path, loaded.kernels, wrong)


def test_h5_file_is_loaded_and_keras_file_is_refused(tmp_path):
    network = quantization_aware(helpers.small_dense()).network
    network.save(tmp_path / "model.h5")
    x, _ = helpers.points(8)
    np.testing.assert_allclose(model_handle.load(str(tmp_path / "model.h5")).model(x), network(x), atol=1e-6)
    network.save(tmp_path / "model.keras")  # tfmot's layers write other weights to it than they read
    with raises(ModelError, match="tfmot"):
        model_handle.load(str(tmp_path / "model.keras"))
