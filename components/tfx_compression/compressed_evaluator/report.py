"""The report: one HTML file that needs no network."""

import dataclasses
from collections.abc import Mapping

import altair as alt
import jinja2
import pandas as pd

from tfx_compression.compressed_evaluator import gate
from tfx_compression.compressed_evaluator.record import Evaluation, Measured


def render(evaluations: Mapping[str, Evaluation], title: str = "Compression report") -> str:
    """The report on one or several evaluations, by heading (empty for none).

    Returns:
      HTML with style, scripts and data inside.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tfx_compression.compressed_evaluator", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(bytes=_bytes, drop=_drop)
    sections = [
        {
            "heading": heading,
            "evaluation": evaluation,
            "metric": metric_of(evaluation),
            "rows": rows(evaluation),
            "verdicts": {
                name: [(verdict.held, gate.describe(verdict)) for verdict in verdicts]
                for name, verdicts in evaluation.verdicts.items()
            },
            "plot": f"plot{number}",
            "spec": _plot(evaluation),
            "layers": {name: model.layers for name, model in evaluation.candidates.items() if model.layers},
        }
        for number, (heading, evaluation) in enumerate(evaluations.items())
    ]
    return environment.get_template("report.html.jinja").render(title=title, sections=sections, script=_plot_script())


def metric_of(evaluation: Evaluation) -> str:
    """The metric that a table shows: the budget's first, or the first there is."""
    limited = next(iter(evaluation.budget.max_metric_drop), None)
    models = [evaluation.baseline, *evaluation.candidates.values()]
    metrics = next(model.metrics for model in models if model is not None)
    return limited or next((name for name in metrics if name != "example_count"), "")


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table; what there is none of is None."""

    name: str
    metric: float | None
    drop: float | None
    bytes: int
    bytes_gzip: int
    latency_ms: float
    speedup: float | None
    sparsity: float | None
    verdict: str


def rows(evaluation: Evaluation) -> list[Row]:
    """The table: the baseline, what it is as float TFLite where candidates are TFLite models, and each candidate."""
    metric = metric_of(evaluation)

    def row(
        name: str, model: Measured, verdict: str = "", drop: float | None = None, speedup: float | None = None
    ) -> Row:
        value = model.metrics.get(metric)
        return Row(name, value, drop, model.bytes, model.bytes_gzip, model.latency_ms, speedup, model.sparsity, verdict)

    table = []
    if evaluation.baseline is not None:
        table.append(row("baseline", evaluation.baseline))
        if evaluation.baseline.tflite is not None:
            table.append(row("baseline as float TFLite", evaluation.baseline.tflite))
    for name, model in evaluation.candidates.items():
        verdict = "chosen" if name == evaluation.chosen else "held" if evaluation.held(name) else "refused"
        drop = evaluation.metric_drop[name].get(metric)
        table.append(row(name, model, verdict, drop, gate.speedup(evaluation.baseline, model)))
    return table


def _plot(evaluation: Evaluation) -> str:
    """Vega-Lite JSON: size against the metric, a point for each model whose metric is known; empty without points."""
    metric = metric_of(evaluation)
    points = [
        {
            "model": row.name,
            "kilobytes, gzipped": row.bytes_gzip / 1e3,
            metric: row.metric,
            "verdict": row.verdict or "baseline",
        }
        for row in sorted(rows(evaluation), key=lambda row: row.bytes_gzip)
        if row.metric is not None
    ]
    if not points:
        return ""
    for number, point in enumerate(points):
        point["above"] = number % 2 == 0  # names of neighbours don't cover each other
    base = alt.Chart(pd.DataFrame(points)).encode(
        x=alt.X("kilobytes, gzipped:Q", scale=alt.Scale(zero=True)),
        y=alt.Y(f"{metric}:Q", scale=alt.Scale(zero=False, padding=20)),
        tooltip=["model", "kilobytes, gzipped", metric, "verdict"],
    )
    colours = {"baseline": "#777", "chosen": "#0a7f3f", "held": "#3578c6", "refused": "#c0392b"}
    scale = alt.Scale(domain=list(colours), range=list(colours.values()))
    marks = base.mark_circle(size=140).encode(
        color=alt.Color("verdict:N", scale=scale, legend=alt.Legend(orient="top"))
    )
    above, below = (
        base.mark_text(align="center", dy=shift).encode(text="model:N").transform_filter(alt.datum.above == on_top)
        for shift, on_top in ((-14, True), (16, False))
    )
    return str((marks + above + below).properties(width="container", height=280).to_json(indent=None))


def _plot_script() -> str:
    """Vega-Embed, Vega-Lite and Vega as one script, in the version that Altair's charts are written for."""
    import vl_convert

    version = ".".join(alt.SCHEMA_VERSION.split(".")[:2])
    return str(vl_convert.javascript_bundle(vl_version=version))  # type: ignore[call-arg]  # its stub lacks the default


def _bytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def _drop(value: float | None) -> str:
    return "" if value is None else f"{value:+.4f}"
