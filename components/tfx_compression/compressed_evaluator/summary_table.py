"""The models of an evaluation as rows, which the report and the command line show."""

import dataclasses

from tfx_compression.compressed_evaluator.eval_config import BASELINE
from tfx_compression.compressed_evaluator.evaluation import Evaluation
from tfx_compression.compressed_evaluator.records import MetricDrop, ModelMeasurements
from tfx_compression.keras_models.metric_names import is_example_count


@dataclasses.dataclass(frozen=True)
class ModelRow:
    """A model in the table.

    Attributes:
      name: Name of the candidate, or of the baseline.
      model: Measurements of the model.
      reference: The baseline in the candidate's format, with which size and speed are compared.
      metric: Value of the metric that the table shows.
      drop: Drop of that metric.
      agreement: Fraction of rows with the baseline's top class.
      speedup: Latency of `reference` divided by this model's.
      verdict: `chosen`, `held`, `refused` or `failed`. Empty for a baseline that ran.
    """

    name: str
    model: ModelMeasurements
    reference: ModelMeasurements | None
    metric: float | None
    drop: MetricDrop | None
    agreement: float | None
    speedup: float | None
    verdict: str


def shown_metric(evaluation: Evaluation) -> str:
    """Returns the metric that the table shows: the budget's first, or the first computed; empty if there is none."""
    models = [evaluation.baseline, *evaluation.candidates.values()]
    computed = [name for model in models if model is not None for name in model.metrics if not is_example_count(name)]
    return next(iter([*evaluation.budget.limited_metrics, *computed]), "")


def summary_rows(evaluation: Evaluation) -> list[ModelRow]:
    """Returns a row for the baseline, for the baseline as float TFLite if it was measured, and for each candidate."""
    metric, baseline = shown_metric(evaluation), evaluation.baseline
    references = {}
    if baseline is not None:
        references[BASELINE] = baseline
        if baseline.tflite is not None:
            references[f"{BASELINE} as float TFLite"] = baseline.tflite
    rows = [
        ModelRow(name, model, None, model.metrics.get(metric), None, None, None, "failed" if model.failure else "")
        for name, model in references.items()
    ]
    for name, model in evaluation.candidates.items():
        comparison = evaluation.comparison(name)
        rows.append(
            ModelRow(
                name=name,
                model=model,
                reference=baseline.as_kind(model.kind) if baseline is not None else None,
                metric=model.metrics.get(metric),
                drop=comparison.drops.get(metric),
                agreement=comparison.agreement,
                speedup=model.speedup_over(baseline),
                verdict=_verdict(evaluation, name),
            )
        )
    return rows


def _verdict(evaluation: Evaluation, name: str) -> str:
    if evaluation.candidates[name].failure:
        return "failed"
    if name == evaluation.chosen:
        return "chosen"
    return "held" if evaluation.held(name) else "refused"
