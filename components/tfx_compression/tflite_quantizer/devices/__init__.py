"""Whether a TFLite model runs on a device, and what of it runs there fast, told from the file alone.

Each accelerator or runtime is a module with its name, the source of its rules with a date, and `reason(node)`.
"""

from collections.abc import Sequence
from typing import Any

from tfx_compression.tflite import flatbuffer
from tfx_compression.tflite_quantizer.config import Target
from tfx_compression.tflite_quantizer.devices import core_ml, edge_tpu, gpu, micro, nnapi, xnnpack
from tfx_compression.tflite_quantizer.devices.nodes import SUB_BYTE, Node, Rule, delegate, nodes
from tfx_compression.tflite_quantizer.record import DelegateVerdict, TargetVerdict

_REGISTERED = ("TFLite_Detection_PostProcess", "AudioSpectrogram", "Mfcc", "NumericVerify")  # custom ones of TFLite's
_SUB_BYTE_RUNTIME = (
    "LiteRT 2 (measured with ai-edge-litert 2.3) for weights of {types}; "
    "TensorFlow 2.16's interpreter refuses them or computes them wrong"
)


def judge(content: bytes, target: Target, max_arena_bytes: int | None = None) -> TargetVerdict:
    """Whether a model runs on a target, and which operators its accelerators take. Nothing is run.

    Delegates are told for the main graph; kernels are needed for the other graphs of the file as well.

    Args:
      content: the flatbuffer.
      target: the profile, as in `Quantization.target`; its rules and their sources are in `docs/devices.md`.
      max_arena_bytes: of memory for the tensors between the operators, one row; what kernels need beside it is not
        in the figure.

    Raises:
      ModelError: where `content` is no TFLite model.
    """
    model = flatbuffer.parse(content)
    graph, every = nodes(model), _every(model)
    arena = flatbuffer.read_contents(content).arena_bytes
    delegates, problems = _JUDGES[target](graph, every)
    if max_arena_bytes is not None and arena > max_arena_bytes:
        problems.append(
            f"The tensors between the operators need {arena} bytes, {max_arena_bytes} are allowed (max_arena_bytes), "
            "and kernels need some more. Remedy: smaller inputs or fewer channels in the first layers, or mode='int8'."
        )
    return TargetVerdict(
        target=target,
        runs=not problems,
        problems=tuple(problems),
        runtime=_RUNTIMES.get(target) or _runtime(model, every),
        delegates=delegates,
        arena_bytes=arena,
        max_arena_bytes=max_arena_bytes,
    )


def _every(model: Any) -> list[Node]:
    """The operators of all graphs: those of loops, branches and other signatures as well."""
    return [node for subgraph in range(len(model.subgraphs)) for node in nodes(model, subgraph)]


def _runtime(model: Any, graph: Sequence[Node]) -> str:
    every = [tensor for node in graph for tensor in (*node.inputs, *node.outputs) if tensor is not None]
    needs = []
    if any(node.flex for node in graph):
        needs.append("TensorFlow Lite with the Flex delegate (SELECT_TF_OPS)")
    types = sorted({tensor.dtype for tensor in every if tensor.dtype in SUB_BYTE})
    if types:
        needs.append(_SUB_BYTE_RUNTIME.format(types=" and ".join(types)))
    if any(tensor.blockwise for tensor in every):
        needs.append("LiteRT 2 (measured with ai-edge-litert 2.3) for scales of blocks")
    if not needs:
        version = _min_runtime_version(model)
        needs.append(f"TensorFlow Lite {version} or newer, or LiteRT" if version else "TensorFlow Lite or LiteRT")
    return "; ".join(needs)


def _min_runtime_version(model: Any) -> str:
    """What the converter wrote of the operators' versions; empty where it didn't."""
    for entry in model.metadata or ():
        data = model.buffers[entry.buffer].data
        if entry.name == b"min_runtime_version" and data is not None:
            return bytes(data).rstrip(b"\0").decode()
    return ""


def _delegates(graph: Sequence[Node], *accelerators: Any) -> tuple[DelegateVerdict, ...]:
    return tuple(
        delegate(module.NAME, module.SOURCE, module.DATE, graph, _but_custom(module.reason)) for module in accelerators
    )


def _but_custom(rule: Rule) -> Rule:
    def reason(node: Node) -> str:
        return "a custom operator" if node.custom else rule(node)

    return reason


def _interpreted(graph: Sequence[Node]) -> list[str]:
    """What TFLite's interpreter on the device's CPU, which runs what no accelerator takes, can't run."""
    problems = [
        f"{node}: a custom operator that TFLite has no kernel of. Remedy: build the model of TFLite's operators, or "
        "register the kernel in the application."
        for node in graph
        if node.custom and not node.flex and node.op not in _REGISTERED
    ]
    problems += [
        f"{node}: LiteRT 2.3 computes convolutions with weights of 2 bits wrong. Remedy: 'int4' or 'int8' for it."
        for node in graph
        if "CONV" in node.op and any(tensor and tensor.constant and tensor.dtype == "int2" for tensor in node.inputs)
    ]
    flex = [node for node in graph if node.flex]
    packed = [
        tensor
        for node in graph
        for tensor in node.inputs
        if tensor is not None and tensor.constant and tensor.dtype in SUB_BYTE
    ]
    if flex and packed:
        problems.append(
            f"{flex[0]}: one of TensorFlow's own, whose interpreter gets the {packed[0].dtype} weights "
            f"{packed[0].name!r} wrong. Remedy: mode='int8', or a model without such operators (select_tf_ops=False)."
        )
    return problems


def _cpu(graph: Sequence[Node], every: Sequence[Node]) -> tuple[tuple[DelegateVerdict, ...], list[str]]:
    return _delegates(graph, xnnpack), _interpreted(every)


def _android(graph: Sequence[Node], every: Sequence[Node]) -> tuple[tuple[DelegateVerdict, ...], list[str]]:
    return _delegates(graph, gpu, nnapi), _interpreted(every)


def _ios(graph: Sequence[Node], every: Sequence[Node]) -> tuple[tuple[DelegateVerdict, ...], list[str]]:
    return _delegates(graph, core_ml), _interpreted(every)


def _edge_tpu(graph: Sequence[Node], every: Sequence[Node]) -> tuple[tuple[DelegateVerdict, ...], list[str]]:
    rule = _but_custom(edge_tpu.reason)
    found = delegate(edge_tpu.NAME, edge_tpu.SOURCE, edge_tpu.DATE, graph, rule, only_first=True)
    problems = [
        f"{node}: {tensor.name!r} has a free size, {list(tensor.shape)}; the Edge TPU's shapes are static. Remedy: "
        "convert with batch_size=1 and an input of fixed size."
        for node in graph
        for tensor in node.flowing
        if -1 in tensor.shape
    ][:1]
    if not problems and not found.mapped:
        first = next((verdict for verdict in found.ops if verdict.reason), None)
        why = f"{first.op} of {first.layer!r}: {first.reason}" if first else "there is no operator"
        problems.append(
            f"The Edge TPU gets no operator at all ({why}). Remedy: mode='int8', and a first layer of Coral's list."
        )
    return (found,), problems


def _microcontroller(graph: Sequence[Node], every: Sequence[Node]) -> tuple[tuple[DelegateVerdict, ...], list[str]]:
    found = delegate(micro.NAME, micro.SOURCE, micro.DATE, graph, micro.reason)
    problems = [
        f"{node}: {reason}. Remedy: {_micro_remedy(reason)}." for node in every if (reason := micro.reason(node))
    ]
    return (found,), problems


def _micro_remedy(reason: str) -> str:
    if "free size" in reason:
        return "fixed sizes for everything but the batch"
    if "no kernel in" in reason:
        return "a layer of other operators, or a kernel of your own that the firmware registers"
    return "mode='int8' or 'float32'"


_JUDGES = {
    "cpu": _cpu,
    "edge_tpu": _edge_tpu,
    "microcontroller": _microcontroller,
    "android_nnapi_gpu": _android,
    "ios_coreml": _ios,
}
_RUNTIMES = {
    "edge_tpu": "Edge TPU runtime, for the model as edgetpu_compiler writes it",
    "microcontroller": "TensorFlow Lite Micro",
}
