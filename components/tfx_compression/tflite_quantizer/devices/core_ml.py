"""The operators that TFLite's Core ML delegate supports (iOS 13 and newer, Core ML 3)."""

import math

from tfx_compression.tflite_quantizer.devices.accelerator import Accelerator
from tfx_compression.tflite_quantizer.devices.nodes import Node, NodeTensor

_SUPPORTED = {
    *("ADD", "AVERAGE_POOL_2D", "CONCATENATION", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "HARD_SWISH"),
    *("LOGISTIC", "MAX_POOL_2D", "MIRROR_PAD", "MEAN", "MUL", "PAD", "PADV2", "RELU", "RELU_N1_TO_1", "RELU6"),
    *("RESIZE_BILINEAR", "SOFTMAX", "TANH", "TRANSPOSE_CONV"),
}
_NEWEST = {"DEPTHWISE_CONV_2D": 2, "FULLY_CONNECTED": 6}  # version 1 of the others
_LARGEST_KERNEL = 16_384  # height or width


def _reason(node: Node) -> str:
    """Returns why the delegate doesn't support an operator; empty if it does."""
    if node.folded and node.op == "DEQUANTIZE" and node.inputs[0] is not None and node.inputs[0].dtype == "float16":
        return ""
    if node.op == "RESHAPE":
        return "supported with Core ML 2 only; Core ML 3 is the default"
    if node.op not in _SUPPORTED:
        return "not an operator of the Core ML delegate"
    first = node.input(2 if node.op == "TRANSPOSE_CONV" else 0)
    if first is None or first.dtype != "float32":
        return f"input is {'absent' if first is None else first.dtype}, not float32"
    newest = _NEWEST.get(node.op, 1)
    if node.version > newest:
        return f"version {node.version} of the operator; versions up to {newest} are supported"
    return _limits(node, first)


def _limits(node: Node, first: NodeTensor) -> str:
    rank = len(first.shape)
    second = node.input(1)
    if node.op in ("AVERAGE_POOL_2D", "MAX_POOL_2D", "CONCATENATION") and node.activation != "NONE":
        return f"fused activation {node.activation}"
    if node.op == "CONCATENATION" and (rank not in (3, 4) or node.options.axis not in (-1, rank - 1)):
        return f"concatenates {rank} dimensions along axis {node.options.axis}; supported: the channels of 3 or 4"
    if node.op in ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED"):
        if second is None or not second.constant:
            return "weights are not constant"
        if node.op == "FULLY_CONNECTED" and second.dtype not in ("float32", "float16"):
            return f"{second.dtype} weights, not floats"
        if node.op != "FULLY_CONNECTED" and max(second.shape[1:3]) > _LARGEST_KERNEL:
            return f"a kernel of {second.shape[1]} by {second.shape[2]}; {_LARGEST_KERNEL} at most"
    if node.op == "FULLY_CONNECTED" and any(size not in (1, -1) for size in first.shape[:-1]):
        return f"input has shape {list(first.shape)}; one row at a time is supported"
    if node.op == "SOFTMAX" and node.options.beta != 1.0:
        return f"beta is {node.options.beta}, not 1"
    if node.op in ("PAD", "PADV2", "MIRROR_PAD"):
        sizes = second.values if second is not None else None
        if sizes is None or len(sizes) != 8 or any((*sizes[:2], *sizes[6:])):
            return "pads dimensions other than height and width, or by sizes that are not constant"
    if node.op == "MEAN":
        axes = second.values if second is not None else None
        if not node.options.keepDims or rank != 4 or axes is None or not {axis % 4 for axis in axes} <= {1, 2}:
            return "a mean that isn't over height and width with keepdims"
    if node.op == "RESIZE_BILINEAR" and (second is None or not second.constant):
        return "sizes are not constant"
    if node.op in ("ADD", "MUL") and second is not None and not _broadcasts(first.shape, second.shape):
        return f"{list(first.shape)} and {list(second.shape)} don't broadcast in Core ML"
    return ""


def _broadcasts(first: tuple[int, ...], second: tuple[int, ...]) -> bool:
    if max(len(first), len(second)) > 4:
        return False
    a, b = (tuple(abs(size) for size in (*[1] * (4 - len(shape)), *shape)) for shape in (first, second))
    # A free size counts as one: the delegate sees the shapes before any input is resized.
    planes = a[1:3] == b[1:3] or (1, 1) in (a[1:3], b[1:3])
    batches = a[0] == b[0] or 1 in (math.prod(a), math.prod(b))
    return batches and planes and (a[3] == b[3] or 1 in (a[3], b[3]))


ACCELERATOR = Accelerator(
    name="Core ML delegate",
    source=(
        "https://github.com/google-ai-edge/LiteRT/blob/f67457790c9c2ab67347d6fe53270e8d3df20868"
        "/tflite/delegates/coreml/coreml_delegate.mm; https://ai.google.dev/edge/litert/ios/coreml"
    ),
    source_date="2026-08-21",
    rule=_reason,
)
