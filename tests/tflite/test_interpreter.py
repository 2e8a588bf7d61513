"""Predictions of TFLite models against direct calls of the runtime, and quantized values against TFLite's kernels."""

import subprocess
import sys

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import interpreter as litert
from hypothesis import strategies
from tensorflow.lite.python import schema_py_generated as schema
from tfx_compression.errors import ModelError
from tfx_compression.tflite import conversion
from tfx_compression.tflite.interpreter import Interpreter, TensorDetails, dequantize, quantize

from tests.support import by_hand, helpers
from tests.support.by_hand import Graph, Op, Type, one_operator
from tests.support.errors import raises
from tests.support.tflite_layers import INT2, SCALES, sub_byte_layer

MODES = {  # mode and io, and the type that the model stores its inputs and outputs in
    "float32": (("float32", "float32"), np.float32),
    "float16": (("float16", "float32"), np.float32),
    "dynamic": (("dynamic", "float32"), np.float32),
    "int8": (("int8", "integer"), np.int8),
    "int8 with float io": (("int8", "float32"), np.float32),
    "int8 with uint8 io": (("int8", "uint8"), np.uint8),
    "int16x8": (("int16x8", "integer"), np.int16),
    "int16x8 with float io": (("int16x8", "float32"), np.float32),
}
ADD = (schema.AddOptionsT(), schema.BuiltinOptions.AddOptions)
SUB = (schema.SubOptionsT(), schema.BuiltinOptions.SubOptions)
VALUES = np.float32([[0.5, 1.5, -2.5], [3.25, -1.0, 0.0]])


# Quantized values


def int8_tensor(scale: float, zero_point: int) -> TensorDetails:
    return TensorDetails("x", 0, np.dtype(np.int8), (-1,), float(np.float32(scale)), zero_point)


def run_operator(op: int, values: np.ndarray, types: tuple[int, int], scale: float, zero_point: int) -> np.ndarray:
    """Runs a QUANTIZE or DEQUANTIZE on TFLite's reference kernels."""
    graph = Graph()
    before, after = (
        graph.tensor(name, values.shape, dtype, scale=scale if dtype == Type.INT8 else (), zero_point=zero_point)
        for name, dtype in zip(("before", "after"), types, strict=True)
    )
    graph.inputs, graph.outputs = [before], [graph.apply(op, [before], [after])]
    interpreter = tf.lite.Interpreter(
        model_content=by_hand.model(graph),
        experimental_op_resolver_type=tf.lite.experimental.OpResolverType.BUILTIN_REF,
    )
    interpreter.allocate_tensors()
    interpreter.set_tensor(before, values)
    interpreter.invoke()
    return interpreter.get_tensor(after)


scales = strategies.floats(2**-20, 2**10, width=32)
zero_points = strategies.integers(-128, 127)


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(
    scale=scales, zero_point=zero_points, steps=strategies.lists(strategies.floats(-400, 400), max_size=50)
)
def test_quantizing_equals_tflites_reference_kernel(scale, zero_point, steps):
    halves = np.arange(-300, 300) / 2
    values = (np.concatenate([steps, halves]) * scale).astype(np.float32)
    kernel = run_operator(Op.QUANTIZE, values, (Type.FLOAT32, Type.INT8), scale, zero_point)
    np.testing.assert_array_equal(quantize(values, int8_tensor(scale, zero_point)), kernel)


@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.given(scale=scales, zero_point=zero_points)
def test_dequantizing_equals_tflites_kernel(scale, zero_point):
    stored = np.arange(-128, 128).astype(np.int8)
    real = dequantize(stored, int8_tensor(scale, zero_point))
    assert real.dtype == np.float32
    kernel = run_operator(Op.DEQUANTIZE, stored, (Type.INT8, Type.FLOAT32), scale, zero_point)
    np.testing.assert_array_equal(real, kernel)


@pytest.mark.parametrize(
    ("scale", "zero_point", "real", "stored"),
    [
        (1 / 255, -128, 1.0, 127),
        (1 / 255, -128, 1.004, 127),  # 256 steps, one more than there are
        (1 / 255, -128, 0.0, -128),
        (1 / 255, -128, -0.2, -128),
        (1 / 255, -128, 0.502, 0),
        (0.5, 0, 0.25, 1),  # halves are rounded away from zero
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
def test_quantized_values_computed_by_hand(scale, zero_point, real, stored):
    assert quantize(np.array([real]), int8_tensor(scale, zero_point)).tolist() == [stored]


def test_values_of_an_unquantized_tensor_are_cast():
    tensor = TensorDetails("x", 0, np.dtype(np.int64), (-1,), 0.0, 0)
    stored = quantize(np.array([3.0, -4.0]), tensor)
    assert stored.dtype == np.int64
    assert dequantize(stored, tensor).tolist() == [3, -4]


# Predictions


def called_directly(content: bytes, images: np.ndarray, reference_kernels: bool) -> np.ndarray:
    """Real numbers in and out of LiteRT, by the formulas of TFLite's quantization specification."""
    kernels = litert.OpResolverType.BUILTIN_REF if reference_kernels else litert.OpResolverType.AUTO
    interpreter = litert.Interpreter(model_content=content, experimental_op_resolver_type=kernels)
    (taken,), (returned,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(taken["index"], images.shape)
    interpreter.allocate_tensors()
    if taken["dtype"] != np.float32:
        scale, zero_point = taken["quantization"]
        steps = (images / np.float32(scale)).astype(np.float64)  # The division is in float32; both hold halves exactly.
        away_from_zero = np.sign(steps) * np.floor(np.abs(steps) + 0.5) + zero_point
        limits = np.iinfo(taken["dtype"])
        images = np.clip(away_from_zero, limits.min, limits.max).astype(taken["dtype"])
        assert (images == limits.max).any(), "no row saturates"
    interpreter.set_tensor(taken["index"], images)
    interpreter.invoke()
    stored = interpreter.get_tensor(returned["index"])
    if returned["dtype"] == np.float32:
        return stored
    scale, zero_point = returned["quantization"]
    return (stored.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)


@pytest.mark.slow
@pytest.mark.parametrize("reference_kernels", [False, True], ids=["XNNPACK", "reference kernels"])
@pytest.mark.parametrize("mode", MODES)
def test_predictions_equal_a_direct_call_bit_for_bit(converted, mode, reference_kernels):
    beyond = np.float32(1.7)  # times the values that the quantized models were calibrated on
    images = (helpers.images(64, seed=3)[0] / helpers.LARGEST - np.float32(0.1)) * beyond
    images[:, 0, 0] = 2.0
    names, dtype = MODES[mode]
    content = converted(*names)
    interpreter = Interpreter(content, reference_kernels=reference_kernels)
    assert interpreter.inputs["image"].dtype == interpreter.outputs["probabilities"].dtype == dtype
    assert ("reference kernels" in interpreter.runtime) == reference_kernels
    assert ("XNNPACK" in interpreter.runtime) != reference_kernels
    for rows in (1, 7, 64, 7):  # The batch grows and shrinks.
        predicted = interpreter.predict({"image": images[:rows]})["probabilities"]
        assert predicted.dtype == np.float32
        expected = called_directly(content, images[:rows], reference_kernels)
        np.testing.assert_array_equal(predicted, expected, strict=True)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_inputs_and_outputs_are_described_as_they_are_stored(converted, mode):
    names, dtype = MODES[mode]
    interpreter = Interpreter(converted(*names))
    image, probabilities = interpreter.inputs["image"], interpreter.outputs["probabilities"]
    assert image.shape == (-1, *helpers.IMAGE)
    assert probabilities.shape == (-1, helpers.CLASSES)
    assert bool(image.scale) == bool(probabilities.scale) == (dtype != np.float32)
    if mode == "int16x8":
        assert image.zero_point == probabilities.zero_point == 0
    assert image.describe() == {
        "name": "image",
        "dtype": np.dtype(dtype).name,
        "shape": [-1, *helpers.IMAGE],
        "scale": image.scale,
        "zero_point": image.zero_point,
    }


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["float32", "int8"])
def test_a_prepared_batch_is_run_and_doesnt_change_later_predictions(converted, mode):
    images = helpers.images(4)[0] / helpers.LARGEST
    interpreter = Interpreter(converted(*MODES[mode][0]))
    expected = interpreter.predict({"image": images})["probabilities"]
    interpreter.predict({"image": images[::-1]})
    run = interpreter.prepare({"image": images})
    run()
    np.testing.assert_array_equal(interpreter.predict({"image": images})["probabilities"], expected)
    assert interpreter.seconds > 0


def test_features_of_other_types_and_flat_ones_are_converted():
    interpreter = Interpreter(by_hand.model(one_operator(Op.NEG)))
    for values in (np.int64([[1, 2, 3]]), np.float64([[1, 2, 3]]), np.float32([1, 2, 3]).reshape(1, 3, 1)):
        np.testing.assert_array_equal(interpreter.predict({"x": values})["y"], np.float32([[-1, -2, -3]]), strict=True)


def test_several_inputs_and_outputs_have_their_names_in_the_signature():
    graph = Graph()
    a, b, less, more = (graph.tensor(name, [-1, 2]) for name in "abcd")
    graph.apply(Op.SUB, [a, b], [less], *SUB)
    graph.apply(Op.ADD, [a, b], [more], *ADD)
    graph.inputs, graph.outputs = [a, b], [less, more]
    signature = (0, {"right": b, "left": a}, {"total": more, "difference": less})
    interpreter = Interpreter(by_hand.model(graph, signatures={"serving_default": signature}))
    left, right = np.float32([[1, 2], [3, 4], [5, 6]]), np.float32([[10, 20], [30, 40], [50, 60]])
    predicted = interpreter.predict({"left": left, "right": right, "unused": np.zeros(3)})
    assert set(predicted) == {"total", "difference"}
    np.testing.assert_array_equal(predicted["total"], left + right)
    np.testing.assert_array_equal(predicted["difference"], left - right)


def two_graphs(*names: str) -> bytes:
    """One signature for each of two graphs, floor and negative, whose tensors have the same names and indices."""
    graphs = [one_operator(Op.FLOOR), one_operator(Op.NEG)]
    return by_hand.model(
        *graphs, signatures={name: (index, {"x": 0}, {"y": 1}) for index, name in enumerate(names) if name}
    )


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("serving_default", "other"), np.floor(VALUES)),
        (("other", "serving_default"), -VALUES),
        (("other",), np.floor(VALUES)),
        (("", "other"), -VALUES),
    ],
    ids=[
        "serving_default first",
        "serving_default not in the main graph",
        "only one",
        "only one, not in the main graph",
    ],
)
def test_the_signature_is_serving_default_or_the_only_one(names, expected):
    interpreter = Interpreter(two_graphs(*names))
    assert interpreter.has_signature
    for rows in (2, 1, 2):
        np.testing.assert_array_equal(interpreter.predict({"x": VALUES[:rows]})["y"], expected[:rows])
    interpreter.prepare({"x": VALUES})()


def test_several_signatures_without_serving_default_are_refused():
    with raises(ModelError, code="ambiguous-signature", match="score, train|train, score"):
        Interpreter(two_graphs("score", "train"))


def test_a_signature_of_a_missing_tensor_is_refused():
    content = by_hand.model(one_operator(Op.FLOOR), signatures={"serving_default": (0, {"x": 0}, {"y": 57})})
    with raises(ModelError, code="not-runnable", match="57"):
        Interpreter(content)


def test_without_a_signature_tensors_have_their_own_names_as_short_as_unique():
    graph = Graph()
    x = graph.tensor("serving_default_x:0", [-1, 2])
    outputs = [graph.tensor(name, [-1, 2]) for name in ("model/a/BiasAdd", "model/b/BiasAdd", "model/c/Relu:0")]
    for op, output in zip((Op.FLOOR, Op.NEG, Op.RELU), outputs, strict=True):
        graph.apply(op, [x], [output])
    graph.inputs, graph.outputs = [x], outputs
    interpreter = Interpreter(by_hand.model(graph))
    assert not interpreter.has_signature
    predicted = interpreter.predict({"x": VALUES[:, :2]})
    assert list(predicted) == ["model/a/BiasAdd", "model/b/BiasAdd", "Relu"]
    np.testing.assert_array_equal(predicted["model/b/BiasAdd"], -VALUES[:, :2])


@pytest.mark.parametrize("signature", [True, False], ids=["signature", "no signature"])
@pytest.mark.parametrize("graph", [0, 1], ids=["main graph", "side graph"])
@pytest.mark.parametrize("batch", [1, 4])
def test_a_fixed_batch_runs_any_number_of_rows(batch, graph, signature):
    graphs = [one_operator(Op.FLOOR, batch=batch), one_operator(Op.NEG, batch=batch)]
    signatures = {"serving_default": (graph, {"x": 0}, {"y": 1})} if signature else {}
    interpreter = Interpreter(by_hand.model(*graphs, signatures=signatures))
    assert interpreter.batch_size == batch
    for rows in (1, 4, 7, 64):
        x = np.random.default_rng(rows).normal(size=(rows, 3)).astype(np.float32)
        expected = -x if graph and signature else np.floor(x)
        np.testing.assert_array_equal(interpreter.predict({"x": x})["y"], expected)


def test_inputs_of_different_fixed_batches_are_refused():
    graph = Graph()
    a, b = graph.tensor("a", [2, 1]), graph.tensor("b", [3, 1])
    outputs = [graph.apply(Op.NEG, [x], [graph.tensor(f"minus {x}", [2 + x, 1])]) for x in (a, b)]
    graph.inputs, graph.outputs = [a, b], outputs
    with raises(ModelError, code="batch-sizes", match=r"\[2, 3\]"):
        Interpreter(by_hand.model(graph)).predict({"a": np.ones([6, 1]), "b": np.ones([6, 1])})


def test_free_sizes_follow_the_features():
    function = tf.function(
        lambda x: {"total": tf.reduce_sum(x, 1)}, input_signature=[tf.TensorSpec([None, None], tf.float32, name="x")]
    )
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()], function)
    interpreter = Interpreter(bytes(converter.convert()))
    assert interpreter.batch_size is None
    for shape in ((3, 5), (3, 2), (1, 4)):
        (total,) = interpreter.predict({"x": np.ones(shape, np.float32)}).values()
        assert total.tolist() == [shape[1]] * shape[0]


@pytest.mark.parametrize("xnnpack", [False, True])
def test_tensors_inside_the_model_are_read_as_real_numbers(xnnpack):
    graph = Graph()
    x, y = (graph.tensor(name, [2, 3], Type.INT8, scale=0.5, zero_point=3) for name in "xy")
    inside, real = graph.tensor("inside", [2, 3]), graph.tensor("real", [2, 3])
    graph.apply(Op.DEQUANTIZE, [x], [inside])
    graph.apply(Op.NEG, [inside], [real])
    graph.inputs, graph.outputs = [x], [graph.apply(Op.QUANTIZE, [real], [y])]
    interpreter = Interpreter(by_hand.model(graph), xnnpack=xnnpack, preserve_tensors=True)
    assert ("XNNPACK" in interpreter.runtime) == xnnpack
    rows = np.float32([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    np.testing.assert_array_equal(interpreter.predict({"x": rows})["y"], -rows)
    last_batch = rows[[2, 2]]
    np.testing.assert_array_equal(interpreter.tensor_values(inside), last_batch)
    np.testing.assert_array_equal(interpreter.tensor_values(real), -last_batch)
    np.testing.assert_array_equal(interpreter.tensor_values(y), -last_batch)


def test_a_missing_tensor_has_no_values():
    interpreter = Interpreter(by_hand.model(one_operator(Op.FLOOR)), preserve_tensors=True)
    assert interpreter.tensor_values(7) is None


def equality(dtype: int) -> Interpreter:
    graph = Graph()
    graph.inputs = [graph.tensor("a", [-1], dtype), graph.tensor("b", [-1], dtype)]
    options, kind = schema.EqualOptionsT(), schema.BuiltinOptions.EqualOptions
    graph.outputs = [graph.apply(Op.EQUAL, [0, 1], [graph.tensor("same", [-1], Type.BOOL)], options, kind)]
    return Interpreter(by_hand.model(graph))


@pytest.mark.parametrize("dtype", [object, bytes, str], ids=["objects", "bytes", "text"])
def test_strings_are_passed_as_they_are(dtype):
    a, b = (np.array(values, dtype) for values in (["yes", "", "long enough"], ["yes", "no", "long enough!"]))
    same = equality(Type.STRING).predict({"a": a, "b": b})["same"]
    assert same.tolist() == [True, False, False]


@pytest.mark.parametrize(("dtype", "large"), [(Type.INT32, 2**31 - 1), (Type.INT64, 2**62 + 1)], ids=["int32", "int64"])
def test_integers_are_exact(dtype, large):
    same = equality(dtype).predict({"a": np.array([large, 3, -1]), "b": np.array([large - 1, 3, -1])})["same"]
    assert same.tolist() == [False, True, True]


def test_booleans_are_taken_from_numbers_and_returned():
    interpreter = Interpreter(by_hand.model(one_operator(Op.LOGICAL_NOT, dtype=Type.BOOL)))
    predicted = interpreter.predict({"x": np.array([[1, 0, 1]], np.int64)})["y"]
    assert predicted.dtype == bool
    assert predicted.tolist() == [[False, True, False]]


# Weights of less than a byte


@pytest.mark.parametrize("reference_kernels", [False, True], ids=["XNNPACK", "reference kernels"])
@pytest.mark.parametrize("columns", [7, 8])
@pytest.mark.parametrize("scales", SCALES.values(), ids=SCALES)
@pytest.mark.parametrize("bits", [4, 2])
def test_sub_byte_weights_with_int8_equal_integer_arithmetic(bits, scales, columns, reference_kernels):
    content, weights = sub_byte_layer(bits, scales, Type.INT8, columns)
    stored = np.random.default_rng(0).integers(-128, 128, (64, columns)).astype(np.int8)
    x = (stored.astype(np.float64) - 3) * 0.05
    predicted = Interpreter(content, reference_kernels=reference_kernels).predict({"x": x})["y"]
    np.testing.assert_array_equal(predicted, called_directly(content, x, reference_kernels), strict=True)
    steps = (stored.astype(int) - 3) @ weights.T * (0.05 * np.array(scales) / 0.2) - 2
    expected = np.clip(np.floor(steps + 0.5), -128, 127)
    returned = np.rint(predicted / np.float32(0.2)) - 2
    if reference_kernels:
        np.testing.assert_array_equal(returned, expected)
    else:  # XNNPACK's sums are up to a hundredth of a step off.
        near_half = np.abs(steps - np.floor(steps) - 0.5) < 0.02
        np.testing.assert_array_equal(returned[~near_half], expected[~near_half])
        np.testing.assert_allclose(returned, expected, atol=1)


@pytest.mark.parametrize("columns", [7, 8])
@pytest.mark.parametrize("scales", SCALES.values(), ids=SCALES)
@pytest.mark.parametrize("bits", [4, 2])
def test_sub_byte_weights_with_floats_equal_the_product_except_for_the_rounding_of_a_row(bits, scales, columns):
    """The kernel rounds each row to int8: XNNPACK in the row's range, the reference kernel symmetrically."""
    content, weights = sub_byte_layer(bits, scales, Type.FLOAT32, columns)
    x = np.random.default_rng(0).normal(size=(64, columns)).astype(np.float32)
    real = weights * np.array(scales)[:, None]
    step = np.maximum(np.abs(x).max(1, keepdims=True) / 127, (x.max(1) - x.min(1))[:, None] / 255)
    predicted = Interpreter(content).predict({"x": x})["y"]
    assert (np.abs(predicted - x @ real.T) <= step * np.abs(real).sum(1)).all()
    symmetric = np.abs(x).max(1, keepdims=True) / 127
    exact = np.rint(x / symmetric) @ weights.T * symmetric * np.array(scales)
    reference = Interpreter(content, reference_kernels=True).predict({"x": x})["y"]
    np.testing.assert_allclose(reference, exact, atol=1e-5)


# TensorFlow's own operators


@pytest.mark.slow
def test_tensorflows_own_operators_run_on_tensorflows_interpreter(tmp_path):
    spec = tf.TensorSpec([None, 2, 2], tf.float32, name="matrix")
    helpers.save_function(lambda matrix: {"determinant": tf.linalg.det(matrix)}, [spec], tmp_path)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path), signature_keys=["serving_default"])
    converter.target_spec.supported_ops = [tf.lite.OpsSet.SELECT_TF_OPS]
    content = bytes(converter.convert())
    if tf.__version__ >= "2.20":  # Its interpreter doesn't have them anymore.
        with raises(ModelError, code="not-runnable"):
            Interpreter(content)
        return
    interpreter = Interpreter(content)
    assert interpreter.runtime.startswith(f"TensorFlow {tf.__version__} Lite")
    matrices = np.random.default_rng(0).normal(size=(7, 2, 2)).astype(np.float32)
    predicted = interpreter.predict({"matrix": matrices})["determinant"]
    np.testing.assert_allclose(predicted, np.linalg.det(matrices), rtol=1e-5)
    with raises(ModelError, code="not-runnable"):
        Interpreter(content, reference_kernels=True)


@pytest.mark.parametrize(("dtype", "packed_bytes"), [(Type.INT4, 16), (INT2, 8)], ids=["int4", "int2"])
def test_tensorflows_own_operators_with_sub_byte_weights_are_refused(dtype, packed_bytes):
    graph = Graph()
    x = graph.tensor("x", [1, 8])
    kernel = graph.tensor("kernel", [4, 8], dtype, data=bytes(packed_bytes), scale=0.1)
    options, kind = schema.FullyConnectedOptionsT(), schema.BuiltinOptions.FullyConnectedOptions
    y = graph.apply(Op.FULLY_CONNECTED, [x, kernel, -1], [graph.tensor("y", [1, 4])], options, kind)
    graph.inputs, graph.outputs = [x], [graph.apply("FlexErfinv", [y], [graph.tensor("z", [1, 4])])]
    with raises(ModelError, code="sub-byte-with-flex", match="'kernel'.*FlexErfinv"):
        Interpreter(by_hand.model(graph))


def test_a_tensor_named_like_tensorflows_own_operators_runs_on_litert():
    graph = Graph()
    graph.inputs = [graph.tensor("FlexLayer", [1, 3])]
    graph.outputs = [graph.apply(Op.NEG, [0], [graph.tensor("y", [1, 3])])]
    assert Interpreter(by_hand.model(graph)).runtime.startswith("LiteRT ")


def test_a_model_without_tensorflows_operators_runs_on_litert():
    assert Interpreter(by_hand.model(one_operator(Op.FLOOR)), num_threads=2).runtime.endswith("XNNPACK, 2 threads")
    assert Interpreter(by_hand.model(one_operator(Op.FLOOR))).runtime.startswith("LiteRT ")


# Errors


def test_features_of_different_numbers_of_rows_are_refused():
    with raises(ModelError, code="rows", match=r"\[2, 3\]"):
        equality(Type.INT32).predict({"a": np.zeros(2), "b": np.zeros(3)})
    with raises(ModelError, code="rows", match=r"\[0\]"):
        equality(Type.INT32).predict({"a": np.zeros(0), "b": np.zeros(0)})


def test_a_missing_feature_is_refused():
    with raises(ModelError, code="missing-feature", match="'x'"):
        Interpreter(by_hand.model(one_operator(Op.FLOOR))).predict({"z": VALUES})


def test_the_error_of_a_kernel_is_passed_on_with_the_batch():
    graph = Graph()
    x, zero = graph.tensor("x", [-1, 1], Type.INT32), graph.constant("zero", np.zeros((1, 1), np.int32))
    graph.inputs, graph.outputs = [x], [graph.apply(Op.FLOOR_DIV, [x, zero], [graph.tensor("y", [-1, 1], Type.INT32)])]
    with raises(ModelError, code="not-runnable", match=r"x \[2, 1\].*Division by 0"):
        Interpreter(by_hand.model(graph)).predict({"x": np.ones([2, 1])})


@pytest.mark.slow
def test_a_truncated_file_is_refused_and_doesnt_crash(converted, tmp_path):
    """Runs in another process, because the interpreter reads beyond the end of such a file."""
    path = tmp_path / "model.tflite"
    path.write_bytes(converted("int8", "integer"))
    code = """
import sys
from tfx_compression.tflite.interpreter import Interpreter
from tfx_compression.errors import ModelError
content = open(sys.argv[1], "rb").read()
for share in (0.003, 0.1, 0.5, 0.9):
    try:
        Interpreter(content[: int(share * len(content))])
    except ModelError as error:
        print("refused:", error.code)
"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr[-500:]}"
    assert done.stdout.count("refused:") == 4


@pytest.mark.slow  # converts a model
@pytest.mark.skipif(tf.__version__ > "2.20", reason="newer interpreters of TensorFlow lack its own operators")
def test_tensorflows_operators_run_any_number_of_rows(tmp_path):
    specs = [tf.TensorSpec([None, 4], tf.float32, name="x")]
    path = helpers.save_function(lambda x: {"y": tf.math.erf(x) @ tf.ones((4, 3))}, specs, tmp_path / "m")
    content = conversion.to_tflite(path, conversion.ConversionOptions("float32", select_tf_ops=True))
    interpreter = Interpreter(content)
    for rows in (1, 4, 2):
        x = np.linspace(-1, 1, 4 * rows, dtype=np.float32).reshape(rows, 4)
        expected = np.repeat(tf.math.erf(x).numpy().sum(1, keepdims=True), 3, axis=1)
        np.testing.assert_allclose(interpreter.predict({"x": x})["y"], expected, rtol=1e-5)
