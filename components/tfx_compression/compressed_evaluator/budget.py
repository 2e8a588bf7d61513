"""What a compressed model may cost and must keep, and whether it does."""

import re
from collections.abc import Iterable
from typing import Literal

import pydantic
from pydantic import Field

from tfx_compression.models.config import Config, ConfigError

# Metrics of Keras and TFMA that are better when they are smaller, as `_plain` writes their names: the ones that the
# pattern below doesn't tell. (recall_at_false_positive_rate, say, is better when larger.)
_SMALLER_IS_BETTER = frozenset(
    [
        "falsenegatives",
        "falsenegativerate",
        "falsepositives",
        "falsepositiverate",
        "falsediscoveryrate",
        "falseomissionrate",
        "fn",
        "fnr",
        "fp",
        "fpr",
        "fdr",
        "for",
        "fallout",
        "missrate",
        "minlabelposition",
        "symmetricpredictiondifference",
        "flipcount",
        "mse",
        "mae",
        "mape",
        "msle",
        "rmse",
        "logcosh",
        "poisson",
        "hinge",
        "squaredhinge",
        "categoricalhinge",
        "brierscore",
        "perplexity",
    ]
)
_SMALLER_IS_BETTER_ENDING = re.compile(r"(loss|error|entropy|divergence|deviation)$")

# Metrics are computed in float32: a drop that is exactly at its bound differs from it by as much.
ROUNDING = 1e-6


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

    def for_metrics(self, names: Iterable[str]) -> "Budget":
        """The budget with its metrics called as in `names`, which they match without case or `_`.

        Raises:
          ConfigError: where a limited metric is none of `names`.
        """
        known = {_plain(name): name for name in names}
        for metric in self.max_metric_drop:
            if _plain(metric) not in known:
                raise ConfigError(
                    f"Budget.max_metric_drop limits {metric!r}, which the evaluation doesn't compute; it computes: "
                    f"{', '.join(known.values()) or 'none'}. Remedy: add it to the eval_config's metrics_specs."
                )
        renamed = {known[_plain(metric)]: drop for metric, drop in self.max_metric_drop.items()}
        return self.model_copy(update={"max_metric_drop": renamed})


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

    @property
    def margin(self) -> float | None:
        """How far from the bound, absolute; negative where the limit is not held."""
        if self.measured is None or self.bound is None:
            return None
        distance = abs(self.bound - self.measured)
        return distance if self.held else -distance


def metric_drop(metric: str, baseline: float, candidate: float) -> float:
    """How much worse the candidate is: positive for worse, whichever way the metric points.

    Which way that is, is known by name for Keras' and TFMA's metrics and for names that end in loss, error, entropy,
    divergence or deviation; any other metric is better when larger.
    """
    plain = _plain(metric)
    smaller_is_better = plain in _SMALLER_IS_BETTER or _SMALLER_IS_BETTER_ENDING.search(plain)
    return candidate - baseline if smaller_is_better else baseline - candidate


def _plain(metric: str) -> str:
    return metric.replace("_", "").lower()


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
