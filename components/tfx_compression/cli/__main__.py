"""Runs the command line: `python -m tfx_compression.cli`."""

from tfx_compression.cli.app import main

main()
