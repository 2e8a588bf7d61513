"""The operators that XNNPACK runs for TFLite's interpreter on a CPU. TFLite's own kernels run the others."""

from tfx_compression.tflite_quantizer.devices.accelerator import Accelerator
from tfx_compression.tflite_quantizer.devices.nodes import SUB_BYTE, Node, NodeTensor

_FLOAT = {
    *("ABS", "CEIL", "COS", "EXP", "FLOOR", "GELU", "HARD_SWISH", "LOG", "NEG", "RELU", "RELU6", "RELU_N1_TO_1"),
    *("ROUND", "RSQRT", "SIN", "SQRT", "SQUARE", "DIV", "MAXIMUM", "MINIMUM", "PRELU", "SQUARED_DIFFERENCE"),
    *("AVERAGE_POOL_2D", "SOFTMAX"),
}
_FLOAT_AND_INT8 = {
    *("ADD", "MUL", "SUB", "ELU", "LOGISTIC", "TANH", "LEAKY_RELU", "CONCATENATION", "DEPTH_TO_SPACE", "EXPAND_DIMS"),
    *("MAX_POOL_2D", "MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "PAD", "RESHAPE", "RESIZE_BILINEAR", "SLICE"),
    *("SPACE_TO_DEPTH", "SPLIT", "STRIDED_SLICE", "TRANSPOSE", "QUANTIZE", "DEQUANTIZE", "BATCH_MATMUL"),
}
_BIAS = {"CONV_2D": 2, "DEPTHWISE_CONV_2D": 2, "FULLY_CONNECTED": 2, "TRANSPOSE_CONV": 3}  # input that holds the bias
_CONSTANT_INPUTS = {
    **dict.fromkeys(("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "PAD", "RESHAPE", "RESIZE_BILINEAR"), (1,)),
    **dict.fromkeys(("TRANSPOSE", "EXPAND_DIMS"), (1,)),
    "SLICE": (1, 2),
    "STRIDED_SLICE": (1, 2, 3),
    "SPLIT": (0,),
    "TRANSPOSE_CONV": (0,),
}
_ACTIVATIONS = ("NONE", "RELU", "RELU_N1_TO_1", "RELU6")
_DYNAMIC = ("CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")  # int8 weights, activations quantized at run time


def _reason(node: Node) -> str:
    """Returns why XNNPACK doesn't run an operator; empty if it does."""
    if node.folded:
        return ""
    if node.op not in _FLOAT | _FLOAT_AND_INT8 | set(_BIAS):
        return "not an operator of XNNPACK"
    if node.activation not in _ACTIVATIONS:
        return f"fused activation {node.activation}; supported: {', '.join(_ACTIVATIONS)}"
    for place in _CONSTANT_INPUTS.get(node.op, ()):
        tensor = node.input(place)
        if tensor is not None and not tensor.constant:
            return f"input {place}, {tensor.name!r}, is not constant"
    return _types(node) or _options(node) or _weights(node)


def _types(node: Node) -> str:
    for tensor in node.computed:
        if tensor.dtype == "int16":
            return "int16 activations: TFLite's own kernels run them, many of which are reference kernels"
        if tensor.dtype not in ("float32", "float16", "int8", "uint8"):
            return f"{tensor.dtype} tensor {tensor.name!r}; supported: float32 and int8"
        if tensor.dtype in ("int8", "uint8") and node.op in _FLOAT:
            return f"{tensor.dtype}: supported in floats only"
        if len(tensor.scales) > 1:
            return f"{tensor.name!r} has a scale per channel, which only weights may have"
    kinds = {tensor.dtype for tensor in node.computed}
    if len(kinds) > 1 and node.op not in ("QUANTIZE", "DEQUANTIZE", "BATCH_MATMUL"):
        return f"tensors of different types: {', '.join(sorted(kinds))}"
    return ""


def _options(node: Node) -> str:
    if node.op in ("ADD", "SUB", "MUL", "CONCATENATION") and any(
        tensor is not None and tensor.constant and tensor.dtype == "float16" for tensor in node.inputs
    ):
        return "a float16 constant"
    if node.op == "SOFTMAX" and node.options is not None and node.options.beta != 1.0:
        return f"beta is {node.options.beta}, not 1"
    if node.op == "CONCATENATION" and not 2 <= len(node.inputs) <= 5:
        return f"{len(node.inputs)} inputs; supported: 2 to 5"
    if node.op == "SPLIT" and not 2 <= len(node.outputs) <= 4:
        return f"{len(node.outputs)} outputs; supported: 2 to 4"
    if node.op == "STRIDED_SLICE":
        if any((node.options.ellipsisMask, node.options.newAxisMask, node.options.shrinkAxisMask)):
            return "an ellipsis, new axis or shrink axis mask"
        strides = node.input(3)
        if strides is not None and strides.values is not None and set(strides.values) != {1}:
            return f"strides {list(strides.values)}, not all 1"
    if node.op == "QUANTIZE" and (reason := _requantization(node)):
        return reason
    if node.op == "RESHAPE" and (reason := _rescaling(node)):
        return reason
    if node.op == "LEAKY_RELU" and node.options.alpha == 0:
        return "a slope of 0"
    return ""


def _requantization(node: Node) -> str:
    source, output = node.inputs[0], node.outputs[0]
    if source is None or source.dtype == "float32":
        return ""
    if source.dtype != output.dtype:
        return f"converts {source.dtype} to {output.dtype}; both must be signed, or neither"
    ratio = source.scales[0] / output.scales[0]
    return "" if 2**-8 <= ratio <= 2**7 else f"input scale is {ratio:g} times the output's; 1/256 to 128 is supported"


def _rescaling(node: Node) -> str:
    source, output = node.inputs[0], node.outputs[0]
    if source is None or (source.scales, source.zero_points) == (output.scales, output.zero_points):
        return ""
    return "input and output differ in scale or zero point"


def _weights(node: Node) -> str:
    if node.op not in _BIAS:
        return ""
    weights, bias = node.input(1), node.input(_BIAS[node.op])
    (dtype,) = {tensor.dtype for tensor in node.computed if tensor is not weights} or {"float32"}
    if weights is None:
        return "no weights"
    if not weights.constant:
        # A matrix product of floats may have weights that are computed while the model runs.
        return (
            "" if node.op == "FULLY_CONNECTED" and weights.dtype == dtype == "float32" else "weights are not constant"
        )
    if node.op in ("CONV_2D", "DEPTHWISE_CONV_2D") and bias is None:
        return "no bias"
    if bias is not None and not bias.constant:
        return "the bias is not constant"
    if weights.dtype == dtype or weights.dtype == "float16":
        return ""
    if weights.dtype in SUB_BYTE:
        return _sub_byte(node, weights)
    if dtype == "float32" and weights.dtype == "int8" and node.op in _DYNAMIC:
        return "" if weights.scales or weights.blockwise else "weights without a scale"
    return f"{weights.dtype} weights under {dtype}"


def _sub_byte(node: Node, weights: NodeTensor) -> str:
    if node.op != "FULLY_CONNECTED":
        return f"{weights.dtype} weights: supported in FULLY_CONNECTED only"
    per_byte = {"int4": 2, "int2": 4}[weights.dtype]
    if weights.shape[-1] % per_byte:
        return f"{weights.dtype} weights of {weights.shape[-1]} inputs, which is not a multiple of {per_byte}"
    return ""


ACCELERATOR = Accelerator(
    name="XNNPACK",
    source=(
        "https://github.com/google-ai-edge/LiteRT/blob/f67457790c9c2ab67347d6fe53270e8d3df20868"
        "/tflite/delegates/xnnpack/xnnpack_delegate.cc"
    ),
    source_date="2026-08-21",
    rule=_reason,
)
