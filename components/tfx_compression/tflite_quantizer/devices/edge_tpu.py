"""The operators that the Edge TPU compiler maps, after Coral's documentation of compiler 16.0.

The page itself was not at hand: `docs/devices.md` says which copies the table is from, and what no copy confirms.
"""

from tfx_compression.tflite_quantizer.devices.nodes import Node, Tensor

NAME = "Edge TPU"
SOURCE = "https://coral.ai/docs/edgetpu/models-intro/#supported-operations"
DATE = "compiler 16.0, 2021; from copies of the page, see docs/devices.md"

_TAKEN = {
    *("ADD", "AVERAGE_POOL_2D", "CONCATENATION", "CONV_2D", "DEPTHWISE_CONV_2D", "EXPAND_DIMS", "FULLY_CONNECTED"),
    *("L2_NORMALIZATION", "LOGISTIC", "UNIDIRECTIONAL_SEQUENCE_LSTM", "MAXIMUM", "MAX_POOL_2D", "MEAN", "MINIMUM"),
    *("MUL", "PACK", "PAD", "PRELU", "QUANTIZE", "REDUCE_MAX", "REDUCE_MIN", "RELU", "RELU6", "RELU_N1_TO_1"),
    *("RESHAPE", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "RSQRT", "SLICE", "SOFTMAX", "SPACE_TO_DEPTH"),
    *("SPLIT", "SQUEEZE", "STRIDED_SLICE", "SUB", "SUM", "SQUARED_DIFFERENCE", "TANH", "TRANSPOSE"),
    "TRANSPOSE_CONV",
}
_INNERMOST = frozenset((-1, -2, -3))
_SOFTMAX = 16_000
_WEIGHTS = {"CONV_2D": (1, 2), "DEPTHWISE_CONV_2D": (1, 2), "FULLY_CONNECTED": (1, 2), "TRANSPOSE_CONV": (0, 1, 3)}


def reason(node: Node) -> str:
    """Why the compiler doesn't map an operator; empty where it does."""
    if node.op not in _TAKEN:
        if node.op == "DEQUANTIZE":
            return "makes floats, which the CPU does"
        return "no operator of the Edge TPU's"
    for tensor in node.flowing:
        if tensor.dtype == "float32" and node.op == "QUANTIZE":
            return "takes floats, which the CPU does"
        if tensor.dtype not in ("int8", "uint8"):
            return f"{tensor.dtype} tensor {tensor.name!r}, not int8 or uint8"
        if -1 in tensor.shape:
            return f"{tensor.name!r} has a free size: {list(tensor.shape)}"
        if not tensor.axes <= _INNERMOST:
            return f"{tensor.name!r} is {list(tensor.shape)}: only the three innermost sizes may be above 1"
    for place in _WEIGHTS.get(node.op, ()):
        parameter = node.input(place)
        if parameter is not None and not parameter.constant:
            return f"{parameter.name!r} is no constant"
    weights = node.input(1)
    if node.op in _WEIGHTS and weights is not None and weights.dtype not in ("int8", "uint8"):
        return f"{weights.dtype} weights"
    return _limits(node)


def _limits(node: Node) -> str:
    """The column "Known limitations" of Coral's table."""
    taken, second, returned = node.input(0), node.input(1), node.outputs[0]
    if node.op in ("AVERAGE_POOL_2D", "MAX_POOL_2D", "CONCATENATION") and node.activation != "NONE":
        return f"fused activation {node.activation}"
    if node.op == "CONCATENATION" and any(tensor is not None and tensor.constant for tensor in node.inputs):
        return "joins a constant: mapped only if there are two inputs and it is all zeros"
    if node.op in ("CONV_2D", "DEPTHWISE_CONV_2D") and node.options.dilationWFactor != node.options.dilationHFactor:
        return f"dilation {node.options.dilationHFactor} by {node.options.dilationWFactor}, not the same in both"
    if node.op == "FULLY_CONNECTED":
        if node.options.weightsFormat:
            return "shuffled weights"
        if not returned.axes <= {-1}:
            return f"returns {list(returned.shape)}, not one dimension"
    if node.op == "SOFTMAX" and taken is not None:
        if not taken.axes <= {-1}:
            return f"takes {list(taken.shape)}, not one dimension"
        if taken.shape[-1] > _SOFTMAX:
            return f"{taken.shape[-1]} elements, {_SOFTMAX} at most"
    if node.op in ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN"):
        return _reduction(node, taken, second)
    if node.op == "PAD" and second is not None and (not second.values or any(second.values[:2])):
        return "pads the batch, or by sizes that are no constants"
    if node.op == "PACK" and node.options.axis == 0:
        return "packs in the batch dimension"
    if node.op == "SPLIT" and taken is not None and (not taken.values or taken.values[0] == 0):
        return "splits the batch, or in a dimension that is no constant"
    if node.op == "PRELU" and second is not None and not second.axes <= {-1}:
        return f"slopes {list(second.shape)}, not one per channel"
    if node.op in ("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR") and (second is None or not second.constant):
        return "sizes that are no constants"
    if node.op == "SQUEEZE" and taken is not None and not _leading(taken):
        return f"takes {list(taken.shape)}: the sizes of 1 must lead"
    if node.op == "STRIDED_SLICE":
        strides = node.input(3)
        if strides is None or strides.values is None or set(strides.values) != {1}:
            return "strides that are not all 1"
        if node.options.ellipsisMask or node.options.newAxisMask:
            return "an ellipsis or new axis mask"
    return ""


def _reduction(node: Node, taken: Tensor | None, axes: Tensor | None) -> str:
    if taken is None or axes is None or axes.values is None:
        return "reduces dimensions that are no constants"
    rank = len(taken.shape)
    reduced = {axis % rank for axis in axes.values}
    if rank > 1 and 0 in reduced:
        return "reduces the batch dimension"
    if node.op == "MEAN" and rank - 1 in reduced and taken.shape[-1] % 4:
        return f"a mean over {taken.shape[-1]} channels, no multiple of 4"
    return ""


def _leading(tensor: Tensor) -> bool:
    sizes = list(tensor.shape)
    while sizes and sizes[0] == 1:
        del sizes[0]
    return 1 not in sizes
