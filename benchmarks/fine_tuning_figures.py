"""Writes what `fine_tuning.py` measured into docs/fine_tuning.md: the tables between its marks, and the plots."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import altair as alt
import figures
import typer

METHODS = {
    "fixed": "plain: fixed masks",
    "distillation": "distillation",
    "gradual": "gradual",
    "dynamic": "dynamic (RigL)",
}
WAYS = {
    "gradual": ("`fine_tune`, gradual", "tfmot", "the same with tfmot's wrappers and `fit`"),
    "signature": ("`fine_tune`, a SavedModel's signature", "keras", "Keras' `fit` of the dense net"),
}


def main(
    docs: Annotated[Path, typer.Option(help="The folder with fine_tuning.md and benchmarks/.")] = figures.DOCS,
) -> None:
    """Write the figures."""
    found = {
        name: json.loads((docs / "benchmarks" / f"fine_tuning-{name}.json").read_text())
        for name in ("recipes", "methods", "time")
    }
    tables = {
        "recipes": _recipes(found["recipes"]["recipes"]),
        "epochs": _by_epochs(found["recipes"]["by_epochs"]),
        "methods": _methods(found["methods"]["table"]),
        "time": _times(found["time"]),
    }
    figures.fill(docs / "fine_tuning.md", tables)
    _epochs_plot(found["recipes"]["by_epochs"]).save(docs / "fine_tuning-epochs.svg")
    _methods_plot(found["methods"]["table"]).save(docs / "fine_tuning-methods.svg")


def _recipes(recipes: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for name, run in recipes.items():
        cells = (str(run["epochs"]), f"{run['nonzero_parameters']:,}", f"{run['macs'] / 1e3:,.0f} k")
        rows.append([name, *cells, _middle(run["dense_accuracies"]), _middle(run["accuracies"]), _drop(run)])
    columns = ["", "epochs", "weights not zero", "MACs", "dense, as long", "pruned", "drop"]
    return figures.table(columns, rows)


def _by_epochs(runs: Iterable[Mapping[str, Any]]) -> str:
    rows = [
        [str(run["epochs"]), _middle(run["dense_accuracies"]), _middle(run["accuracies"]), _drop(run)] for run in runs
    ]
    return figures.table(["epochs", "dense, as long", "95 % pruned", "drop"], rows)


def _methods(runs: Sequence[Mapping[str, Any]]) -> str:
    sparsities = sorted({run["sparsity"] for run in runs})
    cells = {(run["method"], run["sparsity"]): _drop(run) for run in runs}
    rows = [[title, *(cells[method, sparsity] for sparsity in sparsities)] for method, title in METHODS.items()]
    return figures.table(["drop at", *(f"{sparsity:.0%}" for sparsity in sparsities)], rows)


def _times(found: Mapping[str, Any]) -> str:
    rows = []
    for way, (title, other, other_title) in WAYS.items():
        ours, theirs = (f"{found['wall']['milliseconds'][each]:.2f} ms" for each in (way, other))
        ratios = [found[clock]["ratios"][f"{way}_over_{other}"] for clock in ("wall", "cpu")]
        cells = [f"**{each['median']:.2f}x** ({each['least']:.2f} to {each['most']:.2f})" for each in ratios]
        rows.append([title, ours, other_title, theirs, *cells])
    return figures.table(["", "a step", "beside", "a step", "ratio", "of CPU time"], rows)


def _middle(accuracies: Sequence[float]) -> str:
    return figures.percent(statistics.median(accuracies))


def _drop(run: Mapping[str, Any]) -> str:
    """The median, and in brackets the least and the most of the seeds."""
    return f"**{run['drop']:.2f}** ({min(run['drops']):.2f} to {max(run['drops']):.2f})"


def _epochs_plot(runs: Sequence[Mapping[str, Any]]) -> alt.TopLevelMixin:
    rows = [{"epochs": run["epochs"], **_range(run)} for run in runs]
    chart = alt.Chart(alt.Data(values=rows)).encode(x=alt.X("epochs:Q", title="epochs of fine-tuning"))
    return _drops_plot(chart, chart.mark_line(point=True), "95 % of the weights")


def _methods_plot(runs: Sequence[Mapping[str, Any]]) -> alt.TopLevelMixin:
    rows = [{"sparsity": f"{run['sparsity']:.0%}", "method": METHODS[run["method"]], **_range(run)} for run in runs]
    order = list(METHODS.values())
    chart = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("sparsity:N", title="weights that are zero", axis=alt.Axis(labelAngle=0)),
        xOffset=alt.XOffset("method:N", sort=order),
        color=alt.Color("method:N", sort=order, legend=alt.Legend(title=None, orient="bottom")),
    )
    return _drops_plot(chart, chart.mark_point(filled=True, size=60), "against the dense net trained as long")


def _range(run: Mapping[str, Any]) -> dict[str, float]:
    return {"drop": run["drop"], "least": min(run["drops"]), "most": max(run["drops"])}


def _drops_plot(chart: alt.Chart, medians: alt.Chart, title: str) -> alt.TopLevelMixin:
    """Drops from the least to the most of the seeds, the median marked."""
    axis = {"title": "drop, points", "scale": alt.Scale(domainMin=0)}
    ranges = chart.mark_rule().encode(y=alt.Y("least:Q", **axis), y2="most:Q")
    made = alt.layer(ranges, medians.encode(y=alt.Y("drop:Q", **axis)), title=title)
    return made.properties(width=420, height=240).configure(background="white", font="sans-serif")


if __name__ == "__main__":
    typer.run(main)
