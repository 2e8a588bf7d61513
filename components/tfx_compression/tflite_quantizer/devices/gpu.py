"""The operators that TFLite's GPU delegate supports."""

from tfx_compression.tflite_quantizer.devices.accelerator import Accelerator
from tfx_compression.tflite_quantizer.devices.nodes import Node, unsupported_type

_NEWEST = {  # newest version of the operator that the delegate reads; None where it doesn't check
    **dict.fromkeys(
        (
            *("ABS", "ADD", "ADD_N", "BATCH_MATMUL", "CAST", "COS", "DEPTH_TO_SPACE", "DIV", "EQUAL", "ELU", "EXP"),
            *("FLOOR", "FLOOR_DIV", "FLOOR_MOD", "GELU", "GREATER", "GREATER_EQUAL", "HARD_SWISH", "LESS"),
            *("LESS_EQUAL", "LOGISTIC", "LOG", "LOGICAL_AND", "MAXIMUM", "MEAN", "MINIMUM", "MUL", "NEG", "NOT_EQUAL"),
            *("PACK", "POW", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD", "RSQRT", "SIGN", "SIN", "SPLIT", "SPLIT_V"),
            *("SQRT", "SQUARE", "SQUARED_DIFFERENCE", "SUB", "SUM", "TANH", "TILE", "UNPACK"),
        )
    ),
    **{"AVERAGE_POOL_2D": 2, "MAX_POOL_2D": 2, "CONCATENATION": 2, "CONV_2D": 6, "CUMSUM": 1, "DENSIFY": 1},
    **{"DEPTHWISE_CONV_2D": 6, "DEQUANTIZE": 3, "FULLY_CONNECTED": 9, "GATHER": 1, "LSTM": 4, "ONE_HOT": 1},
    **{"PRELU": 1, "PAD": 2, "PADV2": 2, "MIRROR_PAD": 2, "QUANTIZE": 2, "RELU": 2, "RELU6": 2, "RELU_0_TO_1": 2},
    **{"RELU_N1_TO_1": 2, "LEAKY_RELU": 2, "RESHAPE": 1, "RESIZE_BILINEAR": 3, "RESIZE_NEAREST_NEIGHBOR": 3},
    **{"SELECT": 1, "SELECT_V2": 1, "SLICE": 2, "SOFTMAX": 2, "SPACE_TO_DEPTH": 2, "STRIDED_SLICE": 4},
    **{"TRANSPOSE": 4, "TRANSPOSE_CONV": 3},
}
_TYPES = ("float32", "float16", "int8", "uint8")
_COMPARISONS = ("EQUAL", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL", "NOT_EQUAL", "SELECT", "SELECT_V2")
_MORE = {
    **dict.fromkeys((*_COMPARISONS, "LOGICAL_AND"), ("bool",)),
    "CAST": ("bool", "int32"),
    **dict.fromkeys(("ONE_HOT", "GATHER"), ("int32",)),
}


def _reason(node: Node) -> str:
    """Returns why the delegate doesn't support an operator; empty if it does. It computes integers as floats."""
    if node.op not in _NEWEST:
        return "not an operator of the GPU delegate"
    if node.folded:
        return ""
    newest = _NEWEST[node.op]
    if newest is not None and node.version > newest:
        return f"version {node.version} of the operator; versions up to {newest} are supported"
    return unsupported_type(node, (*_TYPES, *_MORE.get(node.op, ())))


ACCELERATOR = Accelerator(
    name="GPU delegate",
    source=(
        "https://github.com/google-ai-edge/LiteRT/blob/f67457790c9c2ab67347d6fe53270e8d3df20868"
        "/tflite/delegates/gpu/common/model_builder.cc"
    ),
    source_date="2026-08-21",
    rule=_reason,
)
