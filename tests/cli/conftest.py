"""Runs the command line in the test's process, on a store with four versions."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tfx_compression.store as stores
from tfx_compression import cli

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store with three versions of `digits` and one of `letters`."""
    store = stores.open(str(tmp_path / "store"))
    for number in (1, 2, 3):
        store.publish("digits", bytes(1_000 * number), {"mode": "int8"})
    store.publish("letters", b"letters", {})
    store.promote("digits", 1, "stable")
    store.promote("digits", 2, "stable")
    store.promote("digits", 3, "canary")
    return tmp_path / "store"


@pytest.fixture
def run(monkeypatch, capsys) -> Run:
    """Runs the command line; returns exit status, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tfx-compression", *map(str, arguments)])
        monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")  # The command sets it. This restores it afterwards.
        with pytest.raises(SystemExit) as exited:
            cli.main()
        captured = capsys.readouterr()
        return int(exited.value.code or 0), captured.out, captured.err

    return run
