"""The budget: every limit that a candidate must hold, and the objective that chooses among those that do."""

from collections.abc import Iterable, Mapping
from typing import Annotated

import pydantic
from pydantic import Field

from tfx_compression.compressed_evaluator.limit_kinds import (
    Bound,
    Limit,
    MetricDropLimit,
    NumberLimit,
    OperatorLimit,
    RelativeMetricDropLimit,
    SliceMetricDropLimit,
)
from tfx_compression.compressed_evaluator.objectives import ObjectiveName, ObjectiveWeights
from tfx_compression.config import Config
from tfx_compression.errors import ConfigError
from tfx_compression.keras_models.metric_names import plain_name


class Budget(Config):
    """The limits that a candidate must hold to be released. A field that is not set limits nothing.

    Each field has its description below it. To add a limit, add a field that is annotated with a `Limit`: the gate
    judges it, the report shows it, and the documentation lists it by its description.
    """

    model_config = pydantic.ConfigDict(use_attribute_docstrings=True)

    max_metric_drop: Annotated[dict[str, float], MetricDropLimit()] = Field(default_factory=dict)
    """By metric, the largest drop from the baseline on the whole split, in the metric's unit. For metrics that are
    better when smaller (losses, errors), a rise is the drop."""

    max_relative_metric_drop: Annotated[dict[str, float], RelativeMetricDropLimit()] = Field(default_factory=dict)
    """By metric, the largest drop as a fraction of the baseline's metric."""

    max_slice_metric_drop: Annotated[dict[str, float], SliceMetricDropLimit()] = Field(default_factory=dict)
    """By metric, the largest drop in the worst slice of the eval_config, in the metric's unit."""

    confidence: float | None = Field(default=0.95, gt=0.5, lt=1)
    """Confidence at which the limits on drops are judged: by the one-sided upper bound of the drop, from the jackknife
    over paired predictions, so that a small evaluation split can't release a model by luck. None judges the drop."""

    min_slice_rows: int = Field(default=30, ge=1)
    """Fewest rows of a slice that is judged."""

    max_bytes: Annotated[
        int | None,
        NumberLimit("model size", Bound.AT_MOST, lambda context: context.candidate.bytes, "bytes"),
    ] = Field(default=None, gt=0)
    """Size of the model: the TFLite file, or all files of the SavedModel."""

    max_bytes_gzip: Annotated[
        int | None,
        NumberLimit("gzipped model size", Bound.AT_MOST, lambda context: context.candidate.bytes_gzip, "bytes"),
    ] = Field(default=None, gt=0)
    """Size of the same files, gzipped."""

    max_arena_bytes: Annotated[
        int | None,
        NumberLimit(
            "interpreter memory",
            Bound.AT_MOST,
            lambda context: context.candidate.arena_bytes,
            "bytes",
            unknown="it is not a TFLite model",
        ),
    ] = Field(default=None, gt=0)
    """Memory that the TFLite interpreter plans for the tensors of one row."""

    max_latency_ms: Annotated[
        float | None,
        NumberLimit("latency of one row", Bound.AT_MOST, lambda context: context.candidate.latency_ms, "ms"),
    ] = Field(default=None, gt=0)
    """Median latency of one row on the evaluating machine, in milliseconds. TFLite models run on one thread."""

    min_speedup: Annotated[
        float | None,
        NumberLimit(
            "speedup over the baseline",
            Bound.AT_LEAST,
            lambda context: context.candidate.speedup_over(context.baseline),
            unknown="the baseline could not be measured as a {kind} model",
            needs_baseline=True,
        ),
    ] = Field(default=None, gt=0)
    """Latency of the baseline divided by the candidate's. For a TFLite candidate, the baseline is measured as the float
    TFLite model that it converts to; for a SavedModel, as it is."""

    min_agreement: Annotated[
        float | None,
        NumberLimit(
            "fraction of rows with the baseline's top class",
            Bound.AT_LEAST,
            lambda context: context.comparison.agreement,
            unknown="the outputs are not classes",
            needs_baseline=True,
        ),
    ] = Field(default=None, ge=0, le=1)
    """Fraction of rows for which the candidate predicts the baseline's top class."""

    max_divergence: Annotated[
        float | None,
        NumberLimit(
            "relative difference from the baseline's outputs",
            Bound.AT_MOST,
            lambda context: context.comparison.divergence,
            unknown="the outputs are not numbers, or the baseline's are all zero",
            needs_baseline=True,
        ),
    ] = Field(default=None, ge=0)
    """Sum of the absolute differences of the outputs, divided by the sum of the baseline's absolute outputs."""

    min_sparsity: Annotated[
        float | None,
        NumberLimit(
            "fraction of zero weights",
            Bound.AT_LEAST,
            lambda context: context.candidate.sparsity,
            unknown="its weights can't be read",
        ),
    ] = Field(default=None, ge=0, le=1)
    """Fraction of zeros in all kernels."""

    allowed_ops: Annotated[tuple[str, ...] | None, OperatorLimit()] = Field(default=None, min_length=1)
    """TFLite operators that the device supports, as `tfx-compression inspect` names them."""

    objective: ObjectiveName = "smallest"
    """Which candidate is chosen among those that hold every limit: the `smallest` file, the `fastest`, the
    `most_accurate` (smallest drop in the first limited metric, or the evaluation's first), or the one with the smallest
    `weighted` sum."""

    weights: ObjectiveWeights = Field(default_factory=ObjectiveWeights)
    """Weights of the weighted objective."""

    allow_first: bool = False
    """Whether a candidate may be released without a baseline, as the first release. The limits that compare with the
    baseline are then skipped, and the blessing says so."""

    accept_anything: bool = False
    """Whether CompressedEvaluator may bless candidates although the budget sets no limit and the eval_config no
    threshold."""

    @classmethod
    def limits(cls) -> dict[str, Limit]:
        """Returns the kind of each limit by field."""
        return {
            name: annotation
            for name, field in cls.model_fields.items()
            for annotation in field.metadata
            if isinstance(annotation, Limit)
        }

    @classmethod
    def limits_table(cls) -> str:
        """Returns the limits and their descriptions as a Markdown table, which docs/evaluation.md contains."""
        descriptions = {name: " ".join((cls.model_fields[name].description or "").split()) for name in cls.limits()}
        lines = [f"| `{name}` | {description} |" for name, description in descriptions.items()]
        return "\n".join(["| limit | meaning |", "|---|---|", *lines])

    @property
    def set_limits(self) -> dict[str, Limit]:
        """The limits that are set, by field."""
        return {field: limit for field, limit in self.limits().items() if getattr(self, field) not in (None, {})}

    @property
    def limited_metrics(self) -> list[str]:
        """The metrics whose drop is limited, in the order of the limits."""
        return list(dict.fromkeys(metric for drops in self._drops().values() for metric in drops))

    @property
    def needs_intervals(self) -> bool:
        """Whether confidence bounds have to be computed."""
        return self.confidence is not None and bool(self.limited_metrics)

    def for_metrics(self, names: Iterable[str]) -> "Budget":
        """Returns the budget with its metrics spelled as in `names`, which may differ in case and underscores.

        A limit on a metric that only single outputs have (`output/metric`) applies to each of them.

        Raises:
          ConfigError: A limited metric is not among `names`, or a limit names one metric twice.
        """
        known = {plain_name(name): name for name in names}
        renamed = {}
        for field, drops in self._drops().items():
            matches = {metric: _matches(plain_name(metric), known) for metric in drops}
            for metric, matched in matches.items():
                if not matched:
                    raise ConfigError(
                        f"Budget.{field} limits the drop of {metric!r}, which the evaluation doesn't compute. It "
                        f"computes: {', '.join(known.values()) or 'none'}. Remedy: add the metric to the eval_config's "
                        "metrics_specs.",
                        field=f"Budget.{field}",
                        code="unknown-metric",
                    )
            renamed[field] = {name: drop for metric, drop in drops.items() for name in matches[metric]}
            if len(renamed[field]) < sum(map(len, matches.values())):
                raise ConfigError(
                    f"Budget.{field} limits one metric twice: {', '.join(drops)}. Remedy: remove one.",
                    field=f"Budget.{field}",
                    code="duplicate-metric",
                )
        return self.model_copy(update=renamed)

    def _drops(self) -> dict[str, Mapping[str, float]]:
        """Returns the limits on drops of metrics: by field, the allowed drop of each metric."""
        return {
            field: getattr(self, field) for field, limit in self.limits().items() if isinstance(limit, MetricDropLimit)
        }


def _matches(metric: str, known: Mapping[str, str]) -> list[str]:
    """Returns the metric, or else the metrics of single outputs with this name, from names by plain name."""
    if metric in known:
        return [known[metric]]
    return [name for plain, name in known.items() if plain.rpartition("/")[2] == metric]
