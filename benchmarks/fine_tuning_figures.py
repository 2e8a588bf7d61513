"""Writes the results of `fine_tuning.py` into the tables of docs/fine_tuning.md, and draws its plots."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import altair as alt
import figures
import typer

METHODS = {
    "fixed": "fixed masks",
    "distillation": "distillation",
    "gradual": "gradual",
    "dynamic": "dynamic (RigL)",
}
TRAININGS = {
    "gradual": ("`fine_tune`, gradual", "tfmot", "tfmot's wrappers and `fit`"),
    "signature": ("`fine_tune`, a SavedModel's signature", "keras", "Keras' `fit` of the dense network"),
}


def main(
    docs: Annotated[Path, typer.Option(help="The folder with fine_tuning.md and benchmarks/.")] = figures.DOCS,
) -> None:
    """Write the figures."""
    results = {
        name: json.loads((docs / "benchmarks" / f"fine_tuning-{name}.json").read_text())
        for name in ("recipes", "methods", "time")
    }
    tables = {
        "recipes": _recipes(results["recipes"]["recipes"]),
        "epochs": _by_epochs(results["recipes"]["by_epochs"]),
        "methods": _methods(results["methods"]["table"]),
        "time": _times(results["time"]),
    }
    figures.fill(docs / "fine_tuning.md", tables)
    _epochs_plot(results["recipes"]["by_epochs"]).save(docs / "fine_tuning-epochs.svg")
    _methods_plot(results["methods"]["table"]).save(docs / "fine_tuning-methods.svg")


def _recipes(recipes: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for name, run in recipes.items():
        cells = (str(run["epochs"]), f"{run['nonzero_parameters']:,}", f"{run['macs'] / 1e3:,.0f} k")
        rows.append([name, *cells, *_accuracies(run), _drop(run)])
    columns = ["", "epochs", "nonzero weights", "MACs", "dense, same epochs", "pruned", "drop"]
    return figures.table(columns, rows)


def _by_epochs(runs: Iterable[Mapping[str, Any]]) -> str:
    rows = [[str(run["epochs"]), *_accuracies(run), _drop(run)] for run in runs]
    return figures.table(["epochs", "dense, same epochs", "95 % pruned", "drop"], rows)


def _methods(runs: Sequence[Mapping[str, Any]]) -> str:
    sparsities = sorted({run["sparsity"] for run in runs})
    cells = {(run["method"], run["sparsity"]): _drop(run) for run in runs}
    rows = [[title, *(cells[method, sparsity] for sparsity in sparsities)] for method, title in METHODS.items()]
    return figures.table(["drop at", *(f"{sparsity:.0%}" for sparsity in sparsities)], rows)


def _times(results: Mapping[str, Any]) -> str:
    rows = []
    for training, (title, other, other_title) in TRAININGS.items():
        ours, theirs = (f"{results['wall']['milliseconds'][each]:.2f} ms" for each in (training, other))
        ratios = [results[clock]["ratios"][f"{training}_over_{other}"] for clock in ("wall", "cpu")]
        cells = [f"**{each['median']:.2f}x** ({each['least']:.2f} to {each['most']:.2f})" for each in ratios]
        rows.append([title, ours, other_title, theirs, *cells])
    return figures.table(["", "per step", "peer", "per step", "ratio", "ratio of CPU time"], rows)


def _accuracies(run: Mapping[str, Any]) -> list[str]:
    """Formats the median accuracies of the dense and of the pruned network."""
    return [figures.percent(statistics.median(run[name])) for name in ("dense_accuracies", "accuracies")]


def _drop(run: Mapping[str, Any]) -> str:
    """Formats the median and, in parentheses, the range over the seeds."""
    return f"**{run['drop']:.2f}** ({min(run['drops']):.2f} to {max(run['drops']):.2f})"


def _epochs_plot(runs: Sequence[Mapping[str, Any]]) -> alt.TopLevelMixin:
    rows = [{"epochs": run["epochs"], **_range(run)} for run in runs]
    chart = alt.Chart(alt.Data(values=rows)).encode(x=alt.X("epochs:Q", title="epochs of fine-tuning"))
    return _drops_plot(chart, chart.mark_line(point=True), "95 % of the weights")


def _methods_plot(runs: Sequence[Mapping[str, Any]]) -> alt.TopLevelMixin:
    rows = [{"sparsity": f"{run['sparsity']:.0%}", "method": METHODS[run["method"]], **_range(run)} for run in runs]
    order = list(METHODS.values())
    chart = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("sparsity:N", title="sparsity", axis=alt.Axis(labelAngle=0)),
        xOffset=alt.XOffset("method:N", sort=order),
        color=alt.Color("method:N", sort=order, legend=alt.Legend(title=None, orient="bottom")),
    )
    return _drops_plot(chart, chart.mark_point(filled=True, size=60), "compared with the dense network, same epochs")


def _range(run: Mapping[str, Any]) -> dict[str, float]:
    return {"drop": run["drop"], "least": min(run["drops"]), "most": max(run["drops"])}


def _drops_plot(chart: alt.Chart, medians: alt.Chart, title: str) -> alt.TopLevelMixin:
    """Plots the range of the drop over the seeds, with the median marked."""
    axis = {"title": "drop, points", "scale": alt.Scale(domainMin=0)}
    ranges = chart.mark_rule().encode(y=alt.Y("least:Q", **axis), y2="most:Q")
    plot = alt.layer(ranges, medians.encode(y=alt.Y("drop:Q", **axis)), title=title)
    return plot.properties(width=420, height=240).configure(background="white", font="sans-serif")


if __name__ == "__main__":
    typer.run(main)
