"""The report's plots, as Vega-Lite's specifications."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from tfx_compression.page import plots


@dataclasses.dataclass(frozen=True)
class Point:
    """A model in the scatter plot; `drop` is words, `front` whether no other candidate beats it."""

    model: str
    kilobytes: float
    metric: float
    drop: str
    latency_ms: float | None
    front: bool


def scatter(points: Sequence[Point], metric: str) -> dict[str, Any]:
    """Size against a metric, the front joined by a line.

    Colour and shape tell the models, in a legend: names beside the points would cover each other, for compressed models
    are much alike. The slow ones are large and drawn first, so that they don't hide the others.
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
    """Colour and shape, which together make one legend."""
    legend = alt.Legend(title=None, symbolOpacity=1)
    return {
        channel: kind("model:N", sort=None, scale=alt.Scale(domain=names), legend=legend)
        for channel, kind in {"stroke": alt.Stroke, "fill": alt.Fill, "shape": alt.Shape}.items()
    }


def boxes(times: Mapping[str, Mapping[int, float]]) -> dict[str, Any]:
    """By model, the quantiles of its times by per cent: a box from 25 to 75 per cent, a line from 5 to 95."""
    values = [{"model": name, **{f"q{percent}": time for percent, time in of.items()}} for name, of in times.items()]
    scale, suffix = _scale([of[percent] for of in times.values() for percent in (5, 95)])
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
    whole = base.mark_rule(color="currentColor", opacity=0.6, strokeWidth=2).encode(
        x=alt.X("q5:Q", title=f"milliseconds per row{suffix}", scale=scale), x2="q95:Q"
    )
    middle = base.mark_bar(color="#3578c6", height=16).encode(x=alt.X("q25:Q", scale=scale), x2="q75:Q")
    median = base.mark_tick(color="currentColor", thickness=2, height=22).encode(x="q50:Q")
    return plots.themed((whole + middle + median).properties(width="container", height=alt.Step(38)))


def _scale(values: Sequence[float]) -> tuple[alt.Scale, str]:
    """From zero; logarithmic where the values are of different orders of magnitude, and then the suffix says so."""
    if min(values) > 0 and max(values) > 10 * min(values):
        return alt.Scale(type="log", nice=False, padding=20), ", logarithmic"
    return alt.Scale(zero=True), ""
