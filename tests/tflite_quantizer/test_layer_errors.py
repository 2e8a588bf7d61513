"""The error of each layer, against a computation by hand."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from ai_edge_litert import interpreter as litert
from tfx_compression.errors import ModelError
from tfx_compression.tflite import conversion
from tfx_compression.tflite_quantizer import layer_errors
from tfx_compression.tflite_quantizer.layer_quantizer import quantize_layers
from tfx_compression.tflite_quantizer.precision_choice import choose_uniform

from tests.support import helpers
from tests.support.conversions import converted_function
from tests.support.errors import raises

pytestmark = pytest.mark.slow  # converts models


@pytest.fixture(scope="module")
def rows(pictures):
    return {"image": pictures["image"][:50]}  # more than a batch, and not a whole number of them


def dequantized(interpreter: Any, name: str, x: np.ndarray) -> np.ndarray:
    """Returns the values of a tensor of an int8 model, which runs row by row."""
    interpreter.allocate_tensors()
    (source,) = interpreter.get_input_details()
    details = interpreter.get_tensor_details()
    details = [detail for detail in details if detail["name"].startswith(name) and detail["dtype"] == np.int8]
    (target,) = [detail for detail in details if list(detail["shape"][:1]) == [1]]  # not the kernel of the same name
    values = []
    for row in x:
        scale, zero_point = source["quantization"]
        stored = np.clip(np.round(row / scale) + zero_point, -128, 127).astype(np.int8)
        interpreter.set_tensor(source["index"], stored[None])
        interpreter.invoke()
        scale, zero_point = target["quantization"]
        values.append((interpreter.get_tensor(target["index"])[0].astype(np.float64) - zero_point) * scale)
    return np.stack(values)


def test_errors_of_two_layers_match_a_computation_by_hand():
    model, x = helpers.small_dense(), helpers.points(70)[0]
    float32, int8 = helpers.to_tflite(model, "float32"), helpers.to_tflite(model, "int8", x)
    hidden = np.maximum(x.astype(np.float64) @ model.get_layer("hidden").kernel.numpy(), 0)
    outputs = hidden @ model.get_layer("y").kernel.numpy()
    errors = layer_errors.compare(float32, int8, {"x": x})
    assert [(error.layer, error.op, error.precision) for error in errors] == [
        ("small_dense/hidden", "FULLY_CONNECTED", "int8"),
        ("y", "FULLY_CONNECTED", "int8"),
    ]
    device = litert.Interpreter(model_content=int8, experimental_preserve_all_tensors=True)
    reference = tf.lite.Interpreter(
        model_content=int8,
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=tf.lite.experimental.OpResolverType.BUILTIN_REF,
    )
    for error, real, name in zip(
        errors, (hidden, outputs), ("small_dense/hidden/", "StatefulPartitioned"), strict=True
    ):
        for interpreter, decibels in (
            (device, 0.01),
            (reference, 0.5),
        ):  # reference kernels round some values otherwise
            stored = dequantized(interpreter, name, x)
            noise = np.square(real - stored).sum()
            assert error.snr_db == pytest.approx(10 * np.log10(np.square(real).sum() / noise), abs=decibels)
            cosine = (real * stored).sum() / np.linalg.norm(real) / np.linalg.norm(stored)
            assert error.cosine == pytest.approx(cosine, abs=1e-5)
        assert error.max_error == pytest.approx(np.abs(real - dequantized(device, name, x)).max(), rel=1e-3)
        assert 25 < error.snr_db < 60


def test_a_model_does_not_differ_from_itself(float_cnn, rows):
    errors = layer_errors.compare(float_cnn, float_cnn, rows)
    assert len(errors) == 8
    assert {(error.snr_db, error.max_error) for error in errors} == {(None, 0.0)}
    assert all(error.cosine == pytest.approx(1.0) for error in errors)
    assert {error.precision for error in errors} == {"float32"}


def test_fewer_bits_are_more_noise_in_every_layer(trained_cnn, float_cnn, int8_cnn, rows):
    float16 = helpers.to_tflite(trained_cnn, "float16")
    fine, coarse = (layer_errors.compare(float_cnn, content, rows) for content in (float16, int8_cnn))
    assert [error.layer for error in fine] == [error.layer for error in coarse]
    for more, less in zip(fine, coarse, strict=True):
        assert more.snr_db > less.snr_db + 20
    assert {error.precision for error in fine if "CO" in error.op} == {"float16"}
    assert {error.precision for error in coarse} == {"int8"}


@pytest.mark.parametrize(
    ("precision", "block_size"), [("int4_dynamic", 0), ("int4_weight_only", 0), ("int4_dynamic", 32)]
)
def test_4_bit_precisions_are_recognized_and_computed_right(float_cnn, rows, precision, block_size):
    content = quantize_layers(float_cnn, choose_uniform(float_cnn, precision, block_size), io="float32")
    errors = layer_errors.compare(float_cnn, content, rows)
    assert len(errors) == 8
    dense = [error for error in errors if error.op == "FULLY_CONNECTED"]
    assert {error.precision for error in dense} == {precision}
    assert all(10 < error.snr_db < 35 for error in dense)  # 0 dB for blocks without XNNPACK
    assert {error.precision for error in errors if error.op in ("MAX_POOL_2D", "SOFTMAX")} == {"float32"}


def test_a_fixed_batch_is_filled(trained_cnn, float_cnn, rows, tmp_path):
    spec = tf.TensorSpec([16, 8, 8, 1], name="image")
    content = converted_function(
        lambda x: {"probabilities": trained_cnn(x)}, [spec], tmp_path / "fixed", weights=trained_cnn.weights
    )
    errors = layer_errors.compare(float_cnn, content, rows)
    assert errors[-1].op == "SOFTMAX"
    assert all(error.max_error < 1e-5 for error in errors)


def test_other_rows_are_refused(float_cnn, int8_cnn):
    with raises(ModelError, code="missing-feature", match="'image'"):
        layer_errors.compare(float_cnn, int8_cnn, {"picture": np.zeros((2, 8, 8, 1), np.float32)})


def with_hidden_weights(*weights: float) -> list[bytes]:
    """Returns a model for each value, which all weights of its first layer have."""
    model = helpers.small_dense()
    contents = []
    for weight in weights:
        model.get_layer("hidden").kernel.assign(np.full((4, 16), weight, np.float32))
        contents.append(helpers.to_tflite(model, "float32"))
    return contents


def test_a_layer_that_overflows_is_named():
    contents, x = with_hidden_weights(1.0, 3e38), {"x": np.ones((2, 4), np.float32)}
    with raises(ModelError, code="not-finite", match="'small_dense/hidden'"):
        layer_errors.compare(*contents, x)
    assert layer_errors.compare(*reversed(contents), x) == ()  # the float model itself isn't finite


def test_a_float_layer_of_zeros_has_no_cosine():
    contents = with_hidden_weights(0.0, 0.5)
    hidden = layer_errors.compare(*contents, {"x": np.ones((2, 4), np.float32)})[0]
    assert (hidden.snr_db, hidden.max_error, hidden.cosine) == (-999.0, 2.0, None)


def test_flex_operators_are_not_compared(tmp_path):
    path = helpers.save_function(
        lambda x: {"y": tf.linalg.inv(x)}, [tf.TensorSpec([1, 2, 2], tf.float32, "x")], tmp_path / "inverse"
    )
    content = conversion.to_tflite(path, conversion.ConversionOptions("float32", select_tf_ops=True))
    assert layer_errors.compare(content, content, {"x": np.ones((1, 2, 2), np.float32)}) == ()


def test_models_of_different_networks_are_refused():
    x = {"x": np.ones((2, 4), np.float32)}
    wide = helpers.small_dense()
    inputs = tf_keras.Input((4,), name="x")
    hidden = tf_keras.layers.Dense(8, activation="relu", name="hidden")(inputs)
    narrow = tf_keras.Model(inputs, tf_keras.layers.Dense(2, name="y")(hidden), name="small_dense")
    with raises(ModelError, code="different-networks", match="small_dense/hidden"):
        layer_errors.compare(helpers.to_tflite(wide, "float32"), helpers.to_tflite(narrow, "float32"), x)
