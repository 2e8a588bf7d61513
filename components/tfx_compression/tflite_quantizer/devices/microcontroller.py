"""The operators that TensorFlow Lite Micro has reference kernels for."""

from collections.abc import Sequence
from typing import NamedTuple

from tfx_compression.tflite.modes import ModeSpec
from tfx_compression.tflite_quantizer.devices.accelerator import Accelerator
from tfx_compression.tflite_quantizer.devices.nodes import SUB_BYTE, Node
from tfx_compression.tflite_quantizer.devices.verdicts import DelegateVerdict

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
_WITH_WEIGHTS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")  # in input 1
_INT4 = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")


def find_problems(main: Sequence[Node], nodes: Sequence[Node], verdicts: Sequence[DelegateVerdict]) -> list[str]:
    """Returns each operator without a kernel, with the remedy: a microcontroller has nothing else to run it.

    Args:
      main: The operators of the main graph.
      nodes: The operators of all graphs.
      verdicts: The verdicts of accelerators, which don't matter here.
    """
    return [
        f"{node}: {missing.reason}. Remedy: {missing.remedy}." for node in nodes if (missing := _missing_kernel(node))
    ]


def runs_mode(mode: ModeSpec) -> bool:
    """Returns whether the kernels can compute a mode: they have no quantized or half weights under floats."""
    return mode.activations != "float32" or not mode.quantized


class _MissingKernel(NamedTuple):
    reason: str
    remedy: str = "mode='int8' or 'float32'"


def _reason(node: Node) -> str:
    missing = _missing_kernel(node)
    return missing.reason if missing else ""


def _missing_kernel(node: Node) -> _MissingKernel | None:
    """Returns why there is no kernel for an operator; None if there is one."""
    if node.op not in (_CUSTOM if node.custom else _KERNELS):
        return _MissingKernel(
            "no kernel in TensorFlow Lite Micro", "other operators, or a kernel of your own in the firmware"
        )
    tensors = [tensor for tensor in (*node.inputs, *node.outputs) if tensor is not None]
    for tensor in tensors:
        if tensor.dtype in ("string", "float16", "int2"):
            return _MissingKernel(f"no kernel supports the {tensor.dtype} tensor {tensor.name!r}")
        if -1 in tensor.shape[1:]:
            return _MissingKernel(
                f"{tensor.name!r} has a free size beside the batch: {list(tensor.shape)}",
                "fixed sizes for everything but the batch",
            )
    weights = node.input(1) if node.op in _WITH_WEIGHTS else None
    if weights is not None:
        types = {tensor.dtype for tensor in node.computed}
        if "float32" in types and weights.dtype != "float32":
            return _MissingKernel(f"{weights.dtype} weights under float activations (dynamic range)")
        if weights.dtype == "int4" and node.op in _INT4 and types == {"int8"} and not weights.blockwise:
            return None
    for tensor in tensors:
        if tensor.dtype in SUB_BYTE:
            supported = f"{', '.join(_INT4)} have kernels for int4 weights under int8 activations"
            return _MissingKernel(f"{tensor.dtype} tensor {tensor.name!r}; {supported}")
    return None


ACCELERATOR = Accelerator(
    name="TensorFlow Lite Micro",
    source=(
        "https://github.com/tensorflow/tflite-micro/blob/90b983c2b3f1480642e040bbd2ddb37b998f3424"
        "/tensorflow/lite/micro/micro_mutable_op_resolver.h"
    ),
    source_date="2026-08-20",
    rule=_reason,
    custom_operators=True,
)
