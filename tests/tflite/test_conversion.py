"""Conversion with every option: against plain scripts, by ranges, and what the converter refuses."""

import functools
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tfx_compression.errors import ConfigError, ModelError
from tfx_compression.tflite import conversion, flatbuffer
from tfx_compression.tflite.contents import read_contents
from tfx_compression.tflite.conversion import ConversionError, ConversionOptions, quantize_with_ranges, to_tflite
from tfx_compression.tflite.interpreter import Interpreter
from tfx_compression.tflite.saved_model_graph import SavedModelGraph

from tests.support import helpers
from tests.support.errors import raises

pytestmark = pytest.mark.slow  # converts models

OPS = tf.lite.OpsSet
MODES = ("float32", "float16", "dynamic", "int8", "int16x8")
IMAGE = "serving_default_image:0"  # name of the input tensor


def convert_plainly(path: str, mode: str, images: np.ndarray, *, io: tf.DType, per_channel: bool = True) -> bytes:
    """Converts a SavedModel as a user's script does."""
    converter = tf.lite.TFLiteConverter.from_saved_model(path, signature_keys=["serving_default"])
    converter._experimental_disable_per_channel = not per_channel
    if mode != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if mode == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if mode in ("int8", "int16x8"):
        converter.representative_dataset = lambda: ({"image": row[None]} for row in images)
        converter.inference_input_type = converter.inference_output_type = io
        converter.target_spec.supported_ops = {
            "int8": [OPS.TFLITE_BUILTINS_INT8],
            "int16x8": [OPS.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8],
        }[mode]
    return bytes(converter.convert())


@pytest.fixture(scope="module")
def script(saved_cnn, images) -> Callable[..., bytes]:
    """Function of a mode, its `io` type and `per_channel` that returns what a user's script makes of `cnn`."""

    @functools.cache
    def convert(mode: str, io: tf.DType, per_channel: bool = True) -> bytes:
        return convert_plainly(saved_cnn, mode, images, io=io, per_channel=per_channel)

    return convert


def tensors(content: bytes) -> list[tuple]:
    """Returns everything in a main graph's tensors: name, type, shape, scales, zero points and constants."""
    parsed = flatbuffer.parse(content)
    rows = []
    for tensor in parsed.subgraphs[0].tensors:
        quantization, data = tensor.quantization, parsed.buffers[tensor.buffer].data
        scale = () if quantization is None or quantization.scale is None else tuple(quantization.scale)
        zeros = () if quantization is None or quantization.zeroPoint is None else tuple(quantization.zeroPoint)
        shape = () if tensor.shape is None else tuple(tensor.shape)
        rows.append((tensor.name, tensor.type, shape, scale, zeros, b"" if data is None else bytes(data)))
    return rows


@pytest.mark.parametrize(
    ("mode", "io", "dtype"),
    [
        ("float32", "float32", np.float32),
        ("float16", "float32", np.float32),
        ("dynamic", "float32", np.float32),
        ("int8", "integer", np.int8),
        ("int8", "uint8", np.uint8),
        ("int8", "float32", np.float32),
        ("int16x8", "integer", np.int16),
        ("int16x8", "float32", np.float32),
    ],
)
def test_a_model_has_the_requested_types_and_the_numbers_of_a_plain_script(converted, script, mode, io, dtype):
    content = converted(mode, io)
    interpreter = Interpreter(content)
    assert interpreter.inputs["image"].dtype == interpreter.outputs["probabilities"].dtype == dtype
    expected = script(mode, tf.dtypes.as_dtype(dtype))
    assert tensors(content) == tensors(expected)
    assert len(content) <= len(expected)


def test_each_mode_predicts_within_its_precision_and_more_bits_are_closer(cnn, converted):
    images = helpers.images(64, seed=9)[0] / helpers.LARGEST
    expected = cnn(images).numpy()
    errors = {}
    for mode in MODES:
        predicted = Interpreter(converted(mode)).predict({"image": images})["probabilities"]
        errors[mode] = np.sqrt(np.mean((predicted - expected) ** 2))
    limits = {"float32": 1e-6, "float16": 1e-3, "int16x8": 3e-3, "dynamic": 0.02, "int8": 0.02}
    assert {mode: error for mode, error in errors.items() if error > limits[mode]} == {}
    assert errors["float32"] < errors["float16"] < errors["int16x8"] < errors["int8"]


def kernel_scales(content: bytes) -> list[int]:
    """Returns the number of scales of each int8 constant of rank 2 or more."""
    return [
        len(scale)
        for _, dtype, shape, scale, _, data in tensors(content)
        if len(shape) > 1 and data and dtype == 9  # INT8
    ]


@pytest.mark.parametrize("mode", ["int8", "int16x8"])
def test_per_tensor_is_one_scale_for_each_kernel(mode, images, tmp_path):
    layers = tf_keras.layers
    image = tf_keras.Input(helpers.IMAGE, name="image")
    x = layers.Flatten()(layers.Conv2D(4, 3, activation="relu", name="conv")(image))
    model = tf_keras.Model(image, layers.Dense(3, name="y")(x))
    spec = tf.TensorSpec([None, *helpers.IMAGE], tf.float32, name="image")
    path = helpers.save_function(lambda x: {"y": model(x)}, [spec], tmp_path / "model", weights=model.weights)
    rows = {"image": images[:8]}
    assert max(kernel_scales(to_tflite(path, ConversionOptions(mode), rows))) > 1
    content = to_tflite(path, ConversionOptions(mode, per_channel=False), rows)
    assert kernel_scales(content) == [1, 1]
    assert tensors(content) == tensors(convert_plainly(path, mode, images[:8], io=tf.float32, per_channel=False))


def test_int16x8_with_one_scale_for_a_depthwise_kernel_is_refused(saved_cnn, images):
    with raises(ConversionError, code="conversion-failed", match=r"'int16x8'.*depthwise.*per_channel=True"):
        to_tflite(saved_cnn, ConversionOptions("int16x8", per_channel=False), {"image": images[:4]})


def test_modes_without_calibration_take_and_return_floats(saved_cnn):
    with raises(ConfigError, code="inapplicable-field", field="ConversionOptions.io", match="'dynamic'"):
        to_tflite(saved_cnn, ConversionOptions("dynamic", "integer"))


# Signatures


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two signatures with an input in common, and one with two inputs and a batch of four."""
    module = tf.Module()
    module.kernel = tf.Variable([[1.0, -1.0], [0.5, 2.0], [3.0, 0.25]])
    spec = tf.TensorSpec
    module.one = tf.function(lambda x: {"a": x @ module.kernel}, input_signature=[spec([None, 3], name="x")])
    module.sum = tf.function(
        lambda x, z: {"b": tf.nn.relu(x @ module.kernel + z)},
        input_signature=[spec([None, 3], name="x"), spec([None, 2], name="z")],
    )
    module.four = tf.function(
        lambda x: {"c": tf.reshape(tf.reshape(x, [12]), [4, 3]) @ module.kernel},
        input_signature=[spec([4, 3], name="x")],
    )
    path = str(tmp_path_factory.mktemp("two") / "model")
    tf.saved_model.save(module, path, signatures={"one": module.one, "sum": module.sum, "four": module.four})
    return path


GENERATOR = np.random.default_rng(6)
COLUMNS = {
    "x": GENERATOR.uniform(-2, 2, [30, 3]).astype(np.float32),
    "z": GENERATOR.uniform(-9, 5, [30, 2]).astype(np.float32),
    "unused": np.zeros([30]),
}


@pytest.mark.parametrize("mode", ["float32", "int8"])
def test_several_signatures_go_into_one_file_each_calibrated_on_its_own_inputs(two, mode):
    content = to_tflite(two, ConversionOptions(mode, signatures=("one", "sum")), COLUMNS)
    interpreter = tf.lite.Interpreter(model_content=content)
    assert interpreter.get_signature_list() == {
        "one": {"inputs": ["x"], "outputs": ["a"]},
        "sum": {"inputs": ["x", "z"], "outputs": ["b"]},
    }
    expected = helpers.answers(two, "sum", x=COLUMNS["x"][:1], z=COLUMNS["z"][:1])["b"]
    answer = interpreter.get_signature_runner("sum")(x=COLUMNS["x"][:1], z=COLUMNS["z"][:1])["b"]
    np.testing.assert_allclose(answer, expected, atol=1e-5 if mode == "float32" else 0.3)
    expected = helpers.answers(two, "one", x=COLUMNS["x"][:1])["a"]
    answer = interpreter.get_signature_runner("one")(x=COLUMNS["x"][:1])["a"]
    np.testing.assert_allclose(answer, expected, atol=1e-5 if mode == "float32" else 0.3)


def test_a_fixed_batch_is_calibrated_on_all_rows(two):
    columns = {"x": np.concatenate([COLUMNS["x"], [[50.0, 0.0, 0.0]]]).astype(np.float32)}  # 31 rows in batches of 4
    content = to_tflite(two, ConversionOptions("int8", "integer", signatures=("four",)), columns)
    x = Interpreter(content).inputs["x"]
    assert x.shape == (4, 3)
    assert x.scale == pytest.approx((50 - columns["x"].min()) / 255, rel=1e-3)


def test_a_missing_signature_is_refused_with_the_others(two):
    with raises(ModelError, code="missing-signature", match="'two'.*four, one, sum"):
        to_tflite(two, ConversionOptions("float32", signatures=("two",)))


def test_a_folder_without_a_model_is_refused(tmp_path):
    with raises(ModelError, code="missing-model", match=str(tmp_path)):
        to_tflite(str(tmp_path), ConversionOptions("float32"))


@pytest.mark.parametrize(
    ("columns", "code", "place"),
    [
        (None, "missing-rows", "'int8'"),
        ({"x": COLUMNS["x"]}, "missing-feature", "'z'"),
        ({"x": COLUMNS["x"], "z": COLUMNS["z"][:5]}, "rows", r"'sum'.*\[5, 30\]"),
        ({"x": COLUMNS["x"], "z": COLUMNS["x"]}, "feature-shape", r"'z'.*\(30, 3\)"),
    ],
)
def test_rows_that_do_not_fit_are_refused(two, columns, code, place):
    with raises(ModelError, code=code, match=place):
        to_tflite(two, ConversionOptions("int8", signatures=("sum",)), columns)


def test_strings_can_not_be_calibrated_on(tmp_path):
    specs = [tf.TensorSpec([None], tf.string, name="word")]
    path = helpers.save_function(lambda word: {"y": tf.equal(word, "yes")}, specs, tmp_path)
    with raises(ModelError, code="string-input", match="'word'"):
        to_tflite(path, ConversionOptions("int8"), {"word": np.array(["a", "b"])})


# Quantization-aware models


@pytest.fixture(scope="module")
def aware(tmp_path_factory):
    """Path of a layer with fake quantization: its input in -1..3, its output in 0..6."""
    kernel = np.array([[1.0, -0.5], [0.25, 2.0]], np.float32)

    def function(x: tf.Tensor) -> dict[str, tf.Tensor]:
        x = tf.quantization.fake_quant_with_min_max_args(x, -1.0, 3.0)
        weights = tf.quantization.fake_quant_with_min_max_vars(kernel, -2.0, 2.0, narrow_range=True)
        y = tf.nn.relu(tf.matmul(x, weights))
        return {"y": tf.quantization.fake_quant_with_min_max_args(y, 0.0, 6.0)}

    path = tmp_path_factory.mktemp("aware") / "model"
    return helpers.save_function(function, [tf.TensorSpec([None, 2], tf.float32, name="x")], path)


@pytest.mark.parametrize("columns", [None, {"x": np.full([9, 2], 100.0, np.float32)}], ids=["no rows", "other rows"])
def test_a_quantization_aware_model_keeps_its_ranges(aware, columns):
    assert SavedModelGraph(aware).is_quantization_aware()
    interpreter = Interpreter(to_tflite(aware, ConversionOptions("int8", "integer"), columns))
    x, y = interpreter.inputs["x"], interpreter.outputs["y"]
    assert (x.dtype, y.dtype) == (np.int8, np.int8)
    assert x.scale == pytest.approx(4 / 255)  # The range is shifted so that 0 is a step, with 64 steps below it.
    assert x.zero_point == -64
    assert y.scale == pytest.approx(6 / 255)
    assert y.zero_point == -128
    rows = np.array([[0.5, 1.0], [3.0, -1.0]], np.float32)
    expected = helpers.answers(aware, x=rows)["y"]
    np.testing.assert_allclose(interpreter.predict({"x": rows})["y"], expected, atol=6 / 255)


def test_a_quantization_aware_model_keeps_its_ranges_in_mode_dynamic(aware):
    content = to_tflite(aware, ConversionOptions("dynamic"))
    assert read_contents(content).ops == {"QUANTIZE": 1, "FULLY_CONNECTED": 1, "DEQUANTIZE": 1}


def test_a_quantization_aware_model_is_refused_in_int16x8(aware):
    with raises(ModelError, code="quantization-aware", match="'int8'"):
        to_tflite(aware, ConversionOptions("int16x8"), {"x": np.ones([3, 2], np.float32)})


def test_only_the_converted_signatures_make_a_model_quantization_aware(tmp_path):
    module = tf.Module()
    spec = [tf.TensorSpec([None, 2], tf.float32, name="x")]
    module.fake = tf.function(
        lambda x: {"y": tf.quantization.fake_quant_with_min_max_args(x, -1.0, 1.0)}, input_signature=spec
    )
    module.plain = tf.function(lambda x: {"y": x + 1.0}, input_signature=spec)
    tf.saved_model.save(module, str(tmp_path), signatures={"fake": module.fake, "plain": module.plain})
    assert SavedModelGraph(str(tmp_path)).is_quantization_aware(["fake"])
    assert not SavedModelGraph(str(tmp_path)).is_quantization_aware(["plain"])


# By ranges


def measure_ranges(content: bytes, images: np.ndarray) -> dict[str, tuple[float, float]]:
    """Returns the smallest and largest value of each float activation, from TensorFlow's interpreter."""
    interpreter = tf.lite.Interpreter(
        model_content=content,
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    graph = flatbuffer.parse(content).subgraphs[0]
    indices = {int(index) for operator in graph.operators for index in operator.outputs} | {*map(int, graph.inputs)}
    (image,) = interpreter.get_input_details()
    interpreter.allocate_tensors()
    ends: dict[str, list[float]] = {}
    for row in images:
        interpreter.set_tensor(image["index"], row[None])
        interpreter.invoke()
        for index in indices:
            if graph.tensors[index].type == 0:  # FLOAT32
                values = interpreter.get_tensor(index)
                ends.setdefault(graph.tensors[index].name.decode(), []).extend([values.min(), values.max()])
    return {name: (float(min(values)), float(max(values))) for name, values in ends.items()}


@pytest.fixture(scope="module")
def ranges(converted, images):
    return measure_ranges(converted("float32"), images)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("io", ["integer", "uint8", "float32"])
def test_the_converters_own_ranges_make_the_converters_own_model(converted, script, ranges, io, per_channel):
    options = ConversionOptions("int8", io, per_channel=per_channel)
    content = quantize_with_ranges(converted("float32"), options, ranges)
    expected = script("int8", options.io_type, per_channel)
    # Names differ, because several tensors are equal except for their names.
    assert [tensor[1:] for tensor in tensors(content)] == [tensor[1:] for tensor in tensors(expected)]
    assert len(content) <= len(expected) * 1.01


def test_a_narrower_range_makes_a_smaller_scale(converted, ranges):
    options = ConversionOptions("int8", "integer")
    content = quantize_with_ranges(converted("float32"), options, {**ranges, IMAGE: (0.0, 0.5)})
    image = Interpreter(content).inputs["image"]
    assert (image.scale, image.zero_point) == (pytest.approx(0.5 / 255), -128)


def test_ranges_that_do_not_fit_the_graph_are_refused(converted, ranges):
    content, options = converted("float32"), ConversionOptions("int8")
    without = {name: ends for name, ends in ranges.items() if name != IMAGE}
    with raises(ModelError, code="unmatched-ranges", match=rf"\['{IMAGE}'\].*none"):
        quantize_with_ranges(content, options, without)
    with raises(ModelError, code="unmatched-ranges", match=r"none.*\['other'\]"):
        quantize_with_ranges(content, options, {**ranges, "other": (0.0, 1.0)})
    for invalid in ((1.0, 0.0), (0.0, float("inf")), (float("nan"), 1.0)):
        with raises(ModelError, code="invalid-range", match=f"'{IMAGE}'"):
            quantize_with_ranges(content, options, {**ranges, IMAGE: invalid})


# TensorFlow's own operators


@pytest.fixture(scope="module")
def inverse(tmp_path_factory):
    """Path of a model with an operator that TFLite doesn't have."""
    specs = [tf.TensorSpec([None, 4, 4], tf.float32, name="matrix")]
    path = tmp_path_factory.mktemp("inverse") / "model"
    return helpers.save_function(lambda matrix: {"inverse": tf.linalg.inv(matrix, name="solver/inv")}, specs, path)


def test_an_operator_that_tflite_lacks_is_named_with_the_remedy_and_its_price(inverse):
    with raises(ConversionError, code="missing-operators", match="MatrixInverse.*select_tf_ops=True.*Flex delegate"):
        to_tflite(inverse, ConversionOptions("float32"))


def test_tensorflows_own_operators_are_used_on_request_and_listed_with_their_layers(inverse, converted):
    content = to_tflite(inverse, ConversionOptions("float32", select_tf_ops=True))
    ((name, layers),) = conversion.flex_operators(content).items()
    assert name == "FlexMatrixInverse"
    assert len(layers) == 1
    assert conversion.flex_operators(converted("float32")) == {}


@pytest.mark.parametrize(
    ("message", "select_tf_ops", "code", "place"),
    [
        ("x\nerror: requires element_shape to be static during TF Lite transformation", False, "free-loop-rows", ""),
        ("TF Select ops: Erf, Inv\nDetails: ...", False, "missing-operators", "Erf, Inv"),
        ("Custom ops: MyOp\nDetails: ...", True, "missing-operators", "MyOp"),
        ("error: Couldn't convert tensor proto to tensor.", True, "free-constant-rows", "number of rows"),
        ("anything  \n\n else", False, "conversion-failed", "anything else"),
    ],
)
def test_messages_of_the_converter_are_explained(message, select_tf_ops, code, place):
    error = conversion._conversion_error("m", ConversionOptions("float32", select_tf_ops=select_tf_ops), message)
    assert error.code == code
    assert place in str(error)


# In another process


def test_a_worker_converts_as_this_process_does(saved_cnn, converted):
    content = conversion.convert_in_worker(saved_cnn, "float16")
    assert [row[1:4] for row in tensors(content)] == [row[1:4] for row in tensors(converted("float16"))]


def test_the_error_of_a_worker_has_its_code_and_no_traceback(inverse):
    with raises(ConversionError, code="missing-operators", match="MatrixInverse") as caught:
        conversion.convert_in_worker(inverse, "float32")
    assert "Traceback" not in str(caught.value)
