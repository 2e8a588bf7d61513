"""TFLite's own kernels on a CPU: models that they can't run, and the runtime that a model needs."""

from collections.abc import Sequence
from typing import Any

from tfx_compression.tflite_quantizer.devices.nodes import SUB_BYTE, Node, NodeTensor
from tfx_compression.tflite_quantizer.devices.verdicts import DelegateVerdict

_CUSTOM_KERNELS = ("TFLite_Detection_PostProcess", "AudioSpectrogram", "Mfcc", "NumericVerify")
_SUB_BYTE_RUNTIME = (
    "LiteRT 2 (measured with ai-edge-litert 2.3) for weights of {types}; "
    "TensorFlow 2.16's interpreter refuses them or computes them wrong"
)


def find_problems(main: Sequence[Node], nodes: Sequence[Node], verdicts: Sequence[DelegateVerdict]) -> list[str]:
    """Returns what TFLite's interpreter, which runs everything that no accelerator takes, can't run.

    Args:
      main: The operators of the main graph.
      nodes: The operators of all graphs.
      verdicts: The verdicts of accelerators, which don't matter here.
    """
    problems = [
        f"{node}: TFLite has no kernel for this custom operator. Remedy: build the model from TFLite's operators, or "
        "register the kernel in the application."
        for node in nodes
        if node.custom and not node.flex and node.op not in _CUSTOM_KERNELS
    ]
    problems += [
        f"{node}: LiteRT 2.3 computes convolutions with 2-bit weights wrong. Remedy: precision 'int4' or 'int8' for it."
        for node in nodes
        if "CONV" in node.op and any(tensor.dtype == "int2" for tensor in _constants(node))
    ]
    flex = [node for node in nodes if node.flex]
    packed = [tensor for node in nodes for tensor in _constants(node) if tensor.dtype in SUB_BYTE]
    if flex and packed:
        problems.append(
            f"{flex[0]}: only TensorFlow's interpreter runs this operator, and it computes the {packed[0].dtype} "
            f"weights {packed[0].name!r} wrong. Remedy: mode='int8', or a model that needs no select_tf_ops."
        )
    return problems


def required_runtime(model: Any, nodes: Sequence[Node]) -> str:
    """Returns what a device must have to run a model.

    Args:
      model: The parsed flatbuffer.
      nodes: The operators of all its graphs.
    """
    tensors = [tensor for node in nodes for tensor in (*node.inputs, *node.outputs) if tensor is not None]
    needs = []
    if any(node.flex for node in nodes):
        needs.append("TensorFlow Lite with the Flex delegate (SELECT_TF_OPS)")
    types = sorted({tensor.dtype for tensor in tensors if tensor.dtype in SUB_BYTE})
    if types:
        needs.append(_SUB_BYTE_RUNTIME.format(types=" and ".join(types)))
    if any(tensor.blockwise for tensor in tensors):
        needs.append("LiteRT 2 (measured with ai-edge-litert 2.3) for scales of blocks")
    if not needs:
        version = _min_runtime_version(model)
        needs.append(f"TensorFlow Lite {version} or newer, or LiteRT" if version else "TensorFlow Lite or LiteRT")
    return "; ".join(needs)


def _constants(node: Node) -> list[NodeTensor]:
    return [tensor for tensor in node.inputs if tensor is not None and tensor.constant]


def _min_runtime_version(model: Any) -> str:
    """Returns the version that the converter derived from the operators; empty if it wrote none."""
    for entry in model.metadata or ():
        data = model.buffers[entry.buffer].data
        if entry.name == b"min_runtime_version" and data is not None:
            return bytes(data).rstrip(b"\0").decode()
    return ""
