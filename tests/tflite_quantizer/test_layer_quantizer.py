"""Quantization layer by layer: every precision against the float model and against arithmetic."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tensorflow.lite.python import schema_py_generated as schema
from tfx_compression.errors import ConfigError, ModelError
from tfx_compression.tflite import flatbuffer
from tfx_compression.tflite.contents import read_contents
from tfx_compression.tflite.interpreter import Interpreter
from tfx_compression.tflite.modes import PRECISIONS
from tfx_compression.tflite_quantizer.calibration import measure_ranges
from tfx_compression.tflite_quantizer.config import Calibration
from tfx_compression.tflite_quantizer.layer_quantizer import place_integer_activations, quantize_layers
from tfx_compression.tflite_quantizer.precision_choice import choose_uniform
from tfx_compression.tflite_quantizer.precision_graph import PrecisionGraph
from tfx_compression.tflite_quantizer.recipe import PrecisionChoice

from tests.support import helpers
from tests.support.conversions import converted_function, dense_layers, normal, predictions
from tests.support.errors import raises

pytestmark = pytest.mark.slow  # converts models


class Net:
    """A float flatbuffer, rows, the ranges of its tensors on them, and its outputs."""

    def __init__(self, content, rows):
        self.content, self.rows = content, rows
        self.ranges = measure_ranges(content, rows, Calibration()).tensors
        self.outputs = predictions(content, rows)

    def run(self, content):
        return predictions(content, self.rows)

    def quantized(self, precision, block_size=0, **options):
        choices = choose_uniform(self.content, precision, block_size, options.get("per_channel", True))
        return quantize_layers(self.content, choices, self.ranges, **options)

    def error(self, content):
        """Root mean square of the difference from float, relative to the outputs' standard deviation."""
        return float(np.sqrt(np.mean((self.run(content) - self.outputs) ** 2)) / self.outputs.std())


def net(model, rows):
    return Net(helpers.to_tflite(model, "float32"), {model.input_names[0]: rows})


@pytest.fixture(scope="module")
def cnn(float_cnn, pictures):
    return Net(float_cnn, pictures)


@pytest.fixture(scope="module")
def convolutions(pictures):
    return net(helpers.small_convolutions(), pictures["image"])


@pytest.fixture(scope="module")
def dense():
    return net(helpers.small_dense(), helpers.points(60)[0])


BOUNDS = {
    "float16": 0.002,
    "int8": 0.05,
    "int8_dynamic": 0.05,
    "int8_weight_only": 0.03,
    "int16x8": 0.03,
    "int4": 0.4,
    "int4_dynamic": 0.4,
    "int4_weight_only": 0.4,
}


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("precision", BOUNDS)
def test_every_precision_is_close_to_the_float_model(cnn, convolutions, precision, per_channel):
    for each in (cnn, convolutions):
        content = each.quantized(precision, per_channel=per_channel)
        assert 0 < each.error(content) < BOUNDS[precision]
        if each is cnn:  # the weights of the other net are smaller than their scales
            assert len(content) < len(each.content)


def test_more_bits_are_closer(cnn):
    error = {precision: cnn.error(cnn.quantized(precision, io="float32")) for precision in BOUNDS}
    assert error["float16"] < error["int8_weight_only"] < error["int4_weight_only"]
    assert error["int16x8"] < error["int8"] < error["int4"]
    assert error["int8_dynamic"] < error["int4_dynamic"]


@pytest.mark.parametrize(
    ("precision", "per_channel"),
    [
        ("int8_weight_only", True),
        ("int8_weight_only", False),
        ("int4_weight_only", True),
        ("int4_weight_only", False),
        ("float16", True),
    ],
)
def test_weight_only_precisions_round_weights(dense, precision, per_channel):
    expected = dense.rows["x"]
    for place, (kernel, bias) in enumerate(dense_layers(dense.content)):
        if precision == "float16":
            rounded = kernel.astype(np.float16).astype(np.float32)
        else:
            levels = 2 ** (PRECISIONS[precision].weight_bits - 1) - 1
            scale = np.abs(kernel).max(axis=1 if per_channel else None, keepdims=True) / levels
            rounded = np.rint(kernel / scale) * scale
        expected = expected @ rounded.T + bias
        if not place:
            expected = np.maximum(expected, 0)
    content = dense.quantized(precision, per_channel=per_channel)
    np.testing.assert_allclose(dense.run(content), expected, rtol=1e-4, atol=1e-5)


def odd_dense():
    """A layer whose inputs don't fill whole bytes."""
    x = tf_keras.Input((7,), name="x")
    return net(tf_keras.Model(x, tf_keras.layers.Dense(5, name="y")(x)), normal(40, 7))


def pixel_convolution():
    """A convolution of one pixel, which is a dense layer."""
    x = tf_keras.Input((1, 1, 12), name="x")
    return net(tf_keras.Model(x, tf_keras.layers.Conv2D(6, 1, name="y")(x)), normal(40, 1, 1, 12))


@pytest.mark.parametrize(
    ("build", "precision", "levels"),
    [
        (None, "int8_dynamic", 127),
        (None, "int4_dynamic", 7),
        (None, "int2_dynamic", 1),
        (odd_dense, "int4_dynamic", 7),
        (odd_dense, "int2_dynamic", 1),
        (pixel_convolution, "int8_dynamic", 127),
        (pixel_convolution, "int4_dynamic", 7),
    ],
)
def test_dynamic_precisions_round_weights_and_activations(dense, build, precision, levels):
    """Activations are rounded at run time, to 1/127 of a row's largest."""
    subject = dense if build is None else build()
    content = subject.quantized(precision)
    stored = {127: schema.TensorType.INT8, 7: schema.TensorType.INT4, 1: 19}[levels]
    assert any(tensor.type == stored for tensor in flatbuffer.parse(content).subgraphs[0].tensors)
    (rows,) = subject.rows.values()
    expected, tolerance = rows.reshape(len(rows), -1), 0.0
    for place, (kernel, bias) in enumerate(dense_layers(subject.content)):
        weights = kernel.reshape(len(kernel), -1)
        scale = np.abs(weights).max(axis=1, keepdims=True) / levels if levels > 1 else best_ternary_scale(weights)
        rounded = np.clip(np.rint(weights / scale), -levels, levels) * scale
        tolerance += np.abs(expected).max() / 127 * np.abs(rounded).sum(axis=1).max()
        expected = expected @ rounded.T + bias
        if not place and build is None:
            expected = np.maximum(expected, 0)
    np.testing.assert_allclose(subject.run(content).reshape(expected.shape), expected, atol=tolerance)


def best_ternary_scale(rows):
    """The scale with the least squared error of -1, 0 and 1 times it, for each row, among many."""
    scales = np.linspace(1e-3, 1, 4000)[:, None, None] * np.abs(rows).max(axis=1, keepdims=True)
    errors = np.sum((np.clip(np.rint(rows / scales), -1, 1) * scales - rows) ** 2, axis=2, keepdims=True)
    return np.take_along_axis(scales, errors.argmin(axis=0)[None], 0)[0]


def test_large_kernels_are_inside_the_flatbuffer():
    """litert-quantizer puts 256 kB and more after it."""
    x = tf_keras.Input((700,), name="x")
    large = net(tf_keras.Model(x, tf_keras.layers.Dense(600, name="y")(x)), normal(4, 700))
    content = large.quantized("int8_weight_only")
    buffers = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0)).buffers
    assert max(len(buffer.data) for buffer in buffers if buffer.data is not None) == 700 * 600
    assert not any(buffer.offset for buffer in buffers)
    assert 0 < large.error(content) < BOUNDS["int8_weight_only"]


def test_blocks_have_their_own_scales(cnn):
    content = cnn.quantized("int4_dynamic", block_size=32)
    assert cnn.error(content) < BOUNDS["int4_dynamic"]
    assert content != cnn.quantized("int4_dynamic")


@pytest.mark.parametrize(
    ("precision", "io", "dtype"),
    [
        ("int8", "integer", np.int8),
        ("int8", "uint8", np.uint8),
        ("int8", "float32", np.float32),
        ("int4", "integer", np.int8),
        ("int4", "uint8", np.uint8),
        ("int16x8", "integer", np.int16),
        ("int16x8", "float32", np.float32),
        ("int4_dynamic", "integer", np.float32),
    ],
)
def test_inputs_and_outputs_have_the_requested_type(cnn, precision, io, dtype):
    content = cnn.quantized(precision, io=io)
    model, original = Interpreter(content), Interpreter(cnn.content)
    assert {tensor.dtype for tensor in (*model.inputs.values(), *model.outputs.values())} == {np.dtype(dtype)}
    assert model.has_signature
    for tensors, originals in ((model.inputs, original.inputs), (model.outputs, original.outputs)):
        shapes = ({name: tensor.shape for name, tensor in each.items()} for each in (tensors, originals))
        assert next(shapes) == next(shapes)
    assert cnn.error(content) < BOUNDS[precision]
    if PRECISIONS[precision].calibrated:
        expected = {"DEQUANTIZE"} if io == "float32" else set()
        assert set(read_contents(content).float_ops) == expected


def test_unsigned_inputs_need_8_bits(cnn):
    with raises(ConfigError, code="incompatible-precision", field="Quantization.io"):
        cnn.quantized("int16x8", io="uint8")


def test_operators_without_weights_follow_their_neighbors(cnn):
    graph = PrecisionGraph(cnn.content)
    content = quantize_layers(cnn.content, {index: PrecisionChoice("int8") for index in graph.kernels}, cnn.ranges)
    contents = read_contents(content)
    assert contents.float_ops == {}
    assert "QUANTIZE" not in contents.ops
    first, *_, last = graph.kernels
    inner = {index: PrecisionChoice("int8") for index in graph.kernels if index not in (first, last)}
    content = quantize_layers(cnn.content, inner, cnn.ranges)
    ops = read_contents(content).ops
    assert (ops["QUANTIZE"], ops["DEQUANTIZE"]) == (1, 1)
    model = Interpreter(content)  # its outer layers compute in floats
    assert {tensor.dtype for tensor in (*model.inputs.values(), *model.outputs.values())} == {np.dtype(np.float32)}


def test_pooling_between_float_layers_stays_in_floats(cnn):
    graph = PrecisionGraph(cnn.content)
    choices = {next(iter(graph.kernels)): PrecisionChoice("int8")}
    bits = place_integer_activations(graph, choices)
    (pooling,) = (operator.index for operator in graph.operators if operator.op == "MAX_POOL_2D")
    assert bits[pooling] == 0
    content = quantize_layers(cnn.content, choices, cnn.ranges)
    assert read_contents(content).float_ops["MAX_POOL_2D"] == 1


def test_a_choice_between_computed_values_and_constants_stays_in_floats():
    """As an unrolled recurrent layer behind a mask makes it, with its initial state of zeros."""
    x = tf_keras.Input((3, 4), batch_size=1, name="x")
    hidden = tf_keras.layers.LSTM(5, unroll=True)(tf_keras.layers.Masking()(x))
    masked = net(tf_keras.Model(x, tf_keras.layers.Dense(3, name="y")(hidden)), normal(20, 3, 4))
    for precision in ("int8", "int16x8", "int4"):
        assert masked.error(masked.quantized(precision)) < BOUNDS[precision]


def test_nothing_to_quantize_returns_the_model_itself(cnn):
    assert quantize_layers(cnn.content, {}) == cnn.content


def test_a_missing_range_names_the_tensor(cnn):
    missing = next(name for name in cnn.ranges if "pool" in name)
    ranges = {name: ends for name, ends in cnn.ranges.items() if name != missing}
    with raises(ModelError, code="missing-range", match=missing):
        quantize_layers(cnn.content, choose_uniform(cnn.content, "int8"), ranges)


def test_an_unsupported_choice_is_refused(cnn):
    graph = PrecisionGraph(cnn.content)
    (depthwise,) = (operator.index for operator in graph.operators if operator.op == "DEPTHWISE_CONV_2D")
    with raises(ConfigError, code="unsupported-precision", match="DEPTHWISE_CONV_2D"):
        quantize_layers(cnn.content, {depthwise: PrecisionChoice("int4")}, cnn.ranges)


def test_loops_are_refused(tmp_path):
    content = converted_function(
        lambda x: {"y": tf.while_loop(lambda i, _: i < x.shape[0], lambda i, y: (i + 1, y * 2.0), (0, x))[1]},
        [tf.TensorSpec([2, 3], tf.float32, "x")],
        tmp_path / "loop",
    )
    with raises(ModelError, code="loops"):
        quantize_layers(content, {})
