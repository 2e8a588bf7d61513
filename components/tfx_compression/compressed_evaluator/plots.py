"""The report's plots as Vega-Lite specifications."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from tfx_compression.page import plots


@dataclasses.dataclass(frozen=True)
class ScatterPoint:
    """A model in the scatter plot.

    Attributes:
      model: Name of the model.
      kilobytes: Gzipped size.
      metric: Value of the metric.
      drop: Drop of the metric, in words.
      latency_ms: Latency of one row.
      front: Whether the model is on the Pareto front.
    """

    model: str
    kilobytes: float
    metric: float
    drop: str
    latency_ms: float | None
    front: bool


def scatter(points: Sequence[ScatterPoint], metric: str) -> dict[str, Any]:
    """Returns the plot of size against a metric, with a line along the Pareto front.

    Color and shape identify the models in a legend: compressed models are much alike, so names beside the points would
    cover each other. Slow models have large marks, which are drawn first, so that they don't hide the others.
    """
    names = [point.model for point in points]
    slowest_first = sorted(points, key=lambda point: -(point.latency_ms or 0))
    scale, suffix = _scale([point.kilobytes for point in points])
    base = alt.Chart(alt.Data(values=[dataclasses.asdict(point) for point in slowest_first])).encode(
        x=alt.X("kilobytes:Q", title=f"kilobytes, gzipped{suffix}", scale=scale),
        y=alt.Y("metric:Q", title=metric, scale=alt.Scale(zero=False, padding=20)),
    )
    marks = base.mark_point(strokeWidth=2, size=150).encode(
        **_by_model(names),
        fillOpacity=alt.condition("datum.front", alt.value(0.55), alt.value(0)),
        tooltip=[
            alt.Tooltip("model:N"),
            alt.Tooltip("metric:Q", title=metric, format=".4f"),
            alt.Tooltip("drop:N"),
            alt.Tooltip("kilobytes:Q", title="kB, gzipped", format=",.1f"),
            alt.Tooltip("latency_ms:Q", title="ms per row", format=".3~f"),
        ],
    )
    if all(point.latency_ms for point in points):
        marks = marks.encode(size=alt.Size("latency_ms:Q", scale=alt.Scale(type="log", range=[60, 600]), legend=None))
    front = base.mark_line(color="currentColor", opacity=0.5, strokeDash=[4, 4]).transform_filter("datum.front")
    return plots.themed((front.encode(order="kilobytes:Q") + marks).properties(width="container", height=300))


def _by_model(names: Sequence[str]) -> dict[str, Any]:
    """Returns the encodings of color and shape, which share one legend."""
    legend = alt.Legend(title=None, symbolOpacity=1)
    return {
        channel: kind("model:N", sort=None, scale=alt.Scale(domain=names), legend=legend)
        for channel, kind in {"stroke": alt.Stroke, "fill": alt.Fill, "shape": alt.Shape}.items()
    }


def boxes(times: Mapping[str, Mapping[int, float]]) -> dict[str, Any]:
    """Returns the box plot of the models' times: a box from the 25th to the 75th percentile, a line from 5 to 95.

    Args:
      times: By model, its times by percentile.
    """
    values = [
        {"model": name, **{f"q{percent}": time for percent, time in quantiles.items()}}
        for name, quantiles in times.items()
    ]
    scale, suffix = _scale([quantiles[percent] for quantiles in times.values() for percent in (5, 95)])
    base = alt.Chart(alt.Data(values=values)).encode(
        y=alt.Y("model:N", sort=list(times), title=None, axis=alt.Axis(labelExpr="split(datum.label, ' as ')")),
        tooltip=[
            alt.Tooltip("model:N"),
            *(
                alt.Tooltip(f"q{percent}:Q", title=f"{percent} %", format=".3~f")
                for percent in next(iter(times.values()))
            ),
        ],
    )
    line = base.mark_rule(color="currentColor", opacity=0.6, strokeWidth=2).encode(
        x=alt.X("q5:Q", title=f"milliseconds per row{suffix}", scale=scale), x2="q95:Q"
    )
    box = base.mark_bar(color="#3578c6", height=16).encode(x=alt.X("q25:Q", scale=scale), x2="q75:Q")
    median = base.mark_tick(color="currentColor", thickness=2, height=22).encode(x="q50:Q")
    return plots.themed((line + box + median).properties(width="container", height=alt.Step(38)))


def _scale(values: Sequence[float]) -> tuple[alt.Scale, str]:
    """Returns a scale from zero, or a logarithmic one for values of different magnitudes, and what the title adds."""
    if min(values) > 0 and max(values) > 10 * min(values):
        return alt.Scale(type="log", nice=False, padding=20), ", logarithmic"
    return alt.Scale(zero=True), ""
