"""Networks that round as int8 will: what tfmot can quantize is, the rest stays float; zeros stay zero in TFLite."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tfx_compression import kernels, model_handle
from tfx_compression.errors import ModelError
from tfx_compression.keras_models import model_size
from tfx_compression.sparsity_fine_tuner.quantization import aware, calibrate, zeros_after_conversion

from tests.support import helpers

L = tf_keras.layers
IMAGES = helpers.images(32)[0] / helpers.LARGEST


class Mine(L.Layer):
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
    x = Mine(name="mine")(x, scale=2.0)
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
    x = L.Bidirectional(L.GRU(4), name="both")(L.Embedding(20, 8, mask_zero=True, name="embedding")(words))
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
def test_what_can_be_quantized_is_and_the_answers_are_close(make, features, floats):
    tf_keras.utils.set_random_seed(1)
    network = make()
    before = {name: kernel.values for name, kernel in kernels.find_kernels(network).items()}
    made = aware(network)
    after = kernels.find_kernels(made.network)
    for name, values in before.items():
        assert isinstance(after[name].variable, tf.Variable)
        np.testing.assert_array_equal(after[name].values, values)
    assert len(after) == len(before)
    named = {name.split(".")[0] for note in made.notes for name in note.split(":")[0].split(", ")}
    assert named == {name.split(".")[0].removesuffix("_1") for name in floats}
    calibrate(made.network, [features])
    expected, answers = tf.nest.flatten(network(features)), tf.nest.flatten(made.network(features))
    for one, other in zip(expected, answers, strict=True):
        np.testing.assert_allclose(one, other, atol=0.06 * float(tf.reduce_max(abs(one))))
    assert np.array_equal(tf.nest.flatten(network(features))[0], expected[0]), "the original is left as it was"


def test_a_convolution_before_a_relu_layer_is_rounded_too():
    made = aware(_residual()).network
    wrapped = {layer.name: layer for layer in made.layers if kernels.is_quantize_wrapper(layer)}
    for name in ("depthwise", "pointwise", "y"):
        assert len(wrapped[name]._weight_vars) == 1


def test_a_quantization_aware_network_is_measured_without_its_ranges():
    network = helpers.small_cnn()
    mask = helpers.zero_smallest(network, "dense", 0.5)
    before, after = model_size.measure(network), model_size.measure(aware(network).network)
    assert [(row.name, row.parameters, row.zeros) for row in after.layers] == [
        (row.name, row.parameters, row.zeros) for row in before.layers
    ]
    assert (after.parameters, after.bytes, after.sparsity) == (before.parameters, before.bytes, before.sparsity)
    assert {row.name: row.zeros for row in after.layers}["dense"] == np.count_nonzero(~mask)


def test_what_is_frozen_stays_so():
    network = helpers.small_dense()
    network.get_layer("hidden").trainable = False
    made = aware(network).network
    assert {weight.name for weight in made.trainable_weights} == {"y/kernel:0", "y/bias:0"}
    assert model_handle.wrap(made).frozen == ("hidden",)


def test_a_network_that_is_quantization_aware_is_kept():
    made = aware(helpers.small_dense())
    again = aware(made.network)
    assert again.network is made.network


def test_a_keras_3_network_is_refused():
    with pytest.raises(ModelError, match=r"Keras 3.*Remedy"):
        aware(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))


def test_a_network_without_a_layer_to_quantize_is_refused():
    x = tf_keras.Input((12, 4))
    with pytest.raises(ModelError, match=r"no layer.*Conv1D.*Remedy"):
        aware(tf_keras.Model(x, L.Conv1D(2, 3)(x)))


def test_a_layer_that_tfmot_fails_on_stays_float(monkeypatch):
    monkeypatch.setattr(
        "tfx_compression.sparsity_fine_tuner.quantization._FUSED_ACTIVATIONS", ("relu", "linear", "elu")
    )
    x = tf_keras.Input((4,))
    y = L.Dense(2, name="y")(L.Dense(3, activation="elu", name="odd")(L.Dense(3, activation="relu", name="first")(x)))
    made = aware(tf_keras.Model(x, y))
    assert len(made.notes) == 1 and made.notes[0].startswith("odd: stays float, since tfmot fails: ")
    assert {layer.name for layer in made.network.layers if kernels.is_quantize_wrapper(layer)} == {"first", "y"}


@pytest.mark.slow
def test_it_is_loaded_again_and_its_zeros_are_zeros_in_tflite(tmp_path):
    made = aware(helpers.small_cnn()).network
    masks = {}
    for name, kernel in kernels.find_kernels(made).items():
        if kernel.prunable:
            masks[name] = abs(kernel.values) > np.quantile(abs(kernel.values), 0.7)
            masks[name][..., 0] = False  # a whole filter
            kernel.variable.assign(kernel.values * masks[name])
    made.compile("adam", "sparse_categorical_crossentropy")
    made.fit(IMAGES, np.zeros(len(IMAGES)), verbose=0)  # moves the ranges
    for name, kernel in kernels.find_kernels(made).items():
        if name in masks:
            kernel.variable.assign(kernel.values * masks[name])
    path = helpers.save_with_examples_signature(made, tmp_path / "model", scale=1.0)
    loaded = model_handle.load(path)
    np.testing.assert_allclose(loaded.model(IMAGES), made(IMAGES), atol=1e-5)
    assert loaded.measure().sparsity == model_size.measure(made).sparsity
    zeros = zeros_after_conversion(path, loaded.kernels, masks)
    assert zeros == {name: np.count_nonzero(~mask) for name, mask in masks.items()}
    wrong = {**masks, "dense": np.zeros_like(masks["dense"])}
    with pytest.raises(ModelError, match=r"8192 weights of layer 'dense'.*Remedy"):
        zeros_after_conversion(path, loaded.kernels, wrong)


def test_it_is_loaded_again_from_an_h5_file_and_a_keras_file_is_refused(tmp_path):
    made = aware(helpers.small_dense()).network
    made.save(tmp_path / "model.h5")
    x, _ = helpers.points(8)
    np.testing.assert_allclose(model_handle.load(str(tmp_path / "model.h5")).model(x), made(x), atol=1e-6)
    made.save(tmp_path / "model.keras")  # tfmot's layers write other weights there than they read
    with pytest.raises(ModelError, match=r'tfmot.*Remedy.*save_format="tf"'):
        model_handle.load(str(tmp_path / "model.keras"))
