"""Channels without weights, removed: the same answers from fewer weights."""

import numpy as np
import pytest
import tf_keras
from tfx_compression.tflite.contents import read_contents
from tfx_compression.tflite_quantizer import sources
from tfx_compression.tflite_quantizer.dead_channels import remove_dead_channels

from tests.support import helpers
from tests.support.conversions import normal, predictions, quantized

pytestmark = pytest.mark.slow  # converts models

LAYERS = tf_keras.layers


def convolutions(*between, padding="valid", size=3):
    x = tf_keras.Input((8, 8, 3), name="x")
    hidden = LAYERS.Conv2D(6, 3, name="first")(x)
    for layer in between:
        hidden = layer(hidden)
    hidden = LAYERS.Conv2D(4, size, padding=padding, name="second")(hidden)
    return tf_keras.Model(x, LAYERS.GlobalAveragePooling2D(name="y")(hidden)), normal(5, 8, 8, 3)


def without_weights(model, layer, channels, bias):
    weights = model.get_layer(layer).get_weights()
    weights[0][..., channels] = 0
    if bias is not None:
        weights[1][:] = bias
    model.get_layer(layer).set_weights(weights)
    return model


def removed(model, rows, layer="first", channels=(0, 2, 3), bias=0.5):
    """Returns how many of the kernels' weights went, after checking that the answers are the same."""
    content = helpers.to_tflite(without_weights(model, layer, list(channels), bias), "float32")
    smaller, notes = remove_dead_channels(content, {"x": rows})
    expected = predictions(content, {"x": rows})
    np.testing.assert_allclose(predictions(smaller, {"x": rows}), expected, rtol=1e-4, atol=1e-5)
    assert (smaller is content) == (notes == ())
    weights = [sum(w.size for w in read_contents(each).weights.values()) for each in (content, smaller)]
    return weights[0] - weights[1]


@pytest.mark.parametrize(
    "between",
    [
        (),
        (lambda: LAYERS.Activation("sigmoid"),),
        (LAYERS.ReLU, lambda: LAYERS.MaxPooling2D(2, padding="same")),
        (lambda: LAYERS.Activation("tanh"), lambda: LAYERS.AveragePooling2D(3, 1, padding="same")),
    ],
)
def test_constants_move_into_the_next_bias(between):
    model, rows = convolutions(*(make() for make in between), size=2)
    assert removed(model, rows) >= 3 * 3 * 3 * 3 + 3 * 2 * 2 * 4


@pytest.mark.parametrize(("bias", "goes"), [(0.5, False), (-0.5, True)])
def test_padding_keeps_channels_that_are_not_zero(bias, goes):
    model, rows = convolutions(LAYERS.ReLU(), padding="same")
    assert (removed(model, rows, bias=bias) > 0) == goes


def test_a_layer_keeps_one_channel():
    model, rows = convolutions(LAYERS.ReLU())
    assert removed(model, rows, channels=range(6)) >= 5 * 3 * 3 * (3 + 4)


def dense_layers(*sizes):
    x = hidden = tf_keras.Input((8,), name="x")
    for index, size in enumerate(sizes):
        hidden = LAYERS.Dense(size, "relu", name=f"dense{index}")(hidden)
    return tf_keras.Model(x, hidden)


def test_dead_channels_of_consecutive_layers_go():
    model = dense_layers(6, 5, 4)
    without_weights(model, "dense1", [1, 2], None)
    assert removed(model, normal(9, 8), "dense0", [0, 2, 3]) == 3 * (8 + 5) + 2 * (3 + 4)


def test_blocks_stay_whole():
    model = dense_layers(64, 4)
    content = helpers.to_tflite(without_weights(model, "dense0", list(range(40)), 0.5), "float32")
    smaller, (note,) = remove_dead_channels(content, {"x": normal(5, 8)}, block_size=32)
    assert "32 channels" in note
    np.testing.assert_allclose(
        predictions(smaller, {"x": normal(5, 8)}), predictions(content, {"x": normal(5, 8)}), rtol=1e-4, atol=1e-5
    )


def test_a_layer_that_two_layers_read_stays():
    x = tf_keras.Input((8,), name="x")
    hidden = LAYERS.Dense(6, "relu", name="first")(x)
    model = tf_keras.Model(x, LAYERS.Dense(3)(hidden) + LAYERS.Dense(3, "tanh")(hidden))
    assert removed(model, normal(5, 8)) == 0


def test_a_model_without_dead_channels_stays():
    model, rows = convolutions()
    assert removed(model, rows, channels=()) == 0


@pytest.mark.parametrize("mode", ["int4", "int4_dynamic"])
def test_a_conversion_by_layer_removes_them(tmp_path, mode):
    x = tf_keras.Input((16,), name="x")
    model = tf_keras.Model(x, LAYERS.Dense(5, name="y")(LAYERS.Dense(32, "relu", name="first")(x)))
    path = sources.as_saved_model(without_weights(model, "first", slice(1, None, 2), 0.5), str(tmp_path / "m"))
    record = quantized(path, {"x": normal(50, 16)}, mode=mode).record
    assert record.outputs[0].cosine > 0.95
    assert record.parameters < 16 * 16 + 16 * 5 + 50
    assert any("16 channels" in note and "first" in note for note in record.notes)
    assert len(record.layers) == 2
