"""Predictions of TFLite models against direct calls, for whatever a model takes and returns."""

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import interpreter as litert
from tensorflow.lite.python import schema_py_generated as schema
from tensorflow_model_analysis.api import types as tfma_types
from tfx_compression.errors import ModelError
from tfx_compression.tflite import flatbuffer
from tfx_compression.tflite.interpreter import Interpreter

from tests.support import by_hand, helpers
from tests.support.by_hand import Graph, Op, Type, one_operator
from tests.support.errors import raises

MODES = {
    "float32": np.float32,
    "float16": np.float32,
    "dynamic": np.float32,
    "int8": np.int8,
    "int8 with float io": np.float32,
    "int8 with uint8 io": np.uint8,
    "int16x8": np.int16,
    "int16x8 with float io": np.float32,
}
INT2 = 19  # newer than the schema that comes with TensorFlow 2.16
ADD = (schema.AddOptionsT(), schema.BuiltinOptions.AddOptions)
SUB = (schema.SubOptionsT(), schema.BuiltinOptions.SubOptions)


def convert_int16x8(model, rows: np.ndarray, io: tf.DType, folder) -> bytes:
    spec = tf.TensorSpec([None, *helpers.IMAGE], tf.float32, name="image")
    helpers.save_function(lambda x: {"probabilities": model(x)}, [spec], folder, weights=model.weights)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder), signature_keys=["serving_default"])
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ({"image": row[None]} for row in rows)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8]
    converter.inference_input_type = converter.inference_output_type = io
    return bytes(converter.convert())


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    model, rows = helpers.small_cnn(), helpers.images(50)[0] / helpers.LARGEST
    found = {mode: helpers.to_tflite(model, mode, rows) for mode in ("float32", "float16", "dynamic", "int8")}
    for io in ("float32", "uint8"):
        found[f"int8 with {io.removesuffix('32')} io"] = helpers.to_tflite(model, "int8", rows, io=io)
    found["int16x8"] = convert_int16x8(model, rows, tf.int16, tmp_path_factory.mktemp("int16"))
    found["int16x8 with float io"] = convert_int16x8(model, rows, tf.float32, tmp_path_factory.mktemp("float"))
    return found


def called_directly(content: bytes, images: np.ndarray, reference_kernels: bool) -> np.ndarray:
    """Real numbers in and out of LiteRT, by the formulas of TFLite's quantization specification."""
    kernels = litert.OpResolverType.BUILTIN_REF if reference_kernels else litert.OpResolverType.AUTO
    interpreter = litert.Interpreter(model_content=content, experimental_op_resolver_type=kernels)
    (taken,), (returned,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(taken["index"], images.shape)
    interpreter.allocate_tensors()
    if taken["dtype"] != np.float32:
        scale, zero_point = taken["quantization"]
        steps = (images / np.float32(scale)).astype(np.float64)  # the division is in float32, halves are exact in both
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
def test_predictions_are_those_of_a_direct_call_bit_for_bit(converted, mode, reference_kernels):
    beyond = np.float32(1.7)  # what the quantized models were calibrated on
    images = (helpers.images(64, seed=3)[0] / helpers.LARGEST - np.float32(0.1)) * beyond
    images[:, 0, 0] = 2.0
    interpreter = Interpreter(converted[mode], reference_kernels=reference_kernels)
    assert interpreter.inputs["image"].dtype == interpreter.outputs["probabilities"].dtype == MODES[mode]
    assert ("reference kernels" in interpreter.runtime) == reference_kernels
    assert ("XNNPACK" in interpreter.runtime) != reference_kernels
    for rows in (1, 7, 64, 7):
        found = interpreter.predict({"image": images[:rows]})["probabilities"]
        assert found.dtype == np.float32
        expected = called_directly(converted[mode], images[:rows], reference_kernels)
        np.testing.assert_array_equal(found, expected, strict=True)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_a_models_input_and_output_are_described_as_they_are_stored(converted, mode):
    interpreter = Interpreter(converted[mode])
    taken, returned = interpreter.inputs["image"], interpreter.outputs["probabilities"]
    assert taken.shape == (-1, *helpers.IMAGE)
    assert returned.shape == (-1, helpers.CLASSES)
    assert bool(taken.scale) == bool(returned.scale) == (MODES[mode] != np.float32)
    if mode == "int16x8":
        assert taken.zero_point == returned.zero_point == 0


def test_several_inputs_and_outputs_go_by_their_names_in_the_signature():
    graph = Graph()
    a, b, less, more = (graph.tensor(name, [-1, 2]) for name in "abcd")
    graph.apply(Op.SUB, [a, b], [less], *SUB)
    graph.apply(Op.ADD, [a, b], [more], *ADD)
    graph.inputs, graph.outputs = [a, b], [less, more]
    signature = (0, {"right": b, "left": a}, {"total": more, "difference": less})
    interpreter = Interpreter(by_hand.model(graph, signatures={"serving_default": signature}))
    left, right = np.float32([[1, 2], [3, 4], [5, 6]]), np.float32([[10, 20], [30, 40], [50, 60]])
    found = interpreter.predict({"left": left, "right": right, "unused": np.zeros(3)})
    assert set(found) == {"total", "difference"}
    np.testing.assert_array_equal(found["total"], left + right)
    np.testing.assert_array_equal(found["difference"], left - right)


def two_graphs(*names: str) -> bytes:
    """One signature for each of two graphs whose tensors have the same names and places: floor and negative."""
    graphs = [one_operator(Op.FLOOR), one_operator(Op.NEG)]
    return by_hand.model(
        *graphs, signatures={name: (index, {"x": 0}, {"y": 1}) for index, name in enumerate(names) if name}
    )


VALUES = np.float32([[0.5, 1.5, -2.5], [3.25, -1.0, 0.0]])


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
        "serving_default not the main graph",
        "the only one",
        "the only one, of a side graph",
    ],
)
def test_the_signature_that_runs_is_serving_default_or_the_only_one(names, expected):
    interpreter = Interpreter(two_graphs(*names))
    assert interpreter.has_signature
    for rows in (2, 1, 2):
        found = interpreter.predict({"x": VALUES[:rows]})["y"]
        np.testing.assert_array_equal(found, expected[:rows])
    interpreter.prepare({"x": VALUES})()


def test_two_signatures_none_of_which_is_serving_default_are_refused_by_name():
    with pytest.raises(ModelError, match=r"signatures (score, train|train, score).*none of them is 'serving_default'"):
        Interpreter(two_graphs("score", "train"))


def test_a_signature_of_a_tensor_that_is_not_there_is_refused():
    content = by_hand.model(one_operator(Op.FLOOR), signatures={"serving_default": (0, {"x": 0}, {"y": 57})})
    with pytest.raises(ModelError, match="57"):
        Interpreter(content)


def test_without_a_signature_tensors_go_by_their_own_names_and_none_is_lost():
    graph = Graph()
    x = graph.tensor("serving_default_x:0", [-1, 2])
    outputs = [graph.tensor(name, [-1, 2]) for name in ("model/a/BiasAdd", "model/b/BiasAdd", "model/c/Relu:0")]
    for op, output in zip((Op.FLOOR, Op.NEG, Op.RELU), outputs, strict=True):
        graph.apply(op, [x], [output])
    graph.inputs, graph.outputs = [x], outputs
    interpreter = Interpreter(by_hand.model(graph))
    assert not interpreter.has_signature
    found = interpreter.predict({"x": VALUES[:, :2]})
    assert list(found) == ["model/a/BiasAdd", "model/b/BiasAdd", "Relu"]
    np.testing.assert_array_equal(found["model/b/BiasAdd"], -VALUES[:, :2])


@pytest.mark.parametrize("signature", [True, False], ids=["signature", "no signature"])
@pytest.mark.parametrize("graph", [0, 1], ids=["main graph", "side graph"])
@pytest.mark.parametrize("batch", [1, 4])
def test_a_batch_of_fixed_size_runs_any_number_of_rows(batch, graph, signature):
    graphs = [one_operator(Op.FLOOR, batch=batch), one_operator(Op.NEG, batch=batch)]
    signatures = {"serving_default": (graph, {"x": 0}, {"y": 1})} if signature else {}
    interpreter = Interpreter(by_hand.model(*graphs, signatures=signatures))
    for rows in (1, 4, 7, 64):
        x = np.random.default_rng(rows).normal(size=(rows, 3)).astype(np.float32)
        expected = -x if graph and signature else np.floor(x)
        np.testing.assert_array_equal(interpreter.predict({"x": x})["y"], expected)


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


def test_a_tensor_of_another_graph_has_no_values():
    interpreter = Interpreter(by_hand.model(one_operator(Op.FLOOR)), preserve_tensors=True)
    assert interpreter.tensor_values(7) is None


def equality(dtype: int) -> Interpreter:
    graph = Graph()
    graph.inputs = [graph.tensor("a", [-1], dtype), graph.tensor("b", [-1], dtype)]
    options, kind = schema.EqualOptionsT(), schema.BuiltinOptions.EqualOptions
    graph.outputs = [graph.apply(Op.EQUAL, [0, 1], [graph.tensor("same", [-1], Type.BOOL)], options, kind)]
    return Interpreter(by_hand.model(graph))


@pytest.mark.parametrize("dtype", [object, bytes, str], ids=["objects", "bytes", "text"])
def test_strings_are_taken_as_they_are(dtype):
    a, b = (np.array(values, dtype) for values in (["yes", "", "long enough"], ["yes", "no", "long enough!"]))
    same = equality(Type.STRING).predict({"a": a, "b": b})["same"]
    assert same.tolist() == [True, False, False]


@pytest.mark.parametrize(("dtype", "large"), [(Type.INT32, 2**31 - 1), (Type.INT64, 2**62 + 1)], ids=["int32", "int64"])
def test_integers_are_exact(dtype, large):
    same = equality(dtype).predict({"a": np.array([large, 3, -1]), "b": np.array([large - 1, 3, -1])})["same"]
    assert same.tolist() == [False, True, True]


def test_truths_are_taken_from_numbers_and_returned():
    interpreter = Interpreter(by_hand.model(one_operator(Op.LOGICAL_NOT, dtype=Type.BOOL)))
    found = interpreter.predict({"x": np.array([[1, 0, 1]], np.int64)})["y"]
    assert found.dtype == bool
    assert found.tolist() == [[False, True, False]]


def packed(values: np.ndarray, bits: int) -> bytes:
    """Integers of 2 or 4 bits, the first in the lowest bits of the first byte."""
    total = 0
    for place, value in enumerate(values.ravel()):
        total |= (int(value) % 2**bits) << (place * bits)
    return total.to_bytes(-(-values.size * bits // 8), "little")


def sub_byte_layer(bits: int, scales, activations: int, columns: int = 7) -> tuple[bytes, np.ndarray]:
    """A fully connected layer of `columns` to 3 with weights of a few bits; int8 is `(stored - 3) * 0.05` going in and
    `(stored + 2) * 0.2` coming out.
    """
    limit = 2 ** (bits - 1)
    weights = np.random.default_rng(bits).integers(-limit, limit, (3, columns))
    weights[0, :2] = -limit, limit - 1
    graph = Graph()
    quantized = activations == Type.INT8
    x = graph.tensor("x", [-1, columns], activations, scale=0.05 if quantized else (), zero_point=3)
    stored = Type.INT4 if bits == 4 else INT2
    kernel = graph.tensor("kernel", weights.shape, stored, data=packed(weights, bits), scale=scales)
    y = graph.tensor("y", [-1, 3], activations, scale=0.2 if quantized else (), zero_point=-2)
    options, kind = schema.FullyConnectedOptionsT(), schema.BuiltinOptions.FullyConnectedOptions
    graph.inputs, graph.outputs = [x], [graph.apply(Op.FULLY_CONNECTED, [x, kernel, -1], [y], options, kind)]
    return by_hand.model(graph), weights


# Irrational, so that no sum is half way between two steps, where kernels round differently.
SCALES = {"per tensor": [np.pi / 100], "per channel": [np.pi / 100, np.e / 40, np.sqrt(2) / 120]}


@pytest.mark.parametrize("reference_kernels", [False, True], ids=["XNNPACK", "reference kernels"])
@pytest.mark.parametrize("columns", [7, 8])
@pytest.mark.parametrize("scales", SCALES.values(), ids=SCALES)
@pytest.mark.parametrize("bits", [4, 2])
def test_sub_byte_weights_under_int8_give_what_integer_arithmetic_gives(bits, scales, columns, reference_kernels):
    content, weights = sub_byte_layer(bits, scales, Type.INT8, columns)
    stored = np.random.default_rng(0).integers(-128, 128, (64, columns)).astype(np.int8)
    x = (stored.astype(np.float64) - 3) * 0.05
    found = Interpreter(content, reference_kernels=reference_kernels).predict({"x": x})["y"]
    np.testing.assert_array_equal(found, called_directly(content, x, reference_kernels), strict=True)
    steps = (stored.astype(int) - 3) @ weights.T * (0.05 * np.array(scales) / 0.2) - 2
    expected = np.clip(np.floor(steps + 0.5), -128, 127)
    returned = np.rint(found / np.float32(0.2)) - 2
    if reference_kernels:
        np.testing.assert_array_equal(returned, expected)
    else:  # XNNPACK's sums are up to a hundredth of a step off
        near_half = np.abs(steps - np.floor(steps) - 0.5) < 0.02
        np.testing.assert_array_equal(returned[~near_half], expected[~near_half])
        np.testing.assert_allclose(returned, expected, atol=1)


@pytest.mark.parametrize("columns", [7, 8])
@pytest.mark.parametrize("scales", SCALES.values(), ids=SCALES)
@pytest.mark.parametrize("bits", [4, 2])
def test_sub_byte_weights_under_floats_give_the_product_but_for_the_rounding_of_a_row(bits, scales, columns):
    """Each row is rounded to int8 as the kernel runs: XNNPACK to its range, the reference kernel symmetrically."""
    content, weights = sub_byte_layer(bits, scales, Type.FLOAT32, columns)
    x = np.random.default_rng(0).normal(size=(64, columns)).astype(np.float32)
    real = weights * np.array(scales)[:, None]
    step = np.maximum(np.abs(x).max(1, keepdims=True) / 127, (x.max(1) - x.min(1))[:, None] / 255)
    found = Interpreter(content).predict({"x": x})["y"]
    assert (np.abs(found - x @ real.T) <= step * np.abs(real).sum(1)).all()
    symmetric = np.abs(x).max(1, keepdims=True) / 127
    exact = np.rint(x / symmetric) @ weights.T * symmetric * np.array(scales)
    reference = Interpreter(content, reference_kernels=True).predict({"x": x})["y"]
    np.testing.assert_allclose(reference, exact, atol=1e-5)


@pytest.mark.parametrize("columns", [7, 8])
@pytest.mark.parametrize("scales", SCALES.values(), ids=SCALES)
@pytest.mark.parametrize("bits", [4, 2])
def test_contents_unpack_sub_byte_weights_with_their_scales(bits, scales, columns):
    content, weights = sub_byte_layer(bits, scales, Type.INT8, columns)
    found = flatbuffer.read_contents(content)
    ((name, stored),) = found.weights.items()
    np.testing.assert_array_equal(stored, weights)
    np.testing.assert_allclose(found.real_weights(name), weights * np.float32(scales)[:, None])
    assert found.sparsity == (weights == 0).mean()


@pytest.mark.slow
def test_tensorflows_own_operators_run_on_tensorflows_interpreter(tmp_path):
    spec = tf.TensorSpec([None, 2, 2], tf.float32, name="matrix")
    helpers.save_function(lambda matrix: {"determinant": tf.linalg.det(matrix)}, [spec], tmp_path)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path), signature_keys=["serving_default"])
    converter.target_spec.supported_ops = [tf.lite.OpsSet.SELECT_TF_OPS]
    content = bytes(converter.convert())
    if tf.__version__ >= "2.20":  # whose interpreter has them no longer
        with pytest.raises(ModelError, match="Select TensorFlow op"):
            Interpreter(content)
        return
    interpreter = Interpreter(content)
    assert interpreter.runtime.startswith(f"TensorFlow {tf.__version__} Lite")
    matrices = np.random.default_rng(0).normal(size=(7, 2, 2)).astype(np.float32)
    found = interpreter.predict({"matrix": matrices})["determinant"]
    np.testing.assert_allclose(found, np.linalg.det(matrices), rtol=1e-5)
    with pytest.raises(ModelError, match="Regular TensorFlow ops are not supported"):
        Interpreter(content, reference_kernels=True)


@pytest.mark.parametrize(("dtype", "packed_bytes"), [(Type.INT4, 16), (INT2, 8)], ids=["int4", "int2"])
def test_tensorflows_own_operators_beside_sub_byte_weights_are_refused(dtype, packed_bytes):
    graph = Graph()
    x = graph.tensor("x", [1, 8])
    kernel = graph.tensor("kernel", [4, 8], dtype, data=bytes(packed_bytes), scale=0.1)
    options, kind = schema.FullyConnectedOptionsT(), schema.BuiltinOptions.FullyConnectedOptions
    y = graph.apply(Op.FULLY_CONNECTED, [x, kernel, -1], [graph.tensor("y", [1, 4])], options, kind)
    graph.inputs, graph.outputs = [x], [graph.apply("FlexErfinv", [y], [graph.tensor("z", [1, 4])])]
    with pytest.raises(ModelError, match=r"less than a byte \('kernel'\).*FlexErfinv.*Remedy: mode='int8'"):
        Interpreter(by_hand.model(graph))


def test_a_tensor_that_is_called_like_tensorflows_own_operators_runs_on_litert():
    graph = Graph()
    graph.inputs = [graph.tensor("FlexLayer", [1, 3])]
    graph.outputs = [graph.apply(Op.NEG, [0], [graph.tensor("y", [1, 3])])]
    assert Interpreter(by_hand.model(graph)).runtime.startswith("LiteRT ")


def test_a_model_without_tensorflows_operators_runs_on_litert():
    assert Interpreter(by_hand.model(one_operator(Op.FLOOR)), num_threads=2).runtime.endswith("XNNPACK, 2 threads")
    assert Interpreter(by_hand.model(one_operator(Op.FLOOR))).runtime.startswith("LiteRT ")


RAGGED = tfma_types.RaggedTensorValue(np.float32([1, 2, 3]), [np.array([0, 0, 3])])  # as TFMA has a row without values


@pytest.mark.parametrize(
    ("rows", "code", "place"),
    [
        ({}, "missing-feature", "'x'"),
        ({"z": VALUES}, "missing-feature", "'x'.*: z"),
        ({"x": None}, "incomplete-feature", "'x'"),
        ({"x": np.array([np.zeros(3), None], object)}, "incomplete-feature", "'x'"),
        ({"x": np.array([np.zeros(3), np.zeros(2)], object)}, "incomplete-feature", "'x'"),
        ({"x": RAGGED}, "incomplete-feature", "'x'"),
        ({"x": np.zeros([2, 4])}, "feature-shape", r"'x'.*\(2, 4\).*\(-1, 3\)"),
        ({"x": np.zeros([])}, "feature-shape", "'x'"),
        ({"x": np.zeros([0, 3])}, "rows", r"\[0\]"),
        ({"x": np.array([[b"a", b"b", b"c"]])}, "feature-type", "'x'"),
    ],
)
def test_a_feature_that_does_not_fit_is_named(rows, code, place):
    with raises(ModelError, code=code, match=place):
        Interpreter(by_hand.model(one_operator(Op.FLOOR))).predict(rows)


def test_numbers_for_a_string_input_are_refused():
    with raises(ModelError, code="feature-type", match="'b'"):
        equality(Type.STRING).predict({"a": np.array([b"x"]), "b": np.array([1])})


def test_features_of_different_numbers_of_rows_are_refused():
    with raises(ModelError, code="rows", match=r"\[2, 3\]"):
        equality(Type.INT32).predict({"a": np.zeros(2), "b": np.zeros(3)})


def test_what_a_kernel_refuses_as_it_runs_is_told():
    graph = Graph()
    x, zero = graph.tensor("x", [-1, 1], Type.INT32), graph.constant("zero", np.zeros((1, 1), np.int32))
    graph.inputs, graph.outputs = [x], [graph.apply(Op.FLOOR_DIV, [x, zero], [graph.tensor("y", [-1, 1], Type.INT32)])]
    with pytest.raises(ModelError, match=r"can't run a batch of x \[2, 1\]: Division by 0"):
        Interpreter(by_hand.model(graph)).predict({"x": np.ones([2, 1])})
