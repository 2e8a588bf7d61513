"""Times the digits pipeline: from nothing, again (everything cached), and with one value of the plan changed.

Prints one JSON object: wall time in seconds, median of `--repeats` runs of each kind, and the last run's summary.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

REPOSITORY = Path(__file__).parents[1]


def main(repeats: Annotated[int, typer.Option(help="Runs of each kind.")] = 3) -> None:
    """Run the pipeline and print its times."""
    seconds: dict[str, list[float]] = {"from_nothing": [], "all_cached": [], "sparsity_changed": []}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            seconds["from_nothing"].append(_run(folder))
            summary = json.loads((Path(folder) / "summary.json").read_text())
            seconds["all_cached"].append(_run(folder))
            seconds["sparsity_changed"].append(_run(folder, "--sparsity", "0.7"))
    for part in (summary["serving"], summary["store"]):  # Paths of this machine don't belong in the results.
        part.pop("path", None)
        part.pop("uri", None)
    result = {
        "seconds": {name: round(statistics.median(values), 1) for name, values in seconds.items()},
        "runs": {name: [round(value, 1) for value in values] for name, values in seconds.items()},
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "summary": summary,
    }
    print(json.dumps(result, indent=1))


def _run(folder: str, *options: str) -> float:
    started = time.perf_counter()
    command = [sys.executable, "-m", "pipelines.local", "--folder", folder, *options]
    subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


if __name__ == "__main__":
    typer.run(main)
