"""Vega-Lite specifications in the page's colors, and the script that draws them."""

import functools
from typing import Any

import altair as alt


def themed(chart: alt.TopLevelMixin) -> dict[str, Any]:
    """Returns a chart's specification with colors from the page's CSS, which fit light and dark screens and paper."""
    text = {"labelColor": "currentColor", "titleColor": "currentColor", "labelFontSize": 12, "titleFontSize": 12}
    spec: dict[str, Any] = (
        chart.properties(background="transparent", autosize=alt.AutoSizeParams(type="fit-x", contains="padding"))
        .configure(font="system-ui, sans-serif")
        .configure_view(stroke=None)
        .configure_axis(
            **text,
            titleFontWeight="normal",
            gridColor="currentColor",
            gridOpacity=0.12,
            domainColor="currentColor",
            tickColor="currentColor",
            labelLimit=150,
        )
        .configure_legend(**text, orient="bottom", labelLimit=300)
        .to_dict()
    )
    return spec


@functools.cache
def bundle() -> str:
    """Returns Vega-Embed, Vega-Lite and Vega as one script, in the version that Altair's charts need."""
    import vl_convert

    version = ".".join(alt.SCHEMA_VERSION.split(".")[:2])
    script = vl_convert.javascript_bundle(vl_version=version)  # type: ignore[call-arg]  # The stub lacks the default.
    return str(script).replace("</script", "<\\/script")
