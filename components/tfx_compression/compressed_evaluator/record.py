"""What an evaluation found: written as JSON beside TFMA's files, shown in the report."""

import pydantic

from tfx_compression.compressed_evaluator.budget import Budget, Verdict

FILE = "evaluation.json"


class Layer(pydantic.BaseModel):
    """A kernel of a model: its name, its number of weights, the fraction of them that are zero."""

    model_config = pydantic.ConfigDict(frozen=True, ser_json_inf_nan="strings")

    name: str
    size: int
    sparsity: float


class Measured(pydantic.BaseModel):
    """A model in numbers.

    Attributes:
      kind: `saved_model` or `tflite`.
      uri: where it is.
      metrics: on the whole evaluation split.
      bytes, bytes_gzip: of its file or files.
      latency_ms: median of one row; TFLite models run on one thread.
      latency_spread_ms: distance between the quartiles.
      sparsity: fraction of zeros in all kernels; None where they can't be seen.
      layers: the kernels.
      tflite: the baseline as the float TFLite model that TFLite candidates are compared with in size and speed.
    """

    model_config = pydantic.ConfigDict(frozen=True, ser_json_inf_nan="strings")

    kind: str
    uri: str
    metrics: dict[str, float] = pydantic.Field(default_factory=dict)
    bytes: int
    bytes_gzip: int
    latency_ms: float
    latency_spread_ms: float
    sparsity: float | None = None
    layers: tuple[Layer, ...] = ()
    tflite: "Measured | None" = None


class Evaluation(pydantic.BaseModel):
    """Candidates against a baseline.

    Attributes:
      rows: number of examples.
      baseline: None where there was none; nothing is chosen then.
      candidates: by name.
      metric_drop: by candidate and metric, how much worse than the baseline.
      verdicts: by candidate, each limit, its value, held or not.
      budget: the limits.
      chosen: the candidate that the objective prefers among those that hold every limit, or None.
      reason: why that one, or why none.
    """

    model_config = pydantic.ConfigDict(frozen=True, ser_json_inf_nan="strings")

    rows: int
    baseline: Measured | None
    candidates: dict[str, Measured]
    metric_drop: dict[str, dict[str, float]]
    verdicts: dict[str, tuple[Verdict, ...]]
    budget: Budget
    chosen: str | None
    reason: str

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """By candidate, its metrics on the whole evaluation split."""
        return {name: measured.metrics for name, measured in self.candidates.items()}

    def held(self, name: str) -> bool:
        """Whether a candidate holds every limit."""
        return all(verdict.held for verdict in self.verdicts[name])
