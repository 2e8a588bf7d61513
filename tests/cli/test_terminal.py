"""A terminal shows only what is meant for people; the log has the rest."""

import os
import pty
import subprocess
import sys
from pathlib import Path

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
