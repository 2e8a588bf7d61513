"""TFLite models against TensorFlow's own interpreter and kernels, used directly."""

import decimal
import subprocess
import sys

import flatbuffers
import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import interpreter as litert
from hypothesis import strategies
from tensorflow.lite.python import schema_py_generated as schema
from tfx_compression.errors import ModelError
from tfx_compression.tflite import flatbuffer
from tfx_compression.tflite.interpreter import Interpreter, TensorDetails, dequantize, quantize

from tests.support import helpers

DTYPES = {"float32": (np.float32, schema.TensorType.FLOAT32), "int8": (np.int8, schema.TensorType.INT8)}
MODES = ["float32", "float16", "dynamic", "int8", "int8 with float io"]


def int8_tensor(scale: float, zero_point: int) -> TensorDetails:
    return TensorDetails("x", 0, np.dtype(np.int8), (-1,), float(np.float32(scale)), zero_point)


def operator_model(operator: int, inputs: str, outputs: str, shape, scale: float, zero_point: int) -> bytes:
    """The flatbuffer of one QUANTIZE or DEQUANTIZE, of fixed shape and without a signature."""
    tensors = []
    for name, dtype in (("before", inputs), ("after", outputs)):
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type, tensor.buffer = name, list(shape), DTYPES[dtype][1], 0
        if dtype == "int8":
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale, tensor.quantization.zeroPoint = [scale], [zero_point]
        tensors.append(tensor)
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = operator
    code.version = 1
    call = schema.OperatorT()
    call.opcodeIndex, call.inputs, call.outputs = 0, [0], [1]
    graph = schema.SubGraphT()
    graph.tensors, graph.operators, graph.inputs, graph.outputs = tensors, [call], [0], [1]
    model = schema.ModelT()
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], [schema.BufferT()]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def quantize_model(shape, scale: float, zero_point: int) -> bytes:
    return operator_model(schema.BuiltinOperator.QUANTIZE, "float32", "int8", shape, scale, zero_point)


def run_operator(content: bytes, values: np.ndarray) -> np.ndarray:
    """Runs a model of one operator on TFLite's reference kernels."""
    interpreter = tf.lite.Interpreter(
        model_content=content, experimental_op_resolver_type=tf.lite.experimental.OpResolverType.BUILTIN_REF
    )
    interpreter.allocate_tensors()
    interpreter.set_tensor(0, values)
    interpreter.invoke()
    return interpreter.get_tensor(1)


scales = strategies.floats(2**-20, 2**10, width=32)
zero_points = strategies.integers(-128, 127)
steps_from_zero = strategies.lists(strategies.floats(-400, 400), max_size=50)


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(
    scale=scales, zero_point=zero_points, steps=strategies.lists(strategies.floats(-400, 400), max_size=50)
)
def test_quantizing_is_what_tflites_reference_kernel_does(scale, zero_point, steps):
    halves = np.arange(-300, 300) / 2
    values = (np.concatenate([steps, halves]) * scale).astype(np.float32)
    kernel = run_operator(quantize_model(values.shape, scale, zero_point), values)
    np.testing.assert_array_equal(quantize(values, int8_tensor(scale, zero_point)), kernel)


@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.given(scale=scales, zero_point=zero_points)
def test_dequantizing_is_what_tflites_kernel_does(scale, zero_point):
    stored = np.arange(-128, 128).astype(np.int8)
    content = operator_model(schema.BuiltinOperator.DEQUANTIZE, "int8", "float32", [256], scale, zero_point)
    found = dequantize(stored, int8_tensor(scale, zero_point))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, run_operator(content, stored))


@pytest.mark.parametrize(
    ("scale", "zero_point", "real", "stored"),
    [
        (1 / 255, -128, 1.0, 127),
        (1 / 255, -128, 1.004, 127),  # 256 steps, one more than there are
        (1 / 255, -128, 0.0, -128),
        (1 / 255, -128, -0.2, -128),
        (1 / 255, -128, 0.502, 0),
        (0.5, 0, 0.25, 1),  # halves go away from zero
        (0.5, 0, 0.75, 2),
        (0.5, 0, -0.25, -1),
        (0.5, 0, -0.75, -2),
        (0.5, 10, -0.25, 9),
        (0.5, 0, 0.2499, 0),
        (0.5, 0, -63.5, -127),
        (0.5, 0, -1e30, -128),
        (0.5, 0, 1e30, 127),
    ],
)
def test_quantized_values_are_as_worked_out_by_hand(scale, zero_point, real, stored):
    assert quantize(np.array([real]), int8_tensor(scale, zero_point)).tolist() == [stored]


def test_values_of_a_tensor_that_is_not_quantized_are_cast_and_come_back_as_they_are():
    tensor = TensorDetails("x", 0, np.dtype(np.int64), (-1,), 0.0, 0)
    stored = quantize(np.array([3.0, -4.0]), tensor)
    assert stored.dtype == np.int64
    assert dequantize(stored, tensor).tolist() == [3, -4]


@pytest.fixture(scope="module")
def pruned():
    """A network a part of whose weights is zero, in each of its kernels that pruning takes."""
    model = helpers.small_cnn()
    for layer in ("conv", "dense", "probabilities"):
        helpers.zero_smallest(model, layer, 0.6)
    return model


@pytest.fixture(scope="module")
def converted(pruned):
    rows = helpers.images(50)[0] / helpers.LARGEST
    found = {mode: helpers.to_tflite(pruned, mode, rows) for mode in MODES[:4]}
    return {**found, "int8 with float io": helpers.to_tflite(pruned, "int8", rows, io="float32")}


def run_directly(content: bytes, images: np.ndarray) -> np.ndarray:
    """Real numbers in and out of LiteRT's interpreter, quantized one by one in decimal arithmetic where int8."""
    interpreter = litert.Interpreter(model_content=content)
    (taken,), (returned,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(taken["index"], images.shape)
    interpreter.allocate_tensors()
    if taken["dtype"] == np.int8:
        scale, zero_point = taken["quantization"]
        steps = [decimal.Decimal(float(step)) for step in (images / np.float32(scale)).ravel()]
        whole = [int(step.quantize(decimal.Decimal(1), decimal.ROUND_HALF_UP)) + zero_point for step in steps]
        images = np.array([max(-128, min(127, value)) for value in whole], np.int8).reshape(images.shape)
    interpreter.set_tensor(taken["index"], images)
    interpreter.invoke()
    stored = interpreter.get_tensor(returned["index"])
    if returned["dtype"] != np.int8:
        return stored
    scale, zero_point = returned["quantization"]
    return np.array([(float(value) - zero_point) * scale for value in stored.ravel()], np.float32).reshape(stored.shape)


@pytest.mark.parametrize("mode", MODES)
def test_predictions_are_those_of_a_direct_call_bit_for_bit(converted, mode):
    images = helpers.images(64, seed=9)[0] / helpers.LARGEST * np.float32(1.3)  # beyond what int8 was calibrated on
    interpreter = Interpreter(converted[mode])
    assert (interpreter.inputs["image"].dtype == np.int8) == (mode == "int8")
    for rows in (1, 64, 7):  # the size of the batch changes both ways
        found = interpreter.predict({"image": images[:rows]})
        assert list(found) == ["probabilities"]
        np.testing.assert_array_equal(found["probabilities"], run_directly(converted[mode], images[:rows]))


@pytest.mark.parametrize("mode", ["float32", "int8"])
def test_what_is_prepared_for_timing_runs_the_batch(converted, mode):
    images = helpers.images(4)[0] / helpers.LARGEST
    interpreter = Interpreter(converted[mode])
    expected = interpreter.predict({"image": images})["probabilities"]
    interpreter.predict({"image": images[::-1]})
    run = interpreter.prepare({"image": images})
    run()
    np.testing.assert_array_equal(interpreter.predict({"image": images})["probabilities"], expected)


def test_features_of_other_types_and_flattened_ones_are_taken_as_the_model_takes_them(converted):
    images = np.round(helpers.images(4)[0])
    interpreter = Interpreter(converted["float32"])
    expected = interpreter.predict({"image": images})["probabilities"]
    for same in (images.astype(np.int64), images.astype(np.float64), images.reshape(4, 64)):
        np.testing.assert_array_equal(interpreter.predict({"image": same})["probabilities"], expected)


def test_a_model_of_one_row_runs_a_batch_row_by_row():
    content = quantize_model([1, 3], 0.5, 0)
    values = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32) * 20
    found = Interpreter(content).predict({"before": values})
    assert list(found) == ["after"]
    assert found["after"].shape == (6, 3)
    for row in range(6):
        interpreter = tf.lite.Interpreter(model_content=content)
        interpreter.allocate_tensors()
        interpreter.set_tensor(0, values[row : row + 1])
        interpreter.invoke()
        np.testing.assert_array_equal(found["after"][row], interpreter.get_tensor(1)[0] * np.float32(0.5))


def test_a_model_without_a_signature_is_fed_by_its_tensors_names():
    interpreter = Interpreter(quantize_model([1, 3], 0.25, 4))
    assert list(interpreter.inputs) == ["before"]
    after = interpreter.outputs["after"]
    assert (after.dtype, after.shape, after.scale, after.zero_point) == (np.int8, (1, 3), 0.25, 4)


def test_a_batch_that_does_not_divide_into_a_models_fixed_batches_is_filled_up():
    values = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32) * 20
    found = Interpreter(quantize_model([4, 3], 0.5, 0)).predict({"before": values})["after"]
    np.testing.assert_array_equal(
        found, Interpreter(quantize_model([1, 3], 0.5, 0)).predict({"before": values})["after"]
    )


def test_sizes_that_are_free_follow_the_features():
    function = tf.function(
        lambda x: {"total": tf.reduce_sum(x, 1)}, input_signature=[tf.TensorSpec([None, None], tf.float32, name="x")]
    )
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()], function)
    interpreter = Interpreter(bytes(converter.convert()))
    for shape in ((3, 5), (3, 2), (1, 4)):
        (total,) = interpreter.predict({"x": np.ones(shape, np.float32)}).values()
        assert total.tolist() == [shape[1]] * shape[0]


def test_a_missing_feature_is_named_with_those_that_there_are(converted):
    with pytest.raises(ModelError, match=r"takes 'image'.*they have: picture, weight"):
        Interpreter(converted["float32"]).predict({"picture": np.ones([1, 8, 8, 1]), "weight": np.ones([1])})


def test_a_feature_that_some_rows_lack_is_named(converted):
    rows = np.array([np.ones(64), None], dtype=object)
    with pytest.raises(ModelError, match=r"'image'.*missing in some rows"):
        Interpreter(converted["float32"]).predict({"image": rows})


@pytest.mark.parametrize("mode", ["float32", "int8"])
def test_a_feature_of_another_shape_is_refused_with_both_shapes(converted, mode):
    with pytest.raises(ModelError, match=r"'image' has shape \(2, 9, 9, 1\).*takes \(-1, 8, 8, 1\)"):
        Interpreter(converted[mode]).predict({"image": np.ones([2, 9, 9, 1])})


@pytest.mark.parametrize("mode", MODES)
def test_contents_have_the_kernels_of_the_network_and_all_their_zeros(converted, pruned, mode):
    """TFLite keeps the output channel first (last in a depthwise kernel), and int8 rounds some more weights to zero."""
    found = flatbuffer.read_contents(converted[mode])
    kernels = {
        "conv": pruned.get_layer("conv").kernel.numpy().transpose(3, 0, 1, 2),
        "depthwise": pruned.get_layer("separable").depthwise_kernel.numpy().transpose(3, 0, 1, 2),
        "pointwise": pruned.get_layer("separable").pointwise_kernel.numpy().transpose(3, 0, 1, 2),
        "dense": pruned.get_layer("dense").kernel.numpy().T,
        "probabilities": pruned.get_layer("probabilities").kernel.numpy().T,
    }
    assert sum(weight.size for weight in found.weights.values()) == sum(kernel.size for kernel in kernels.values())
    by_shape = {weight.shape: weight for weight in found.weights.values()}
    for name, kernel in kernels.items():
        assert not by_shape[kernel.shape][kernel == 0].any(), name
    for layer in ("dense", "probabilities"):
        (weight,) = [weight for name, weight in found.weights.items() if name.split("/")[-1] == layer]
        assert weight.shape == kernels[layer].shape
    zeros = sum(int((kernel == 0).sum()) for kernel in kernels.values())
    size = sum(kernel.size for kernel in kernels.values())
    assert zeros / size <= found.sparsity < zeros / size + 0.01
    if mode in ("float32", "float16"):
        assert found.sparsity == zeros / size


def test_contents_count_operators_and_tell_those_that_compute_on_floats(converted):
    layers = {"CONV_2D": 2, "DEPTHWISE_CONV_2D": 1, "MAX_POOL_2D": 1, "FULLY_CONNECTED": 2, "SOFTMAX": 1}
    found = {mode: flatbuffer.read_contents(content) for mode, content in converted.items()}
    for mode in MODES:
        assert {name: found[mode].ops[name] for name in layers} == layers
    for mode in ("float32", "float16", "dynamic"):
        assert {name: found[mode].float_ops[name] for name in layers} == layers
    assert found["float16"].ops["DEQUANTIZE"] == found["float16"].float_ops["DEQUANTIZE"] > 0
    assert found["int8"].float_ops == {}
    assert found["int8 with float io"].float_ops == {"DEQUANTIZE": 1}
    assert found["int8 with float io"].ops["QUANTIZE"] == 1


def test_a_model_without_weights_has_no_sparsity():
    found = flatbuffer.read_contents(quantize_model([1, 3], 0.5, 0))
    assert (found.ops, found.float_ops, found.weights, found.sparsity) == ({"QUANTIZE": 1}, {}, {}, 0.0)


@pytest.mark.parametrize("content", [b"", b"no model", b"PK\x03\x04" + bytes(100)], ids=["nothing", "text", "zip"])
def test_what_is_no_tflite_model_is_refused(content):
    with pytest.raises(ModelError, match="Not a TFLite model"):
        flatbuffer.read_contents(content)
    with pytest.raises(ModelError, match="Not a TFLite model"):
        Interpreter(content)


@pytest.mark.parametrize("share", [0.003, 0.1, 0.5, 0.9])
def test_the_contents_of_a_file_that_was_cut_off_are_refused(converted, share):
    content = converted["int8"]
    with pytest.raises(ModelError, match="TFLite"):
        flatbuffer.read_contents(content[: int(share * len(content))])


@pytest.mark.slow
def test_running_a_file_that_was_cut_off_is_an_error_and_no_crash(converted, tmp_path):
    """In a process of its own: TensorFlow's interpreter reads beyond the end of such a file."""
    path = tmp_path / "model.tflite"
    path.write_bytes(converted["int8"])
    code = """
import sys
from tfx_compression.tflite.interpreter import Interpreter
from tfx_compression.errors import ModelError
content = open(sys.argv[1], "rb").read()
for share in (0.003, 0.1, 0.5, 0.9):
    try:
        Interpreter(content[: int(share * len(content))])
    except ModelError as error:
        print("refused:", error)
"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr[-500:]}"
    assert done.stdout.count("refused:") == 4
