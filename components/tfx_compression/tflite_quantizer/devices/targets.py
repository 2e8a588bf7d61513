"""The targets that a TFLite model can be made for: one row each.

An accelerator is a module beside this one, with its rules and their source; `docs/devices.md` describes them.
"""

import dataclasses
from collections.abc import Callable, Sequence

from tfx_compression.tflite.modes import MODES, ModeSpec
from tfx_compression.tflite_quantizer.devices import (
    core_ml,
    edge_tpu,
    gpu,
    microcontroller,
    nnapi,
    tflite_runtime,
    xnnpack,
)
from tfx_compression.tflite_quantizer.devices.accelerator import Accelerator
from tfx_compression.tflite_quantizer.devices.nodes import Node
from tfx_compression.tflite_quantizer.devices.verdicts import DelegateVerdict


@dataclasses.dataclass(frozen=True)
class TargetSpec:
    """A target.

    Attributes:
      name: Name in `Quantization.target`.
      accelerators: Accelerators of the device, each of which gets a verdict.
      find_problems: Returns why a model can't run, given the operators of its main graph, those of all its graphs, and
        the accelerators' verdicts. By default, what TFLite's own kernels can't run.
      runtime: What the device must have; empty if that depends on the model.
      runs_mode: Whether the device can run models of a quantization mode.
      select_tf_ops: Whether the Flex delegate runs there.
      static_shapes: Whether models need a fixed `batch_size`.
      c_source: Whether the model is also written as C++ source.
    """

    name: str
    accelerators: tuple[Accelerator, ...]
    find_problems: Callable[[Sequence[Node], Sequence[Node], Sequence[DelegateVerdict]], list[str]] = (
        tflite_runtime.find_problems
    )
    runtime: str = ""
    runs_mode: Callable[[ModeSpec], bool] = lambda _: True
    select_tf_ops: bool = True
    static_shapes: bool = False
    c_source: bool = False

    @property
    def modes(self) -> tuple[str, ...]:
        """Quantization modes that the device can run."""
        return tuple(name for name, mode in MODES.items() if self.runs_mode(mode))


TARGETS = {
    spec.name: spec
    for spec in (
        TargetSpec("cpu", (xnnpack.ACCELERATOR,)),
        TargetSpec(
            "edge_tpu",
            (edge_tpu.ACCELERATOR,),
            edge_tpu.find_problems,
            runtime="Edge TPU runtime, for the model as edgetpu_compiler writes it",
            runs_mode=edge_tpu.runs_mode,
            select_tf_ops=False,
            static_shapes=True,
        ),
        TargetSpec(
            "microcontroller",
            (microcontroller.ACCELERATOR,),
            microcontroller.find_problems,
            runtime="TensorFlow Lite Micro",
            runs_mode=microcontroller.runs_mode,
            select_tf_ops=False,
            c_source=True,
        ),
        TargetSpec("android_nnapi_gpu", (gpu.ACCELERATOR, nnapi.ACCELERATOR)),
        TargetSpec("ios_coreml", (core_ml.ACCELERATOR,)),
    )
}
