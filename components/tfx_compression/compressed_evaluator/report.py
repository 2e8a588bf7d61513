"""The report: one HTML file that needs no network."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from tfx_compression.compressed_evaluator import plots, report_tables
from tfx_compression.compressed_evaluator.evaluation import Evaluation
from tfx_compression.compressed_evaluator.summary_table import ModelRow, shown_metric, summary_rows
from tfx_compression.page import template


def render(
    evaluations: Mapping[str, Evaluation],
    title: str = "Compression report",
    origins: Mapping[str, Mapping[str, Mapping[str, object]]] | None = None,
) -> str:
    """Renders the report on one or several evaluations.

    Args:
      evaluations: Evaluations by heading, which may be empty.
      title: Title of the page.
      origins: By heading and model (a candidate's name, or `baseline`), facts about how the model was made: its URI,
        ids and recipe.

    Returns:
      HTML that contains its style, scripts and data.
    """
    sections = [
        _section(heading, evaluation, (origins or {}).get(heading, {})) for heading, evaluation in evaluations.items()
    ]
    return template.render(__package__, title, sections=sections)


def _section(heading: str, evaluation: Evaluation, origins: Mapping[str, Mapping[str, object]]) -> dict[str, Any]:
    """Returns what the template shows of one evaluation."""
    metric, rows = shown_metric(evaluation), summary_rows(evaluation)
    return {
        "heading": heading,
        "evaluation": evaluation,
        "metric": metric,
        "opened": evaluation.chosen or next(iter(evaluation.candidates), ""),
        "warnings": _warnings(evaluation.rows, rows),
        "overview": report_tables.overview(evaluation, metric, rows),
        "classes": [row.verdict for row in rows],
        "explanations": _explanations(evaluation, rows),
        "verdicts": report_tables.verdicts(evaluation, rows),
        "plot": _scatter(evaluation, metric, rows),
        "metrics": report_tables.metrics(evaluation, metric, rows),
        "slices": report_tables.slices(evaluation, metric),
        "answers": report_tables.answers(evaluation),
        "changes": report_tables.changes(evaluation),
        "layers": report_tables.layers(rows),
        "latency_plot": _latency_boxes(rows),
        "latency": report_tables.latency(rows),
        "origins": {name: _facts(facts) for name, facts in origins.items()},
        "json": evaluation.to_json(),
    }


def _warnings(total: int, rows: Sequence[ModelRow]) -> list[tuple[str, str]]:
    """Returns the models that did not run, or that predicted NaN or infinity, and what happened."""
    failures = [(row.name, f"could not be run: {row.model.failure}") for row in rows if row.model.failure]
    return failures + [
        (row.name, f"predicts NaN or infinity in {row.model.not_finite:,} of {total:,} rows.")
        for row in rows
        if row.model.not_finite
    ]


def _explanations(evaluation: Evaluation, rows: Sequence[ModelRow]) -> list[str]:
    """Returns what each column of the table means, for the columns that it has."""
    drops = [row.drop for row in rows if row.drop is not None]
    confidence = evaluation.budget.confidence
    bound = f", with {100 * confidence:g}% confidence" if confidence else ""
    sentences = {
        "Drop: how much worse than the baseline; negative: better.": bool(drops),
        f"Up to: the drop is no larger than this{bound}.": any(drop.upper is not None for drop in drops),
        "Ms per row: the median on the machine that evaluated, of TFLite models on one thread.": any(
            row.model.latency_ms is not None for row in rows
        ),
        "Zeros: the fraction of zero weights in all kernels.": any(row.model.sparsity is not None for row in rows),
        "Memory: what TFLite plans for the tensors of one row.": any(row.model.arena_bytes is not None for row in rows),
        "Same answer: the fraction of rows with the baseline's top class.": any(
            row.agreement is not None for row in rows
        ),
    }
    return [sentence for sentence, applies in sentences.items() if applies]


def _scatter(evaluation: Evaluation, metric: str, rows: Sequence[ModelRow]) -> dict[str, Any] | None:
    """Returns the plot of size against the metric; None if fewer than two models have a metric."""
    points = [
        plots.ScatterPoint(
            model=row.name + (f" ({row.verdict})" if row.verdict else ""),
            kilobytes=row.model.bytes_gzip / 1e3,
            metric=row.metric,
            drop=report_tables.drop_text(row.drop),
            latency_ms=row.model.latency_ms,
            front=row.name in evaluation.pareto,
        )
        for row in rows
        if row.metric is not None and math.isfinite(row.metric)
    ]
    return plots.scatter(points, metric.replace("_", " ")) if len(points) > 1 else None


def _latency_boxes(rows: Sequence[ModelRow]) -> dict[str, Any] | None:
    """Returns the box plot of the times; None if no model was timed."""
    times = {row.name: quantiles for row in rows if (quantiles := report_tables.latency_quantiles(row))}
    return plots.boxes(times) if times else None


def _facts(facts: Mapping[str, object]) -> dict[str, str]:
    """Returns the known facts about how a model was made as text, with JSON (such as a plan) indented."""
    return {name: _indented(value) for name, value in facts.items() if value not in (None, "")}


def _indented(value: object) -> str:
    try:
        parsed = json.loads(str(value))
    except ValueError:
        return str(value)
    return json.dumps(parsed, indent=1, ensure_ascii=False) if isinstance(parsed, dict | list) else str(value)
