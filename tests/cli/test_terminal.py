"""A terminal shows only what is meant for people; the log has the rest."""

import os
import pty
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from tfx_compression.cli import terminal
from tfx_compression.compressed_evaluator.budget import Budget

from tests.support import evaluations

REPOSITORY = Path(__file__).parents[2]

NOISY = """
import logging, os, subprocess, sys
from pathlib import Path
from tfx_compression.cli.terminal import output_to, working
with output_to(Path(sys.argv[1])) as console, working(console, "Working"):
    print("from print")
    print("from stderr", file=sys.stderr)
    os.write(2, b"from C++\\n")
    logging.getLogger("x").warning("from logging")
    subprocess.run(["echo", "from a child"])
    console.print("for people")
print("afterwards")
"""


def test_the_terminal_shows_the_console_only_and_the_log_has_the_rest(tmp_path):
    reader, writer = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", NOISY, str(tmp_path / "log")], cwd=REPOSITORY, stdin=writer, stdout=writer, stderr=writer
    )
    os.close(writer)
    shown = b""
    while True:
        try:
            part = os.read(reader, 4096)
        except OSError:  # Linux reports that the other end of the terminal was closed.
            break
        if not part:
            break
        shown += part
    os.close(reader)
    assert process.wait() == 0
    assert b"for people" in shown
    assert b"afterwards" in shown
    assert b"from" not in shown
    log = (tmp_path / "log").read_text()
    for line in ("from print", "from stderr", "from C++", "WARNING x: from logging", "from a child"):
        assert line in log


def test_the_table_of_an_evaluation_fits_a_terminal_of_80_columns():
    evaluation = evaluations.decide(Budget(), {"int8": evaluations.model(), "[broken]": evaluations.failed_model("no")})
    with (console := Console(width=80)).capture() as capture:
        console.print(terminal.evaluation_table("Title", evaluation))
    lines = [line.split() for line in capture.get().splitlines()]
    assert lines[1][:4] == ["model", "accuracy", "drop", "bytes"]
    assert ["baseline", "0.7500", "8,000", "4,000", "64.000", "50%"] in lines
    assert ["int8", "0.7500", "+0.0000", "1,000", "500", "2.000", "2.0x", "50%", "chosen"] in lines
    assert ["[broken]", "1", "1", "failed"] in lines
