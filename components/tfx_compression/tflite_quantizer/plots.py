"""The report's plots, as Vega-Lite specifications."""

from collections.abc import Sequence
from typing import Any

import altair as alt

from tfx_compression.page import plots
from tfx_compression.tflite_quantizer.record import AutoRecord, LayerError

# Number of layers that the plot shows; if there are more, the worst.
MOST_LAYERS = 40

_BAR, _REFUSED = "#3578c6", "#c0714f"
# Without the number in front. The end of a long name, such as encoder/block_12/conv, says most.
_NAME = "length(datum.label) > 38 ? '…' + slice(datum.label, -33) : slice(datum.label, 4)"


def errors(layers: Sequence[LayerError]) -> dict[str, Any]:
    """Returns a bar for each layer's signal-to-noise ratio, in the given order."""
    values = [
        {
            "place": f"{place:03d} {layer.layer}",  # a layer can have several operators
            "layer": layer.layer,
            "op": layer.op,
            "precision": layer.precision or "",
            "snr": layer.snr_db,
            "largest": layer.max_error,
            "cosine": layer.cosine,
        }
        for place, layer in enumerate(layers)
    ]
    chart = (
        alt.Chart(alt.Data(values=values))
        .mark_bar(height=alt.RelativeBandSize(0.75))
        .encode(
            y=alt.Y("place:N", sort=None, title=None, axis=alt.Axis(labelExpr=_NAME, labelLimit=260)),
            x=alt.X("snr:Q", title="signal-to-noise ratio in dB (higher is closer to the float model)"),
            color=alt.Color(
                "precision:N",
                title=None,
                legend=alt.Legend() if len({layer.precision for layer in layers}) > 1 else None,
                scale=alt.Scale(scheme="tableau10"),
            ),
            tooltip=[
                alt.Tooltip("layer:N"),
                alt.Tooltip("op:N", title="operator"),
                alt.Tooltip("precision:N"),
                alt.Tooltip("snr:Q", title="SNR in dB", format=".1f"),
                alt.Tooltip("largest:Q", title="largest error", format=".3~g"),
                alt.Tooltip("cosine:Q", format=".6f"),
            ],
        )
        .properties(width="container", height=alt.Step(20))
    )
    return plots.themed(chart)


def trials(auto: AutoRecord) -> dict[str, Any]:
    """Returns a point for each trial of mode `auto`, bytes by metric, and a line for the float model's metric."""
    values = [
        {
            "step": trial.step,
            "number": number,
            "kilobytes": trial.bytes / 1e3,
            "metric": trial.metric,
            "verdict": "accepted" if trial.accepted else "refused",
        }
        for number, trial in enumerate(auto.trials, start=1)
    ]
    metric = auto.metric.replace("_", " ")
    verdicts = ["accepted", "refused"]
    points = (
        alt.Chart(alt.Data(values=values))
        .mark_point(size=90, filled=True, opacity=0.85)
        .encode(
            x=alt.X("kilobytes:Q", title="kilobytes", scale=alt.Scale(zero=False)),
            y=alt.Y("metric:Q", title=metric, scale=alt.Scale(zero=False)),
            color=alt.Color("verdict:N", title=None, scale=alt.Scale(domain=verdicts, range=[_BAR, _REFUSED])),
            shape=alt.Shape(
                "verdict:N", title=None, scale=alt.Scale(domain=verdicts, range=["circle", "triangle-down"])
            ),
            tooltip=[
                alt.Tooltip("number:Q", title="trial"),
                alt.Tooltip("step:N"),
                alt.Tooltip("kilobytes:Q", format=",.1f"),
                alt.Tooltip("metric:Q", title=metric, format=".4f"),
                alt.Tooltip("verdict:N"),
            ],
        )
    )
    line = (
        alt.Chart(alt.Data(values=[{"baseline": auto.baseline}]))
        .mark_rule(strokeDash=[5, 4])
        .encode(
            y="baseline:Q",
            color=alt.value("currentColor"),
            tooltip=[alt.Tooltip("baseline:Q", title="float model", format=".4f")],
        )
    )
    return plots.themed((line + points).properties(width="container", height=280))
