"""Writes the results of `quantization.py` into the tables of docs/quantization.md, and draws its plot."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import altair as alt
import figures
import typer

NETS = {"cnn": "CNN", "resnet": "ResNet", "depthwise": "depthwise separable"}
PARTS = ("modes", "hard", "auto", "converter", "calibration", "ranges")
MODES = ["mode", "accuracy", "drop, points", "bytes", "gzipped", "one row", "largest difference"]


def main(
    docs: Annotated[Path, typer.Option(help="The folder with quantization.md and benchmarks/.")] = figures.DOCS,
) -> None:
    """Write the figures."""
    results = {name: json.loads((docs / "benchmarks" / f"quantization-{name}.json").read_text()) for name in PARTS}
    modes = {net: results["modes"][net] for net in NETS}
    tables = {
        "modes": _modes(modes),
        "hard": _hard(results["hard"]),
        "auto": _auto(results["auto"]),
        "converter": _converter(results["converter"]),
        "calibration": _calibration(results["calibration"]),
        "ranges": _ranges(results["ranges"]),
    }
    figures.fill(docs / "quantization.md", tables)
    _plot(modes).save(docs / "quantization-modes.svg")


def _modes(modes: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for net, measured in modes.items():
        parameters = f"{measured['parameters']:,} parameters"
        rows.append([f"**{NETS[net]}**, {parameters}", figures.percent(measured["accuracy"]), *[""] * (len(MODES) - 2)])
        rows.extend([name, *_cells(run)] for name, run in measured["table"].items())
    return figures.table(MODES, rows)


def _hard(measured: Mapping[str, Any]) -> str:
    whole = measured["table"]["float32"]["bytes"]
    rows = [[name, *_cells(run), f"{run['bytes'] / whole:.2f}x"] for name, run in measured["table"].items()]
    return figures.table([*MODES, "relative to float32"], rows)


def _cells(run: Mapping[str, Any]) -> list[str]:
    return [
        figures.percent(run["accuracy"]),
        f"**{run['drop']:.2f}**",
        f"{run['bytes']:,}",
        f"{run['bytes_gzip']:,}",
        f"{run['latency_ms']:.3f} ms",
        f"{run['max_difference']:.4f}",
    ]


def _auto(results: Mapping[str, Any]) -> str:
    rows = []
    for net, title in NETS.items():
        if net in results:
            auto, uniform = results[net]["auto"], results[net]["smallest_uniform"]
            layers = ", ".join(f"{count} {precision}" for precision, count in auto["auto"]["layers"].items())
            cells = [f"{run['bytes']:,} ({run['drop']:.2f})" for run in (auto, uniform)]
            rows.append([title, layers, cells[0], uniform["mode"], cells[1], f"**{results[net]['bytes_ratio']:.2f}x**"])
    columns = ["net", "layers of `auto`", "bytes (drop)", "smallest uniform mode", "bytes (drop)", "ratio"]
    return figures.table(columns, rows)


def _converter(results: Mapping[str, Any]) -> str:
    rows = []
    for mode, run in _only_measured(results):
        ratio = f"**{run['ratio']:.2f}x** ({min(run['ratios']):.2f} to {max(run['ratios']):.2f})"
        sizes = [f"{run['bytes']:,}", f"{run['script_bytes']:,}"]
        seconds = [f"{run[name]:.2f} s" for name in ("seconds", "script_seconds")]
        whole = [f"{run[name]:.1f} s" for name in ("whole_seconds", "script_whole_seconds")]
        rows.append([mode, *sizes, *seconds, ratio, *whole])
    columns = ["mode", "bytes", "script: bytes", "conversion", "script: conversion", "ratio", "total", "script: total"]
    return figures.table(columns, rows)


def _calibration(results: Mapping[str, Any]) -> str:
    rows = [
        [
            f"{int(number):,}",
            f"{run['seconds']:.1f} s",
            f"{run['rows_per_second']:,}",
            f"{run['memory_before_mb']:.0f} MB",
            f"{run['memory_mb']:.0f} MB",
        ]
        for number, run in _only_measured(results)
    ]
    return figures.table(["rows", "time", "rows per second", "memory before", "peak memory"], rows)


def _ranges(results: Mapping[str, Any]) -> str:
    runs = {"min_max, without outliers": results["clean"]["table"]["min_max"], **results["with_outliers"]["table"]}
    rows = [[name, figures.percent(run["accuracy"]), f"**{run['drop']:.2f}**"] for name, run in runs.items()]
    return figures.table(["ranges", "accuracy", "drop, points"], rows)


def _only_measured(results: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields the runs without the description of the machine, which is in the same object."""
    return ((name, run) for name, run in results.items() if isinstance(run, Mapping) and "seconds" in run)


def _plot(modes: Mapping[str, Mapping[str, Any]]) -> alt.TopLevelMixin:
    rows = [
        {"net": NETS[net], "mode": name, "kB": run["bytes"] / 1000, "drop": run["drop"]}
        for net, measured in modes.items()
        for name, run in measured["table"].items()
    ]
    order = list(dict.fromkeys(row["mode"] for row in rows))
    chart = alt.Chart(alt.Data(values=rows)).mark_point(filled=True, size=70, opacity=0.9)
    encoded = chart.encode(
        x=alt.X(
            "kB:Q",
            title="file, kB",
            axis=alt.Axis(labelOverlap=True),
            scale=alt.Scale(type="log", nice=False, padding=12),
        ),
        y=alt.Y("drop:Q", title="drop, points", scale=alt.Scale(type="symlog", constant=0.5)),
        color=alt.Color("mode:N", sort=order, scale=alt.Scale(scheme="category20"), legend=alt.Legend(title=None)),
        column=alt.Column("net:N", sort=list(NETS.values()), title=None),
    )
    return encoded.properties(width=210, height=240).configure(background="white", font="sans-serif")


if __name__ == "__main__":
    typer.run(main)
