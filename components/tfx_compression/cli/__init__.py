"""The command line, `tfx-compression`."""

from tfx_compression.cli.app import main

__all__ = ["main"]
