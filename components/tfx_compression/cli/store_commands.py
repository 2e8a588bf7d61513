"""`tfx-compression store`: list, show, pull, promote, roll back and verify the models of a TFLite store."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from tfx_compression import store as stores
from tfx_compression.cli.arguments import AsJson, Name, StoreUri, Version
from tfx_compression.cli.output import print_rich, shown
from tfx_compression.errors import StoreError

app = typer.Typer(no_args_is_help=True, help="A TFLite store: list, pull, promote, roll back, verify.")

Channel = Annotated[str, typer.Argument(help="Channel of the model.", metavar="CHANNEL")]


@app.command("list")
def list_versions(store_uri: StoreUri, as_json: AsJson = False) -> None:
    """List the models with their versions and channels."""
    rows = list(_rows(stores.open(store_uri)))
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table("name", "version", "bytes", "channels")
    for row in rows:
        size = "damaged" if "problem" in row else f"{row['bytes']:,}"
        table.add_row(row["name"], str(row["version"]), size, shown(", ".join(row["channels"])))
    print_rich(table if rows else f"No models in {shown(store_uri)}.")
    for row in rows:
        if "problem" in row:
            print_rich(f"[bold]✗[/] {shown(row['problem'])}")


def _rows(store: stores.StoreBackend) -> Iterator[dict[str, Any]]:
    """Yields the versions of each model. What is damaged has a `problem` and doesn't hide the others."""
    for name in store.names():
        versions: list[int] = []
        channels: dict[str, int] = {}
        try:
            versions = store.versions(name)
            channels = store.channels(name)
        except StoreError as error:
            yield {"name": name, "version": None, "bytes": None, "channels": [], "problem": str(error)}
        for version in versions:
            pointing = [channel for channel, pointed in channels.items() if pointed == version]
            row = {"name": name, "version": version, "bytes": None, "channels": pointing}
            try:
                yield row | {"bytes": store.manifest(name, version)["bytes"]}
            except StoreError as error:
                yield row | {"problem": str(error)}


@app.command()
def show(store_uri: StoreUri, name: Name, version: Version) -> None:
    """Print a version's manifest as JSON."""
    print(json.dumps(stores.open(store_uri).manifest(name, version), indent=1, sort_keys=True))


@app.command()
def pull(
    store_uri: StoreUri,
    name: Name,
    to: Annotated[Path, typer.Argument(help="File to write.")],
    channel: Annotated[str, typer.Option(help="Channel to pull from.")] = "stable",
    version: Annotated[int | None, typer.Option(help="Version to pull instead of the channel's.")] = None,
) -> None:
    """Write a version's model to a file, after checking it against its manifest."""
    pulled = stores.open(store_uri).pull(name, to, channel=channel, version=version)
    print_rich(f"{shown(name)} {pulled} in {shown(to)}")


@app.command()
def promote(store_uri: StoreUri, name: Name, version: Version, channel: Channel) -> None:
    """Point a channel at a version."""
    stores.open(store_uri).promote(name, version, channel)
    print_rich(f"{shown(channel)} of {shown(name)} is version {version}")


@app.command()
def rollback(store_uri: StoreUri, name: Name, channel: Channel) -> None:
    """Point a channel back at its previous version."""
    version = stores.open(store_uri).rollback(name, channel)
    print_rich(f"{shown(channel)} of {shown(name)} is version {version} again")


@app.command()
def verify(store_uri: StoreUri, name: Name, version: Version) -> None:
    """Check a version's model against its manifest."""
    stores.open(store_uri).verify(name, version)
    print_rich(f"{shown(name)} {version} matches its manifest")
