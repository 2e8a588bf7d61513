"""What a pruning did, as JSON: what the report shows and ML Metadata's readers open."""

import pydantic

from tfx_compression.model_handle.compressed import Summary
from tfx_compression.pruning.plan import PruningPlan

RECORD_FILE = "pruning.json"


class GroupResult(pydantic.BaseModel):
    """A kernel, or a group of channels that go together.

    Attributes:
      name: of the kernel or of the group (its first producing layer).
      layers: the layers that it concerns: one, or all that are coupled.
      elements: how many weights or channel units it has.
      kept: how many are left after this step.
      target: the fraction that is to go in the end, by the plan's schedule.
      protected: why it was left alone (`first`, `last`, a rule, an unsupported layer …), or empty.
      scores: the smallest, the median and the largest importance, or none where it was left alone.
    """

    model_config = pydantic.ConfigDict(frozen=True, ser_json_inf_nan="strings")

    name: str
    layers: tuple[str, ...]
    elements: int
    kept: int
    target: float
    protected: str = ""
    scores: tuple[float, float, float] | None = None


class SensitivityCurve(pydantic.BaseModel):
    """How the metric answers to pruning one part alone: its value at each level, the first level being 0."""

    model_config = pydantic.ConfigDict(frozen=True, ser_json_inf_nan="strings")

    name: str
    levels: tuple[float, ...]
    values: tuple[float, ...]


class PruningRecord(pydantic.BaseModel):
    """A pruning.

    Attributes:
      plan: as it was asked for.
      kind: of the model: `keras2`, `keras3` or `saved_model` (without a layer graph).
      summary: the model before and after, whole and per layer.
      parts: what was pruned and what was left alone.
      channels: by layer, the output channels that stay, where some were removed.
      notes: what the user should know: blocked groups, coupled protection, what the schedule leaves to do.
      sensitivity: curves, where they were measured.
      metric: what the curves show.
      asked: the fraction of the plan's target that was asked for at this step.
      reached: the fraction that went.
    """

    model_config = pydantic.ConfigDict(frozen=True, ser_json_inf_nan="strings")

    plan: PruningPlan
    kind: str
    summary: Summary
    parts: tuple[GroupResult, ...]
    channels: dict[str, tuple[int, ...]] = {}
    notes: tuple[str, ...] = ()
    sensitivity: tuple[SensitivityCurve, ...] = ()
    metric: str = ""
    asked: float
    reached: float
