"""The modes of fine-tuning.

A mode is a row of `MODES` and the module of that name in this folder, whose `run(session, masks)` fine-tunes the
session's model and returns a `ModeResult`. This module imports no TensorFlow, so that configurations load without it.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Mode:
    """What a mode accepts.

    Attributes:
      schedules: Values of `PruningPlan.schedule` that the mode completes.
      requires_plan: Whether it prunes further, and so needs a plan.
      channels: Whether it accepts plans that remove channels.
      mixed_precision: Whether it can compute in 16 bits.
      options: Fields of `FineTuning`, None by default, that only this mode uses.
    """

    schedules: tuple[str, ...] = ("one_shot",)
    requires_plan: bool = False
    channels: bool = True
    mixed_precision: bool = True
    options: tuple[str, ...] = ()


MODES = {
    "fixed": Mode(),
    "gradual": Mode(schedules=("constant", "polynomial", "cubic"), requires_plan=True),
    "iterative": Mode(schedules=("one_shot", "iterative"), requires_plan=True, options=("guard", "rewind")),
    "dynamic": Mode(schedules=("one_shot", "constant"), channels=False),
    "quantization_aware": Mode(mixed_precision=False),
    "cluster": Mode(),
}
