"""`tfx-compression lineage`: the origin of a released model."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from tfx_compression import store as stores
from tfx_compression.cli.arguments import AsJson, Name, StoreUri, Version
from tfx_compression.cli.output import print_rich, readable, shown


def lineage(
    store_uri: StoreUri,
    name: Name,
    version: Version,
    metadata: Annotated[
        Path | None, typer.Option(help="ML Metadata's SQLite file. The default is metadata.sqlite next to the store.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show where a released model comes from: data, Trainer, plan, scores, and the model it was compared with."""
    from tfx_compression.lineage import trace

    sibling = Path(stores.local_path(store_uri) or ".").resolve().parent / "metadata.sqlite"
    steps = trace(metadata or sibling, store_uri, name, version)
    if as_json:
        print(json.dumps([dataclasses.asdict(step) for step in steps], indent=1))
        return
    print_rich(f"[bold]{shown(name)} {version}[/]")
    for step in steps:
        print_rich(f"\n[bold]{step.title}[/] by {shown(step.node)}")
        for key, value in step.details.items():
            print_rich(f"  [dim]{key.replace('_', ' ')}[/] {shown(readable(value))}")
