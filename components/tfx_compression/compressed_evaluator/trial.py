"""Candidates are tried in a process of their own first: a model can end the process that runs it."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping

import tensorflow as tf

_SECONDS = 300.0


def failures(paths: Mapping[str, str], reference_kernels: bool = False) -> dict[str, str]:
    """Which TFLite models crash, hang or are refused when they are run once on zeros, and how.

    One process tries them all, and says so after each. Where it ends early, another goes on with the rest; the one it
    was at is to blame once it is the first that a process tries, so that none pays for what those before it broke.

    Args:
      paths: of TFLite models, by name.
      reference_kernels: as the evaluation will run them.

    Returns:
      By the name of each that failed, what happened to it.
    """
    with tempfile.TemporaryDirectory(prefix="tfx-compression-") as folder:
        local = {}
        for number, (name, path) in enumerate(paths.items()):
            local[name] = os.path.join(folder, f"{number}.tflite")
            tf.io.gfile.copy(path, local[name])
        found: dict[str, str] = {}
        remaining = dict(local)
        while remaining:
            tried, ended = _try(remaining, reference_kernels)
            found.update({name: problem for name, problem in tried.items() if problem})
            remaining = {name: path for name, path in remaining.items() if name not in tried}
            if not tried:
                culprit = next(iter(remaining))
                found[culprit] = ended or "it ended the interpreter's process without a word"
                del remaining[culprit]
        return found


def _try(paths: Mapping[str, str], reference_kernels: bool) -> tuple[dict[str, str], str]:
    """What the process said of each model that it got through, and how it ended, empty for well."""
    request = json.dumps({"paths": dict(paths), "reference_kernels": reference_kernels})
    command = [sys.executable, "-m", "tfx_compression.compressed_evaluator.trial_worker", request]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", env=environment
    )
    try:
        said, errors = process.communicate(timeout=_SECONDS)
        code = process.returncode
        ended = ""
        if code < 0:
            ended = f"it crashed the interpreter ({signal.Signals(-code).name})"
        elif code:
            ended = f"it ended the interpreter's process with status {code}: {errors.strip()[-300:]}"
    except subprocess.TimeoutExpired:
        process.kill()
        said, _ = process.communicate()
        ended = f"it ran for more than {_SECONDS:.0f} s on one row"
    tried = {}
    for line in said.splitlines():
        if line.startswith("{"):
            tried.update(json.loads(line))
    return tried, ended
