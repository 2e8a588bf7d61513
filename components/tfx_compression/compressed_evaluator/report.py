"""The report: one HTML file that needs no network."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from tfx_compression.compressed_evaluator import gate, latency, plots
from tfx_compression.compressed_evaluator.budget import Verdict
from tfx_compression.compressed_evaluator.evaluation import (
    Behaviour,
    Change,
    Comparison,
    Drop,
    Evaluation,
    Layer,
    Measured,
)
from tfx_compression.page import numbers, tables, template
from tfx_compression.page.tables import Cell, Column


def render(
    evaluations: Mapping[str, Evaluation],
    title: str = "Compression report",
    origins: Mapping[str, Mapping[str, Mapping[str, object]]] | None = None,
) -> str:
    """The report on one or several evaluations.

    Args:
      evaluations: by heading (empty for none).
      title: of the page.
      origins: by heading, by model (a candidate's name, or `baseline`), what is known of its making: uri, ids, recipe.

    Returns:
      HTML with style, scripts and data inside.
    """
    sections = [
        _section(heading, evaluation, (origins or {}).get(heading, {})) for heading, evaluation in evaluations.items()
    ]
    return template.render(__package__, title, sections=sections)


def metric_of(evaluation: Evaluation) -> str:
    """The metric that a table shows: the budget's first, or the first there is; empty where there is none."""
    models = [evaluation.baseline, *evaluation.candidates.values()]
    computed = [name for model in models if model is not None for name in model.metrics if name != "example_count"]
    return next(iter([*evaluation.budget.limited_metrics, *computed]), "")


@dataclasses.dataclass(frozen=True)
class Row:
    """A model in the table.

    Attributes:
      name: of the candidate, or the baseline's.
      model: its numbers.
      reference: the baseline in the candidate's format, which size and speed are compared with.
      metric: the value of the metric that the table shows.
      drop: how much worse than the baseline's that is.
      agreement: fraction of rows with the baseline's answer.
      speedup: how many times as fast as `reference`.
      verdict: `chosen`, `held`, `refused` or `failed`; empty for the baseline, if it ran.
    """

    name: str
    model: Measured
    reference: Measured | None
    metric: float | None
    drop: Drop | None
    agreement: float | None
    speedup: float | None
    verdict: str


def rows(evaluation: Evaluation) -> list[Row]:
    """The table: the baseline, what it is as float TFLite where candidates are TFLite models, and each candidate."""
    metric, baseline = metric_of(evaluation), evaluation.baseline
    references = {}
    if baseline is not None:
        references["baseline"] = baseline
        if baseline.tflite is not None:
            references["baseline as float TFLite"] = baseline.tflite
    table = [
        Row(name, model, None, model.metrics.get(metric), None, None, None, "failed" if model.failure else "")
        for name, model in references.items()
    ]
    for name, model in evaluation.candidates.items():
        comparison = evaluation.comparisons.get(name, Comparison())
        table.append(
            Row(
                name=name,
                model=model,
                reference=next((of for of in references.values() if of.kind == model.kind), None),
                metric=model.metrics.get(metric),
                drop=comparison.drops.get(metric),
                agreement=comparison.agreement,
                speedup=gate.speedup(baseline, model),
                verdict=_verdict(evaluation, name),
            )
        )
    return table


def _verdict(evaluation: Evaluation, name: str) -> str:
    if evaluation.candidates[name].failure:
        return "failed"
    return "chosen" if name == evaluation.chosen else "held" if evaluation.held(name) else "refused"


# Sections


def _section(heading: str, evaluation: Evaluation, origins: Mapping[str, Mapping[str, object]]) -> dict[str, Any]:
    """What the template shows of an evaluation."""
    metric, table = metric_of(evaluation), rows(evaluation)
    return {
        "heading": heading,
        "evaluation": evaluation,
        "metric": metric,
        "opened": evaluation.chosen or next(iter(evaluation.candidates), ""),
        "warnings": _warnings(evaluation.rows, table),
        "overview": _overview(evaluation, metric, table),
        "classes": [row.verdict for row in table],
        "explained": _explained(evaluation, table),
        "verdicts": _verdicts(evaluation, table),
        "plot": _scatter(evaluation, metric, table),
        "metrics": _metrics(evaluation, metric, table),
        "slices": _slices(evaluation, metric),
        "answers": _answers(evaluation),
        "changes": _changes(evaluation),
        "layers": {
            row.name: (_layer_summary(row.model), _layers(row.model.layers)) for row in table if row.model.layers
        },
        "latency_plot": _boxes(table),
        "latency": _latency(table),
        "origins": {name: _facts(facts) for name, facts in origins.items()},
        "json": evaluation.model_dump_json(indent=1),
    }


def _warnings(total: int, table: Sequence[Row]) -> list[tuple[str, str]]:
    """Models that did not run, or that answer with what is no number, and the sentence that says so."""
    failures = [(row.name, f"could not be run: {row.model.failure}") for row in table if row.model.failure]
    return failures + [
        (row.name, f"answers {row.model.not_finite:,} of {total:,} rows with NaN or infinity.")
        for row in table
        if row.model.not_finite
    ]


def _explained(evaluation: Evaluation, table: Sequence[Row]) -> list[str]:
    """What the columns of the table mean, of those that it has."""
    drops = [row.drop for row in table if row.drop is not None]
    likely = f" with {100 * evaluation.budget.confidence:g} % confidence" if evaluation.budget.confidence else ""
    sentences = {
        "Drop: how much worse than the baseline; negative: better.": bool(drops),
        f"Up to: it is no larger than this{likely}.": any(drop.upper is not None for drop in drops),
        "Ms per row: the median on the machine that evaluated, of TFLite models on one thread.": any(
            row.model.latency_ms is not None for row in table
        ),
        "Zeros: the fraction of zero weights in all kernels.": any(row.model.sparsity is not None for row in table),
        "Memory: what TFLite plans for one row's tensors.": any(row.model.arena_bytes is not None for row in table),
        "Same answer: the fraction of rows with the baseline's answer.": any(
            row.agreement is not None for row in table
        ),
    }
    return [sentence for sentence, said in sentences.items() if said]


def _overview(evaluation: Evaluation, metric: str, table: Sequence[Row]) -> list[Column]:
    """Every model in one line, with its differences from the baseline."""

    def sizes(heading: str, field: str) -> Column:
        return Column(heading, [_with_delta(row, field, numbers.size) for row in table])

    return tables.columns(
        Column(
            "model",
            [
                Cell(row.name, f"NaN in {row.model.not_finite:,} rows", "bad")
                if row.model.not_finite
                else Cell(row.name)
                for row in table
            ],
            words=True,
        ),
        Column("verdict", [_verdict_cell(evaluation, row) for row in table], words=True),
        tables.numbers(metric.replace("_", " "), [numbers.metric(row.metric) for row in table]),
        Column("drop", [_drop(row.drop) for row in table]),
        sizes("size", "bytes"),
        sizes("gzipped", "bytes_gzip"),
        Column("ms per row", [_with_delta(row, "latency_ms", _milliseconds) for row in table]),
        tables.numbers("speed-up", ["" if row.speedup is None else f"{row.speedup:.2f}×" for row in table]),
        tables.numbers("zeros", [numbers.percent(row.model.sparsity) for row in table]),
        sizes("memory", "arena_bytes"),
        tables.numbers("same answer", [numbers.percent(row.agreement) for row in table]),
    )


def _with_delta(row: Row, field: str, form: Any) -> Cell:
    value, against = getattr(row.model, field), getattr(row.reference, field, None)
    return Cell("" if value is None else form(value), numbers.delta(value, against))


def _verdict_word(row: Row) -> Cell:
    tones = {"chosen": "good", "held": "good", "refused": "bad", "failed": "bad"}
    return Cell({"failed": "did not run"}.get(row.verdict, row.verdict), tone=tones.get(row.verdict, ""))


def _verdict_cell(evaluation: Evaluation, row: Row) -> Cell:
    """A refused candidate's first missed limit stands beside it."""
    word = _verdict_word(row)
    if row.verdict != "refused":
        return word
    first, *others = [verdict for verdict in evaluation.verdicts[row.name] if not verdict.held]
    more = f"; and {len(others)} more" if others else ""
    return dataclasses.replace(word, note=f"{gate.describe(first)}{more}")


def _verdicts(evaluation: Evaluation, table: Sequence[Row]) -> dict[str, tuple[Cell, list[Column]]]:
    """By candidate, the verdict in a word and a line for each limit, those that are missed first."""
    lines = {name: sorted(found, key=lambda limit: limit.held) for name, found in evaluation.verdicts.items()}
    return {row.name: (_verdict_word(row), _limits(lines[row.name])) for row in table if row.name in lines}


def _limits(verdicts: Sequence[Verdict]) -> list[Column]:
    held = [Cell("✓ held", tone="good") if verdict.held else Cell("✗ not held", tone="bad") for verdict in verdicts]
    return tables.columns(
        Column("", held),
        Column("limit", [Cell(verdict.limit, verdict.note) for verdict in verdicts], words=True),
        tables.numbers("bound", [numbers.number(verdict.bound) for verdict in verdicts]),
        tables.numbers("measured", [numbers.number(verdict.measured) or "–" for verdict in verdicts]),
        tables.numbers("margin", [numbers.number(verdict.margin, "+") for verdict in verdicts]),
    )


def _metrics(evaluation: Evaluation, shown: str, table: Sequence[Row]) -> list[Column]:
    """The metrics that the table doesn't show, a column for each model."""
    found = dict.fromkeys(name for row in table for name in row.model.metrics if name not in (shown, "example_count"))

    def cell(row: Row, metric: str) -> Cell:
        drop = _drop_words(evaluation.comparisons.get(row.name, Comparison()).drops.get(metric))
        return Cell(numbers.metric(row.model.metrics.get(metric)), drop and f"drop\u00a0{drop}")

    return tables.columns(
        tables.words("metric", found), *(Column(row.name, [cell(row, metric) for metric in found]) for row in table)
    )


def _slices(evaluation: Evaluation, shown: str) -> dict[tuple[str, str], list[Column]]:
    """By candidate and metric, the slices where it drops most: the judged ones first, of each the worst first."""
    worst_of = {}
    for name, comparison in evaluation.comparisons.items():
        for metric in dict.fromkeys([shown, *evaluation.budget.max_slice_metric_drop]):
            drops = {key: found[metric] for key, found in comparison.slice_drops.items() if metric in found}
            few = {key for key, drop in drops.items() if drop.rows < evaluation.budget.min_slice_rows}
            worst = sorted(drops, key=lambda key: (key in few, -_badness(drops[key])))
            if worst:
                worst_of[name, metric] = _slice_table(evaluation, name, metric, worst[: tables.LONGEST], drops, few)
    return worst_of


def _badness(drop: Drop) -> float:
    value = drop.value if drop.upper is None else drop.upper
    return math.inf if math.isnan(value) else value


def _slice_table(
    evaluation: Evaluation, name: str, metric: str, keys: Sequence[str], drops: Mapping[str, Drop], few: set[str]
) -> list[Column]:
    def values(model: Measured | None) -> list[str]:
        return [numbers.metric(model.slices.get(key, {}).get(metric) if model else None) for key in keys]

    return tables.columns(
        Column("slice", [Cell(key, "not judged: too few rows" if key in few else "") for key in keys], words=True),
        tables.numbers("rows", [f"{drops[key].rows:,}" for key in keys]),
        tables.numbers("baseline", values(evaluation.baseline)),
        tables.numbers(name, values(evaluation.candidates[name])),
        Column("drop", [Cell(numbers.metric(drops[key].value), tone="muted" if key in few else "") for key in keys]),
        Column("up to", [Cell(numbers.metric(drops[key].upper), tone="muted" if key in few else "") for key in keys]),
    )


def _answers(evaluation: Evaluation) -> list[Column]:
    """How the candidates' answers differ from the baseline's: a line for each candidate and output."""
    lines = _behaviours(evaluation)
    return tables.columns(
        tables.words("candidate", [name for name, _, _ in lines]),
        tables.words("output", [output for _, output, _ in lines]),
        Column("broken", [Cell(numbers.number(of.broken), tone="bad" if of.broken else "") for _, _, of in lines]),
        Column("mended", [Cell(numbers.number(of.mended), tone="good" if of.mended else "") for _, _, of in lines]),
        tables.numbers("same answer", [numbers.percent(of.agreement) for _, _, of in lines]),
        tables.numbers("outputs differ by", [numbers.percent(of.divergence) for _, _, of in lines]),
    )


def _behaviours(evaluation: Evaluation) -> list[tuple[str, str, Behaviour]]:
    return [
        (name, output, behaviour)
        for name, comparison in evaluation.comparisons.items()
        for output, behaviour in comparison.behaviour.items()
    ]


def _changes(evaluation: Evaluation) -> dict[tuple[str, str], list[Column]]:
    """By candidate and output, the answers that changed: what was broken first, of that the most frequent first."""

    def outcome(change: Change) -> tuple[str, str]:
        if change.baseline == change.label:
            return "broken", "bad"
        return ("mended", "good") if change.candidate == change.label else ("wrong before and after", "muted")

    by_output = {}
    for name, output, behaviour in _behaviours(evaluation):
        order = ["broken", "mended", "wrong before and after"]
        found = sorted(behaviour.changes, key=lambda change: (order.index(outcome(change)[0]), -change.count))
        most, found = max((change.count for change in found), default=0), found[: tables.LONGEST]
        if found:
            by_output[name, output] = tables.columns(
                tables.numbers("true class", [str(change.label) for change in found]),
                tables.numbers("baseline said", [str(change.baseline) for change in found]),
                tables.numbers(f"{name} said", [str(change.candidate) for change in found]),
                Column("rows", [Cell(f"{change.count:,}", share=change.count / most) for change in found]),
                Column("", [Cell(words, tone=tone) for words, tone in map(outcome, found)], words=True),
            )
    return by_output


def _layer_summary(model: Measured) -> str:
    parts = [f"{sum(layer.size for layer in model.layers):,} weights"]
    if model.sparsity is not None:
        parts.append(f"{numbers.percent(model.sparsity)} zeros")
    known = [layer.snr_db for layer in model.layers if layer.snr_db is not None]
    if known:
        parts.append("equal to the baseline's" if min(known) == math.inf else f"worst {_decibels(min(known))}")
    return ", ".join(parts)


def _layers(layers: Sequence[Layer]) -> list[Column]:
    return tables.columns(
        tables.words("kernel", [layer.name for layer in layers]),
        tables.numbers("weights", [f"{layer.size:,}" for layer in layers]),
        Column("zeros", [Cell(numbers.percent(layer.sparsity), share=layer.sparsity) for layer in layers]),
        tables.numbers("signal to error", [_decibels(layer.snr_db) for layer in layers]),
    )


def _latency(table: Sequence[Row]) -> list[Column]:
    """The times that the plot shows, and what they were taken with."""
    timed = [row for row in table if row.model.latency_ms is not None]

    def quantile(row: Row, percent: int) -> str:
        return _milliseconds(_quantiles(row).get(percent))

    return tables.columns(
        tables.words("model", [row.name for row in timed]),
        tables.numbers("median", [_milliseconds(row.model.latency_ms) for row in timed]),
        *(tables.numbers(f"{percent} %", [quantile(row, percent) for row in timed]) for percent in (5, 25, 75, 95)),
        tables.numbers("slowest", [quantile(row, 100) for row in timed]),
        tables.numbers("times run", [numbers.number(row.model.latency_repeats or None) for row in timed]),
        tables.words("with", [row.model.runtime for row in timed]),
    )


def _quantiles(row: Row) -> dict[int, float]:
    """By per cent; empty where the model was not timed."""
    times = row.model.latency_quantiles_ms
    return {round(100 * quantile): time for quantile, time in zip(latency.QUANTILES, times, strict=bool(times))}


def _facts(facts: Mapping[str, object]) -> dict[str, str]:
    """What is known of a model's making; JSON in it, such as a plan, on lines of its own."""
    return {name: _unfolded(value) for name, value in facts.items() if value not in (None, "")}


def _unfolded(value: object) -> str:
    try:
        parsed = json.loads(str(value))
    except ValueError:
        return str(value)
    return json.dumps(parsed, indent=1, ensure_ascii=False) if isinstance(parsed, dict | list) else str(value)


# Plots


def _scatter(evaluation: Evaluation, metric: str, table: Sequence[Row]) -> dict[str, Any] | None:
    """Size against the metric, a point for each model whose metric is known; None without two."""
    points = [
        plots.Point(
            model=row.name + (f" ({row.verdict})" if row.verdict else ""),
            kilobytes=row.model.bytes_gzip / 1e3,
            metric=row.metric,
            drop=_drop_words(row.drop),
            latency_ms=row.model.latency_ms,
            front=row.name in evaluation.pareto,
        )
        for row in table
        if row.metric is not None and math.isfinite(row.metric)
    ]
    return plots.scatter(points, metric.replace("_", " ")) if len(points) > 1 else None


def _boxes(table: Sequence[Row]) -> dict[str, Any] | None:
    """The times of the models that were timed; None where none was."""
    times = {row.name: found for row in table if (found := _quantiles(row))}
    return plots.boxes(times) if times else None


# Numbers in words


def _milliseconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if value < 10 else f"{value:,.1f}"


def _decibels(value: float | None) -> str:
    return "" if value is None else "equal" if value == math.inf else f"{value:.1f} dB"


def _drop(drop: Drop | None) -> Cell:
    if drop is None:
        return Cell()
    note = "" if drop.upper is None else f"up\u00a0to\u00a0{numbers.metric(drop.upper)}"
    return Cell(numbers.metric(drop.value), note)


def _drop_words(drop: Drop | None) -> str:
    cell = _drop(drop)
    return ", ".join(filter(None, [cell.text, cell.note]))
