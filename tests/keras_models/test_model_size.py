"""Parameters, zeros and multiply-accumulates, against TensorFlow's profiler and numbers computed by hand."""

import gzip

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2
from tfx_compression.keras_models import model_size

from tests.support import helpers

L = tf_keras.layers


def one_layer(layer: tf_keras.layers.Layer, *shape: int) -> tf_keras.Model:
    inputs = tf_keras.Input(shape)
    return tf_keras.Model(inputs, layer(inputs))


def profiled_operations(model: tf_keras.Model) -> int:
    """Returns the operations for one row that TensorFlow's profiler counts: two for each multiply-accumulate."""
    spec = tf.TensorSpec([1, *model.input_shape[1:]], tf.float32)
    frozen = convert_variables_to_constants_v2(tf.function(model).get_concrete_function(spec))
    options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
    options["output"] = "none"
    return tf.compat.v1.profiler.profile(frozen.graph, options=options).total_float_ops


@pytest.mark.parametrize(
    ("layer_class", "arguments", "shape"),
    [
        (L.Dense, {"units": 7}, (5,)),
        (L.Dense, {"units": 7}, (3, 5)),
        (L.Conv1D, {"filters": 6, "kernel_size": 3}, (20, 2)),
        (L.Conv1D, {"filters": 6, "kernel_size": 4, "strides": 3, "padding": "same"}, (20, 2)),
        (L.Conv1D, {"filters": 6, "kernel_size": 3, "padding": "causal"}, (20, 2)),
        (L.Conv2D, {"filters": 6, "kernel_size": 3}, (9, 7, 2)),
        (L.Conv2D, {"filters": 6, "kernel_size": (2, 5), "padding": "same"}, (9, 7, 2)),
        (L.Conv2D, {"filters": 6, "kernel_size": 3, "strides": (2, 3), "padding": "same"}, (9, 7, 2)),
        (L.DepthwiseConv2D, {"kernel_size": 3}, (9, 7, 3)),
        (L.DepthwiseConv2D, {"kernel_size": 3, "strides": 2, "depth_multiplier": 2, "padding": "same"}, (9, 7, 3)),
        (L.SeparableConv2D, {"filters": 6, "kernel_size": 3}, (9, 7, 2)),
        (
            L.SeparableConv2D,
            {"filters": 6, "kernel_size": 3, "strides": 2, "depth_multiplier": 3, "padding": "same"},
            (9, 7, 2),
        ),
        (L.Conv2DTranspose, {"filters": 6, "kernel_size": 3, "strides": 2, "padding": "same"}, (5, 4, 2)),
        (L.Conv2DTranspose, {"filters": 6, "kernel_size": 3, "padding": "same"}, (5, 4, 2)),
    ],
)
def test_macs_are_half_of_the_operations_that_the_profiler_counts(layer_class, arguments, shape):
    model = one_layer(layer_class(use_bias=False, **arguments), *shape)
    assert 2 * model_size.measure(model).macs == profiled_operations(model)


@pytest.mark.parametrize(
    ("layer_class", "arguments", "shape", "macs"),
    [
        # A transposed convolution uses a weight once per place of its input, whatever the output's padding.
        (L.Conv2DTranspose, {"strides": 2, "padding": "valid"}, (5, 5, 2), 5 * 5 * 3 * 3 * 2 * 4),
        (L.Conv1DTranspose, {"strides": 2, "padding": "valid"}, (5, 2), 5 * 3 * 2 * 4),
        (L.Conv3D, {}, (5, 4, 3, 2), 3 * 2 * 1 * 3 * 3 * 3 * 2 * 4),
        (L.Conv2D, {"data_format": "channels_first"}, (2, 9, 7), 7 * 5 * 3 * 3 * 2 * 4),
        # The profiler doesn't know these two.
        (L.Conv2D, {"groups": 2}, (9, 7, 4), 7 * 5 * 3 * 3 * 2 * 4),
        (L.Conv2D, {"dilation_rate": 2}, (9, 7, 2), 5 * 3 * 3 * 3 * 2 * 4),
    ],
    ids=["transposed 2D", "transposed 1D", "3D", "channels first", "groups", "dilation"],
)
def test_macs_computed_by_hand(layer_class, arguments, shape, macs):
    model = one_layer(layer_class(filters=4, kernel_size=3, **arguments), *shape)
    assert model_size.measure(model).macs == macs


def test_macs_of_an_einsum_are_right_or_unknown():
    model = one_layer(L.EinsumDense("abc,cde->abde", (5, 2, 3)), 5, 4)
    assert model_size.measure(model).layers[0].macs in (5 * 4 * 2 * 3, None)


def test_macs_of_a_locally_connected_layer_are_right_or_unknown():
    model = one_layer(L.LocallyConnected1D(3, 2), 6, 4)
    assert model_size.measure(model).layers[0].macs in (5 * 2 * 4 * 3, None)


def test_macs_of_a_layer_that_is_called_twice_count_twice_or_are_unknown():
    inputs = tf_keras.Input((8,))
    shared = L.Dense(8, name="shared")
    (row,) = model_size.measure(tf_keras.Model(inputs, shared(shared(inputs)))).layers
    assert row.parameters == 8 * 8 + 8
    assert row.macs in (2 * 8 * 8, None)


def test_macs_are_unknown_if_a_size_is_free():
    size = model_size.measure(one_layer(L.Conv2D(6, 3), None, 7, 2))
    assert size.layers[0].macs is size.macs is size.nonzero_macs is None


@pytest.mark.parametrize("make", [helpers.small_cnn, helpers.small_dense, helpers.small_convolutions])
def test_the_parameters_of_the_layers_add_up_to_those_of_the_model(make):
    model = make()
    size = model_size.measure(model)
    assert size.parameters == model.count_params() == sum(row.parameters for row in size.layers)
    by_layer = {layer.name: 0 for layer in model.layers if layer.weights}
    for row in size.layers:
        by_layer[row.name.split("/")[0]] += row.parameters
    assert by_layer == {layer.name: layer.count_params() for layer in model.layers if layer.weights}


def test_zeros_shrink_the_gzipped_bytes_only():
    model = helpers.small_cnn()
    before = model_size.measure(model)
    assert before.bytes == 4 * model.count_params()
    assert before.bytes_gzip == sum(len(gzip.compress(weight.tobytes(), 6)) for weight in model.get_weights())
    helpers.zero_smallest(model, "dense", 0.9)
    after = model_size.measure(model)
    assert after.bytes == before.bytes
    assert after.bytes_gzip < 0.4 * before.bytes_gzip


def test_zeros_are_counted_in_kernels_only():
    model = helpers.small_cnn()
    keep = helpers.zero_smallest(model, "dense", 0.5)
    assert not model.get_layer("dense").bias.numpy().any()
    rows = {row.name: row for row in model_size.measure(model).layers}
    zeros = int((~keep).sum())
    assert rows["dense"].zeros == zeros
    assert rows["dense"].sparsity == zeros / keep.size
    assert {name for name, row in rows.items() if row.zeros} == {"dense"}
    weights = 3 * 3 * 1 * 8 + 3 * 3 * 8 + 8 * 16 + 256 * 32 + 32 * 3
    assert model_size.measure(model).sparsity == pytest.approx(zeros / weights)


def test_a_layer_with_two_kernels_has_two_sizes():
    rows = {row.name: row for row in model_size.measure(helpers.small_convolutions()).layers}
    assert {name: row.parameters for name, row in rows.items()} == {
        "depthwise": 3 * 3 * 4 + 4,
        "separable/depthwise_kernel": 3 * 3 * 4,
        "separable/pointwise_kernel": 4 * 6 + 6,
        "transposed": 2 * 2 * 6 * 5 + 5,
        "y": 5 * 2 + 2,
    }


def test_a_layer_without_a_kernel_has_parameters_only():
    (row,) = [row for row in model_size.measure(helpers.small_cnn()).layers if row.name == "normalization"]
    assert (row.type, row.parameters, row.zeros, row.macs) == ("BatchNormalization", 4 * 8, 0, 0)


def test_layers_of_a_nested_model_count():
    inner = tf_keras.Sequential([tf_keras.Input((4,)), L.Dense(3, name="inside")], name="inner")
    model = tf_keras.Sequential([tf_keras.Input((4,)), inner, L.Dense(2, name="outside")])
    assert model_size.measure(model).macs == 4 * 3 + 3 * 2


def test_layers_of_the_same_name_in_two_nested_models_both_count():
    inner = [tf_keras.Sequential([tf_keras.Input((4,)), L.Dense(4, name="same")], name=name) for name in ("one", "two")]
    model = tf_keras.Sequential([tf_keras.Input((4,)), *inner])
    inner[0].get_layer("same").kernel.assign(np.zeros([4, 4]))
    assert model_size.measure(model).sparsity == 0.5


def test_the_parameters_of_a_layer_that_is_called_twice_count_once():
    shared = L.Conv2D(3, 3, padding="same", name="shared")
    inputs = [tf_keras.Input((8, 8, 1)), tf_keras.Input((4, 4, 1))]
    pooled = [L.GlobalAveragePooling2D()(shared(image)) for image in inputs]
    model = tf_keras.Model(inputs, L.Concatenate()(pooled))
    size = model_size.measure(model)
    assert size.parameters == 3 * 3 * 3 + 3


@pytest.mark.slow
@pytest.mark.parametrize("library", [tf_keras, keras])
def test_macs_of_recurrent_layers_and_attention_count_every_step(library):
    layer = library.layers
    x = library.Input((6, 4))
    attended = layer.MultiHeadAttention(2, 3, name="attention")(x, x)
    last = layer.LSTM(5, name="lstm")(x)
    every = layer.Bidirectional(layer.GRU(2, name="gru", return_sequences=True), name="both")(x)
    model = library.Model(x, [attended, last, every])
    rows = {row.name: row.macs for row in model_size.measure(model).layers}
    assert rows == {
        **{f"attention/{name}": 6 * 4 * 2 * 3 for name in ("query", "key", "value", "attention_output")},
        "lstm/lstm_cell/kernel": 6 * 4 * 20,
        "lstm/lstm_cell/recurrent_kernel": 6 * 5 * 20,
        **{f"both/{way}_gru/gru_cell/kernel": 6 * 4 * 6 for way in ("forward", "backward")},
        **{f"both/{way}_gru/gru_cell/recurrent_kernel": 6 * 2 * 6 for way in ("forward", "backward")},
    }


def test_nonzero_macs_leave_out_those_of_zeros():
    model = helpers.small_dense()
    keep = helpers.zero_smallest(model, "hidden", 0.5)
    assert model_size.measure(model).nonzero_macs == keep.sum() + 16 * 2


@pytest.mark.parametrize("library", [tf_keras, keras])
def test_macs_of_a_stateful_model_are_for_one_row(library):
    layers = library.layers
    x = library.Input(batch_shape=(3, 5, 4))
    lstm = layers.LSTM(8, stateful=True, name="lstm")(x)
    fixed = library.Input((5, 4))
    free = library.Model(fixed, layers.Dense(2)(layers.LSTM(8, name="lstm")(fixed)))
    measured = model_size.measure(library.Model(x, layers.Dense(2)(lstm)))
    assert measured.macs == model_size.measure(free).macs > 0


def test_the_vocabulary_of_a_lookup_layer_is_no_weight():
    x = tf_keras.Input((1,), dtype=tf.string)
    lookup = tf_keras.layers.StringLookup(output_mode="one_hot")
    lookup.adapt(tf.constant([["a"], ["b"]]))
    model = tf_keras.Model(x, tf_keras.layers.Dense(2)(lookup(x)))
    assert model_size.measure(model).parameters == 3 * 2 + 2
