"""The operators that the Edge TPU compiler maps, according to Coral's documentation of compiler 16.0.

Coral's page itself was not available. `docs/devices.md` names the copies that the table comes from, and what no copy
confirms.
"""

from collections.abc import Sequence

from tfx_compression.tflite.modes import ModeSpec
from tfx_compression.tflite_quantizer.devices.accelerator import Accelerator
from tfx_compression.tflite_quantizer.devices.nodes import Node, NodeTensor
from tfx_compression.tflite_quantizer.devices.verdicts import DelegateVerdict

_SUPPORTED = {
    *("ADD", "AVERAGE_POOL_2D", "CONCATENATION", "CONV_2D", "DEPTHWISE_CONV_2D", "EXPAND_DIMS", "FULLY_CONNECTED"),
    *("L2_NORMALIZATION", "LOGISTIC", "UNIDIRECTIONAL_SEQUENCE_LSTM", "MAXIMUM", "MAX_POOL_2D", "MEAN", "MINIMUM"),
    *("MUL", "PACK", "PAD", "PRELU", "QUANTIZE", "REDUCE_MAX", "REDUCE_MIN", "RELU", "RELU6", "RELU_N1_TO_1"),
    *("RESHAPE", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "RSQRT", "SLICE", "SOFTMAX", "SPACE_TO_DEPTH"),
    *("SPLIT", "SQUEEZE", "STRIDED_SLICE", "SUB", "SUM", "SQUARED_DIFFERENCE", "TANH", "TRANSPOSE"),
    "TRANSPOSE_CONV",
}
_INNERMOST = frozenset((-1, -2, -3))
_LARGEST_SOFTMAX = 16_000
_CONSTANT_INPUTS = {
    "CONV_2D": (1, 2),
    "DEPTHWISE_CONV_2D": (1, 2),
    "FULLY_CONNECTED": (1, 2),
    "TRANSPOSE_CONV": (0, 1, 3),
}


def find_problems(main: Sequence[Node], nodes: Sequence[Node], verdicts: Sequence[DelegateVerdict]) -> list[str]:
    """Returns why the compiler would refuse a model, or map nothing of it.

    Args:
      main: The operators of the main graph.
      nodes: The operators of all graphs, which don't matter here.
      verdicts: The verdict of the Edge TPU alone.
    """
    for node in main:
        for tensor in node.computed:
            if -1 in tensor.shape:
                return [
                    f"{node}: {tensor.name!r} has a free size, {list(tensor.shape)}, and the Edge TPU's shapes are "
                    "static. Remedy: convert with batch_size=1 and an input of fixed size."
                ]
    (verdict,) = verdicts
    if verdict.mapped:
        return []
    first = next((op for op in verdict.ops if op.reason), None)
    reason = f"{first.op} of {first.layer!r}: {first.reason}" if first else "there is no operator"
    return [f"The Edge TPU gets no operator at all ({reason}). Remedy: mode='int8', and a first layer on Coral's list."]


def runs_mode(mode: ModeSpec) -> bool:
    """Returns whether the Edge TPU can compute a mode: it has 8-bit weights and activations only."""
    return mode.weights == mode.activations == "int8"


def _reason(node: Node) -> str:
    """Returns why the compiler doesn't map an operator; empty if it does."""
    if node.op not in _SUPPORTED:
        if node.op == "DEQUANTIZE":
            return "returns floats, which the CPU computes"
        return "not an operator of the Edge TPU"
    for tensor in node.computed:
        if tensor.dtype == "float32" and node.op == "QUANTIZE":
            return "takes floats, which the CPU converts"
        if tensor.dtype not in ("int8", "uint8"):
            return f"{tensor.dtype} tensor {tensor.name!r}, not int8 or uint8"
        if -1 in tensor.shape:
            return f"{tensor.name!r} has a free size: {list(tensor.shape)}"
        if not tensor.axes <= _INNERMOST:
            return f"{tensor.name!r} has shape {list(tensor.shape)}; only the three innermost sizes may be above 1"
    for place in _CONSTANT_INPUTS.get(node.op, ()):
        parameter = node.input(place)
        if parameter is not None and not parameter.constant:
            return f"{parameter.name!r} is not constant"
    weights = node.input(1)
    if node.op in _CONSTANT_INPUTS and weights is not None and weights.dtype not in ("int8", "uint8"):
        return f"{weights.dtype} weights"
    return _limits(node)


def _limits(node: Node) -> str:
    """Returns which limit in the column "Known limitations" of Coral's table an operator exceeds; empty if none."""
    first, second, output = node.input(0), node.input(1), node.outputs[0]
    if node.op in ("AVERAGE_POOL_2D", "MAX_POOL_2D", "CONCATENATION") and node.activation != "NONE":
        return f"fused activation {node.activation}"
    if node.op == "CONCATENATION" and any(tensor is not None and tensor.constant for tensor in node.inputs):
        return "concatenates a constant, which is mapped only if there are two inputs and it is all zeros"
    if node.op in ("CONV_2D", "DEPTHWISE_CONV_2D") and node.options.dilationWFactor != node.options.dilationHFactor:
        return f"dilation {node.options.dilationHFactor} by {node.options.dilationWFactor}; both must be the same"
    if node.op == "FULLY_CONNECTED":
        if node.options.weightsFormat:
            return "shuffled weights"
        if not output.axes <= {-1}:
            return f"output has shape {list(output.shape)}; one dimension is mapped"
    if node.op == "SOFTMAX" and first is not None:
        if not first.axes <= {-1}:
            return f"input has shape {list(first.shape)}; one dimension is mapped"
        if first.shape[-1] > _LARGEST_SOFTMAX:
            return f"{first.shape[-1]} elements; {_LARGEST_SOFTMAX} at most"
    if node.op in ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN"):
        return _reduction(node, first, second)
    if node.op == "PAD" and second is not None and (not second.values or any(second.values[:2])):
        return "pads the batch, or by sizes that are not constant"
    if node.op == "PACK" and node.options.axis == 0:
        return "packs in the batch dimension"
    if node.op == "SPLIT" and first is not None and (not first.values or first.values[0] == 0):
        return "splits the batch, or along an axis that is not constant"
    if node.op == "PRELU" and second is not None and not second.axes <= {-1}:
        return f"slopes have shape {list(second.shape)}, not one per channel"
    if node.op in ("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR") and (second is None or not second.constant):
        return "sizes are not constant"
    if node.op == "SQUEEZE" and first is not None and not _ones_lead(first):
        return f"input has shape {list(first.shape)}; sizes of 1 must come first"
    if node.op == "STRIDED_SLICE":
        strides = node.input(3)
        if strides is None or strides.values is None or set(strides.values) != {1}:
            return "strides that are not all 1"
        if node.options.ellipsisMask or node.options.newAxisMask:
            return "an ellipsis or new axis mask"
    return ""


def _reduction(node: Node, source: NodeTensor | None, axes: NodeTensor | None) -> str:
    if source is None or axes is None or axes.values is None:
        return "axes are not constant"
    rank = len(source.shape)
    reduced = {axis % rank for axis in axes.values}
    if rank > 1 and 0 in reduced:
        return "reduces the batch dimension"
    if node.op == "MEAN" and rank - 1 in reduced and source.shape[-1] % 4:
        return f"a mean over {source.shape[-1]} channels, which is not a multiple of 4"
    return ""


def _ones_lead(tensor: NodeTensor) -> bool:
    sizes = list(tensor.shape)
    while sizes and sizes[0] == 1:
        del sizes[0]
    return 1 not in sizes


ACCELERATOR = Accelerator(
    name="Edge TPU",
    source="https://coral.ai/docs/edgetpu/models-intro/#supported-operations",
    source_date="compiler 16.0, 2021; from copies of the page, see docs/devices.md",
    rule=_reason,
    one_piece=True,
)
