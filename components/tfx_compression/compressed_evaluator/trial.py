"""Candidates are tried in processes of their own first: a model can end the process that runs it."""

import concurrent.futures
import os
import signal
import subprocess
import sys
from collections.abc import Mapping

_SECONDS = 300.0


def failures(models: Mapping[str, bytes], reference_kernels: bool = False) -> dict[str, str]:
    """Which TFLite models crash, hang or are refused when they are run once on zeros, and how.

    Each has a process to itself, so that none pays for what another broke.

    Args:
      models: flatbuffers by name.
      reference_kernels: as the evaluation will run them.

    Returns:
      By the name of each that failed, what happened to it.
    """
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as processes:
        problems = processes.map(lambda content: _problem(content, reference_kernels), models.values())
        return {name: problem for name, problem in zip(models, problems, strict=True) if problem}


def _problem(content: bytes, reference_kernels: bool) -> str:
    """What was wrong, empty for nothing."""
    worker = "tfx_compression.compressed_evaluator.trial_worker"
    command = [sys.executable, "-m", worker, *(["--reference-kernels"] if reference_kernels else [])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    try:
        done = subprocess.run(
            command, input=content, capture_output=True, timeout=_SECONDS, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return f"it ran for more than {_SECONDS:.0f} s on one row"
    if done.returncode < 0:
        return f"it crashed the interpreter ({signal.Signals(-done.returncode).name})"
    said, problem = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace").strip()[-300:]
    if done.returncode or not said.startswith("tried:"):
        return f"it ended the interpreter's process with status {done.returncode}: {problem or 'no word'}"
    return said.removeprefix("tried:").strip()
