"""What a compressed model may cost and must keep, and whether it does."""

import re
from collections.abc import Iterable
from typing import Literal

import pydantic
from pydantic import Field

from tfx_compression.config import Config
from tfx_compression.errors import ConfigError
from tfx_compression.keras_models.metric_names import plain_name, smaller_is_better

# The budget's limits on drops of metrics.
DROPS = ("max_metric_drop", "max_relative_metric_drop", "max_slice_metric_drop")

# Metrics are computed in float32: a drop that is exactly at its bound differs from it by as much.
ROUNDING = 1e-6


class Weights(Config):
    """What a weighted objective counts, each relative to the baseline; the smallest sum wins.

    Attributes:
      bytes: weight of the gzipped size divided by the baseline's (as float TFLite, for a TFLite candidate).
      latency: weight of the latency divided by the baseline's.
      drop: weight of the drop in the budget's first metric, in the metric's unit: 100 makes one point count as much as
        a whole baseline of bytes.
    """

    bytes: float = Field(default=1.0, ge=0)
    latency: float = Field(default=1.0, ge=0)
    drop: float = Field(default=100.0, ge=0)


class Budget(Config):
    """The limits that a candidate must hold to be released. What is not set is not limited.

    Attributes:
      max_metric_drop: by metric, how much worse than the baseline's the candidate's may be, absolute. Of metrics that
        are better when smaller (losses, errors) a rise is the drop.
      max_relative_metric_drop: the same, as a fraction of the baseline's metric.
      max_slice_metric_drop: the same as `max_metric_drop`, in the worst slice of the eval_config.
      confidence: of the three limits above: what is held against them is the one-sided upper confidence bound of the
        drop, by the jackknife over the paired predictions, so that luck on a small evaluation split does not release a
        model. None holds the drop itself against them.
      min_slice_rows: slices with fewer rows are not judged.
      max_bytes: size of the model: the TFLite file, or all files of the SavedModel.
      max_bytes_gzip: the same, gzipped.
      max_arena_bytes: memory that the TFLite interpreter plans for the tensors of one row.
      max_latency_ms: median latency of one row on the evaluating machine, in milliseconds; TFLite models run on one
        thread.
      min_speedup: the baseline's latency divided by the candidate's. For a TFLite candidate the baseline is measured as
        the float TFLite model it converts to, for a SavedModel as it is.
      min_sparsity: fraction of zeros in all kernels.
      min_agreement: fraction of rows with the baseline's top class.
      max_divergence: sum of the absolute differences of the outputs over the sum of the baseline's absolute outputs.
      allowed_ops: the TFLite operators that the device has, as `tfx-compression inspect` names them.
      objective: which of the candidates that hold all limits is chosen: the `smallest` file, the `fastest`, the
        `most_accurate` (smallest drop, in the first limited metric, or the evaluation's first), or the one with the
        smallest `weighted` sum.
      weights: of the weighted objective.
      allow_first: whether a candidate may be released without a baseline: the first release. The limits that need one
        are then not judged, and the blessing says so.
    """

    max_metric_drop: dict[str, float] = Field(default_factory=dict)
    max_relative_metric_drop: dict[str, float] = Field(default_factory=dict)
    max_slice_metric_drop: dict[str, float] = Field(default_factory=dict)
    confidence: float | None = Field(default=0.95, gt=0.5, lt=1)
    min_slice_rows: int = Field(default=30, ge=1)
    max_bytes: int | None = Field(default=None, gt=0)
    max_bytes_gzip: int | None = Field(default=None, gt=0)
    max_arena_bytes: int | None = Field(default=None, gt=0)
    max_latency_ms: float | None = Field(default=None, gt=0)
    min_speedup: float | None = Field(default=None, gt=0)
    min_sparsity: float | None = Field(default=None, ge=0, le=1)
    min_agreement: float | None = Field(default=None, ge=0, le=1)
    max_divergence: float | None = Field(default=None, ge=0)
    allowed_ops: tuple[str, ...] | None = None
    objective: Literal["smallest", "fastest", "most_accurate", "weighted"] = "smallest"
    weights: Weights = Field(default_factory=Weights)
    allow_first: bool = False

    @property
    def limited_metrics(self) -> list[str]:
        """The metrics whose drop is limited, in the order they were given."""
        return list(dict.fromkeys(metric for name in DROPS for metric in getattr(self, name)))

    @property
    def needs_intervals(self) -> bool:
        """Whether confidence bounds have to be computed."""
        return self.confidence is not None and bool(self.limited_metrics)

    def for_metrics(self, names: Iterable[str]) -> "Budget":
        """The budget with its metrics called as in `names`, which they match without case or `_`.

        Raises:
          ConfigError: where a limited metric is none of `names`.
        """
        known = {plain_name(name): name for name in names}
        for metric in self.limited_metrics:
            if plain_name(metric) not in known:
                raise ConfigError(
                    f"The budget limits the drop of {metric!r}, which the evaluation doesn't compute; it computes: "
                    f"{', '.join(known.values()) or 'none'}. Remedy: add it to the eval_config's metrics_specs."
                )
        for name in DROPS:
            plain = [plain_name(metric) for metric in getattr(self, name)]
            if len(set(plain)) < len(plain):
                raise ConfigError(f"Budget.{name} limits one metric twice: {', '.join(getattr(self, name))}.")
        return self.model_copy(
            update={
                name: {known[plain_name(metric)]: drop for metric, drop in getattr(self, name).items()}
                for name in DROPS
            }
        )


class Verdict(pydantic.BaseModel):
    """One limit and whether a candidate held it.

    Attributes:
      limit: in words.
      bound: the limit's value.
      measured: the candidate's; None where it could not be measured, and then the limit is not held.
      held: whether it was.
      note: why it could not be measured.
    """

    model_config = pydantic.ConfigDict(frozen=True, ser_json_inf_nan="strings")

    limit: str
    bound: float | None
    measured: float | None
    held: bool
    note: str = ""

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def margin(self) -> float | None:
        """How far from the bound, absolute; negative where the limit is not held."""
        if self.measured is None or self.bound is None:
            return None
        distance = abs(self.bound - self.measured)
        return distance if self.held else -distance


def metric_drop(metric: str, baseline: float, candidate: float) -> float:
    """How much worse the candidate is: positive for worse, whichever way the metric points."""
    return candidate - baseline if smaller_is_better(metric) else baseline - candidate


def counts_examples(metric: str) -> bool:
    """Whether a metric, perhaps of an output or weighted, is no quality of a model but the number of examples."""
    return re.sub(r".*/|@.*", "", metric) in ("example_count", "weighted_example_count")


def at_most(
    limit: str, bound: float | None, measured: float | None, unknown: str = "", rounding: float = 0.0
) -> list[Verdict]:
    """The verdict on a largest allowed value; none where there is no bound. NaN holds nothing.

    `unknown` says why `measured` is None; `rounding` is how much more still counts as the bound.
    """
    held = measured is not None and bound is not None and measured <= bound + rounding
    return _verdict(limit, bound, measured, held, unknown)


def at_least(limit: str, bound: float | None, measured: float | None, unknown: str = "") -> list[Verdict]:
    """The verdict on a smallest allowed value; otherwise as `at_most`."""
    held = measured is not None and bound is not None and measured >= bound
    return _verdict(limit, bound, measured, held, unknown)


def _verdict(limit: str, bound: float | None, measured: float | None, held: bool, unknown: str) -> list[Verdict]:
    if bound is None:
        return []
    return [Verdict(limit=limit, bound=bound, measured=measured, held=held, note=unknown if measured is None else "")]
