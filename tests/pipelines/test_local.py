"""The local runner refuses to share a folder."""

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def test_a_second_pipeline_in_the_same_folder_is_refused(tmp_path):
    """A process that only holds the folder's lock stands in for the first pipeline."""
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
    assert str(tmp_path) in second.stderr
    assert "another pipeline is running" in second.stderr
    assert not (tmp_path / "pipeline.log").exists()
