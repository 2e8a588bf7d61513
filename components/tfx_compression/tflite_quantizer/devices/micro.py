"""The operators that TensorFlow Lite Micro has kernels of (its reference kernels)."""

from tfx_compression.tflite_quantizer.devices.nodes import SUB_BYTE, Node

NAME = "TensorFlow Lite Micro"
SOURCE = (
    "https://github.com/tensorflow/tflite-micro/blob/90b983c2b3f1480642e040bbd2ddb37b998f3424"
    "/tensorflow/lite/micro/micro_mutable_op_resolver.h"
)
DATE = "2026-08-20"

_KERNELS = frozenset(
    (
        *("ABS", "ADD", "ADD_N", "ARG_MAX", "ARG_MIN", "ASSIGN_VARIABLE"),
        *("AVERAGE_POOL_2D", "BATCH_MATMUL", "BATCH_TO_SPACE_ND", "BROADCAST_ARGS", "BROADCAST_TO", "CALL_ONCE"),
        *("CAST", "CEIL", "CONCATENATION", "CONV_2D", "COS", "CUMSUM"),
        *("DEPTH_TO_SPACE", "DEPTHWISE_CONV_2D", "DEQUANTIZE", "DIV", "DYNAMIC_UPDATE_SLICE", "EMBEDDING_LOOKUP"),
        *("ELU", "EQUAL", "EXP", "EXPAND_DIMS", "FILL", "FLOOR"),
        *("FLOOR_DIV", "FLOOR_MOD", "FULLY_CONNECTED", "GATHER", "GATHER_ND", "GREATER"),
        *("GREATER_EQUAL", "HARD_SWISH", "IF", "L2_NORMALIZATION", "L2_POOL_2D", "LEAKY_RELU"),
        *("LESS", "LESS_EQUAL", "LOG", "LOGICAL_AND", "LOGICAL_NOT", "LOGICAL_OR"),
        *("LOGISTIC", "LOG_SOFTMAX", "MAXIMUM", "MAX_POOL_2D", "MIRROR_PAD", "MEAN"),
        *("MINIMUM", "MUL", "NEG", "NOT_EQUAL", "PACK", "PAD"),
        *("PADV2", "PRELU", "QUANTIZE", "READ_VARIABLE", "REDUCE_ALL", "REDUCE_MAX"),
        *("REDUCE_MIN", "RELU", "RELU6", "RESHAPE", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"),
        *("REVERSE_V2", "ROUND", "RSQRT", "SELECT_V2", "SHAPE", "SIN"),
        *("SLICE", "SOFTMAX", "SPACE_TO_BATCH_ND", "SPACE_TO_DEPTH", "SPLIT", "SPLIT_V"),
        *("SQUEEZE", "SQRT", "SQUARE", "SQUARED_DIFFERENCE", "STRIDED_SLICE", "SUB"),
        *("SUM", "SVDF", "TANH", "TRANSPOSE_CONV", "TRANSPOSE", "UNPACK"),
        *("UNIDIRECTIONAL_SEQUENCE_LSTM", "VAR_HANDLE", "WHILE", "ZEROS_LIKE"),
    )
)
_CUSTOM = frozenset(
    (
        *("CIRCULAR_BUFFER", "TFLM_DECODE", "TFLite_Detection_PostProcess", "ethos-u", "SignalDelay", "SignalEnergy"),
        *(
            "SignalFftAutoScale",
            "SignalFilterBank",
            "SignalFilterBankLog",
            "SignalFilterBankSquareRoot",
            "SignalFilterBankSpectralSubtraction",
            "SignalFramer",
        ),
        *("SignalIrfft", "SignalOverlapAdd", "SignalPCAN", "SignalRfft", "SignalStacker", "SignalWindow"),
    )
)
_WEIGHTS = {"CONV_2D": 1, "DEPTHWISE_CONV_2D": 1, "FULLY_CONNECTED": 1, "TRANSPOSE_CONV": 1}  # by place
_INT4 = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")


def reason(node: Node) -> str:
    """Why there is no kernel for an operator; empty where there is one."""
    if node.op not in (_CUSTOM if node.custom else _KERNELS):
        return "no kernel in TensorFlow Lite Micro"
    tensors = [tensor for tensor in (*node.inputs, *node.outputs) if tensor is not None]
    for tensor in tensors:
        if tensor.dtype in ("string", "float16", "int2"):
            return f"{tensor.dtype} tensor {tensor.name!r}, which no kernel takes"
        if -1 in tensor.shape[1:]:
            return f"{tensor.name!r} has a free size beside the batch: {list(tensor.shape)}"
    weights = node.input(_WEIGHTS[node.op]) if node.op in _WEIGHTS else None
    if weights is not None:
        kinds = {tensor.dtype for tensor in node.flowing}
        if "float32" in kinds and weights.dtype != "float32":
            return f"{weights.dtype} weights under floats (dynamic range)"
        if weights.dtype == "int4" and node.op in _INT4 and kinds == {"int8"} and not weights.blockwise:
            return ""
    for tensor in tensors:
        if tensor.dtype in SUB_BYTE:
            return f"{tensor.dtype} tensor {tensor.name!r}; {', '.join(_INT4)} have kernels of int4 weights under int8"
    return ""
