"""The report's plots, as Vega-Lite's specifications."""

import math
from collections.abc import Sequence
from typing import Any

import altair as alt

from tfx_compression.page import plots
from tfx_compression.pruning.record import GroupResult, SensitivityCurve

# How many parts have a line each, with their names; more stand side by side.
_LINES = 40
# How many curves a legend can tell apart; more have a small plot each.
_LEGEND = 8
# How many curves are drawn at most: a table has them all.
MOST_CURVES = 60

_KEPT, _LEFT_ALONE = "#3578c6", "#8887"
# Of a long name the end tells most: `encoder/block_12/conv`.
_END_OF_NAME = "length(datum.label) > 24 ? '…' + slice(datum.label, -23) : datum.label"


def kept_fraction(part: GroupResult) -> float:
    """How much of a part stays; all of nothing."""
    return part.kept / part.elements if part.elements else 1.0


def kept(parts: Sequence[GroupResult]) -> dict[str, Any]:
    """The fraction of each part that stays, a bar each; a line is where the schedule ends, where that is elsewhere."""
    values = [
        {
            "part": part.name,
            "kept": kept_fraction(part),
            "end": None if part.protected else 1 - part.target_sparsity,
            "protected": part.protected,
            "of": f"{part.kept:,} of {part.elements:,}",
        }
        for part in parts
    ]
    base = alt.Chart(alt.Data(values=values)).encode(
        tooltip=[
            alt.Tooltip("part:N"),
            alt.Tooltip("of:N", title="kept"),
            alt.Tooltip("kept:Q", title="fraction", format=".1%"),
            alt.Tooltip("end:Q", title="in the end", format=".1%"),
            alt.Tooltip("protected:N", title="left alone"),
        ],
        color=alt.condition("datum.protected", alt.value(_LEFT_ALONE), alt.value(_KEPT)),
    )
    names = [part.name for part in parts]
    chart = _lines(base, names) if len(parts) <= _LINES else _side_by_side(base, names)
    return plots.themed(chart)


def _lines(base: alt.Chart, names: Sequence[str]) -> alt.LayerChart:
    part = alt.Y("part:N", sort=names, title=None, axis=alt.Axis(labelExpr=_END_OF_NAME, labelLimit=180))
    bars = base.mark_bar(height=alt.RelativeBandSize(0.75)).encode(y=part, x=_fraction(alt.X, "kept:Q"))
    ends = base.mark_tick(thickness=2, color="currentColor").encode(
        y=part, x=_fraction(alt.X, "end:Q"), color=alt.value("currentColor")
    )
    reasons = base.mark_text(align="left", dx=6, limit=alt.ExprRef("width - 12")).encode(
        y=part, x=alt.datum(0), text="protected:N", color=alt.value("currentColor")
    )
    return (bars + ends.transform_filter(_ELSEWHERE) + reasons).properties(width="container", height=alt.Step(20))


def _side_by_side(base: alt.Chart, names: Sequence[str]) -> alt.LayerChart:
    axis = alt.Axis(
        labelExpr=_END_OF_NAME,
        labelAngle=-90,
        labelLimit=180,
        labelFontSize=10,
        labelOverlap="greedy",
        labelSeparation=4,
        ticks=False,
    )
    part = alt.X("part:N", sort=names, title=None, axis=axis, scale=alt.Scale(paddingInner=0.15))
    bars = base.mark_bar().encode(x=part, y=_fraction(alt.Y, "kept:Q"))
    ends = base.mark_tick(thickness=2).encode(x=part, y=_fraction(alt.Y, "end:Q"), color=alt.value("currentColor"))
    return (bars + ends.transform_filter(_ELSEWHERE)).properties(width="container", height=220)


_ELSEWHERE = "datum.end !== null && abs(datum.end - datum.kept) > 0.02"


def _fraction(channel: Any, field: str) -> Any:
    return channel(field, title="kept", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%", tickCount=5))


def curves(measured: Sequence[SensitivityCurve], metric: str) -> dict[str, Any]:
    """The metric by how much of one part alone is pruned: in one plot, or in small ones on the same axes."""
    values = [
        {"part": curve.name, "level": level, "value": value, "change": value - curve.values[0]}
        for curve in measured
        for level, value in zip(curve.levels, curve.values, strict=True)
        if math.isfinite(value)
    ]
    few = len(measured) <= _LEGEND
    tick = {} if few else {"labelFontSize": 10, "tickCount": 3}
    base = (
        alt.Chart(alt.Data(values=values))
        .mark_line(point=alt.OverlayMarkDef(size=50 if few else 25), strokeWidth=2 if few else 1.5)
        .encode(
            x=alt.X(
                "level:Q",
                title="pruned of this part alone" if few else None,
                scale=alt.Scale(domain=[0, 1]),
                axis=alt.Axis(format="%", **tick),
            ),
            y=alt.Y("value:Q", title=metric if few else None, scale=_scale(values), axis=alt.Axis(**tick)),
            tooltip=[
                alt.Tooltip("part:N"),
                alt.Tooltip("level:Q", title="pruned", format=".0%"),
                alt.Tooltip("value:Q", title=metric, format=".4~f"),
                alt.Tooltip("change:Q", format="+.4~f"),
            ],
        )
    )
    names = [curve.name for curve in measured]
    if few:
        legend = alt.Legend(title=None, symbolOpacity=1)
        by_part = alt.Color("part:N", sort=None, scale=alt.Scale(domain=names), legend=legend)
        marks = base.encode(color=by_part, shape=alt.Shape("part:N", scale=alt.Scale(domain=names), legend=legend))
        return plots.themed(marks.properties(width="container", height=320))
    header = alt.Header(title=None, labelColor="currentColor", labelExpr=_END_OF_NAME, labelFontSize=11, labelPadding=2)
    small = base.encode(color=alt.value(_KEPT)).properties(width=130, height=70)
    faceted = small.facet(facet=alt.Facet("part:N", sort=names, header=header), columns=6, spacing=16)
    return {**plots.themed(faceted), "autosize": "pad"}


def _scale(values: Sequence[dict[str, Any]]) -> alt.Scale:
    """Not from zero; logarithmic where one part's damage would make the others' curves flat."""
    found = [value["value"] for value in values]
    wide = bool(found) and min(found) > 0 and max(found) > 10 * min(found)
    return alt.Scale(type="log", nice=False) if wide else alt.Scale(zero=False)
