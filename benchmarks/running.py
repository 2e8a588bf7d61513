"""Runs each part of a benchmark in a separate process, and describes the machine."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import typer

DATA = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist installs it here.


class Children:
    """Runs a script's commands in separate processes, so that each has its own peak memory and its own failures.

    Args:
      script: Path of the script.
      log: File that receives the standard error of all commands.
    """

    def __init__(self, script: str, log: Path):
        log.parent.mkdir(parents=True, exist_ok=True)
        self._script, self._log = script, log

    def __call__(self, *arguments: str) -> dict[str, Any]:
        """Returns the JSON object that the command prints as its last line."""
        print(f"{time.strftime('%H:%M:%S')} {' '.join(arguments)}", file=sys.stderr)
        environment = {**os.environ, "TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
        command = [sys.executable, self._script, *arguments]
        with self._log.open("a") as file:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=file, env=environment, text=True, check=False)
        if done.returncode:
            message = f"`{' '.join(arguments)}` failed with {done.returncode}; the reason is at the end of {self._log}"
            raise SystemExit(message)
        return dict(json.loads(done.stdout.splitlines()[-1]))


def machine(packages: Sequence[str]) -> dict[str, Any]:
    """Returns the processor, the Python version and the versions of `packages`."""
    return {
        "cores": os.cpu_count(),
        "processor": _processor(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in packages},
    }


def require_data(folder: Path) -> None:
    """Raises typer.BadParameter if `folder` does not hold (Fashion-)MNIST."""
    if not any((folder / f"train-images-idx3-ubyte{end}").is_file() for end in ("", ".gz")):
        raise typer.BadParameter(
            f"There is no train-images-idx3-ubyte or .gz in the folder {folder}. Remedy: apt-get install "
            "dataset-fashion-mnist, or --data FOLDER with (Fashion-)MNIST's four idx files."
        )


def write(path: Path, content: Any) -> None:
    """Writes JSON to `path` and creates its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
