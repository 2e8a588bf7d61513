"""Arguments and options that several commands share."""

from typing import Annotated

import typer

StoreUri = Annotated[str, typer.Argument(help="Root of the store.", metavar="STORE_URI")]
Name = Annotated[str, typer.Argument(help="Name of the model.", metavar="NAME")]
Version = Annotated[int, typer.Argument(help="Version of the model.", metavar="VERSION")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
