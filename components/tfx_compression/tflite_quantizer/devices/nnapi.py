"""The operators that TFLite's NNAPI delegate supports on Android 11 (NNAPI 1.3) and newer.

Google deprecated NNAPI in Android 15 (developer.android.com/ndk/guides/neuralnetworks/migration-guide).
"""

from tfx_compression.tflite_quantizer.devices.accelerator import Accelerator
from tfx_compression.tflite_quantizer.devices.nodes import Node

_NEWEST = {  # newest version of the operator that the delegate supports; None where it doesn't check
    **dict.fromkeys(("DEPTH_TO_SPACE", "HARD_SWISH", "DENSIFY"), None),
    **dict.fromkeys(("ADD", "ARG_MAX", "ARG_MIN", "AVERAGE_POOL_2D", "MAX_POOL_2D", "CONCATENATION"), 2),
    **dict.fromkeys(("DEQUANTIZE", "RELU", "RELU6", "RELU_N1_TO_1", "LOGISTIC", "TANH", "PAD", "PADV2"), 2),
    **dict.fromkeys(("SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND", "STRIDED_SLICE", "TRANSPOSE", "RSQRT", "SLICE"), 2),
    **dict.fromkeys(("SPACE_TO_DEPTH", "MEAN", "NEG", "TOPK_V2", "SELECT", "GATHER", "SPLIT_V", "QUANTIZE"), 2),
    **dict.fromkeys(
        ("REDUCE_MAX", "REDUCE_MIN", "SOFTMAX", "L2_NORMALIZATION", "PACK", "UNPACK", "SQUARED_DIFFERENCE"), 2
    ),
    **dict.fromkeys(("LESS", "LESS_EQUAL", "GREATER", "GREATER_EQUAL", "EQUAL", "NOT_EQUAL"), 2),
    **dict.fromkeys(("MUL", "SUB", "MAXIMUM", "MINIMUM", "SPLIT", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"), 3),
    **dict.fromkeys(("L2_POOL_2D", "RESHAPE", "SQUEEZE", "FLOOR", "DIV", "ABS", "EXP", "LOG", "POW", "COS", "SIN"), 1),
    **dict.fromkeys(("SQRT", "CAST", "LEAKY_RELU", "PRELU", "TILE", "LOGICAL_OR", "LOGICAL_AND", "LOGICAL_NOT"), 1),
    **dict.fromkeys(("EXPAND_DIMS", "LOG_SOFTMAX", "REDUCE_PROD", "SUM", "ELU", "FILL"), 1),
    **{"CONV_2D": 5, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 5, "TRANSPOSE_CONV": 4},
    **{"UNIDIRECTIONAL_SEQUENCE_LSTM": 2, "UNIDIRECTIONAL_SEQUENCE_RNN": 1, "LSTM": 3},
}
_FLOATS_ONLY = {
    *("L2_POOL_2D", "FLOOR", "DIV", "ABS", "EXP", "LOG", "POW", "COS", "SIN", "SQRT", "LOG_SOFTMAX", "REDUCE_PROD"),
    *("SUM", "ELU"),
}
_FLOATS, _INT8 = ("float32", "float16"), ("int8", "uint8")
_ANY_TYPE = {"CAST", "LOGICAL_OR", "LOGICAL_AND", "LOGICAL_NOT", "SELECT"}
_LARGEST_RANK = 4
_RANK_LIMITED = ("ADD", "SUB", "MUL", "DIV", "SOFTMAX", "RESHAPE", "CONCATENATION", "MEAN", "TRANSPOSE")


def _reason(node: Node) -> str:
    """Returns why the delegate doesn't support an operator; empty if it does."""
    if node.op not in _NEWEST:
        return "not supported on Android 11"
    newest = _NEWEST[node.op]
    if newest is not None and node.version > newest:
        return f"version {node.version} of the operator; versions up to {newest} are supported"
    if node.folded:
        return _folded(node)
    allowed = _FLOATS if node.op in _FLOATS_ONLY else (*_FLOATS, *_INT8)
    for tensor in node.computed:
        if tensor.dtype not in allowed and tensor.dtype not in ("bool", "int32") and node.op not in _ANY_TYPE:
            return f"{tensor.dtype} tensor {tensor.name!r}; supported: {', '.join(allowed)}"
        if node.op in _RANK_LIMITED and len(tensor.shape) > _LARGEST_RANK:
            return f"{tensor.name!r} has {len(tensor.shape)} dimensions; {_LARGEST_RANK} at most"
    if node.op in ("CONCATENATION", "L2_NORMALIZATION") and node.activation != "NONE":
        return f"fused activation {node.activation}"
    if node.op == "RESHAPE" and (sizes := node.input(1)) is not None and not sizes.constant:
        return "shape is not constant"
    return ""


def _folded(node: Node) -> str:
    source = node.inputs[0]
    if node.op == "DEQUANTIZE" and source is not None and source.dtype not in _INT8:
        return f"weights stored as {source.dtype}; supported: {', '.join(_INT8)}"
    return ""


ACCELERATOR = Accelerator(
    name="NNAPI (deprecated since Android 15)",
    source=(
        "https://github.com/google-ai-edge/LiteRT/blob/f67457790c9c2ab67347d6fe53270e8d3df20868"
        "/tflite/delegates/nnapi/nnapi_delegate.cc"
    ),
    source_date="2026-08-21",
    rule=_reason,
)
