"""The result of an evaluation, which evaluation.json holds and the report shows."""

import pydantic

from tfx_compression.compressed_evaluator.budget import Budget
from tfx_compression.compressed_evaluator.records import (
    BaselineComparison,
    EvaluationRecord,
    LimitVerdict,
    ModelMeasurements,
)

FILE = "evaluation.json"


class Evaluation(EvaluationRecord):
    """Candidates compared with a baseline, and the decision.

    Attributes:
      rows: Number of examples.
      baseline: Measurements of the baseline, if there is one.
      candidates: Measurements of the candidates by name.
      comparisons: Comparisons with the baseline by candidate, for the candidates that ran; empty without a baseline.
      verdicts: By candidate, a verdict for each limit: its field, bound, measured value, and whether it is held.
      budget: Limits and objective.
      pareto: Candidates that no other one beats in size, latency and accuracy at once.
      chosen: Candidate that the objective prefers among those that hold every limit, or None.
      reason: Why that candidate was chosen, or why none was.
      seconds: Seconds that each step of the evaluation took.
    """

    rows: int
    baseline: ModelMeasurements | None
    candidates: dict[str, ModelMeasurements]
    comparisons: dict[str, BaselineComparison] = pydantic.Field(default_factory=dict)
    verdicts: dict[str, tuple[LimitVerdict, ...]]
    budget: Budget
    pareto: tuple[str, ...] = ()
    chosen: str | None
    reason: str
    seconds: dict[str, float] = pydantic.Field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """The metrics of each candidate on the whole evaluation split."""
        return {name: candidate.metrics for name, candidate in self.candidates.items()}

    @property
    def metric_drop(self) -> dict[str, dict[str, float]]:
        """By candidate and metric, how much worse than the baseline the candidate is, in the metric's unit."""
        return {
            name: {metric: drop.value for metric, drop in self.comparison(name).drops.items()}
            for name in self.candidates
        }

    def comparison(self, name: str) -> BaselineComparison:
        """Returns the comparison of a candidate with the baseline, which is empty if there is none."""
        return self.comparisons.get(name, BaselineComparison())

    def held(self, name: str) -> bool:
        """Returns whether a candidate holds every limit."""
        return all(verdict.held for verdict in self.verdicts[name])

    def to_json(self) -> str:
        """Returns the evaluation as JSON. `Evaluation.model_validate_json` reads it."""
        return self.model_dump_json(indent=1, by_alias=True)
