"""Writes the results of `zoo.py` into the tables of docs/zoo.md."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import figures
import typer
from zoo_settings import BOTH, PLAIN, PRUNINGS, QUANTIZATIONS, REFERENCE

Row = Mapping[str, Any]
Operations = Mapping[str, Row]

CONVERSIONS = (*QUANTIZATIONS, *BOTH, REFERENCE)
_PLAIN_OF = {name: plain for plain, name in PLAIN.items()}
_LONGEST = 220  # Characters of a message.


def main(
    docs: Annotated[Path, typer.Option(help="The folder with zoo.md and benchmarks/.")] = figures.DOCS,
) -> None:
    """Write the figures."""
    models = json.loads((docs / "benchmarks" / "zoo.json").read_text())["models"]
    measured = {name: model for name, model in models.items() if model.get("operations")}
    tables = {
        "nets": _nets(models),
        "conversions": _conversions([model["operations"] for model in measured.values()]),
        "prunings": _prunings([model["operations"] for model in measured.values()]),
        "rows": "\n\n".join(_rows(name, model) for name, model in measured.items()),
    }
    figures.fill(docs / "zoo.md", tables)


def _nets(models: Mapping[str, Row]) -> str:
    rows = []
    for name, model in models.items():
        source = model["from"] or "made here"
        parameters = f"{model['parameters']:,}" if "parameters" in model else _message(_reason(model))
        rows.append([name, model["description"], source, model.get("kind", ""), parameters, str(model.get("rows", ""))])
    return figures.table(["net", "what it is", "from", "kind", "parameters", "rows"], rows)


def _conversions(models: Sequence[Operations]) -> str:
    rows = []
    for name in (*QUANTIZATIONS, *BOTH):
        given = [operations[name] for operations in models if name in operations]
        pairs = [
            (operations[name], operations[plain])
            for operations in models
            if (plain := _PLAIN_OF.get(name)) and _finite(operations.get(name)) and _finite(operations.get(plain))
        ]
        worse = [row["cosine"] - plain["cosine"] for row, plain in pairs]
        sizes = [row["bytes"] / plain["bytes"] for row, plain in pairs]
        plain_done = [_finite(operations.get(_PLAIN_OF.get(name, ""))) for operations in models]
        rows.append(
            [
                name,
                *_counts(given),
                str(sum(plain_done)) if name in _PLAIN_OF else "",
                f"{min(worse):+.4f}" if worse else "",
                f"{statistics.median(worse):+.4f}" if worse else "",
                f"{statistics.median(sizes):.2f}x" if sizes else "",
            ]
        )
    columns = ["operation", "done", "refused", "failed", "plain: done"]
    return figures.table([*columns, "cosine against plain: worst", "median", "bytes against plain: median"], rows)


def _prunings(models: Sequence[Operations]) -> str:
    rows = []
    for name in PRUNINGS:
        given = [operations[name] for operations in models if name in operations]
        zeroed = [row["zeroed_difference"] for row in given if row.get("zeroed_difference") is not None]
        saved = [row["saved_difference"] for row in given if row.get("saved_difference") is not None]
        rows.append(
            [
                name,
                *_counts(given),
                f"{max(zeroed):.1e} of {len(zeroed)}" if zeroed else "",
                f"{max(saved):.1e} of {len(saved)}" if saved else "",
                str(sum("save_error" in row for row in given)),
            ]
        )
    columns = ["operation", "done", "refused", "failed"]
    return figures.table([*columns, "largest difference from zeroed", "from the saved model", "not saved"], rows)


def _counts(rows: Sequence[Row]) -> list[str]:
    refused = sum(bool(row.get("refused")) for row in rows)
    failed = sum("error" in row or row["cosine"] is None for row in rows) - refused
    return [str(len(rows) - refused - failed), str(refused), str(failed)]


def _finite(row: Row | None) -> bool:
    return row is not None and row.get("cosine") is not None


def _rows(name: str, model: Row) -> str:
    operations = model["operations"]
    conversions = [
        [
            operation,
            *_cells(operations[operation]),
            *_cells(operations.get(_PLAIN_OF.get(operation, ""))),
            _remark(operations[operation]),
        ]
        for operation in CONVERSIONS
        if operation in operations
    ]
    columns = ["operation", "cosine", "bytes", "seconds", "plain: cosine", "bytes", "seconds", "remark"]
    prunings = [
        [operation, *_cells(row), *_pruned(row), _remark(row)]
        for operation in PRUNINGS
        if (row := operations.get(operation))
    ]
    pruning_columns = ["operation", "cosine", "bytes", "seconds", "asked", "reached", "from zeroed", "saved", "remark"]
    tables = [figures.table(columns, conversions), figures.table(pruning_columns, prunings)]
    return "\n\n".join([f"### {name}", *tables])


def _cells(row: Row | None) -> list[str]:
    if row is None:
        return ["", "", ""]
    if "error" in row:
        return ["error", "", _seconds(row)]
    cosine = "not finite" if row["cosine"] is None else f"{row['cosine']:.4f}"
    return [cosine, f"{row['bytes']:,}", _seconds(row)]


def _pruned(row: Row) -> list[str]:
    asked, reached = (figures.percent(row[key]) if key in row else "" for key in ("asked", "reached"))
    zeroed, saved = (
        f"{row[key]:.0e}" if row.get(key) is not None else "" for key in ("zeroed_difference", "saved_difference")
    )
    return [asked, reached, zeroed, saved]


def _seconds(row: Row) -> str:
    return f"{row['seconds']:.1f}" if row.get("seconds") is not None else ""


def _remark(row: Row) -> str:
    parts = [_reason(row), row.get("note"), *row.get("said", ())]
    if row.get("lines_printed"):
        parts.append(f"Lines printed: {row['lines_printed']}.")
    if row.get("agreement") is not None:
        parts.append(f"Agreement: {figures.percent(row['agreement'])} %.")
    return _message(" ".join(part for part in parts if part))


def _reason(row: Row) -> str:
    return row.get("error") or row.get("skipped") or row.get("save_error") or row.get("zeroed_unknown") or ""


def _message(text: str) -> str:
    short = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
    return short.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    typer.run(main)
