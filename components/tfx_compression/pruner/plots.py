"""Plots of the report, as Vega-Lite specifications."""

import math
from collections.abc import Sequence
from typing import Any

import altair as alt

from tfx_compression.page import plots
from tfx_compression.pruning.record import GroupResult, SensitivityCurve

# Most groups with a horizontal bar each and their names; more have vertical bars side by side.
_LINES = 40
# Most curves that a legend distinguishes; more have a small plot each.
_LEGEND = 8
# Most curves that are drawn; the table has all of them.
MOST_CURVES = 60

_KEPT, _PROTECTED = "#3578c6", "#8887"
# The end of a long name says most: `encoder/block_12/conv`.
_END_OF_NAME = "length(datum.label) > 24 ? '…' + slice(datum.label, -23) : datum.label"


def kept_fraction(group: GroupResult) -> float:
    """Returns the fraction of a group's elements that is kept; 1 for a group without elements."""
    return group.kept / group.elements if group.elements else 1.0


def kept(groups: Sequence[GroupResult]) -> dict[str, Any]:
    """Returns a bar chart of the kept fraction of each group, with a tick where the schedule ends, if it differs."""
    values = [
        {
            "group": group.name,
            "kept": kept_fraction(group),
            "end": None if group.protected else 1 - group.target_sparsity,
            "protected": group.protected,
            "count": f"{group.kept:,} of {group.elements:,}",
        }
        for group in groups
    ]
    base = alt.Chart(alt.Data(values=values)).encode(
        tooltip=[
            alt.Tooltip("group:N"),
            alt.Tooltip("count:N", title="kept"),
            alt.Tooltip("kept:Q", title="fraction", format=".1%"),
            alt.Tooltip("end:Q", title="at the end", format=".1%"),
            alt.Tooltip("protected:N", title="protected"),
        ],
        color=alt.condition("datum.protected", alt.value(_PROTECTED), alt.value(_KEPT)),
    )
    names = [group.name for group in groups]
    chart = _horizontal(base, names) if len(groups) <= _LINES else _vertical(base, names)
    return plots.themed(chart)


def _horizontal(base: alt.Chart, names: Sequence[str]) -> alt.LayerChart:
    group = alt.Y("group:N", sort=names, title=None, axis=alt.Axis(labelExpr=_END_OF_NAME, labelLimit=180))
    bars = base.mark_bar(height=alt.RelativeBandSize(0.75)).encode(y=group, x=_fraction(alt.X, "kept:Q"))
    ends = base.mark_tick(thickness=2, color="currentColor").encode(
        y=group, x=_fraction(alt.X, "end:Q"), color=alt.value("currentColor")
    )
    reasons = base.mark_text(align="left", dx=6, limit=alt.ExprRef("width - 12")).encode(
        y=group, x=alt.datum(0), text="protected:N", color=alt.value("currentColor")
    )
    return (bars + ends.transform_filter(_ENDS_ELSEWHERE) + reasons).properties(width="container", height=alt.Step(20))


def _vertical(base: alt.Chart, names: Sequence[str]) -> alt.LayerChart:
    axis = alt.Axis(
        labelExpr=_END_OF_NAME,
        labelAngle=-90,
        labelLimit=180,
        labelFontSize=10,
        labelOverlap="greedy",
        labelSeparation=4,
        ticks=False,
    )
    group = alt.X("group:N", sort=names, title=None, axis=axis, scale=alt.Scale(paddingInner=0.15))
    bars = base.mark_bar().encode(x=group, y=_fraction(alt.Y, "kept:Q"))
    ends = base.mark_tick(thickness=2).encode(x=group, y=_fraction(alt.Y, "end:Q"), color=alt.value("currentColor"))
    return (bars + ends.transform_filter(_ENDS_ELSEWHERE)).properties(width="container", height=220)


_ENDS_ELSEWHERE = "datum.end !== null && abs(datum.end - datum.kept) > 0.02"


def _fraction(channel: Any, field: str) -> Any:
    return channel(field, title="kept", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%", tickCount=5))


def curves(measured: Sequence[SensitivityCurve], metric: str) -> dict[str, Any]:
    """Returns a plot of the metric by the sparsity of one group; many curves have small plots on the same axes."""
    values = [
        {"group": curve.name, "level": level, "value": value, "change": value - curve.values[0]}
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
                title="sparsity of this group alone" if few else None,
                scale=alt.Scale(domain=[0, 1]),
                axis=alt.Axis(format="%", **tick),
            ),
            y=alt.Y("value:Q", title=metric if few else None, scale=_scale(values), axis=alt.Axis(**tick)),
            tooltip=[
                alt.Tooltip("group:N"),
                alt.Tooltip("level:Q", title="pruned", format=".0%"),
                alt.Tooltip("value:Q", title=metric, format=".4~f"),
                alt.Tooltip("change:Q", format="+.4~f"),
            ],
        )
    )
    names = [curve.name for curve in measured]
    if few:
        legend = alt.Legend(title=None, symbolOpacity=1)
        by_group = alt.Color("group:N", sort=None, scale=alt.Scale(domain=names), legend=legend)
        marks = base.encode(color=by_group, shape=alt.Shape("group:N", scale=alt.Scale(domain=names), legend=legend))
        return plots.themed(marks.properties(width="container", height=320))
    header = alt.Header(title=None, labelColor="currentColor", labelExpr=_END_OF_NAME, labelFontSize=11, labelPadding=2)
    small = base.encode(color=alt.value(_KEPT)).properties(width=130, height=70)
    faceted = small.facet(facet=alt.Facet("group:N", sort=names, header=header), columns=6, spacing=16)
    return {**plots.themed(faceted), "autosize": "pad"}


def _scale(values: Sequence[dict[str, Any]]) -> alt.Scale:
    """Returns a scale without zero; it is logarithmic if one curve would flatten the others."""
    metric = [value["value"] for value in values]
    wide = bool(metric) and min(metric) > 0 and max(metric) > 10 * min(metric)
    return alt.Scale(type="log", nice=False) if wide else alt.Scale(zero=False)
