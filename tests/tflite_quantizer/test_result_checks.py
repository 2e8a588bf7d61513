"""The record of a conversion: sizes, calibration, layers, the target's verdict, and several signatures."""

import importlib.metadata

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
import tfx_compression as tfc
from tfx_compression.errors import ModelError
from tfx_compression.tflite.interpreter import Interpreter
from tfx_compression.tflite_quantizer import self_test, sources

from tests.support import helpers
from tests.support.conversions import CALIBRATION_ROWS, in_this_process, normal, quantized, saved_wide_net
from tests.support.errors import raises

pytestmark = pytest.mark.slow  # converts models


@pytest.fixture(scope="module")
def images():
    return helpers.images(60, seed=3)[0]


@pytest.fixture(scope="module")
def int8(saved_cnn, images):
    return quantized(saved_cnn, {"image": images}, mode="int8", io="float32")


def test_the_record_describes_the_file(int8, images):
    record = int8.record
    assert record.bytes == len(int8.content) > record.bytes_gzip > 0 < record.bytes_zstd
    assert record.ops == int8.contents.ops
    assert record.versions["tensorflow"] == tf.__version__
    assert record.versions["ai-edge-litert"] == importlib.metadata.version("ai-edge-litert")
    assert record.signatures[0].name == "serving_default"
    assert [tensor.name for tensor in record.signatures[0].inputs] == ["image"]
    assert record.calibration.rows == CALIBRATION_ROWS == int8.calibration_rows
    (image,) = record.calibration.inputs
    seen = images[:CALIBRATION_ROWS]
    assert (image.minimum, image.maximum) == (seen.min(), seen.max())
    assert record.seconds.keys() == {"cut", "convert", "finish", "prove"}
    assert record.layers
    assert all(layer.snr_db is None or layer.snr_db > 10 for layer in record.layers)


def test_the_self_test_returns_the_same_outputs_again(int8):
    assert self_test.check(int8.content, int8.self_test) == {"probabilities": 0.0}
    assert 0 < int8.record.self_test["probabilities"] < 0.1


def test_an_int8_model_of_one_row_maps_to_the_edge_tpu(trained_cnn, images, tmp_path):
    path = sources.as_saved_model(trained_cnn, str(tmp_path / "cnn"))
    rows = {"image": images / helpers.LARGEST}
    result = quantized(path, rows, mode="int8", target="edge_tpu", batch_size=1)
    (delegate,) = result.record.verdict.delegates
    assert delegate.mapped == len(delegate.ops)
    assert result.inputs["image"].shape[0] == 1


def test_a_model_that_exceeds_the_targets_arena_is_refused(saved_cnn):
    fields = {"mode": "float32", "target": "microcontroller", "batch_size": 1, "max_arena_bytes": 64}
    with raises(ModelError, code="unsupported-by-target", match="'microcontroller'.*max_arena_bytes=64"):
        quantized(saved_cnn, **fields)


def test_every_signature_runs(tmp_path):
    module = tf.Module()
    weight = tf.Variable(normal(4, 2))
    module.weight = weight
    spec = [tf.TensorSpec([None, 4], tf.float32, name="x")]
    module.plain = tf.function(lambda x: {"y": x @ weight}, input_signature=spec)
    module.double = tf.function(lambda x: {"twice": 2 * (x @ weight)}, input_signature=spec)
    path = str(tmp_path / "two")
    tf.saved_model.save(module, path, signatures={"serving_default": module.plain, "double": module.double})
    fields = {"signatures": ("serving_default", "double"), "io": "float32"}
    record = quantized(path, {"x": normal(60, 4)}, **fields).record
    assert {signature.name for signature in record.signatures} == {"serving_default", "double"}
    assert record.self_test == {} and record.layers == ()
    assert any("several signatures" in note for note in record.notes)


def test_an_output_that_is_infinite_in_both_models_does_not_differ(tmp_path):
    path = helpers.save_function(
        lambda x: {"y": tf.math.log(x)}, [tf.TensorSpec([None, 3], tf.float32, "x")], tmp_path / "log"
    )
    record = quantized(path, {"x": np.zeros((5, 3), np.float32)}, mode="float32").record
    assert record.self_test == {"y": 0.0}


def test_rows_are_random_without_data(tmp_path):
    result = quantized(saved_wide_net(tmp_path), mode="dynamic")
    assert any("random rows" in note for note in result.record.notes)
    assert result.record.layers and result.self_test["input/x"].shape == (4, 64)


def test_outputs_that_became_noise_are_refused_or_warned_of(tmp_path):
    x = tf_keras.Input((8,), name="x")
    model = tf_keras.Model(x, tf_keras.layers.Dense(3, name="y", use_bias=False)(x))
    model.layers[1].kernel.assign(normal(8, 3) * np.where(np.arange(8) == 0, 1e7, 1.0)[:, None])  # beyond float16
    path = sources.as_saved_model(model, str(tmp_path / "halves"))
    with raises(ModelError, code="output-differs", match="'y'"):
        quantized(path, {"x": normal(60, 8)}, mode="float16")
    record = quantized(path, {"x": normal(60, 8)}, mode="float16", min_output_cosine=None).record
    (far, noisy), (output,) = record.warnings, record.outputs
    assert "'y'" in far and "'y'" in noisy
    assert output.output == "y" and output.cosine < 0.3 and output.max_error > 1e6


def test_the_calibration_record_has_the_ranges_of_quantized_inputs(tmp_path):
    path = saved_wide_net(tmp_path, sparsity=0.0)
    rows = {"x": normal(90, 64)}
    rules = (
        tfc.PrecisionRule(layers=".", precision="int8"),
        tfc.PrecisionRule(layers="hidden", precision="float16"),
    )
    calibration = {"rows": 40, "ranges": "percentile", "percentile": 90.0}
    mixed = quantized(path, rows, mode="mixed", rules=rules, calibration=calibration).record
    assert mixed.calibration.inputs == ()  # the first layer takes floats
    auto = {"metric": "agreement", "max_drop": 0.5, "precisions": ("int8",)}
    (seen,) = quantized(path, rows, mode="auto", auto=auto, calibration=calibration).record.calibration.inputs
    assert seen.range[1] < 0.8 * seen.maximum


def test_unsigned_inputs_are_in_the_record(saved_cnn, images):
    result = quantized(saved_cnn, {"image": images}, mode="int8", io="uint8")
    (image,) = result.record.signatures[0].inputs
    assert image.dtype == "uint8"
    assert image.scale == pytest.approx(Interpreter(result.content).inputs["image"].scale)


def test_an_operator_without_a_kernel_in_the_mode_is_named(tmp_path):
    x = tf_keras.Input((3, 4), name="x")
    hidden = tf_keras.layers.LSTM(2, unroll=True)(tf_keras.layers.Masking(name="mask")(x))
    path = sources.as_saved_model(tf_keras.Model(x, tf_keras.layers.Dense(2, name="y")(hidden)), str(tmp_path / "m"))
    with raises(ModelError, code="not-runnable", field="Quantization.mode", match="NOT_EQUAL.*mask.*'int8'"):
        quantized(path, {"x": normal(8, 3, 4)}, mode="int16x8", batch_size=1)


def test_a_files_signatures_are_each_compared_with_float(tmp_path):
    module = tf.Module()
    weight = module.weight = tf.Variable(normal(4, 3))
    specs = [tf.TensorSpec([None, 4], tf.float32, name="x")]
    signatures = {
        "serving_default": tf.function(lambda x: {"y": x @ weight}, input_signature=specs),
        "negative": tf.function(lambda x: {"y": -(x @ weight)}, input_signature=specs),
    }
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=signatures)
    record = quantized(str(tmp_path / "m"), {"x": normal(20, 4)}, mode="int8", signatures=tuple(signatures)).record
    assert {error.signature for error in record.outputs} == set(signatures)
    assert all(error.cosine > 0.99 and error.rows == 20 for error in record.outputs)


def test_an_offset_that_swallows_the_variation_is_a_warning():
    x = tf_keras.Input((8,), name="x")
    model = tf_keras.Model(x, tf_keras.layers.Dense(1, name="kelvin")(tf_keras.layers.Dense(8, "tanh")(x)))
    model.layers[-1].set_weights([0.05 * normal(8, 1), np.array([300.0])])
    with in_this_process(), pytest.warns(tfc.CompressionWarning, match="'kelvin' is the same for all 64 rows"):
        result = tfc.quantize(model, tfc.Quantization(mode="int8"), normal(64, 8))
    (output,) = result.record.outputs
    assert output.constant and output.cosine > 0.999 and output.centered_cosine < 0.1


def test_constant_rows_come_before_the_operator_that_they_break():
    x = tf_keras.Input((8,), name="x")
    model = tf_keras.Model(x, tf_keras.layers.Dense(2, name="y")(tf_keras.layers.Dense(8, "relu", name="hidden")(x)))
    model.layers[1].set_weights([normal(8, 8), normal(8)])
    with (
        in_this_process(),
        raises(ModelError, code="not-runnable", match="All calibration values of 'x' are 0.*hidden"),
    ):
        tfc.quantize(model, tfc.Quantization(mode="int16x8"), np.zeros((20, 8), np.float32))
