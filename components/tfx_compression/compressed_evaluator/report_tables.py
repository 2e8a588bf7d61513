"""The tables of the report."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tfx_compression.compressed_evaluator.evaluation import Evaluation
from tfx_compression.compressed_evaluator.latency import QUANTILES
from tfx_compression.compressed_evaluator.records import (
    AnswerChange,
    LayerMeasurements,
    LimitVerdict,
    MetricDrop,
    ModelMeasurements,
    OutputComparison,
)
from tfx_compression.compressed_evaluator.summary_table import ModelRow
from tfx_compression.page import numbers, tables
from tfx_compression.page.tables import Cell, Column


def overview(evaluation: Evaluation, metric: str, rows: Sequence[ModelRow]) -> list[Column]:
    """Returns a line for each model, with its differences from the baseline."""

    def sizes(heading: str, field: str) -> Column:
        return Column(heading, [_with_delta(row, field, numbers.size) for row in rows])

    names = [
        Cell(row.name, f"NaN in {row.model.not_finite:,} rows", "bad") if row.model.not_finite else Cell(row.name)
        for row in rows
    ]
    return tables.nonempty_columns(
        Column("model", names, is_text=True),
        Column("verdict", [_verdict_with_limit(evaluation, row) for row in rows], is_text=True),
        tables.number_column(metric.replace("_", " "), [numbers.metric(row.metric) for row in rows]),
        Column("drop", [_drop_cell(row.drop) for row in rows]),
        sizes("size", "bytes"),
        sizes("gzipped", "bytes_gzip"),
        Column("ms per row", [_with_delta(row, "latency_ms", _milliseconds) for row in rows]),
        tables.number_column("speedup", ["" if row.speedup is None else f"{row.speedup:.2f}×" for row in rows]),
        tables.number_column("zeros", [numbers.percent(row.model.sparsity) for row in rows]),
        sizes("memory", "arena_bytes"),
        tables.number_column("same answer", [numbers.percent(row.agreement) for row in rows]),
    )


def _with_delta(row: ModelRow, field: str, text: Callable[[Any], str]) -> Cell:
    value, reference = getattr(row.model, field), getattr(row.reference, field, None)
    return Cell("" if value is None else text(value), numbers.delta(value, reference))


def _verdict_cell(row: ModelRow) -> Cell:
    tones = {"chosen": "good", "held": "good", "refused": "bad", "failed": "bad"}
    return Cell({"failed": "did not run"}.get(row.verdict, row.verdict), tone=tones.get(row.verdict, ""))


def _verdict_with_limit(evaluation: Evaluation, row: ModelRow) -> Cell:
    """Returns the verdict on a model, for a refused one with the first limit that it missed."""
    cell = _verdict_cell(row)
    if row.verdict != "refused":
        return cell
    first, *others = [verdict for verdict in evaluation.verdicts[row.name] if not verdict.held]
    more = f"; and {len(others)} more" if others else ""
    return dataclasses.replace(cell, note=f"{first.sentence}{more}")


def verdicts(evaluation: Evaluation, rows: Sequence[ModelRow]) -> dict[str, tuple[Cell, list[Column]]]:
    """Returns by candidate its verdict, and a line for each limit, the missed ones first."""
    sorted_verdicts = {
        name: sorted(limits, key=lambda verdict: verdict.held) for name, limits in evaluation.verdicts.items()
    }
    return {
        row.name: (_verdict_cell(row), _limits(sorted_verdicts[row.name]))
        for row in rows
        if row.name in sorted_verdicts
    }


def _limits(limits: Sequence[LimitVerdict]) -> list[Column]:
    held = [Cell("✓ held", tone="good") if verdict.held else Cell("✗ not held", tone="bad") for verdict in limits]
    return tables.nonempty_columns(
        Column("", held),
        Column("limit", [Cell(verdict.limit, verdict.note) for verdict in limits], is_text=True),
        tables.number_column("bound", [_in_unit(verdict.bound, verdict) for verdict in limits]),
        tables.number_column("measured", [_in_unit(verdict.measured, verdict) or "–" for verdict in limits]),
        tables.number_column("margin", [numbers.number(verdict.margin, "+") for verdict in limits]),
    )


def _in_unit(value: float | None, verdict: LimitVerdict) -> str:
    return " ".join(filter(None, [numbers.number(value), verdict.unit])) if value is not None else ""


def metrics(evaluation: Evaluation, shown: str, rows: Sequence[ModelRow]) -> list[Column]:
    """Returns a line for each metric that the overview doesn't show, with a column for each model."""
    names = dict.fromkeys(name for row in rows for name in row.model.metrics if name not in (shown, "example_count"))

    def cell(row: ModelRow, metric: str) -> Cell:
        drop = drop_text(evaluation.comparison(row.name).drops.get(metric))
        return Cell(numbers.metric(row.model.metrics.get(metric)), drop and f"drop\u00a0{drop}")

    return tables.nonempty_columns(
        tables.text_column("metric", names),
        *(Column(row.name, [cell(row, metric) for metric in names]) for row in rows),
    )


def slices(evaluation: Evaluation, shown: str) -> dict[tuple[str, str], list[Column]]:
    """Returns by candidate and metric the slices with the worst drops; those that are not judged come last."""
    by_metric = {}
    for name, comparison in evaluation.comparisons.items():
        for metric in dict.fromkeys([shown, *evaluation.budget.max_slice_metric_drop]):
            drops = comparison.judged_slices(metric, min_rows=0)
            judged = comparison.judged_slices(metric, evaluation.budget.min_slice_rows)
            worst = sorted(drops, key=lambda key: (key not in judged, -drops[key].worst))
            if worst:
                shown_drops = {key: drops[key] for key in worst[: tables.MAX_LINES]}
                by_metric[name, metric] = _slice_table(evaluation, name, metric, shown_drops, set(judged))
    return by_metric


def _slice_table(
    evaluation: Evaluation, name: str, metric: str, drops: Mapping[str, MetricDrop], judged: set[str]
) -> list[Column]:
    def values(model: ModelMeasurements | None) -> list[str]:
        return [numbers.metric(model.slices.get(key, {}).get(metric) if model else None) for key in drops]

    def drop_cells(field: str) -> list[Cell]:
        return [
            Cell(numbers.metric(getattr(drop, field)), tone="" if key in judged else "muted")
            for key, drop in drops.items()
        ]

    return tables.nonempty_columns(
        Column(
            "slice", [Cell(key, "" if key in judged else "not judged: too few rows") for key in drops], is_text=True
        ),
        tables.number_column("rows", [f"{drop.rows:,}" for drop in drops.values()]),
        tables.number_column("baseline", values(evaluation.baseline)),
        tables.number_column(name, values(evaluation.candidates[name])),
        Column("drop", drop_cells("value")),
        Column("up to", drop_cells("upper")),
    )


def answers(evaluation: Evaluation) -> list[Column]:
    """Returns a line for each candidate and output: how its answers differ from the baseline's."""
    lines = _outputs(evaluation)
    outputs = [comparison for _, _, comparison in lines]
    return tables.nonempty_columns(
        tables.text_column("candidate", [name for name, _, _ in lines]),
        tables.text_column("output", [output for _, output, _ in lines]),
        Column("broken", [Cell(numbers.number(each.broken), tone="bad" if each.broken else "") for each in outputs]),
        Column("mended", [Cell(numbers.number(each.mended), tone="good" if each.mended else "") for each in outputs]),
        tables.number_column("same answer", [numbers.percent(each.agreement) for each in outputs]),
        tables.number_column("outputs differ by", [numbers.percent(each.divergence) for each in outputs]),
    )


def _outputs(evaluation: Evaluation) -> list[tuple[str, str, OutputComparison]]:
    return [
        (name, output, comparison)
        for name, candidate in evaluation.comparisons.items()
        for output, comparison in candidate.behavior.items()
    ]


def changes(evaluation: Evaluation) -> dict[tuple[str, str], list[Column]]:
    """Returns by candidate and output the changed answers: broken ones first, the most frequent of each kind first."""
    by_output = {}
    for name, output, comparison in _outputs(evaluation):
        order = ["broken", "mended", "wrong before and after"]
        lines = sorted(comparison.changes, key=lambda change: (order.index(_outcome(change)[0]), -change.count))
        most, lines = max((change.count for change in lines), default=0), lines[: tables.MAX_LINES]
        if lines:
            by_output[name, output] = tables.nonempty_columns(
                tables.number_column("true class", [str(change.label) for change in lines]),
                tables.number_column("baseline said", [str(change.baseline) for change in lines]),
                tables.number_column(f"{name} said", [str(change.candidate) for change in lines]),
                Column("rows", [Cell(f"{change.count:,}", share=change.count / most) for change in lines]),
                Column("", [Cell(text, tone=tone) for text, tone in map(_outcome, lines)], is_text=True),
            )
    return by_output


def _outcome(change: AnswerChange) -> tuple[str, str]:
    """Returns what became of the rows, and the tone that shows it."""
    if change.baseline == change.label:
        return "broken", "bad"
    return ("mended", "good") if change.candidate == change.label else ("wrong before and after", "muted")


def layers(rows: Sequence[ModelRow]) -> dict[str, tuple[str, list[Column]]]:
    """Returns by model a summary of its kernels, and a line for each."""
    return {row.name: (_layer_summary(row.model), _layer_table(row.model.layers)) for row in rows if row.model.layers}


def _layer_summary(model: ModelMeasurements) -> str:
    parts = [f"{sum(layer.size for layer in model.layers):,} weights"]
    if model.sparsity is not None:
        parts.append(f"{numbers.percent(model.sparsity)} zeros")
    known = [layer.snr_db for layer in model.layers if layer.snr_db is not None]
    if known:
        parts.append("equal to the baseline's" if min(known) == math.inf else f"worst {_decibels(min(known))}")
    return ", ".join(parts)


def _layer_table(kernels: Sequence[LayerMeasurements]) -> list[Column]:
    return tables.nonempty_columns(
        tables.text_column("kernel", [layer.name for layer in kernels]),
        tables.number_column("weights", [f"{layer.size:,}" for layer in kernels]),
        Column("zeros", [Cell(numbers.percent(layer.sparsity), share=layer.sparsity) for layer in kernels]),
        tables.number_column("signal to error", [_decibels(layer.snr_db) for layer in kernels]),
    )


def latency(rows: Sequence[ModelRow]) -> list[Column]:
    """Returns a line for each timed model: the times that the plot shows, and what ran it."""
    timed = [row for row in rows if row.model.latency_ms is not None]

    def quantile(row: ModelRow, percent: int) -> str:
        return _milliseconds(latency_quantiles(row).get(percent))

    return tables.nonempty_columns(
        tables.text_column("model", [row.name for row in timed]),
        tables.number_column("median", [_milliseconds(row.model.latency_ms) for row in timed]),
        *(
            tables.number_column(f"{percent} %", [quantile(row, percent) for row in timed])
            for percent in (5, 25, 75, 95)
        ),
        tables.number_column("slowest", [quantile(row, 100) for row in timed]),
        tables.number_column("times run", [numbers.number(row.model.latency_repeats or None) for row in timed]),
        tables.text_column("with", [row.model.runtime for row in timed]),
    )


def latency_quantiles(row: ModelRow) -> dict[int, float]:
    """Returns the times of a model by percentile; empty if it wasn't timed."""
    times = row.model.latency_quantiles_ms
    return {round(100 * quantile): time for quantile, time in zip(QUANTILES, times, strict=bool(times))}


def drop_text(drop: MetricDrop | None) -> str:
    """Returns a drop and its upper bound in words."""
    cell = _drop_cell(drop)
    return ", ".join(filter(None, [cell.text, cell.note]))


def _drop_cell(drop: MetricDrop | None) -> Cell:
    if drop is None:
        return Cell()
    note = "" if drop.upper is None else f"up\u00a0to\u00a0{numbers.metric(drop.upper)}"
    return Cell(numbers.metric(drop.value), note)


def _milliseconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if value < 10 else f"{value:,.1f}"


def _decibels(value: float | None) -> str:
    return "" if value is None else "equal" if value == math.inf else f"{value:.1f} dB"
