"""What a compressed model may cost and must keep, and whether it does."""

import re
from collections.abc import Iterable
from typing import Literal

import pydantic
from pydantic import Field

from tfx_compression.models.config import Config, ConfigError

# Metrics that are better when they are smaller, by a word of their name.
_SMALLER_IS_BETTER = re.compile(r"loss|error|entropy|divergence|hinge|poisson|deviation|false|fall_out|miss_rate")


class Budget(Config):
    """The limits that a candidate must hold to be released. What is not set is not limited.

    Attributes:
      max_metric_drop: by metric, how much worse than the baseline's the candidate's may be, absolute. Of metrics that
        are better when smaller (losses, errors) a rise is the drop.
      max_bytes: size of the model: the TFLite file, or all files of the SavedModel.
      max_bytes_gzip: the same, gzipped.
      max_latency_ms: median latency of one row on the evaluating machine, in milliseconds; TFLite models run on one
        thread.
      min_speedup: the baseline's latency divided by the candidate's. For a TFLite candidate the baseline is measured as
        the float TFLite model it converts to, for a SavedModel as it is.
      min_sparsity: fraction of zeros in all kernels.
      objective: which of the candidates that hold all limits is chosen: the `smallest` file, the `fastest`, or the
        `most_accurate` (smallest drop, in the first metric of `max_metric_drop`, or the evaluation's first).
    """

    max_metric_drop: dict[str, float] = Field(default_factory=dict)
    max_bytes: int | None = Field(default=None, gt=0)
    max_bytes_gzip: int | None = Field(default=None, gt=0)
    max_latency_ms: float | None = Field(default=None, gt=0)
    min_speedup: float | None = Field(default=None, gt=0)
    min_sparsity: float | None = Field(default=None, ge=0, le=1)
    objective: Literal["smallest", "fastest", "most_accurate"] = "smallest"

    def require_metrics(self, names: Iterable[str]) -> None:
        """Raises ConfigError where a limited metric is none of `names`, which are compared without case or `_`."""
        known = list(names)
        plain = {name.replace("_", "").lower() for name in known}
        for metric in self.max_metric_drop:
            if metric.replace("_", "").lower() not in plain:
                raise ConfigError(
                    f"Budget.max_metric_drop limits {metric!r}, which the evaluation doesn't compute; it computes: "
                    f"{', '.join(known) or 'none'}. Remedy: add it to the eval_config's metrics_specs."
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

    model_config = pydantic.ConfigDict(frozen=True)

    limit: str
    bound: float | None
    measured: float | None
    held: bool
    note: str = ""

    @property
    def margin(self) -> float | None:
        """How far from the bound, absolute; negative where the limit is not held."""
        if self.measured is None or self.bound is None:
            return None
        distance = abs(self.bound - self.measured)
        return distance if self.held else -distance


def metric_drop(metric: str, baseline: float, candidate: float) -> float:
    """How much worse the candidate is: positive for worse, whichever way the metric points."""
    return candidate - baseline if _SMALLER_IS_BETTER.search(metric) else baseline - candidate


def at_most(limit: str, bound: float | None, measured: float | None, unknown: str = "") -> list[Verdict]:
    """The verdict on a largest allowed value; none where there is no bound. NaN holds nothing.

    `unknown` says why `measured` is None.
    """
    held = measured is not None and bound is not None and measured <= bound
    return _verdict(limit, bound, measured, held, unknown)


def at_least(limit: str, bound: float | None, measured: float | None, unknown: str = "") -> list[Verdict]:
    """The verdict on a smallest allowed value; otherwise as `at_most`."""
    held = measured is not None and bound is not None and measured >= bound
    return _verdict(limit, bound, measured, held, unknown)


def _verdict(limit: str, bound: float | None, measured: float | None, held: bool, unknown: str) -> list[Verdict]:
    if bound is None:
        return []
    return [Verdict(limit=limit, bound=bound, measured=measured, held=held, note=unknown if measured is None else "")]
