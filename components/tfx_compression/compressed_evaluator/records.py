"""The records that make up an evaluation: measurements of each model and its comparison with the baseline."""

import math

import pydantic

from tfx_compression.keras_models.metric_names import metric_drop


class EvaluationRecord(pydantic.BaseModel):
    """Base class of the records: immutable, and NaN and infinity survive JSON as strings."""

    model_config = pydantic.ConfigDict(frozen=True, populate_by_name=True, ser_json_inf_nan="strings")


class LayerMeasurements(EvaluationRecord):
    """The kernel of one layer.

    Attributes:
      name: Name of the layer.
      size: Number of weights.
      sparsity: Fraction of zero weights.
      snr_db: Ratio of the baseline's kernel to its difference from this one, in decibels. It measures what pruning,
        training and quantization changed together. None if the baseline has no kernel of that name and shape,
        infinite if the two are equal.
    """

    name: str
    size: int
    sparsity: float
    snr_db: float | None = None


class ModelMeasurements(EvaluationRecord):
    """One model in numbers.

    Attributes:
      kind: Format of the model, `saved_model` or `tflite`.
      uri: Path of the model.
      runtime: Library, version, kernels and threads that ran it.
      metrics: Metrics on the whole evaluation split. The metric of a named output is called `output/metric`, one with
        a sub-key (a class, a top k) `metric@sub-key`. If a metric is computed with and without example weights, the
        one without is `metric@unweighted`.
      slices: The same metrics by slice (`feature=value`, crosses joined by `, `).
      bytes: Size of the file, or of all files of a SavedModel.
      bytes_gzip: Size of the same files, gzipped.
      latency_ms: Median time of one row on one thread, in milliseconds. None if the model did not run.
      latency_spread_ms: Interquartile range of the times.
      latency_quantiles_ms: Times at the quantiles 0, 5, 10, 25, 50, 75, 90, 95 and 100%.
      latency_repeats: Number of timed runs.
      arena_bytes: Memory that the TFLite interpreter plans for the tensors of one row. None for SavedModels.
      ops: Number of occurrences of each operator in a TFLite model.
      sparsity: Fraction of zeros in all kernels. None if the kernels can't be read.
      layers: The kernels.
      not_finite: Number of rows with NaN or infinity among the predictions.
      failure: Why the model could not be run. Empty if it ran.
      tflite: The baseline as a float TFLite model, with which TFLite candidates are compared in size and speed.
    """

    kind: str
    uri: str
    runtime: str = ""
    metrics: dict[str, float] = pydantic.Field(default_factory=dict)
    slices: dict[str, dict[str, float]] = pydantic.Field(default_factory=dict)
    bytes: int
    bytes_gzip: int
    latency_ms: float | None
    latency_spread_ms: float | None
    latency_quantiles_ms: tuple[float, ...] = ()
    latency_repeats: int = 0
    arena_bytes: int | None = None
    ops: dict[str, int] = pydantic.Field(default_factory=dict)
    sparsity: float | None = None
    layers: tuple[LayerMeasurements, ...] = ()
    not_finite: int = 0
    failure: str = ""
    tflite: "ModelMeasurements | None" = None

    def as_kind(self, kind: str) -> "ModelMeasurements | None":
        """Returns the measurements of this model in the format `kind`, or None if it wasn't measured in that format."""
        if self.kind == kind:
            return self
        return self.tflite if kind == "tflite" else None

    def speedup_over(self, baseline: "ModelMeasurements | None") -> float | None:
        """Returns the latency of the baseline, in this model's format, divided by this model's; None if unknown."""
        reference = baseline.as_kind(self.kind) if baseline is not None else None
        if reference is None or not reference.latency_ms or not self.latency_ms:
            return None
        return reference.latency_ms / self.latency_ms


class MetricDrop(EvaluationRecord):
    """How much worse than the baseline a candidate is in one metric: positive if worse, whatever the metric.

    Attributes:
      value: The drop in the metric's unit.
      upper: Upper one-sided confidence bound of the drop, at the budget's confidence. None if none was computed.
      relative: `value` divided by the absolute value of the baseline's metric. None if that is zero.
      relative_upper: `upper`, divided likewise.
      rows: Number of examples that the metric was computed on.
    """

    value: float
    upper: float | None = None
    relative: float | None = None
    relative_upper: float | None = None
    rows: int = 0

    @classmethod
    def between(
        cls, metric: str, baseline: float, candidate: float, rows: int, margin: float | None = None
    ) -> "MetricDrop":
        """Returns the drop from the baseline's value of a metric to the candidate's.

        Args:
          metric: Name of the metric, which tells whether smaller is better.
          baseline: Value of the baseline.
          candidate: Value of the candidate.
          rows: Number of examples behind both values.
          margin: Distance from the drop to its upper confidence bound; None if it isn't known.
        """
        value = metric_drop(metric, baseline, candidate)
        upper = None if margin is None else value + margin
        return cls(
            value=value,
            upper=upper,
            relative=value / abs(baseline) if baseline else None,
            relative_upper=upper / abs(baseline) if baseline and upper is not None else None,
            rows=rows,
        )

    @property
    def worst(self) -> float:
        """The upper bound if there is one, otherwise the drop; infinite for NaN, so that it sorts as the worst."""
        worst = self.value if self.upper is None else self.upper
        return math.inf if math.isnan(worst) else worst


class AnswerChange(EvaluationRecord):
    """Rows of one class for which the two models predicted the same two different classes.

    Attributes:
      label: True class.
      baseline: Class that the baseline predicted.
      candidate: Class that the candidate predicted.
      count: Number of rows.
    """

    label: int
    baseline: int
    candidate: int
    count: int


class OutputComparison(EvaluationRecord):
    """One output of a candidate compared with the baseline's, whether the predictions are right or wrong.

    Attributes:
      agreement: Fraction of rows with the same top class. None for outputs that are not classes.
      divergence: Sum of the absolute differences of the outputs over the sum of the baseline's absolute outputs.
      broken: Number of rows that only the baseline predicts correctly. None without classes.
      mended: Number of rows that only the candidate predicts correctly. None without classes.
      changes: The changed classes, the most frequent first, at most 50.
    """

    agreement: float | None = None
    divergence: float | None = None
    broken: int | None = None
    mended: int | None = None
    changes: tuple[AnswerChange, ...] = ()


class BaselineComparison(EvaluationRecord):
    """A candidate compared with the baseline.

    Attributes:
      drops: Drop of each metric on the whole split.
      slice_drops: Drop of each metric by slice, including slices with too few rows for the budget to judge.
      behavior: Comparison of each output of the model. The name is empty if there is one output. The key in
        evaluation.json, which other programs read, is `behaviour`.
    """

    drops: dict[str, MetricDrop] = pydantic.Field(default_factory=dict)
    slice_drops: dict[str, dict[str, MetricDrop]] = pydantic.Field(default_factory=dict)
    behavior: dict[str, OutputComparison] = pydantic.Field(
        default_factory=dict, validation_alias="behaviour", serialization_alias="behaviour"
    )

    @property
    def agreement(self) -> float | None:
        """The smallest agreement of all outputs that have one."""
        return min((each.agreement for each in self.behavior.values() if each.agreement is not None), default=None)

    @property
    def divergence(self) -> float | None:
        """The largest divergence of all outputs that have one."""
        return max((each.divergence for each in self.behavior.values() if each.divergence is not None), default=None)

    def judged_slices(self, metric: str, min_rows: int) -> dict[str, MetricDrop]:
        """Returns the drop of a metric in each slice that has it and at least `min_rows` rows."""
        return {
            name: drops[metric]
            for name, drops in self.slice_drops.items()
            if metric in drops and drops[metric].rows >= min_rows
        }

    def worst_slice(self, metric: str, min_rows: int = 0) -> "tuple[str, MetricDrop] | None":
        """Returns the slice of at least `min_rows` rows with the worst drop, by its confidence bound if it has one."""
        return max(self.judged_slices(metric, min_rows).items(), key=lambda item: item[1].worst, default=None)


class LimitVerdict(EvaluationRecord):
    """One limit and whether a candidate held it.

    Attributes:
      field: What set the limit. For a limit of the budget, the field of `Budget`, such as `max_bytes`; `confidence` if
        the split is too small for a confidence bound. `eval_config` for a threshold of TFMA's EvalConfig. `failure` and
        `not_finite` for the requirements of every candidate: it runs, and its predictions are finite.
      limit: The limit in words, without the bound.
      bound: The bound. None if the limit isn't a number.
      measured: Value of the candidate. None if it could not be measured, and then the limit is not held.
      held: Whether the candidate holds the limit.
      note: Why the value could not be measured, or what else there is to know about it.
      metric: Metric that is limited; empty if the limit is not about a metric.
      slice: Slice that is limited; empty for the whole split.
      unit: Unit of the bound and the measured value.
    """

    field: str
    limit: str
    bound: float | None
    measured: float | None
    held: bool
    note: str = ""
    metric: str = ""
    slice: str = ""
    unit: str = ""

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def margin(self) -> float | None:
        """Absolute distance from the bound, negative if the limit is not held."""
        if self.measured is None or self.bound is None:
            return None
        distance = abs(self.bound - self.measured)
        return distance if self.held else -distance

    @property
    def sentence(self) -> str:
        """The verdict in words: the limit, its bound, whether it is held, and the measured value."""
        limit = self.limit if self.bound is None else f"{self.limit} {self._in_unit(self.bound)}"
        held = "held" if self.held else "not held"
        if self.measured is None:
            return f"{limit}: {held}, {self.note or 'not measured'}"
        note = f"; {self.note}" if self.note and self.bound is not None else ""
        return f"{limit}: {held} (measured {self._in_unit(self.measured)}{note})"

    def _in_unit(self, value: float) -> str:
        number = f"{value:,.0f}" if value.is_integer() else f"{value:.4g}"
        return f"{number} {self.unit}" if self.unit else number
