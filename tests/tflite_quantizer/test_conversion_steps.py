"""Conversion in every mode, with equalization, sparse kernels and metadata, of networks of several kinds."""

import io
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
import tfx_compression as tfc
from tfx_compression.errors import ConfigError, ModelError
from tfx_compression.tflite.interpreter import Interpreter
from tfx_compression.tflite.modes import MODES
from tfx_compression.tflite_quantizer import sources, tflite_metadata
from tfx_compression.tflite_quantizer.quantize import quantize_saved_model
from tfx_compression.tflite_quantizer.rows import Rows

from tests.support import helpers, kinds
from tests.support.conversions import CALIBRATION_ROWS, in_this_process, normal, predictions, quantized, saved_wide_net
from tests.support.errors import raises

pytestmark = pytest.mark.slow  # converts models

TOLERANCES = {
    "float32": 1e-5,
    "float16": 0.005,
    "dynamic": 0.03,
    "int8": 0.1,
    "int16x8": 0.03,
    "int4": 0.35,
    "int4_dynamic": 0.35,
    "int4_weight_only": 0.35,
}
RULES = (tfc.PrecisionRule(layers="conv", precision="int8_weight_only"),)


@pytest.fixture(scope="module")
def rows():
    return {"image": helpers.images(60, seed=3)[0]}


@pytest.fixture(scope="module")
def converted(saved_cnn, rows):
    """Converts the trained network, which takes raw images, in a mode with float inputs and outputs, once each."""
    results = {}

    def convert(mode, **fields):
        key = (mode, str(fields))
        if key not in results:
            results[key] = quantized(saved_cnn, rows, mode=mode, io="float32", **fields)
        return results[key]

    return convert


def assert_predicts(model, content, tolerance):
    raw, labels = helpers.images(200, seed=7)
    expected, values = model(raw / helpers.LARGEST).numpy(), predictions(content, {"image": raw})
    assert np.mean(expected.argmax(1) == labels) > 0.9
    assert np.abs(values - expected).max() < tolerance
    assert np.mean(values.argmax(1) == expected.argmax(1)) > 0.97


def test_every_uniform_mode_has_a_tolerance():
    assert TOLERANCES.keys() == {name for name, mode in MODES.items() if mode.layers == "uniform"}


@pytest.mark.parametrize(("mode", "tolerance"), TOLERANCES.items())
def test_a_mode_predicts_within_its_precision(trained_cnn, converted, mode, tolerance):
    """The SavedModel's preprocessing, which it serves, is part of the TFLite model."""
    assert_predicts(trained_cnn, converted(mode).content, tolerance)


def test_fewer_bits_make_a_smaller_file(converted):
    float32, float16, dynamic, int8 = (
        len(converted(mode).content) for mode in ("float32", "float16", "dynamic", "int8")
    )
    assert int8 < 0.5 * float32
    assert int8 < float16 < 0.8 * float32
    assert dynamic < float16


def test_float_inputs_have_the_quantization_inside(converted):
    result = converted("int8")
    assert result.inputs["image"].dtype == result.outputs["probabilities"].dtype == np.float32
    assert result.contents.ops["QUANTIZE"] == 1
    assert result.contents.float_ops == {"DEQUANTIZE": 1}


@pytest.mark.parametrize("ranges", ["percentile", "mse"])
def test_other_ranges_predict_as_well(trained_cnn, converted, ranges):
    result = converted("int8", calibration={"rows": 40, "ranges": ranges})
    assert result.record.calibration.method == ranges
    assert_predicts(trained_cnn, result.content, 0.1)


@pytest.mark.parametrize("mode", ["float32", "float16", "dynamic"])
def test_ranges_do_not_matter_without_calibration(converted, mode):
    assert converted(mode, calibration={"rows": 40, "ranges": "mse"}).content == converted(mode).content


def test_an_equalized_model_predicts_as_well(trained_cnn, converted):
    result = converted("int8", equalize=True)
    assert result.record.equalization
    assert_predicts(trained_cnn, result.content, 0.1)
    assert all(layer.snr_db is None or layer.snr_db > 10 for layer in result.record.layers)


def test_equalization_spares_a_channel_with_a_dominant_bias(tmp_path):
    layers, x = tf_keras.layers, tf_keras.Input((8, 8, 3), name="x")
    first = layers.Conv2D(8, 3, activation="relu")
    y = layers.Dense(4, name="y")(layers.Flatten()(layers.Conv2D(8, 3, activation="relu")(first(x))))
    model, columns = tf_keras.Model(x, y), {"x": normal(60, 8, 8, 3)}
    for smallest in (1e-4, 1e-15):
        kernel, bias = first.get_weights()
        kernel[..., 0] *= smallest / np.abs(kernel[..., 0]).max()
        bias[0] = 0.5
        first.set_weights([kernel, bias])
        path = sources.as_saved_model(model, str(tmp_path / f"small-{smallest}"))
        noise = {}
        for equalize in (False, True):
            result = quantized(path, columns, mode="int8", equalize=equalize, io="float32")
            noise[equalize] = np.std(predictions(result.content, columns) - model(columns["x"]))
        assert noise[True] < 1.5 * noise[False]


def test_rules_set_precisions_and_other_layers_stay_float(converted):
    contents = converted("mixed", rules=RULES).contents
    assert {weight.dtype for weight in contents.weights.values()} == {np.dtype(np.int8), np.dtype(np.float32)}


def test_a_search_keeps_its_record(saved_cnn, rows):
    auto = {"metric": "agreement", "max_drop": 0.5, "precisions": ("int8", "float32")}
    record = quantized(saved_cnn, rows, mode="auto", auto=auto).record
    assert record.auto.trials
    assert set(record.auto.precisions.values()) == {"int8"}


@pytest.mark.parametrize("mode", ["int8", "int4", "auto"])
def test_an_unused_output_of_an_operator_stays_float(tmp_path, mode):
    kernel = normal(4, 2, seed=1)

    def function(x):
        first, second, _ = tf.split(x, 3, axis=1)
        return {"y": tf.matmul(first, kernel) + tf.reduce_sum(second, axis=1, keepdims=True)}

    path = helpers.save_function(function, [tf.TensorSpec([None, 12], tf.float32, "x")], tmp_path / "split")
    columns = {"x": normal(90, 12)}
    fields = (
        {"auto": {"metric": "agreement", "max_drop": 0.1, "precisions": ("int8", "int4")}} if mode == "auto" else {}
    )
    result = quantized(path, columns, mode=mode, io="float32", calibration={"rows": 40, "ranges": "mse"}, **fields)
    expected = helpers.answers(path, **columns)["y"]
    error = np.sqrt(np.mean((predictions(result.content, columns) - expected) ** 2))
    assert error < (0.1 if mode == "int8" else 0.3) * expected.std()


# Sparse kernels


@pytest.mark.parametrize("block", [1, 4])
def test_encoded_sparse_kernels_hold_the_same_weights(tmp_path, block):
    path, columns = saved_wide_net(tmp_path, block=block), {"x": normal(60, 64)}
    dense = quantized(path, columns, mode="float32")
    sparse = quantized(path, columns, mode="float32", sparse=True)
    assert sparse.record.sparse.encoded and sparse.record.bytes < dense.record.bytes
    assert (sparse.record.parameters, sparse.record.sparsity) == (dense.record.parameters, dense.record.sparsity)
    kernels = [{weight.shape: weight for weight in each.contents.weights.values()} for each in (dense, sparse)]
    assert kernels[0].keys() == kernels[1].keys() == {(32, 64), (8, 32)}
    for shape, kernel in kernels[0].items():
        np.testing.assert_array_equal(kernels[1][shape], kernel)
    expected, values = (predictions(each.content, columns) for each in (dense, sparse))
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-5)


def test_weights_of_less_than_a_byte_stay_dense(tmp_path):
    record = quantized(saved_wide_net(tmp_path), mode="int4_weight_only", sparse="auto").record
    assert not record.sparse.encoded and "less than a byte" in record.sparse.reason


def test_blocks_have_scales_that_the_reference_kernels_refuse(tmp_path):
    path, columns = saved_wide_net(tmp_path, sparsity=0.0), {"x": normal(60, 64)}
    result = quantized(path, columns, mode="int4_dynamic", block_size=32)
    dense = quantized(path, columns, mode="float32")
    assert result.record.parameters == dense.record.parameters
    hidden = next(name for name, weight in result.contents.weights.items() if weight.shape == (32, 64))
    kernel = next(weight for weight in dense.contents.weights.values() if weight.shape == (32, 64))
    blocks = np.abs(kernel).reshape(32, 2, 32).max(axis=2).repeat(32, axis=1)
    assert np.all(np.abs(result.contents.real_weights(hidden) - kernel) <= 0.55 * blocks / 7)
    with raises(ModelError, code="blockwise-reference-kernels"):
        Interpreter(result.content, reference_kernels=True)


# Metadata


def test_metadata_and_labels_are_in_the_file(converted):
    metadata = {
        "name": "shapes",
        "labels": {"probabilities": ("a", "b", "c")},
        "normalization": {"image": {"mean": (1.0,), "std": (2.0,)}},
    }
    content = converted("int8", metadata=metadata).content
    written = tflite_metadata.read(content)
    assert written.name == "shapes"
    (image,) = written.graphs[0].inputs
    assert (image.mean, image.std) == ((1.0,), (2.0,))
    images = helpers.images(60, seed=3)[0][:40]
    assert (image.minimum, image.maximum) == ((images.min(),), (images.max(),))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert [archive.read(name) for name in archive.namelist()] == [b"a\nb\nc"]


# Networks


def test_scalar_constants_of_16_bits_are_read():
    x = tf_keras.Input((16, 3), name="x")
    model, sequence = tf_keras.Model(x, tf_keras.layers.Conv1D(4, 3, name="y")(x)), normal(60, 16, 3)
    config = tfc.Quantization(mode="int16x8", io="float32", calibration=tfc.Calibration(rows=60))
    with in_this_process():
        content = tfc.quantize(model, config, helpers.batches({"x": sequence}, np.zeros(60))).content
    np.testing.assert_allclose(predictions(content, {"x": sequence}), model(sequence), atol=0.02)


def recurrent(unroll: bool) -> tf_keras.Model:
    tf_keras.utils.set_random_seed(1)
    x = tf_keras.Input((5, 3), name="x")
    return tf_keras.Model(x, tf_keras.layers.Dense(2, name="y")(tf_keras.layers.LSTM(4, unroll=unroll)(x)))


@pytest.mark.parametrize(("mode", "unroll"), [("dynamic", False), ("float16", False), ("int8", True)])
def test_recurrent_layers_are_quantized(tmp_path, mode, unroll):
    model, columns = recurrent(unroll), {"x": normal(60, 5, 3)}
    path = sources.as_saved_model(model, str(tmp_path / "lstm"))
    result = quantized(path, columns, mode=mode, batch_size=1, io="float32")
    np.testing.assert_allclose(predictions(result.content, columns), model(columns["x"]), atol=0.08)


def test_loops_are_not_quantized_layer_by_layer(tmp_path):
    path = sources.as_saved_model(recurrent(False), str(tmp_path / "lstm"))
    with raises(ModelError, code="loops"):
        quantized(path, {"x": normal(60, 5, 3)}, mode="int4", batch_size=1)


def test_the_last_layer_goes_by_the_outputs_name_in_rules(tmp_path):
    x = tf_keras.Input((6,), dtype=tf.int32, name="x")
    hidden = tf_keras.layers.GlobalAveragePooling1D()(tf_keras.layers.Embedding(64, 32, name="embed")(x))
    model = tf_keras.Model(x, tf_keras.layers.Dense(3, name="last")(hidden))
    path = sources.as_saved_model(model, str(tmp_path / "embedding"))
    rules = (tfc.PrecisionRule(layers="last", precision="int8_weight_only"),)
    record = quantized(path, mode="mixed", rules=rules).record
    assert {layer.layer: layer.precision for layer in record.layers}["last"] == "int8_weight_only"
    with raises(ConfigError, code="unsupported-precision", match="GATHER"):
        quantized(path, mode="mixed", rules=(tfc.PrecisionRule(layers="embed", precision="int4_dynamic"),))


def test_images_of_any_size_are_calibrated_on_rows_of_one_size(tmp_path):
    kernel = normal(3, 3, 3, 4, seed=1)
    path = helpers.save_function(
        lambda x: {"y": tf.reduce_mean(tf.nn.conv2d(x, kernel, 1, "VALID"), [1, 2])},
        [tf.TensorSpec([None, None, None, 3], tf.float32, "x")],
        tmp_path / "any",
    )
    columns = {"x": normal(50, 8, 8, 3)}
    result = quantized(path, columns, mode="int8", io="float32")
    expected = helpers.answers(path, **columns)["y"]
    error = np.sqrt(np.mean((predictions(result.content, columns) - expected) ** 2))
    assert error < 0.1 * expected.std()


def test_a_transform_layer_outside_takes_sparse_features(tmp_path):
    """A schema without shapes makes features sparse, as in TFX's taxi example."""
    path = kinds.save_sparse_transform_model(tmp_path)
    examples = helpers.serialized({name: normal(6, 1, seed=index) for index, name in enumerate(kinds.FEATURES)})
    config = tfc.Quantization(mode="int8", transform="outside", io="float32", calibration={"rows": 6})
    columns = {}

    def read(signatures):
        columns.update(signatures["serving_default"].read_examples(examples))
        return Rows(columns)

    with in_this_process():
        result = quantize_saved_model(path, config, read)
    expected = helpers.answers(path, examples=examples)["outputs"]
    np.testing.assert_allclose(predictions(result.content, columns), expected, atol=0.05)


# Quantization-aware models


@pytest.fixture(scope="module")
def partly_aware(tmp_path_factory):
    """The path of a network with fake quantization after one of its two layers."""
    x = tf_keras.Input((8,), name="x")
    hidden = tf.quantization.fake_quant_with_min_max_args(tf_keras.layers.Dense(16, activation="relu")(x), -4, 4)
    model = tf_keras.Model(x, tf_keras.layers.Dense(3, name="y")(hidden))
    return sources.as_saved_model(model, str(tmp_path_factory.mktemp("aware") / "model"))


def test_a_quantization_aware_model_is_not_calibrated(partly_aware):
    record = quantized(partly_aware, {"x": normal(60, 8)}, mode="int8").record
    assert record.calibration is None
    assert any("quantization-aware" in note for note in record.notes)
    assert any("2 FULLY_CONNECTED" in warning for warning in record.warnings)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"mode": "int8", "equalize": True}, "Quantization.equalize"),
        ({"mode": "int4"}, "Quantization.mode"),
    ],
)
def test_a_quantization_aware_model_keeps_its_ranges(partly_aware, fields, field):
    with raises(ModelError, code="quantization-aware", field=field):
        quantized(partly_aware, {"x": normal(60, 8)}, **fields)


def test_keras_3_models_are_converted(tmp_path):
    model = kinds.keras3_dense()
    assert isinstance(model, keras.Model)
    path = sources.as_saved_model(model, str(tmp_path / "keras3"))
    columns = {"x": normal(CALIBRATION_ROWS, 4)}
    result = quantized(path, columns, mode="int8", io="float32")
    np.testing.assert_allclose(predictions(result.content, columns), model(columns["x"]), atol=0.1)
