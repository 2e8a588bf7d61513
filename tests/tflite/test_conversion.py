"""TensorFlow's converter with every option: against plain scripts, by ranges, and what it refuses."""

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tfx_compression.errors import ConfigError, ModelError
from tfx_compression.tflite import conversion, flatbuffer
from tfx_compression.tflite.conversion import ConversionOptions, quantize_with_ranges, to_tflite
from tfx_compression.tflite.interpreter import Interpreter

from tests.support import helpers
from tests.support.errors import raises

pytestmark = pytest.mark.slow  # converts models

ROWS = helpers.images(32)[0] / helpers.LARGEST
OPS = tf.lite.OpsSet
MODES = ("float32", "float16", "dynamic", "int8", "int16x8")


def save(model: tf_keras.Model, path) -> str:
    """A Keras model as a function of its input by name, which is quick."""
    (name,), (output,) = model.input_names, model.output_names
    spec = tf.TensorSpec(model.inputs[0].shape, tf.float32, name=name)
    return helpers.save_function(lambda x: {output: model(x)}, [spec], path, weights=model.weights)


@pytest.fixture(scope="module")
def model():
    return helpers.small_cnn()


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    return save(model, tmp_path_factory.mktemp("cnn") / "model")


def plain(path: str, mode: str, *, io: tf.DType = tf.float32, per_channel: bool = True) -> bytes:
    """What a user's script does."""
    converter = tf.lite.TFLiteConverter.from_saved_model(path, signature_keys=["serving_default"])
    converter._experimental_disable_per_channel = not per_channel
    if mode != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if mode == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if mode in ("int8", "int16x8"):
        converter.representative_dataset = lambda: ({"image": row[None]} for row in ROWS)
        converter.inference_input_type = converter.inference_output_type = io
        converter.target_spec.supported_ops = {
            "int8": [OPS.TFLITE_BUILTINS_INT8],
            "int16x8": [OPS.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8],
        }[mode]
    return bytes(converter.convert())


@pytest.fixture(scope="module")
def made(saved) -> dict[str, bytes]:
    """By mode, floats in and out."""
    return {mode: to_tflite(saved, ConversionOptions(mode), {"image": ROWS}) for mode in MODES}


def tensors(content: bytes) -> list[tuple]:
    """All that is in a main graph's tensors: name, type, shape, scales, zero points and constants."""
    parsed = flatbuffer.parse(content)
    found = []
    for tensor in parsed.subgraphs[0].tensors:
        quantization, data = tensor.quantization, parsed.buffers[tensor.buffer].data
        scale = () if quantization is None or quantization.scale is None else tuple(quantization.scale)
        zeros = () if quantization is None or quantization.zeroPoint is None else tuple(quantization.zeroPoint)
        shape = () if tensor.shape is None else tuple(tensor.shape)
        found.append((tensor.name, tensor.type, shape, scale, zeros, b"" if data is None else bytes(data)))
    return found


def outputs(content: bytes, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return Interpreter(content).predict(columns)


@pytest.mark.parametrize("mode", MODES)
def test_a_model_is_what_a_plain_script_makes(saved, made, mode):
    script = plain(saved, mode)
    assert tensors(made[mode]) == tensors(script)
    assert len(made[mode]) <= len(script)


def test_each_mode_computes_as_float_within_its_precision_and_more_bits_are_nearer(model, made):
    images = helpers.images(64, seed=9)[0] / helpers.LARGEST
    expected = model(images).numpy()
    errors = {
        mode: np.sqrt(np.mean((outputs(content, {"image": images})["probabilities"] - expected) ** 2))
        for mode, content in made.items()
    }
    limits = {"float32": 1e-6, "float16": 1e-3, "int16x8": 3e-3, "dynamic": 0.02, "int8": 0.02}
    assert {mode: error for mode, error in errors.items() if error > limits[mode]} == {}
    assert errors["float32"] < errors["float16"] < errors["int16x8"] < errors["int8"]


@pytest.mark.parametrize(
    ("mode", "io", "dtype"),
    [
        ("int8", "integer", np.int8),
        ("int8", "uint8", np.uint8),
        ("int8", "float32", np.float32),
        ("int16x8", "integer", np.int16),
        ("int16x8", "float32", np.float32),
    ],
)
def test_inputs_and_outputs_have_the_type_asked_for_and_the_numbers_of_a_plain_script(saved, mode, io, dtype):
    found = to_tflite(saved, ConversionOptions(mode, io), {"image": ROWS})
    interpreter = Interpreter(found)
    assert interpreter.inputs["image"].dtype == interpreter.outputs["probabilities"].dtype == dtype
    assert tensors(found) == tensors(plain(saved, mode, io=tf.dtypes.as_dtype(dtype)))


def kernel_scales(content: bytes) -> list[int]:
    """How many scales each constant of rank 2 or more has."""
    return [
        len(scale)
        for _, dtype, shape, scale, _, data in tensors(content)
        if len(shape) > 1 and data and dtype == 9  # INT8
    ]


@pytest.mark.parametrize("mode", ["int8", "int16x8"])
def test_per_tensor_is_one_scale_for_each_kernel(mode, tmp_path):
    layers = tf_keras.layers
    image = tf_keras.Input(helpers.IMAGE, name="image")
    x = layers.Flatten()(layers.Conv2D(4, 3, activation="relu", name="conv")(image))
    path = save(tf_keras.Model(image, layers.Dense(3, name="y")(x)), tmp_path / "model")
    assert max(kernel_scales(to_tflite(path, ConversionOptions(mode), {"image": ROWS}))) > 1
    found = to_tflite(path, ConversionOptions(mode, per_channel=False), {"image": ROWS})
    assert kernel_scales(found) == [1, 1]
    assert tensors(found) == tensors(plain(path, mode, per_channel=False))


def test_one_scale_for_a_depthwise_kernel_in_int16x8_is_more_than_tensorflow_can(saved):
    with pytest.raises(conversion.ConversionError, match=r"'int16x8'.*depthwise.*Remedy: per_channel=True"):
        to_tflite(saved, ConversionOptions("int16x8", per_channel=False), {"image": ROWS})


def test_floats_are_what_models_of_the_other_modes_take(saved):
    with raises(ConfigError, code="inapplicable-field", match="'dynamic'"):
        to_tflite(saved, ConversionOptions("dynamic", "integer"))


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
def test_several_signatures_are_in_one_file_each_calibrated_on_its_own_inputs(two, mode):
    content = to_tflite(two, ConversionOptions(mode, signatures=("one", "sum")), COLUMNS)
    interpreter = tf.lite.Interpreter(model_content=content)
    assert interpreter.get_signature_list() == {
        "one": {"inputs": ["x"], "outputs": ["a"]},
        "sum": {"inputs": ["x", "z"], "outputs": ["b"]},
    }
    expected = helpers.answers(two, "sum", x=COLUMNS["x"][:1], z=COLUMNS["z"][:1])["b"]
    found = interpreter.get_signature_runner("sum")(x=COLUMNS["x"][:1], z=COLUMNS["z"][:1])["b"]
    np.testing.assert_allclose(found, expected, atol=1e-5 if mode == "float32" else 0.3)
    expected = helpers.answers(two, "one", x=COLUMNS["x"][:1])["a"]
    found = interpreter.get_signature_runner("one")(x=COLUMNS["x"][:1])["a"]
    np.testing.assert_allclose(found, expected, atol=1e-5 if mode == "float32" else 0.3)


def test_a_fixed_batch_is_calibrated_by_as_many_rows_and_all_of_them(two):
    columns = {"x": np.concatenate([COLUMNS["x"], [[50.0, 0.0, 0.0]]]).astype(np.float32)}  # 31 rows, in batches of 4
    content = to_tflite(two, ConversionOptions("int8", "integer", signatures=("four",)), columns)
    x = Interpreter(content).inputs["x"]
    assert x.shape == (4, 3)
    assert x.scale == pytest.approx((50 - columns["x"].min()) / 255, rel=1e-3)


def test_a_missing_signature_is_named_with_those_that_are_there(two):
    with pytest.raises(ModelError, match="no signature 'two', only: four, one, sum"):
        to_tflite(two, ConversionOptions("float32", signatures=("two",)))


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match="no SavedModel in"):
        to_tflite(str(tmp_path), ConversionOptions("float32"))


def test_rows_that_do_not_fit_are_refused(two):
    options = ConversionOptions("int8", signatures=("sum",))
    for columns, words in [
        (None, "'int8' measures activation ranges on rows, and got none"),
        ({"x": COLUMNS["x"]}, "takes 'z', which is no feature"),
        ({"x": COLUMNS["x"], "z": COLUMNS["z"][:5]}, r"'sum' have \[5, 30\] rows"),
        ({"x": COLUMNS["x"], "z": COLUMNS["x"]}, r"'z' has shape \(30, 3\)"),
    ]:
        with pytest.raises(ModelError, match=words):
            to_tflite(two, options, columns)


# Quantization-aware models


@pytest.fixture(scope="module")
def aware(tmp_path_factory):
    """Fake quantization by hand: x in -1..3, what the layer returns in 0..6, its kernel per channel."""
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
    assert conversion.is_quantization_aware(aware)
    interpreter = Interpreter(to_tflite(aware, ConversionOptions("int8", "integer"), columns))
    x, y = interpreter.inputs["x"], interpreter.outputs["y"]
    assert (x.dtype, y.dtype) == (np.int8, np.int8)
    assert x.scale == pytest.approx(4 / 255)  # nudged so that 0 is a step: 64 steps below it
    assert x.zero_point == -64
    assert y.scale == pytest.approx(6 / 255)
    assert y.zero_point == -128
    rows = np.array([[0.5, 1.0], [3.0, -1.0]], np.float32)
    expected = helpers.answers(aware, x=rows)["y"]
    np.testing.assert_allclose(interpreter.predict({"x": rows})["y"], expected, atol=6 / 255)


def test_dynamic_leaves_a_quantization_aware_model_its_ranges_with_floats_in_and_out(aware):
    content = to_tflite(aware, ConversionOptions("dynamic"))
    assert flatbuffer.read_contents(content).ops == {"QUANTIZE": 1, "FULLY_CONNECTED": 1, "DEQUANTIZE": 1}


def test_a_model_trained_in_eight_bits_is_none_of_sixteen(aware):
    with pytest.raises(ModelError, match="quantization-aware: its ranges are of 8 bits. Remedy: mode 'int8'"):
        to_tflite(aware, ConversionOptions("int16x8"), {"x": np.ones([3, 2], np.float32)})


def test_a_model_is_not_aware_because_of_a_signature_that_is_not_converted(tmp_path):
    module = tf.Module()
    spec = [tf.TensorSpec([None, 2], tf.float32, name="x")]
    module.fake = tf.function(
        lambda x: {"y": tf.quantization.fake_quant_with_min_max_args(x, -1.0, 1.0)}, input_signature=spec
    )
    module.plain = tf.function(lambda x: {"y": x + 1.0}, input_signature=spec)
    tf.saved_model.save(module, str(tmp_path), signatures={"fake": module.fake, "plain": module.plain})
    assert conversion.is_quantization_aware(str(tmp_path), ["fake"])
    assert not conversion.is_quantization_aware(str(tmp_path), ["plain"])


# By ranges


def measured(content: bytes, columns: dict[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    """The least and largest value of each float activation, by TensorFlow's interpreter, which keeps them all."""
    interpreter = tf.lite.Interpreter(
        model_content=content,
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    graph = flatbuffer.parse(content).subgraphs[0]
    places = {int(place) for operator in graph.operators for place in operator.outputs} | {*map(int, graph.inputs)}
    (image,) = interpreter.get_input_details()
    interpreter.allocate_tensors()
    found: dict[str, list[float]] = {}
    for row in next(iter(columns.values())):
        interpreter.set_tensor(image["index"], row[None])
        interpreter.invoke()
        for place in places:
            if graph.tensors[place].type == 0:  # FLOAT32
                values = interpreter.get_tensor(place)
                found.setdefault(graph.tensors[place].name.decode(), []).extend([values.min(), values.max()])
    return {name: (float(min(values)), float(max(values))) for name, values in found.items()}


@pytest.fixture(scope="module")
def ranges(made):
    return measured(made["float32"], {"image": ROWS})


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("io", ["integer", "uint8", "float32"])
def test_the_ranges_that_the_converter_measures_make_the_model_that_it_makes(saved, made, ranges, io, per_channel):
    options = ConversionOptions("int8", io, per_channel=per_channel)
    found = quantize_with_ranges(made["float32"], options, ranges)
    script = plain(saved, "int8", io=options.io_type, per_channel=per_channel)
    # Names apart: there are more tensors that say the same than names.
    strip: Callable = lambda content: [tensor[1:] for tensor in tensors(content)]  # noqa: E731
    assert strip(found) == strip(script)
    assert len(found) <= len(script) * 1.01


def test_a_narrower_range_is_a_smaller_scale(made, ranges):
    inside = {**ranges, "serving_default_image:0": (0.0, 0.5)}
    image = Interpreter(quantize_with_ranges(made["float32"], ConversionOptions("int8", "integer"), inside)).inputs[
        "image"
    ]
    assert (image.scale, image.zero_point) == (pytest.approx(0.5 / 255), -128)


def test_ranges_that_do_not_fit_the_graph_are_refused(made, ranges):
    options = ConversionOptions("int8")
    lacking = {name: found for name, found in ranges.items() if name != "serving_default_image:0"}
    with pytest.raises(ModelError, match=r"Without one: \['serving_default_image:0'\]; ranges of no tensor: none"):
        quantize_with_ranges(made["float32"], options, lacking)
    with pytest.raises(ModelError, match=r"Without one: none; ranges of no tensor: \['foo'\]"):
        quantize_with_ranges(made["float32"], options, {**ranges, "foo": (0.0, 1.0)})
    for wrong in ((1.0, 0.0), (0.0, float("inf")), (float("nan"), 1.0)):
        with pytest.raises(ModelError, match="'serving_default_image:0' is .* must be finite, and in order"):
            quantize_with_ranges(made["float32"], options, {**ranges, "serving_default_image:0": wrong})


# TensorFlow's own operators


@pytest.fixture(scope="module")
def inverse(tmp_path_factory):
    specs = [tf.TensorSpec([None, 4, 4], tf.float32, name="matrix")]
    path = tmp_path_factory.mktemp("inverse") / "model"
    return helpers.save_function(lambda matrix: {"inverse": tf.linalg.inv(matrix, name="solver/inv")}, specs, path)


def test_what_tflite_has_no_operator_for_is_named_with_the_remedy_and_its_price(inverse):
    with pytest.raises(
        conversion.ConversionError, match=r"'float32'.*MatrixInverse.*select_tf_ops=True.*Flex delegate"
    ):
        to_tflite(inverse, ConversionOptions("float32"))


def test_tensorflows_own_operators_are_used_where_allowed_and_told_with_their_layers(inverse, made):
    content = to_tflite(inverse, ConversionOptions("float32", select_tf_ops=True))
    ((name, layers),) = conversion.flex_operators(content).items()
    assert name == "FlexMatrixInverse"
    assert len(layers) == 1
    assert conversion.flex_operators(made["float32"]) == {}


# In another process


def test_a_path_is_converted_in_another_process_as_in_this_one(saved, made):
    found = conversion.convert_in_worker(saved, "float16")
    assert [row[1:4] for row in tensors(found)] == [row[1:4] for row in tensors(made["float16"])]


def test_a_path_that_the_converter_refuses_is_an_error_in_clean_words(inverse):
    with pytest.raises(conversion.ConversionError, match=r"MatrixInverse.*Remedy") as caught:
        conversion.convert_in_worker(inverse, "float32")
    assert "Traceback" not in str(caught.value)
