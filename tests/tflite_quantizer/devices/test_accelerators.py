"""The rules of each accelerator, on single operators."""

import types
from typing import Any

import pytest
from tfx_compression.tflite_quantizer.devices import core_ml, edge_tpu, gpu, microcontroller, nnapi, xnnpack
from tfx_compression.tflite_quantizer.devices.nodes import Node, NodeTensor


def tensor(shape=(1, 4), dtype="float32", constant=False, values=None, scales=(), blockwise=False) -> NodeTensor:
    zeros = (0,) * len(scales)
    return NodeTensor("t", dtype, tuple(shape), constant, values, tuple(scales), zeros, blockwise)


def weights(*shape: int, dtype="float32", scales=(), blockwise=False) -> NodeTensor:
    return tensor(shape, dtype, constant=True, scales=scales, blockwise=blockwise)


def integers(*values: int) -> NodeTensor:
    return tensor((len(values),), "int32", constant=True, values=values)


def node(op: str, *inputs: NodeTensor | None, output=None, version=1, activation="NONE", custom=False, **options: Any):
    outputs = output if isinstance(output, tuple) else (output or tensor(),)
    fields = types.SimpleNamespace(**options)
    return Node(0, op, "layer", version, custom, fields, activation, inputs or (tensor(),), outputs)


IMAGE = tensor((1, 8, 8, 3))
KERNEL = weights(4, 3, 3, 3)
BIAS = weights(4)
SIZES = integers(8, 8)
COMPUTED = tensor((2,), "int32")
HALF_KERNEL = node("DEQUANTIZE", weights(4, 3, dtype="float16"), output=tensor((4, 3)))
INT8 = {"output": tensor(dtype="int8", scales=(0.1,))}


def int8(*shape: int) -> NodeTensor:
    return tensor(shape, "int8", scales=(0.1,))


def assert_rule(accelerator, operator: Node, reason: str | None) -> None:
    """Asserts that the accelerator takes an operator (None), or that its reason contains a text."""
    (verdict,) = accelerator.judge([operator]).ops
    assert verdict.mapped == (reason is None), verdict.reason
    assert (reason or "") in verdict.reason


CORE_ML = [
    (HALF_KERNEL, None),
    (node("RESHAPE"), "Core ML 2"),
    (node("GATHER"), "not an operator"),
    (node("RELU", int8(1, 4)), "int8"),
    (node("TRANSPOSE_CONV", SIZES, KERNEL), "absent"),
    (node("RELU", version=2), "version 2"),
    (node("MAX_POOL_2D", IMAGE, activation="RELU"), "RELU"),
    (node("CONCATENATION", IMAGE, IMAGE, axis=3), None),
    (node("CONCATENATION", IMAGE, IMAGE, axis=1), "along axis 1"),
    (node("CONV_2D", IMAGE, KERNEL, BIAS), None),
    (node("CONV_2D", IMAGE, IMAGE), "not constant"),
    (node("CONV_2D", IMAGE, weights(4, 20_000, 3, 3)), "20000"),
    (node("FULLY_CONNECTED", tensor(), weights(2, 4)), None),
    (node("FULLY_CONNECTED", tensor(), weights(2, 4, dtype="int8")), "int8 weights"),
    (node("FULLY_CONNECTED", tensor((3, 4)), weights(2, 4)), "[3, 4]"),
    (node("SOFTMAX", beta=1.0), None),
    (node("SOFTMAX", beta=2.0), "2.0"),
    (node("PAD", IMAGE, integers(0, 0, 1, 1, 1, 1, 0, 0)), None),
    (node("PAD", IMAGE, integers(1, 0, 1, 1, 1, 1, 0, 0)), "pads"),
    (node("PAD", IMAGE, COMPUTED), "pads"),
    (node("MEAN", IMAGE, integers(1, 2), keepDims=True), None),
    (node("MEAN", IMAGE, integers(1, 2), keepDims=False), "keepdims"),
    (node("RESIZE_BILINEAR", IMAGE, COMPUTED), "not constant"),
    (node("RESIZE_BILINEAR", IMAGE, SIZES), None),
    (node("ADD", IMAGE, tensor((3,))), None),
    (node("ADD", IMAGE, tensor((1, 8, 1, 3))), "broadcast"),
    (node("ADD", tensor((1,) * 5), tensor((1,))), "broadcast"),
    (node("Mine", custom=True), "custom"),
]
GPU = [
    (node("CONV_2D", IMAGE, KERNEL), None),
    (node("SEGMENT_SUM"), "not an operator"),
    (HALF_KERNEL, None),
    (node("RELU", version=3), "version 3"),
    (node("ABS", version=9), None),  # the delegate doesn't check
    (node("ABS", tensor(dtype="int16")), "int16"),
    (node("CAST", tensor(dtype="int32")), None),
]
NNAPI = [
    (node("RELU"), None),
    (node("GELU"), "Android 11"),
    (node("RELU", version=3), "version 3"),
    (HALF_KERNEL, "float16"),
    (node("DEQUANTIZE", weights(4, 3, dtype="int8"), output=tensor((4, 3))), None),
    (node("EXP", int8(1, 4), **INT8), "int8"),
    (node("CAST", tensor(dtype="int16")), None),
    (node("ADD", tensor((1,) * 5)), "5 dimensions"),
    (node("CONCATENATION", IMAGE, IMAGE, activation="RELU"), "RELU"),
    (node("RESHAPE", IMAGE, COMPUTED), "not constant"),
    (node("RESHAPE", IMAGE, integers(1, 192)), None),
]
XNNPACK = [
    (HALF_KERNEL, None),
    (node("GATHER"), "not an operator"),
    (node("ADD", tensor(), tensor(), activation="TANH"), "TANH"),
    (node("MEAN", IMAGE, COMPUTED), "input 1"),
    (node("RELU", tensor(dtype="int16")), "int16"),
    (node("ADD", tensor(dtype="int64"), tensor()), "int64"),
    (node("SOFTMAX", int8(1, 4), beta=1.0, **INT8), "int8"),
    (node("ADD", tensor(dtype="int8", scales=(0.1, 0.2)), int8(1, 4), **INT8), "scale per channel"),
    (node("ADD", tensor(), tensor(dtype="int8", scales=(0.1,))), "float32, int8"),
    (node("MUL", tensor(), weights(4, dtype="float16")), "float16"),
    (node("SOFTMAX", beta=2.0), "2.0"),
    (node("CONCATENATION", *[tensor()] * 6), "6 inputs"),
    (node("SPLIT", integers(1), tensor(), output=(tensor(),) * 5), "5 outputs"),
    (
        node(
            *("STRIDED_SLICE", IMAGE, integers(0), integers(1), integers(1)),
            **{"ellipsisMask": 0, "newAxisMask": 0, "shrinkAxisMask": 1},
        ),
        "shrink axis",
    ),
    (
        node(
            *("STRIDED_SLICE", IMAGE, integers(0), integers(1), integers(2)),
            **{"ellipsisMask": 0, "newAxisMask": 0, "shrinkAxisMask": 0},
        ),
        "[2]",
    ),
    (node("QUANTIZE", tensor(), **INT8), None),
    (node("QUANTIZE", int8(1, 4), output=tensor(dtype="uint8", scales=(0.1,))), "uint8"),
    (node("QUANTIZE", int8(1, 4), output=tensor(dtype="int8", scales=(0.0001,))), "1000"),
    (node("QUANTIZE", int8(1, 4), output=tensor(dtype="int8", scales=(0.2,))), None),
    (node("RESHAPE", int8(1, 4), integers(4), output=tensor(dtype="int8", scales=(0.2,))), "scale or zero point"),
    (node("LEAKY_RELU", alpha=0.0), "slope"),
    (node("LEAKY_RELU", alpha=0.1), None),
    (node("CONV_2D", IMAGE, None, BIAS), "no weights"),
    (node("CONV_2D", IMAGE, KERNEL, None), "no bias"),
    (node("CONV_2D", IMAGE, KERNEL, tensor((4,))), "bias is not constant"),
    (node("CONV_2D", IMAGE, tensor((4, 3, 3, 3)), BIAS), "weights are not constant"),
    (node("FULLY_CONNECTED", tensor(), tensor((2, 4)), None), None),
    (node("FULLY_CONNECTED", tensor(), weights(2, 4, dtype="int4"), None), None),
    (node("FULLY_CONNECTED", tensor(), weights(2, 5, dtype="int4"), None), "5 inputs"),
    (node("CONV_2D", IMAGE, weights(4, 3, 3, 3, dtype="int4"), BIAS), "FULLY_CONNECTED only"),
    (node("CONV_2D", IMAGE, weights(4, 3, 3, 3, dtype="int8", scales=(0.1,)), BIAS), None),
    (node("CONV_2D", IMAGE, weights(4, 3, 3, 3, dtype="int8"), BIAS), "without a scale"),
    (node("DEPTHWISE_CONV_2D", IMAGE, weights(1, 3, 3, 3, dtype="int8"), BIAS), "int8 weights under float32"),
]
EDGE_TPU = [
    (node("DEQUANTIZE", int8(1, 4)), "floats"),
    (node("QUANTIZE", tensor(), **INT8), "floats"),
    (node("RELU", int8(1, -1), **INT8), "[1, -1]"),
    (node("CONV_2D", int8(1, 8, 8, 3), int8(1, 3, 3, 3), **INT8), "not constant"),
    (node("CONV_2D", int8(1, 8, 8, 3), weights(4, 3, 3, 3, dtype="int4"), **INT8), "int4 weights"),
    (node("MAX_POOL_2D", int8(1, 8, 8, 3), activation="RELU", **INT8), "RELU"),
    (node("CONCATENATION", int8(1, 4), weights(1, 4, dtype="int8"), **INT8), "constant"),
    (
        node(
            *("CONV_2D", int8(1, 8, 8, 3), weights(4, 3, 3, 3, dtype="int8")),
            **{"dilationWFactor": 1, "dilationHFactor": 2, **INT8},
        ),
        "dilation 2 by 1",
    ),
    (node("FULLY_CONNECTED", int8(1, 4), weights(2, 4, dtype="int8"), weightsFormat=1, **INT8), "shuffled"),
    (
        node("FULLY_CONNECTED", int8(1, 4), weights(2, 4, dtype="int8"), weightsFormat=0, output=int8(3, 2)),
        "[3, 2]",
    ),
    (node("MEAN", int8(1, 8, 8, 3), **INT8), "not constant"),
    (node("PACK", int8(1, 4), axis=0, **INT8), "batch"),
    (node("SPLIT", integers(0), int8(1, 4), **INT8), "batch"),
    (node("SPLIT", integers(1), int8(1, 4), **INT8), None),
    (node("PRELU", int8(1, 8, 8, 3), weights(8, 8, 3, dtype="int8"), **INT8), "[8, 8, 3]"),
    (node("RESIZE_BILINEAR", int8(1, 8, 8, 3), **INT8), "not constant"),
    (node("STRIDED_SLICE", int8(1, 4), integers(0), integers(1), integers(2), **INT8), "strides"),
    (
        node(
            *("STRIDED_SLICE", int8(1, 4), integers(0), integers(1), integers(1)),
            **{"ellipsisMask": 1, "newAxisMask": 0, **INT8},
        ),
        "ellipsis",
    ),
]
MICROCONTROLLER = [
    (node("CONV_2D", IMAGE, KERNEL), None),
    (node("SignalRfft", custom=True), None),
    (node("FULLY_CONNECTED", tensor(), weights(2, 4, dtype="int8")), "int8 weights under float"),
    (node("FULLY_CONNECTED", int8(1, 4), weights(2, 4, dtype="int4"), **INT8), None),
    (node("FULLY_CONNECTED", int8(1, 4), weights(2, 4, dtype="int4", blockwise=True), **INT8), "int4"),
    (node("TRANSPOSE_CONV", SIZES, weights(4, 2, 2, 3, dtype="int4"), int8(1, 8, 8, 3), **INT8), "int4"),
    (node("NEG", tensor(dtype="string")), "string"),
]


@pytest.mark.parametrize(("operator", "reason"), CORE_ML)
def test_core_ml(operator, reason):
    assert_rule(core_ml.ACCELERATOR, operator, reason)


@pytest.mark.parametrize(("operator", "reason"), GPU)
def test_gpu(operator, reason):
    assert_rule(gpu.ACCELERATOR, operator, reason)


@pytest.mark.parametrize(("operator", "reason"), NNAPI)
def test_nnapi(operator, reason):
    assert_rule(nnapi.ACCELERATOR, operator, reason)


@pytest.mark.parametrize(("operator", "reason"), XNNPACK)
def test_xnnpack(operator, reason):
    assert_rule(xnnpack.ACCELERATOR, operator, reason)


@pytest.mark.parametrize(("operator", "reason"), EDGE_TPU)
def test_edge_tpu(operator, reason):
    assert_rule(edge_tpu.ACCELERATOR, operator, reason)


@pytest.mark.parametrize(("operator", "reason"), MICROCONTROLLER)
def test_microcontroller(operator, reason):
    assert_rule(microcontroller.ACCELERATOR, operator, reason)
