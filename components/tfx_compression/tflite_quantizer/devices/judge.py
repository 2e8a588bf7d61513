"""Judges from the file alone whether a TFLite model runs on a target, and what its accelerators take."""

from tfx_compression.tflite import flatbuffer
from tfx_compression.tflite.arena import arena_bytes
from tfx_compression.tflite_quantizer.devices.node_reader import read_nodes
from tfx_compression.tflite_quantizer.devices.targets import TARGETS
from tfx_compression.tflite_quantizer.devices.tflite_runtime import required_runtime
from tfx_compression.tflite_quantizer.devices.verdicts import TargetVerdict


def judge(content: bytes, target: str, max_arena_bytes: int | None = None) -> TargetVerdict:
    """Returns whether a model runs on a target, and which operators its accelerators take. Runs nothing.

    Accelerators are judged on the main graph. Kernels must exist for the other graphs of the file too: those of loops,
    branches and further signatures.

    Args:
      content: The flatbuffer.
      target: Name of a row of `targets.TARGETS`. `docs/devices.md` has the rules and their sources.
      max_arena_bytes: Limit on the memory for the tensors between the operators, for one row. What kernels need beside
        that is not counted.

    Raises:
      ModelError: If `content` is not a TFLite model.
    """
    spec = TARGETS[target]
    model = flatbuffer.parse(content)
    main, *others = (read_nodes(model, subgraph) for subgraph in range(len(model.subgraphs)))
    nodes = [*main, *(node for graph in others for node in graph)]
    delegates = tuple(accelerator.judge(main) for accelerator in spec.accelerators)
    problems = spec.find_problems(main, nodes, delegates)
    arena = arena_bytes(model)
    if max_arena_bytes is not None and arena > max_arena_bytes:
        problems.append(
            f"The tensors between the operators need {arena} bytes, more than max_arena_bytes={max_arena_bytes}, and "
            "kernels need some beside that. Remedy: smaller inputs, fewer channels in the first layers, or mode='int8'."
        )
    return TargetVerdict(
        target=target,
        runs=not problems,
        problems=tuple(problems),
        runtime=spec.runtime or required_runtime(model, nodes),
        delegates=delegates,
        arena_bytes=arena,
        max_arena_bytes=max_arena_bytes,
    )
