"""The command line: `tfx-compression …`."""

import contextlib
import dataclasses
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tfx_compression import store as stores
from tfx_compression.terminal import evaluation_table, output_to, working

if TYPE_CHECKING:
    from tfx_compression.compressed_evaluator.budget import Budget

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Compressed models: what is in them, where they came from."
)
store_app = typer.Typer(no_args_is_help=True, help="A TFLite store: list, pull, promote, roll back, verify.")
app.add_typer(store_app, name="store")

StoreUri = Annotated[str, typer.Argument(help="The store's root.", metavar="STORE_URI")]
Name = Annotated[str, typer.Argument(help="The model's name.", metavar="NAME")]
Version = Annotated[int, typer.Argument(help="Its version.", metavar="VERSION")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main() -> None:
    """Runs the command line; what a user can mend is one line on standard error and exit status 1."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", FutureWarning)  # Google's clients on the age of Python 3.10
    try:
        app()
    except (ValueError, OSError) as error:  # StoreError, LineageError, ModelError name value, place and remedy
        Console(stderr=True, soft_wrap=True, emoji=False).print(f"[bold red]error:[/] {_plain(str(error))}")
        raise SystemExit(1) from error


@app.command()
def lineage(
    store_uri: StoreUri,
    name: Name,
    version: Version,
    metadata: Annotated[
        Path | None, typer.Option(help="ML Metadata's SQLite file; by default metadata.sqlite beside the store.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Where a released model came from: data, Trainer, plan, scores, what it was compared with."""
    from tfx_compression.lineage import trace

    beside = Path(stores.local_path(store_uri) or ".").resolve().parent / "metadata.sqlite"
    steps = trace(metadata or beside, store_uri, name, version)
    if as_json:
        print(json.dumps([dataclasses.asdict(step) for step in steps], indent=1))
        return
    _print(f"[bold]{_plain(name)} {version}[/]")
    for step in steps:
        _print(f"\n[bold]{step.title}[/] by {_plain(step.node)}")
        for key, value in step.details.items():
            _print(f"  [dim]{key.replace('_', ' ')}[/] {_plain(_words(value))}")


@app.command()
def inspect(
    model: Annotated[Path, typer.Argument(help="A .tflite file, a SavedModel, a .keras or .h5 file.")],
    as_json: AsJson = False,
) -> None:
    """What a model is made of: kernels, zeros, operators."""
    with _native_output_dropped():
        from tfx_compression.inspection import describe

        found = describe(str(model))
    if as_json:
        print(json.dumps(found, indent=1))
        return
    table = Table(title=str(model), title_justify="left")
    for column in ("kernel", "weights", "zeros"):
        table.add_column(column, justify="left" if column == "kernel" else "right")
    for layer in found["layers"]:
        table.add_row(layer["name"], f"{layer['size']:,}", f"{100 * layer['sparsity']:.1f} %")
    _print(table)
    for key, value in found.items():
        if key != "layers":
            _print(f"[dim]{key.replace('_', ' ')}[/] {_plain(_words(value))}")


@app.command()
def evaluate(
    candidates: Annotated[
        list[str],
        typer.Argument(
            help="TFLite models or SavedModels: a path, or NAME=PATH.", metavar="CANDIDATE...", show_default=False
        ),
    ],
    examples: Annotated[str, typer.Option(help="TFRecord files of tf.Examples: a pattern.", metavar="PATTERN")],
    label: Annotated[str | None, typer.Option(help="The label's feature, unless --eval-config says it.")] = None,
    baseline: Annotated[Path | None, typer.Option(help="The model that they are compared with.")] = None,
    schema: Annotated[Path | None, typer.Option(help="The examples' schema: schema.pbtxt.")] = None,
    eval_config: Annotated[
        Path | None, typer.Option(help="TFMA's EvalConfig, JSON or text proto. By default a classifier's accuracy.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="The limits: JSON of a Budget, or a file of it.", metavar="JSON|FILE")
    ] = None,
    reference_kernels: Annotated[bool, typer.Option(help="Run TFLite's reference kernels, not XNNPACK.")] = False,
    output: Annotated[Path, typer.Option(help="Folder for report.html, evaluation.json and TFMA's files.")] = Path(
        "evaluation"
    ),
    as_json: AsJson = False,
) -> None:
    """Measure models against a baseline and say which one may be released.

    Exit status: 0 where one was chosen; 2 where none was, as without a baseline.
    """
    named = _named(candidates)
    limits = _budget(budget)
    output.mkdir(parents=True, exist_ok=True)
    log = output / "log.txt"
    with output_to(log) as console, working(console, f"Evaluating {', '.join(named)} …"):
        from tfx_compression.compressed_evaluator import evaluate as evaluating
        from tfx_compression.compressed_evaluator import proto_files, report

        found = evaluating.evaluate(
            named,
            examples,
            label,
            baseline=str(baseline) if baseline else None,
            schema=proto_files.read_schema(str(schema)) if schema else None,
            eval_config=proto_files.read_eval_config(str(eval_config)) if eval_config else None,
            budget=limits,
            output_path=str(output),
            reference_kernels=reference_kernels,
        )
        page = output / "report.html"
        page.write_text(report.render({"": found}), encoding="utf-8")
    if as_json:
        print(found.model_dump_json(indent=1))
    else:
        _print(evaluation_table(f"{found.rows:,} examples", found))
        _print(f"[bold]{'→' if found.chosen else '✗'}[/] {_plain(found.reason)}")
        _print(f"[dim]report[/] {_plain(str(page))}   [dim]log[/] {_plain(str(log))}")
    if found.chosen is None:
        raise typer.Exit(2)


def _named(candidates: list[str]) -> dict[str, str]:
    """`NAME=PATH`, or a path that is called by its file's or folder's name."""
    named: dict[str, str] = {}
    for candidate in candidates:
        name, _, path = ("", "", candidate) if Path(candidate).exists() else candidate.partition("=")
        name, path = (name, path) if path else ("", name)
        name = name or Path(path).stem
        if name in named:
            raise ValueError(f"Two candidates are called {name!r}: {named[name]} and {path}. Remedy: NAME=PATH.")
        named[name] = path
    return named


def _budget(given: str | None) -> "Budget":
    from tfx_compression.compressed_evaluator.budget import Budget

    text = given or "{}"
    if not text.lstrip().startswith("{"):
        text = Path(text).read_text(encoding="utf-8")
    return Budget.merged(text, {})


@store_app.command("list")
def list_versions(store_uri: StoreUri, as_json: AsJson = False) -> None:
    """The models, their versions and channels."""
    store = stores.open(store_uri)
    rows = [
        {
            "name": name,
            "version": version,
            "bytes": store.manifest(name, version).get("bytes", 0),
            "channels": [channel for channel, pointed in store.channels(name).items() if pointed == version],
        }
        for name in store.names()
        for version in store.versions(name)
    ]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table("name", "version", "bytes", "channels")
    for row in rows:
        table.add_row(str(row["name"]), str(row["version"]), f"{row['bytes']:,}", ", ".join(row["channels"]))
    _print(table if rows else f"No models in {_plain(store_uri)}.")


@store_app.command()
def show(store_uri: StoreUri, name: Name, version: Version) -> None:
    """A version's manifest, as JSON."""
    print(json.dumps(stores.open(store_uri).manifest(name, version), indent=1, sort_keys=True))


@store_app.command()
def pull(
    store_uri: StoreUri,
    name: Name,
    to: Annotated[Path, typer.Argument(help="The file to write.")],
    channel: Annotated[str, typer.Option(help="Whose version.")] = "stable",
    version: Annotated[int | None, typer.Option(help="That version instead.")] = None,
) -> None:
    """Write a version's model to a file, checked against its manifest."""
    pulled = stores.open(store_uri).pull(name, to, channel=channel, version=version)
    _print(f"{_plain(name)} {pulled} in {_plain(str(to))}")


@store_app.command()
def promote(store_uri: StoreUri, name: Name, version: Version, channel: str) -> None:
    """Point a channel at a version."""
    stores.open(store_uri).promote(name, version, channel)
    _print(f"{_plain(channel)} of {_plain(name)} is version {version}")


@store_app.command()
def rollback(store_uri: StoreUri, name: Name, channel: str) -> None:
    """Point a channel back at the version before."""
    version = stores.open(store_uri).rollback(name, channel)
    _print(f"{_plain(channel)} of {_plain(name)} is version {version} again")


@store_app.command()
def verify(store_uri: StoreUri, name: Name, version: Version) -> None:
    """Check a version's model against its manifest."""
    stores.open(store_uri).verify(name, version)
    _print(f"{_plain(name)} {version} is what its manifest says")


@contextlib.contextmanager
def _native_output_dropped() -> Iterator[None]:
    """Drops what C++ writes to standard error: TensorFlow 2.21 greets there, whatever its log level is set to."""
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        sys.stderr.flush()
        os.dup2(saved, 2)
        os.close(saved)


def _words(value: Any) -> str:
    if isinstance(value, dict):
        inner = ", ".join(f"{key}={_words(item)}" for key, item in value.items())
        return f"({inner})" if inner else "none"
    if isinstance(value, float):
        return f"{value:.5g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _plain(text: str) -> str:
    """Text that Rich prints as it is."""
    return escape(text)


def _print(what: Any) -> None:
    # In a pipe a table is as wide as its content: what reads it there must not find names broken in two.
    width = None if sys.stdout.isatty() else 10_000
    Console(soft_wrap=True, emoji=False, highlight=False, width=width).print(what)


if __name__ == "__main__":
    main()
