"""The record of a pruning: what the report shows and what SparsityFineTuner reads."""

import pydantic

from tfx_compression.model_handle.compressed import Summary
from tfx_compression.pruning.plan import PruningPlan

RECORD_FILE = "pruning.json"


class GroupResult(pydantic.BaseModel):
    """The result for one pruning group: a kernel, or channels that are removed together.

    Attributes:
      name: Name of the kernel, or of the first layer that produces the channels.
      layers: Layers of the group: one, or all whose channels are coupled.
      elements: Number of weights, or of channel units.
      kept: Number of elements that are left after this step.
      target_sparsity: Sparsity of the group at the end of the plan's schedule.
      protected: Reason why the group is not pruned (`first`, `last`, a rule, an unsupported layer …); empty if it is.
      inexact: Reason why the pruned model differs from the original with the weights of the removed units set to zero;
        empty if it doesn't.
      scores: Smallest, median and largest importance; None for a protected group.
    """

    model_config = pydantic.ConfigDict(frozen=True, ser_json_inf_nan="strings")

    name: str
    layers: tuple[str, ...]
    elements: int
    kept: int
    target_sparsity: float
    protected: str = ""
    inexact: str = ""
    scores: tuple[float, float, float] | None = None


class SensitivityCurve(pydantic.BaseModel):
    """The metric as a function of the sparsity of one group, with all other groups left dense.

    Attributes:
      name: Name of the group.
      levels: Sparsities, ascending, the first one 0.
      values: Metric at each level.
    """

    model_config = pydantic.ConfigDict(frozen=True, ser_json_inf_nan="strings")

    name: str
    levels: tuple[float, ...]
    values: tuple[float, ...]


class PruningRecord(pydantic.BaseModel):
    """The record of one pruning step.

    Attributes:
      plan: The plan.
      kind: Kind of the model: `keras2`, `keras3` or `saved_model` (without a layer graph).
      summary: Sizes of the model before and after, in total and per layer.
      groups: Results of all groups, protected ones too, in the model's order.
      channels: Indices of the output channels that are left, by layer, where channels were removed.
      notes: Messages for the user: blocked groups, coupled protection, what the schedule leaves to do.
      sensitivity: Sensitivity curves; empty unless they were measured.
      metric: Metric of the curves.
      step_sparsity: Sparsity that this step was to reach, as a fraction of the plan's `target`.
      achieved_sparsity: Sparsity that it reached.
      model_sparsity: Fraction of the weights, filters or units of the whole model that it pruned, protected ones
        included, without the network's outputs; None in older records.
    """

    model_config = pydantic.ConfigDict(frozen=True, ser_json_inf_nan="strings")

    plan: PruningPlan
    kind: str
    summary: Summary
    groups: tuple[GroupResult, ...]
    channels: dict[str, tuple[int, ...]] = {}
    notes: tuple[str, ...] = ()
    sensitivity: tuple[SensitivityCurve, ...] = ()
    metric: str = ""
    step_sparsity: float
    achieved_sparsity: float
    model_sparsity: float | None = None

    @property
    def target_sparsity(self) -> dict[str, float]:
        """Sparsity of each pruned group at the end of the plan's schedule, by name."""
        return {group.name: group.target_sparsity for group in self.groups if group.target_sparsity}
