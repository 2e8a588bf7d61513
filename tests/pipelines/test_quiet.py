"""What is printed while a pipeline runs goes to the log, on a terminal too."""

import os
import pty
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]

NOISY = """
import logging, os, subprocess, sys
from pathlib import Path
from tfx_compression.terminal import output_to, working
with output_to(Path(sys.argv[1])) as console, working(console, "Working"):
    print("from print")
    print("from stderr", file=sys.stderr)
    os.write(2, b"from C++\\n")
    logging.getLogger("x").warning("from logging")
    subprocess.run(["echo", "from a child"])
    console.print("for people")
print("afterwards")
"""


def test_a_terminal_shows_only_what_is_meant_for_it_and_the_log_the_rest(tmp_path):
    reader, writer = pty.openpty()
    done = subprocess.Popen(
        [sys.executable, "-c", NOISY, str(tmp_path / "log")], cwd=REPOSITORY, stdin=writer, stdout=writer, stderr=writer
    )
    os.close(writer)
    shown = b""
    while True:
        try:
            part = os.read(reader, 4096)
        except OSError:  # Linux's way to say that the other end of a terminal was closed
            break
        if not part:
            break
        shown += part
    os.close(reader)
    assert done.wait() == 0
    assert b"for people" in shown
    assert b"afterwards" in shown
    assert b"from" not in shown
    log = (tmp_path / "log").read_text()
    for line in ("from print", "from stderr", "from C++", "WARNING x: from logging", "from a child"):
        assert line in log


def test_a_second_pipeline_in_the_same_folder_is_refused(tmp_path):
    """Two would share log, data and ML Metadata. The first is a stand-in that only holds the folder's lock."""
    hold = """
import fcntl, sys
lock = open(sys.argv[1], "w")
fcntl.flock(lock, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", hold, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout.readline() == b"held\n"
        command = [sys.executable, "-m", "pipelines.local", "--folder", str(tmp_path)]
        second = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        first.stdin.close()
    assert second.returncode == 1
    assert "another pipeline is running in it. Remedy" in second.stderr
    assert not (tmp_path / "pipeline.log").exists()
