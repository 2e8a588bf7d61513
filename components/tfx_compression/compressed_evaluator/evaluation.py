"""What an evaluation found: written as JSON beside TFMA's files, shown in the report."""

import math

import pydantic

from tfx_compression.compressed_evaluator.budget import Budget, Verdict

FILE = "evaluation.json"


class _Record(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, ser_json_inf_nan="strings")


class Layer(_Record):
    """A kernel of a model.

    Attributes:
      name: of the layer.
      size: number of weights.
      sparsity: fraction of them that are zero.
      snr_db: how much louder the baseline's kernel is than its difference from this one, in decibels: what
        quantization, pruning and training changed together. None where the baseline has no kernel of that name and
        shape, infinite where they are equal.
    """

    name: str
    size: int
    sparsity: float
    snr_db: float | None = None


class Measured(_Record):
    """A model in numbers.

    Attributes:
      kind: `saved_model` or `tflite`.
      uri: where it is.
      runtime: what ran it: library, version, kernels, threads.
      metrics: on the whole evaluation split; those of a named output are called `output/metric`, those with a sub-key
        (a class, top k) `metric@sub-key`; and where a metric is computed with and without example weights, without is
        `metric@unweighted`.
      slices: by slice (`feature=value`, crosses joined by `, `), the same metrics.
      bytes, bytes_gzip: of its file or files.
      latency_ms: median of one row on one thread; None where the model did not run.
      latency_spread_ms: distance between the quartiles.
      latency_quantiles_ms: the times at 0, 5, 10, 25, 50, 75, 90, 95 and 100 per cent of the repeats.
      latency_repeats: how many times it was timed.
      arena_bytes: memory that the TFLite interpreter plans for one row's tensors; None for SavedModels.
      ops: how often each operator occurs in a TFLite model.
      sparsity: fraction of zeros in all kernels; None where they can't be seen.
      layers: the kernels.
      not_finite: number of rows with NaN or infinity among the predictions.
      failure: why it could not be run; empty where it ran.
      tflite: the baseline as the float TFLite model that TFLite candidates are compared with in size and speed.
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
    layers: tuple[Layer, ...] = ()
    not_finite: int = 0
    failure: str = ""
    tflite: "Measured | None" = None


class Drop(_Record):
    """How much worse than the baseline's a metric is: positive for worse, whichever way the metric points.

    Attributes:
      value: absolute, in the metric's unit.
      upper: its upper confidence bound, one-sided, at the budget's confidence; None where none was computed.
      relative: `value` divided by the absolute value of the baseline's metric; None where that is zero.
      relative_upper: `upper`, divided so.
      rows: number of examples behind it.
    """

    value: float
    upper: float | None = None
    relative: float | None = None
    relative_upper: float | None = None
    rows: int = 0


class Change(_Record):
    """Rows of one class that both models were asked about, and how often their answers were these.

    Attributes:
      label: the true class.
      baseline: the class that the baseline answered.
      candidate: the class that the candidate answered, another one.
      count: number of rows.
    """

    label: int
    baseline: int
    candidate: int
    count: int


class Behaviour(_Record):
    """How a candidate answers, beside the baseline, whether right or wrong.

    Attributes:
      agreement: fraction of rows with the same top class; None for outputs that are no classes.
      divergence: sum of the outputs' absolute differences over the sum of the baseline's absolute outputs.
      broken: rows that the baseline had right and the candidate has wrong; None without classes.
      mended: rows that the baseline had wrong and the candidate has right; None without classes.
      changes: where the classes differ, most frequent first, at most 50.
    """

    agreement: float | None = None
    divergence: float | None = None
    broken: int | None = None
    mended: int | None = None
    changes: tuple[Change, ...] = ()


class Comparison(_Record):
    """A candidate beside the baseline.

    Attributes:
      drops: by metric, on the whole split.
      slice_drops: by slice, by metric; the slices with fewer rows than the budget judges are there too.
      behaviour: by output of the model; the name is empty where there is one output.
    """

    drops: dict[str, Drop] = pydantic.Field(default_factory=dict)
    slice_drops: dict[str, dict[str, Drop]] = pydantic.Field(default_factory=dict)
    behaviour: dict[str, Behaviour] = pydantic.Field(default_factory=dict)

    @property
    def agreement(self) -> float | None:
        """The smallest of the outputs that have one."""
        return min((of.agreement for of in self.behaviour.values() if of.agreement is not None), default=None)

    @property
    def divergence(self) -> float | None:
        """The largest of the outputs'."""
        return max((of.divergence for of in self.behaviour.values() if of.divergence is not None), default=None)

    def worst_slice(self, metric: str, min_rows: int = 0) -> "tuple[str, Drop] | None":
        """The slice of at least `min_rows` rows where a metric drops most, by its confidence bound where it has one."""
        found = [
            (name, drops[metric])
            for name, drops in self.slice_drops.items()
            if metric in drops and drops[metric].rows >= min_rows
        ]
        return max(found, key=lambda item: _bound(item[1]), default=None)


def _bound(drop: Drop) -> float:
    bound = drop.value if drop.upper is None else drop.upper
    return math.inf if math.isnan(bound) else bound


class Evaluation(_Record):
    """Candidates against a baseline.

    Attributes:
      rows: number of examples.
      baseline: None where there was none.
      candidates: by name.
      comparisons: by candidate; empty without a baseline, and for a candidate that did not run.
      verdicts: by candidate, each limit, its value, held or not.
      budget: the limits.
      pareto: the candidates that no other one beats in size, latency and accuracy all at once.
      chosen: the candidate that the objective prefers among those that hold every limit, or None.
      reason: why that one, or why none.
      seconds: where the time of the evaluation went.
    """

    rows: int
    baseline: Measured | None
    candidates: dict[str, Measured]
    comparisons: dict[str, Comparison] = pydantic.Field(default_factory=dict)
    verdicts: dict[str, tuple[Verdict, ...]]
    budget: Budget
    pareto: tuple[str, ...] = ()
    chosen: str | None
    reason: str
    seconds: dict[str, float] = pydantic.Field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """By candidate, its metrics on the whole evaluation split."""
        return {name: measured.metrics for name, measured in self.candidates.items()}

    @property
    def metric_drop(self) -> dict[str, dict[str, float]]:
        """By candidate and metric, how much worse than the baseline, absolute."""
        empty = Comparison()
        return {
            name: {metric: drop.value for metric, drop in self.comparisons.get(name, empty).drops.items()}
            for name in self.candidates
        }

    def held(self, name: str) -> bool:
        """Whether a candidate holds every limit."""
        return all(verdict.held for verdict in self.verdicts[name])
