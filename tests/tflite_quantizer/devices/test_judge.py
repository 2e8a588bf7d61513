"""Verdicts against the runtimes on this machine, as far as they tell, and against the rules."""

import re

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import interpreter as litert
from tensorflow.lite.python import schema_py_generated as schema
from tfx_compression.errors import ModelError
from tfx_compression.tflite import conversion, flatbuffer
from tfx_compression.tflite.contents import read_contents
from tfx_compression.tflite_quantizer.devices.judge import judge
from tfx_compression.tflite_quantizer.devices.targets import TARGETS

from tests.support import by_hand, helpers
from tests.support.by_hand import Graph, Op, Type

PICTURE = (1, 16, 16, 3)
IO = {"int8": tf.int8, "int8 with float io": tf.float32, "int8 with uint8 io": tf.uint8, "int16x8": tf.int16}


def converted(function, shape, mode: str = "float32") -> bytes:
    """Returns the TFLite model of a function of one tensor, by TensorFlow's converter."""
    module = tf.Module()
    module.call = tf.function(function, input_signature=[tf.TensorSpec(shape, tf.float32, name="x")])
    converter = tf.lite.TFLiteConverter.from_concrete_functions([module.call.get_concrete_function()], module)
    if mode != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if mode == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if mode in IO:
        sizes = [size or 1 for size in shape]
        rows = np.random.default_rng(0).uniform(-1, 1, (8, *sizes)).astype(np.float32)
        converter.representative_dataset = lambda: ([row] for row in rows)
        ops = tf.lite.OpsSet
        converter.target_spec.supported_ops = [
            ops.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
            if mode == "int16x8"
            else ops.TFLITE_BUILTINS_INT8
        ]
        converter.inference_input_type = converter.inference_output_type = IO[mode]
    return bytes(converter.convert())


def weights(*shape: int) -> tf.Tensor:
    return tf.constant(np.random.default_rng(1).normal(size=shape).astype(np.float32) * 0.3)


def convolution(x, channels: int = 8, strides: int = 1):
    return tf.nn.conv2d(x, weights(3, 3, x.shape[-1], channels), strides, "SAME") + weights(channels)


def dense(x, columns: int):
    return tf.matmul(x, weights(x.shape[-1], columns)) + weights(columns)


def mobile_net(x):
    """Convolutions, a depthwise one, a residual sum, a mean and a softmax, as in MobileNetV2."""
    x = tf.nn.relu6(convolution(x, strides=2))
    y = tf.nn.relu6(tf.nn.depthwise_conv2d(x, weights(3, 3, 8, 1), [1] * 4, "SAME") + weights(8))
    y = tf.nn.conv2d(y, weights(1, 1, 8, 8), 1, "SAME") + weights(8)
    x = tf.reduce_mean(x + y, [1, 2])
    return tf.nn.softmax(dense(x, 5))


def cut_in_the_middle(x):
    """A leaky ReLU, which the Edge TPU doesn't have, between two convolutions."""
    x = tf.nn.leaky_relu(convolution(x), 0.3)
    return tf.nn.relu(convolution(x, 4))


def delegated(content: bytes) -> list[int]:
    """Returns the tensors that XNNPACK hands back to LiteRT's interpreter."""
    interpreter = litert.Interpreter(model_content=content)
    interpreter.allocate_tensors()
    # no public function tells what was delegated
    parts = [entry for entry in interpreter._get_ops_details() if entry["op_name"] == "DELEGATE"]
    return sorted(int(tensor) for part in parts for tensor in part["outputs"])


def predicted(content: bytes) -> list[int]:
    """Returns the same tensors according to the verdict."""
    (actual,) = judge(content, "cpu").delegates
    model = flatbuffer.parse(content)
    segment, number = {}, 0
    for before, verdict in zip([None, *actual.ops], actual.ops, strict=False):
        number += verdict.mapped and not (before is not None and before.mapped)
        segment[verdict.index] = number if verdict.mapped else 0
    assert number == actual.segments
    operators = flatbuffer.operators(model)
    leaving = {int(tensor) for tensor in model.subgraphs[0].outputs}
    constants = {
        operator.outputs[0]
        for operator in operators
        if operator.op == "DEQUANTIZE"
        and model.buffers[model.subgraphs[0].tensors[operator.inputs[0]].buffer].data is not None
    }
    makers = {tensor: operator.index for operator in operators for tensor in operator.outputs}
    for operator in operators:
        leaving |= {
            tensor
            for tensor in operator.inputs
            if tensor in makers and segment[makers[tensor]] != segment[operator.index]
        }
    return sorted(tensor for tensor in leaving - constants if tensor in makers and segment[makers[tensor]])


NETS = {
    "MobileNet": (mobile_net, PICTURE),
    "cut": (cut_in_the_middle, PICTURE),
    "any number of rows": (mobile_net, (None, *PICTURE[1:])),
    "wide": (lambda x: dense(tf.nn.relu(dense(x, 64)), 64), (1, 64)),  # large enough for mode dynamic to quantize
    "dense": (lambda x: dense(tf.nn.tanh(dense(x, 8)), 3), (1, 6)),
    "pools": (lambda x: tf.nn.max_pool2d(tf.nn.avg_pool2d(x, 2, 2, "SAME"), 2, 2, "SAME"), PICTURE),
    "argument": (lambda x: tf.argmax(tf.nn.relu(dense(x, 4)), 1, output_type=tf.int32), (1, 6)),
    "transposed": (
        lambda x: tf.nn.conv2d_transpose(x, weights(2, 2, 4, 3), [1, 32, 32, 4], 2) + weights(4),
        PICTURE,
    ),
    "resized": (lambda x: tf.image.resize(x, (32, 32)) * 0.5, PICTURE),
    "nearest": (lambda x: tf.image.resize(tf.nn.relu(convolution(x)), (32, 32), "nearest"), PICTURE),
    "split": (lambda x: tf.concat(tf.split(x, 3, -1)[::-1], -1), PICTURE),
    "padded": (lambda x: tf.pad(tf.transpose(x, [0, 2, 1, 3]), [[0, 0], [1, 1], [2, 2], [0, 0]]), PICTURE),
    "strided": (lambda x: x[:, ::2, 1:], PICTURE),
    "sliced": (lambda x: tf.slice(x, [0, 1, 1, 0], [1, 4, 4, 3]), PICTURE),
    "depth": (lambda x: tf.nn.depth_to_space(tf.nn.space_to_depth(x, 2), 2), PICTURE),
    "functions": (lambda x: tf.sqrt(tf.exp(tf.abs(tf.sin(x)))) / 2.0, PICTURE),
    "elu": (lambda x: tf.nn.elu(tf.sigmoid(x)), PICTURE),
    "swish": (lambda x: x * tf.nn.relu6(x + 3.0) / 6.0, PICTURE),
    "maximum": (lambda x: tf.maximum(tf.minimum(x, 0.5), -0.5 * x), PICTURE),
    "sums": (lambda x: tf.reduce_max(tf.reduce_sum(x, -1), 1), PICTURE),
    "softmax": (lambda x: tf.nn.log_softmax(x) - tf.nn.softmax(x), (1, 6)),
    "square": (lambda x: tf.math.squared_difference(x, 0.3 * x) + tf.square(x), PICTURE),
}


MODES = [(net, mode) for net in NETS for mode in ("float32", "int8")] + [
    (net, mode)
    for net in ("MobileNet", "wide")
    for mode in ("float16", "dynamic", "int8 with float io", "int8 with uint8 io", "int16x8")
]


@pytest.mark.slow
@pytest.mark.parametrize(("net", "mode"), MODES, ids=[f"{net} {mode}" for net, mode in MODES])
def test_xnnpack_runs_the_operators_of_the_verdict(net, mode):
    content = converted(*NETS[net], mode)
    assert predicted(content) == delegated(content)


@pytest.fixture(scope="module")
def models():
    actual = {mode: converted(mobile_net, PICTURE, mode) for mode in ("float32", "float16", *IO)}
    actual["free"] = converted(mobile_net, (None, *PICTURE[1:]), "int8")
    actual["dynamic"] = converted(*NETS["wide"], "dynamic")
    actual["cut"] = converted(cut_in_the_middle, PICTURE, "int8")
    return actual


@pytest.mark.slow
def test_the_edge_tpu_runs_a_static_int8_mobile_net(models):
    verdict = judge(models["int8"], "edge_tpu")
    (actual,) = verdict.delegates
    assert verdict.runs
    assert not verdict.problems
    assert actual.mapped == len(actual.ops) == len(flatbuffer.operators(flatbuffer.parse(models["int8"])))
    assert actual.segments == 1
    assert not actual.cut


@pytest.mark.slow
def test_float_conversions_at_the_ends_do_not_cut_the_graph(models):
    verdict = judge(models["int8 with float io"], "edge_tpu")
    (actual,) = verdict.delegates
    assert verdict.runs
    assert not actual.cut
    assert [op.op for op in actual.ops if not op.mapped] == ["QUANTIZE", "DEQUANTIZE"]
    assert actual.segments == 1


@pytest.mark.slow
def test_the_edge_tpu_maps_nothing_after_an_unsupported_operator(models):
    verdict = judge(models["cut"], "edge_tpu")
    (actual,) = verdict.delegates
    assert verdict.runs
    assert [(op.op, op.mapped) for op in actual.ops] == [("CONV_2D", True), ("LEAKY_RELU", False), ("CONV_2D", False)]
    assert "not an operator of the Edge TPU" in actual.ops[1].reason
    assert actual.ops[2].reason.startswith("after the cut at operator 1, LEAKY_RELU of ")
    assert actual.cut.startswith("operator 1, LEAKY_RELU of ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("free", r"operator 0, .*\[-1, 16, 16, 3\].*batch_size=1"),
        ("float32", r"\(CONV_2D of .*float32 tensor.*mode='int8'"),
        ("int16x8", r"\(CONV_2D of .*int16 tensor"),
    ],
)
def test_the_edge_tpu_refuses_free_sizes_and_other_types(models, model, message):
    verdict = judge(models[model], "edge_tpu")
    assert not verdict.runs
    (problem,) = verdict.problems
    assert re.search(message, problem)


@pytest.mark.slow
def test_xnnpack_leaves_int16_activations_to_tflites_kernels(models):
    verdict = judge(models["int16x8"], "cpu")
    assert verdict.runs
    assert verdict.delegates[0].mapped == 0
    assert "int16" in verdict.delegates[0].cut


@pytest.mark.slow
def test_core_ml_runs_floats_and_halves_but_no_integers(models):
    taken = {mode: judge(models[mode], "ios_coreml").delegates[0] for mode in ("float32", "float16", "int8")}
    assert taken["float32"].mapped == len(taken["float32"].ops) - sum(op.op == "MEAN" for op in taken["float32"].ops)
    assert taken["float16"].mapped == len(taken["float16"].ops) - sum(op.op == "MEAN" for op in taken["float16"].ops)
    assert taken["int8"].mapped == 0
    assert {op.reason for op in taken["int8"].ops} >= {"input is int8, not float32"}
    assert judge(models["int8"], "ios_coreml").runs


@pytest.mark.slow
def test_android_delegates_run_floats_and_int8_but_not_int16(models):
    for mode in ("float32", "int8"):
        for actual in judge(models[mode], "android_nnapi_gpu").delegates:
            assert actual.mapped == len(actual.ops), actual
    graphics, neural = judge(models["int16x8"], "android_nnapi_gpu").delegates
    assert graphics.mapped == neural.mapped == 0
    graphics, neural = judge(models["dynamic"], "android_nnapi_gpu").delegates
    assert graphics.mapped >= neural.mapped  # neither supports the operator versions of newer converters


@pytest.mark.slow
def test_a_microcontroller_runs_neither_halves_nor_dynamic_range(models):
    for mode, runs in {"float32": True, "int8": True, "int16x8": True, "float16": False, "dynamic": False}.items():
        verdict = judge(models[mode], "microcontroller")
        assert verdict.runs == runs, verdict.problems
        assert all("Remedy: " in problem for problem in verdict.problems)


def one(op, dtype: int = Type.FLOAT32, shape=(1, 3)) -> bytes:
    graph = Graph()
    graph.inputs = [graph.tensor("x", shape, dtype)]
    graph.outputs = [graph.apply(op, [0], [graph.tensor("layer/y", shape, dtype)])]
    return by_hand.model(graph)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            one(Op.SEGMENT_SUM),
            "operator 0, SEGMENT_SUM of 'layer': no kernel in TensorFlow Lite Micro. Remedy: other operators",
        ),
        (one("Mine"), "operator 0, Mine of 'layer': no kernel in TensorFlow Lite Micro"),
        (one(Op.NEG, Type.FLOAT16), "float16 tensor 'x'. Remedy: mode="),
        (one(Op.NEG, shape=(1, -1)), "'x' has a free size beside the batch: [1, -1]. Remedy: fixed sizes"),
    ],
)
def test_a_missing_kernel_is_named_with_the_remedy(content, message):
    verdict = judge(content, "microcontroller")
    assert not verdict.runs
    assert message in verdict.problems[0]


def test_a_microcontroller_needs_kernels_for_every_graph_of_the_file():
    graphs = [by_hand.one_operator(Op.NEG), by_hand.one_operator(Op.SEGMENT_SUM)]
    assert "SEGMENT_SUM" in judge(by_hand.model(*graphs), "microcontroller").problems[0]
    assert judge(by_hand.model(graphs[0]), "microcontroller").runs


@pytest.mark.parametrize("target", TARGETS)
def test_an_arena_above_the_limit_is_a_problem(target):
    content = one(Op.RELU, Type.INT8, (1, 1000))
    needed = read_contents(content).arena_bytes
    assert needed >= 2000  # input and output live at once
    held, broken = judge(content, target, needed), judge(content, target, needed - 1)
    assert held.runs
    assert not broken.runs
    assert held.arena_bytes == broken.arena_bytes == needed == broken.max_arena_bytes + 1
    assert f"{needed} bytes" in broken.problems[0] and f"max_arena_bytes={needed - 1}" in broken.problems[0]
    assert "Remedy: " in broken.problems[0]


def integers(op, shape, returned, *, options=None, kind=0, constants=()) -> bytes:
    """Returns an int8 operator on one tensor and constants."""
    graph = Graph()
    x = graph.tensor("x", shape, Type.INT8, scale=0.1)
    more = [graph.constant(f"c{place}", np.asarray(values, np.int32)) for place, values in enumerate(constants)]
    y = graph.tensor("y", returned, Type.INT8, scale=0.1)
    graph.inputs, graph.outputs = [x], [graph.apply(op, [x, *more], [y], options, kind)]
    return by_hand.model(graph)


def softmax(*shape) -> bytes:
    options = schema.SoftmaxOptionsT()
    options.beta = 1.0
    return integers(Op.SOFTMAX, shape, shape, options=options, kind=schema.BuiltinOptions.SoftmaxOptions)


def mean(shape, returned, axes) -> bytes:
    options, kind = schema.ReducerOptionsT(), schema.BuiltinOptions.ReducerOptions
    return integers(Op.MEAN, shape, returned, options=options, kind=kind, constants=[axes])


def pad(before_batch: int) -> bytes:
    return integers(Op.PAD, (1, 4), (1 + before_batch, 6), constants=[[[before_batch, 0], [1, 1]]])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (softmax(1, 16000), ""),
        (softmax(1, 16001), "16001 elements"),
        (softmax(1, 2, 8), "[1, 2, 8]"),
        (one(Op.RELU, Type.INT8, (1, 128, 128, 3)), ""),
        (one(Op.RELU, Type.INT8, (3, 128, 128, 1)), "'x' has shape [3, 128, 128, 1]"),
        (mean((1, 4, 4, 3), (1, 3), [1, 2]), ""),
        (mean((1, 4, 4, 3), (1, 4, 4), [3]), "a mean over 3 channels"),
        (mean((1, 4, 4, 8), (1, 4, 4), [-1]), ""),
        (mean((1, 4, 4, 3), (4, 4, 3), [0]), "reduces the batch dimension"),
        (pad(0), ""),
        (pad(1), "pads the batch"),
        (integers(Op.SQUEEZE, (1, 1, 10), (10,)), ""),
        (integers(Op.SQUEEZE, (1, 5, 1, 10), (5, 10)), "[1, 5, 1, 10]"),
    ],
)
def test_known_limitations_of_the_edge_tpu(content, reason):
    (verdict,) = judge(content, "edge_tpu").delegates[0].ops
    assert verdict.mapped == (not reason)
    assert reason in verdict.reason


def packed_and_flex() -> bytes:
    """Returns a layer of 4-bit weights, followed by an operator of TensorFlow's own."""
    graph = Graph()
    x = graph.tensor("x", [1, 8], Type.FLOAT32)
    kernel = graph.tensor("kernel", [4, 8], Type.INT4, data=bytes(16), scale=0.1)
    options, kind = schema.FullyConnectedOptionsT(), schema.BuiltinOptions.FullyConnectedOptions
    y = graph.apply(Op.FULLY_CONNECTED, [x, kernel, -1], [graph.tensor("y", [1, 4])], options, kind)
    graph.inputs, graph.outputs = [x], [graph.apply("FlexErfinv", [y], [graph.tensor("z", [1, 4])])]
    return by_hand.model(graph)


def test_no_runtime_supports_both_sub_byte_weights_and_flex_operators():
    verdict = judge(packed_and_flex(), "cpu")
    assert not verdict.runs
    assert "FlexErfinv" in verdict.problems[0]
    assert "'kernel'" in verdict.problems[0]
    assert "Flex delegate" in verdict.runtime
    assert "int4" in verdict.runtime


def test_convolutions_with_2_bit_weights_are_refused():
    graph = Graph()
    x = graph.tensor("x", [1, 1, 1, 8], Type.FLOAT32)
    kernel = graph.tensor("kernel", [4, 1, 1, 8], 19, data=bytes(8), scale=0.1)
    bias = graph.tensor("bias", [4], Type.FLOAT32, data=bytes(16))
    options, kind = schema.Conv2DOptionsT(), schema.BuiltinOptions.Conv2DOptions
    y = graph.apply(Op.CONV_2D, [x, kernel, bias], [graph.tensor("y", [1, 1, 1, 4])], options, kind)
    graph.inputs, graph.outputs = [x], [y]
    (problem,) = judge(by_hand.model(graph), "cpu").problems
    assert "CONV_2D" in problem and "'int4'" in problem


@pytest.mark.slow
def test_flex_operators_in_loops_need_the_flex_delegate(tmp_path):
    def function(x):
        return {"y": tf.while_loop(lambda i, _: i < 2, lambda i, m: (i + 1, tf.linalg.inv(m)), (0, x))[1]}

    path = helpers.save_function(function, [tf.TensorSpec([1, 2, 2], tf.float32, "x")], tmp_path / "loop")
    content = conversion.to_tflite(path, conversion.ConversionOptions("float32", select_tf_ops=True))
    assert "Flex delegate" in judge(content, "cpu").runtime
    assert conversion.flex_operators(content) == {"FlexMatrixInverse": ("while",)}


def test_a_custom_operator_runs_only_if_tensorflow_has_it():
    for target in ("cpu", "android_nnapi_gpu", "ios_coreml"):
        assert "Remedy: " in judge(one("Mine"), target).problems[0]
        verdict = judge(one("FlexErfinv"), target)
        assert verdict.runs
        assert verdict.runtime == "TensorFlow Lite with the Flex delegate (SELECT_TF_OPS)"


@pytest.mark.slow
def test_the_runtime_version_is_the_converters(models):
    runtime = judge(models["int8"], "cpu").runtime
    assert re.fullmatch(r"TensorFlow Lite \d+\.\d+\.\d+ or newer, or LiteRT", runtime)
    assert judge(one(Op.NEG), "cpu").runtime == "TensorFlow Lite or LiteRT"


def test_other_content_is_refused():
    with pytest.raises(ModelError):
        judge(b"nothing of the kind", "cpu")
