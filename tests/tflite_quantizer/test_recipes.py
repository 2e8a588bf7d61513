"""Quantization layer by layer: every precision against float, inputs and outputs, rules, and what can't be."""

import numpy as np
import pytest
import tf_keras
from tensorflow.lite.python import schema_py_generated as schema
from tfx_compression.errors import ModelError
from tfx_compression.tflite import flatbuffer
from tfx_compression.tflite.contents import read_contents
from tfx_compression.tflite.interpreter import Interpreter
from tfx_compression.tflite_quantizer import recipes
from tfx_compression.tflite_quantizer.calibration import observe
from tfx_compression.tflite_quantizer.config import Calibration, PrecisionRule
from tfx_compression.tflite_quantizer.recipes import Choice, quantize_layers, resolve, uniform

from tests.support import helpers

pytestmark = pytest.mark.slow  # converts models

DEPTHWISE, POINTWISE = "separable_conv2d$", "separable$"


class Net:
    """A float flatbuffer, rows, their ranges, and what it makes of them."""

    def __init__(self, model, rows):
        (self.input,) = model.input_names
        self.content = helpers.to_tflite(model, "float32")
        self.rows = {self.input: rows}
        self.ranges = observe(self.content, self.rows, Calibration()).tensors
        self.outputs = self.run(self.content)

    def run(self, content):
        (output,) = Interpreter(content).predict(self.rows).values()
        return output

    def quantized(self, precision, block_size=0, **options):
        choices = uniform(self.content, precision, block_size, options.get("per_channel", True))
        return quantize_layers(self.content, choices, self.ranges, **options)

    def error(self, content):
        """Root mean square of the difference from float, by the outputs' standard deviation."""
        return float(np.sqrt(np.mean((self.run(content) - self.outputs) ** 2)) / self.outputs.std())


@pytest.fixture(scope="module")
def cnn():
    """A network that tells its classes apart."""
    images, labels = helpers.images(300)
    model = helpers.small_cnn()
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(images / helpers.LARGEST, labels, 32, epochs=3, verbose=0)
    return Net(model, images[:60] / helpers.LARGEST)


@pytest.fixture(scope="module")
def convolutions():
    return Net(helpers.small_convolutions(), helpers.images(60)[0] / helpers.LARGEST)


@pytest.fixture(scope="module")
def dense():
    return Net(helpers.small_dense(), helpers.points(60)[0])


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
def test_every_precision_is_near_the_float_model(cnn, convolutions, precision, per_channel):
    for net in (cnn, convolutions):
        content = net.quantized(precision, per_channel=per_channel)
        assert 0 < net.error(content) < BOUNDS[precision]
        if net is cnn:  # the other one's few weights weigh less than their scales
            assert len(content) < len(net.content)


def test_finer_is_nearer(cnn):
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
def test_weights_are_what_arithmetic_makes_of_them(dense, precision, per_channel):
    wanted = dense.rows["x"]
    for place, (kernel, bias) in enumerate(dense_layers(dense.content)):
        if precision == "float16":
            rounded = kernel.astype(np.float16).astype(np.float32)
        else:
            levels = 127 if "8" in precision else 7
            scale = np.abs(kernel).max(axis=1 if per_channel else None, keepdims=True) / levels
            rounded = np.rint(kernel / scale) * scale
        wanted = wanted @ rounded.T + bias
        if not place:
            wanted = np.maximum(wanted, 0)
    made = dense.quantized(precision, per_channel=per_channel)
    np.testing.assert_allclose(dense.run(made), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("net", "precision", "levels"),
    [
        ("dense", "int8_dynamic", 127),
        ("dense", "int4_dynamic", 7),
        ("dense", "int2_dynamic", 1),
        ("odd", "int4_dynamic", 7),
        ("odd", "int2_dynamic", 1),
        ("convolution", "int8_dynamic", 127),
        ("convolution", "int4_dynamic", 7),
    ],
)
def test_dynamic_weights_are_what_arithmetic_makes_of_them(dense, net, precision, levels):
    """But for activations, which are rounded on the fly: to 1/127 of a row's largest."""
    if net == "odd":  # numbers in, which are no whole bytes in memory
        x = tf_keras.Input((7,), name="x")
        rows = np.random.default_rng(0).normal(size=(40, 7)).astype(np.float32)
        dense = Net(tf_keras.Model(x, tf_keras.layers.Dense(5, name="y")(x)), rows)
    if net == "convolution":  # of one place: a dense layer in every pixel
        x = tf_keras.Input((1, 1, 12), name="x")
        model = tf_keras.Model(x, tf_keras.layers.Conv2D(6, 1, name="y")(x))
        dense = Net(model, np.random.default_rng(0).normal(size=(40, 1, 1, 12)).astype(np.float32))
    made = dense.quantized(precision)
    assert any(tensor.type == {127: 9, 7: 17, 1: 19}[levels] for tensor in flatbuffer.parse(made).subgraphs[0].tensors)
    wanted, largest = dense.rows["x"].reshape(len(dense.rows["x"]), -1), 0.0
    for place, (kernel, bias) in enumerate(dense_layers(dense.content)):
        rows = kernel.reshape(len(kernel), -1)
        scale = np.abs(rows).max(axis=1, keepdims=True) / levels if levels > 1 else best_of_many(rows)
        rounded = np.clip(np.rint(rows / scale), -levels, levels) * scale
        largest += np.abs(wanted).max() / 127 * np.abs(rounded).sum(axis=1).max()
        wanted = wanted @ rounded.T + bias
        if not place and net == "dense":
            wanted = np.maximum(wanted, 0)
    np.testing.assert_allclose(dense.run(made).reshape(wanted.shape), wanted, atol=largest)


def best_of_many(rows):
    """By trying, the scale with the least squared error of -1, 0 and 1 times it, for each row."""
    scales = np.linspace(1e-3, 1, 4000)[:, None, None] * np.abs(rows).max(axis=1, keepdims=True)
    errors = np.sum((np.clip(np.rint(rows / scales), -1, 1) * scales - rows) ** 2, axis=2, keepdims=True)
    return np.take_along_axis(scales, errors.argmin(axis=0)[None], 0)[0]


@pytest.mark.parametrize("spread", [1.0, 8.0])
def test_two_bits_have_the_scale_of_least_squared_error(spread):
    rows = np.random.default_rng(0).normal(size=(20, 60)) ** 3 * spread
    np.testing.assert_allclose(recipes.ternary_scales(rows), best_of_many(rows), rtol=2e-3)


def dense_layers(content):
    """Kernel [outputs, inputs] and bias of each; without a bias, zero."""
    model = flatbuffer.parse(content)
    graph = model.subgraphs[0]

    def values(place):
        tensor = graph.tensors[place]
        return np.frombuffer(bytes(model.buffers[tensor.buffer].data), np.float32).reshape(tensor.shape)

    for operator in flatbuffer.operators(model):
        _, kernel, *bias = (place for place in operator.inputs if place >= 0)
        yield values(kernel), values(bias[0]) if bias else np.float32(0)


def test_large_kernels_lie_in_the_flatbuffer_as_the_converter_writes_them():
    x = tf_keras.Input((700,), name="x")
    net = Net(
        tf_keras.Model(x, tf_keras.layers.Dense(600, name="y")(x)), np.random.default_rng(0).normal(size=(4, 700))
    )
    content = net.quantized("int8_weight_only")  # ai-edge-quantizer puts 256 kB and more behind the flatbuffer
    buffers = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0)).buffers
    assert max(len(buffer.data) for buffer in buffers if buffer.data is not None) == 700 * 600
    assert not any(buffer.offset for buffer in buffers)
    assert 0 < net.error(content) < BOUNDS["int8_weight_only"]


def test_blocks_have_scales_of_their_own(cnn):
    whole, blocks = cnn.quantized("int4_dynamic"), cnn.quantized("int4_dynamic", block_size=32)
    assert cnn.error(blocks) < BOUNDS["int4_dynamic"]
    assert blocks != whole


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
def test_inputs_and_outputs_are_as_asked(cnn, precision, io, dtype):
    content = cnn.quantized(precision, io=io)
    model, before = Interpreter(content), Interpreter(cnn.content)
    assert {tensor.dtype for tensor in (*model.inputs.values(), *model.outputs.values())} == {np.dtype(dtype)}
    assert model.has_signature
    for now, then in ((model.inputs, before.inputs), (model.outputs, before.outputs)):
        assert {name: tensor.shape for name, tensor in now.items()} == {
            name: tensor.shape for name, tensor in then.items()
        }
    assert cnn.error(content) < BOUNDS[precision]
    float_ops = set(read_contents(content).float_ops)
    if precision != "int4_dynamic":
        assert float_ops == ({"DEQUANTIZE"} if io == "float32" else set())


def test_unsigned_inputs_do_not_go_with_sixteen_bits(cnn):
    with pytest.raises(ModelError, match="uint8.*int16x8"):
        cnn.quantized("int16x8", io="uint8")


def test_what_has_no_kernel_follows_its_neighbors(cnn):
    graph = recipes.Graph(cnn.content)
    content = quantize_layers(cnn.content, {index: Choice("int8") for index in graph.kernels}, cnn.ranges)
    assert read_contents(content).float_ops == {}
    assert "QUANTIZE" not in read_contents(content).ops
    first, *_, last = graph.kernels
    inner = {index: Choice("int8") for index in graph.kernels if index not in (first, last)}
    content = quantize_layers(cnn.content, inner, cnn.ranges)
    ops = read_contents(content).ops
    assert (ops["QUANTIZE"], ops["DEQUANTIZE"]) == (1, 1)
    model = Interpreter(content)  # the layers next to them compute in floats
    assert {tensor.dtype for tensor in (*model.inputs.values(), *model.outputs.values())} == {np.dtype(np.float32)}


def test_pooling_between_floats_stays_in_floats(cnn):
    graph = recipes.Graph(cnn.content)
    content = quantize_layers(cnn.content, {next(iter(graph.kernels)): Choice("int8")}, cnn.ranges)
    assert read_contents(content).float_ops["MAX_POOL_2D"] == 1


def test_the_last_rule_that_fits_wins(cnn):
    rules = [
        PrecisionRule(layers=".*", precision="int8"),
        PrecisionRule(layers="dense", precision="int4"),
        PrecisionRule(layers="probabilities", precision="float32"),
    ]
    choices = resolve(cnn.content, rules)
    by_layer = {
        operator.layer.split("/")[-1]: choices[operator.index].precision
        for operator in recipes.Graph(cnn.content).operators
    }
    assert by_layer["dense"] == "int4"
    assert by_layer["probabilities"] == "float32"
    assert by_layer["pool"] == by_layer["separable"] == "int8"
    content = quantize_layers(cnn.content, choices, cnn.ranges)
    assert cnn.error(content) < BOUNDS["int4"]
    assert read_contents(content).float_ops.keys() >= {"FULLY_CONNECTED"}


def test_a_rule_that_fits_nothing_lists_the_layers(cnn):
    with pytest.raises(ModelError, match=r"'convolution_9'.*small_cnn/dense"):
        resolve(cnn.content, [PrecisionRule(layers="convolution_9", precision="int8")])


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            PrecisionRule(layers=DEPTHWISE, precision="int4"),
            r"DEPTHWISE_CONV_2D.*int8, int8_dynamic",
        ),
        (PrecisionRule(layers=POINTWISE, precision="int2_dynamic"), r"\(CONV_2D\) can't have precision 'int2_dynamic'"),
        (PrecisionRule(layers=POINTWISE, precision="int4_dynamic", block_size=32), "block_size=32.*dense layers"),
        (PrecisionRule(layers="probabilities", precision="int4_dynamic", block_size=64), "takes 32 numbers"),
    ],
)
def test_what_a_layer_can_not_have_is_named(cnn, rule, message):
    with pytest.raises(ModelError, match=message):
        resolve(cnn.content, [rule])


def test_a_missing_range_names_the_tensor(cnn):
    missing = next(name for name in cnn.ranges if "pool" in name)
    with pytest.raises(ModelError, match=missing):
        quantize_layers(
            cnn.content,
            uniform(cnn.content, "int8"),
            {name: range_ for name, range_ in cnn.ranges.items() if name != missing},
        )
