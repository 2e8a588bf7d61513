"""Writes the results of `pruning.py` into the tables of docs/pruning.md, and draws its plot."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import altair as alt
import figures
import typer

MODELS = {
    "whole": "original",
    "classifier_protected": '`filter` at 0.5, `protect=("last",)`',
    "default_protection": '`filter` at 0.5, `protect=("first", "last")`',
    "half_width_by_hand": "half the width, built by hand",
    "only_zeroed": "the same number of weights set to zero",
}
NETS = {"resnet": "ResNet", "mobilenet": "MobileNet"}


def main(
    docs: Annotated[Path, typer.Option(help="The folder with pruning.md and benchmarks/.")] = figures.DOCS,
) -> None:
    """Write the figures."""
    results = {
        name: json.loads((docs / "benchmarks" / f"pruning-{name}.json").read_text())
        for name in ("sizes", "accuracy", "resnet50", "weights")
    }
    tables = {
        "sizes": _sizes(results["sizes"]),
        "accuracy": _accuracy(results["accuracy"]),
        "times": _times(results["resnet50"], results["weights"]),
    }
    figures.fill(docs / "pruning.md", tables)
    _plot(results["accuracy"]).save(docs / "pruning-accuracy.svg")


def _sizes(results: Mapping[str, Any]) -> str:
    rows = []
    for net, title in NETS.items():
        for name, model in results[net].items():
            smaller = model["times_smaller"]
            columns = [
                (f"{model['parameters']:,}", smaller["parameters"]),
                (f"{model['macs'] / 1e6:.1f} M", smaller["macs"]),
                (f"{model['tflite_bytes'] / 1000:,.0f} kB", smaller["tflite_bytes"]),
                (f"{model['latency_ms']:.3f} ms", model["times_faster"]),
            ]
            cells = [value if name == "whole" else f"{value} · **{times:.1f}x**" for value, times in columns]
            rows.append([f"{title}, {MODELS[name]}", *cells])
    return figures.table(["", "parameters", "MACs", "float TFLite", "one row, one thread"], rows)


def _accuracy(results: Mapping[str, Any]) -> str:
    by_recipe: dict[tuple[str, str], dict[float, Mapping[str, Any]]] = {}
    for row in results["table"]:
        by_recipe.setdefault((row["criterion"], row["allocation"]), {})[row["sparsity"]] = row
    first = next(iter(by_recipe.values()))
    tuned = [sparsity for sparsity, row in first.items() if row["fine_tuned"] is not None]
    columns = ["criterion, allocation", *map(str, first), *(f"tuned {sparsity}" for sparsity in tuned)]
    rows = []
    for recipe, cells in by_recipe.items():
        once = [figures.percent(cell["accuracy"]) for cell in cells.values()]
        rows.append([", ".join(recipe), *once, *(figures.percent(cells[sparsity]["fine_tuned"]) for sparsity in tuned)])
    return figures.table(columns, rows)


def _times(removal: Mapping[str, Any], zeroing: Mapping[str, Any]) -> str:
    runs = {
        "`filter`, l1, global, 0.5": removal["global"],
        "`filter`, l1, uniform, 0.5": removal["uniform"],
        "`weight`, l1, global, 0.8": zeroing["global"],
        "`weight`, l1, uniform, 0.8": zeroing["uniform"],
    }
    rows = []
    for name, run in runs.items():
        (before, after), (macs, macs_after) = run["parameters"], run["macs"]
        rows.append(
            [
                name,
                f"{run['seconds']:.1f} s",
                f"{run['memory_times_weights']:.1f}x",
                f"{before / 1e6:.1f} → {after / 1e6:.1f} M",
                f"{macs / 1e9:.2f} → {macs_after / 1e9:.2f} G",
            ]
        )
    return figures.table(["ResNet-50", "time", "peak memory / weights", "parameters", "MACs"], rows)


def _plot(results: Mapping[str, Any]) -> alt.TopLevelMixin:
    """Plots accuracy by the remaining multiply-accumulates: one column per allocation, one-shot and fine-tuned."""
    table = [row for row in results["table"] if row["allocation"] != "sensitivity"]
    columns = []
    for allocation in dict.fromkeys(row["allocation"] for row in table):
        panels = []
        for when, field in (("one-shot", "accuracy"), ("fine-tuned", "fine_tuned")):
            known = [row for row in table if row[field] is not None]
            lowest = math.floor(min(row[field] for row in known) * 20) / 20
            rows = [row for row in known if row["allocation"] == allocation]
            panels.append(_panel(rows, field, f"accuracy {when}", [lowest, 0.95]))
        title = alt.TitleParams(f"allocation {allocation}", anchor="middle")
        columns.append(alt.vconcat(*panels, title=title))
    return alt.hconcat(*columns).configure(background="white", font="sans-serif")


def _panel(rows: Sequence[Mapping[str, Any]], field: str, title: str, domain: Sequence[float]) -> alt.Chart:
    remaining = alt.X(
        "macs_left:Q",
        title="remaining multiply-accumulates",
        scale=alt.Scale(domain=[0, 1], reverse=True),
        axis=alt.Axis(format="%"),
    )
    accuracy = alt.Y(f"{field}:Q", title=title, scale=alt.Scale(domain=domain), axis=alt.Axis(format="%"))
    criterion = alt.Color("criterion:N", sort=None, legend=alt.Legend(title=None, orient="bottom"))
    chart = alt.Chart(alt.Data(values=list(rows))).mark_line(point=True)
    return chart.encode(x=remaining, y=accuracy, color=criterion, order="sparsity:Q").properties(width=250, height=180)


if __name__ == "__main__":
    typer.run(main)
