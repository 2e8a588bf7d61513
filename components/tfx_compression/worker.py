"""Work in a process of its own, with limits: TensorFlow's converter and interpreters can end the one they run in.

A worker is a module with a function `main(request)`. It says where it is by `step`, may read `sys.stdin.buffer`, and
answers by what it returns; what it prints is for the log.
"""

import contextlib
import ctypes
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import IO, Any

import psutil

from tfx_compression.errors import CompressionError, WorkerError

_POLL_SECONDS = 0.05
_LAST_WORDS = 1500  # characters
_OPS = re.compile(
    r"'(tfl?\.\w+)' op\b|Op type not registered '(\w+)'|Node number \d+ \((\w+)\)|for op: '(\w+)'|\b(tfl\.\w+)\b"
)
# What TensorFlow says at every start, and of any graph.
_NOISE = re.compile(
    r"^\d{4}-\d\d-\d\d [\d:.]+: [IW] |Unable to register cu|^To enable the following|^[IW]0000 "
    r"|FutureWarning|DeprecationWarning|UserWarning|^\s*warnings\.warn|^Instructions for updating|^This API was"
)
_PR_SET_PDEATHSIG = 1  # prctl(2)


def run(
    module: str,
    request: Mapping[str, Any],
    *,
    task: str,
    timeout: float = 3600.0,
    max_memory: int | None = None,
    input: bytes = b"",
) -> Any:
    """What `main(request)` of a worker module returns, run in a process of its own.

    That process and all that it starts have ended when this returns, however it does, and they end with this process.
    What it wrote to standard output and error goes to standard error if it had an answer.

    Args:
      module: the worker's, importable from `sys.path`.
      request: JSON.
      task: Description of the work, such as the model and the mode; error messages start with it.
      timeout: seconds that it may take.
      max_memory: bytes that it and its children may hold (resident, looked at 20 times a second); None is no limit.
      input: its standard input.

    Raises:
      CompressionError: As the worker raised it: of the same class, with the same field and code.
      WorkerError: where the worker crashed, hung, ran out of memory or failed otherwise.
    """
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as report:
        stdin.write(json.dumps(request).encode() + b"\n" + input)
        stdin.seek(0)
        command = [sys.executable, "-c", f"from {__name__} import _serve; _serve()", module, str(report.fileno())]
        process = subprocess.Popen(
            [*command, str(os.getpid())],
            stdin=stdin,
            stdout=output,
            stderr=output,
            pass_fds=[report.fileno()],
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        try:
            stopped = _wait(process, timeout, max_memory)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        told = _told(report)
        output.seek(0)
        words = output.read().decode(errors="replace")
    if "answer" in told and not stopped and process.returncode == 0:
        sys.stderr.write(words)
        return told["answer"]
    if "error" in told:
        raise _error_from_report(told["error"])
    code, reason = stopped or _ending(process.returncode, words, told)
    raise _worker_error(task, code, reason, told.get("step", ""), _tail(told.get("failed") or words))


def step(name: str) -> None:
    """Tells the process that started this worker what is done from here on; elsewhere it does nothing.

    Args:
      name: as an error has it behind "while": `calibrating`.
    """
    _tell(step=name)


def _worker_error(task: str, code: str, reason: str, step: str, output: str) -> WorkerError:
    named = _OPS.findall(output)
    op = next((name for name in named[0] if name), "") if named else ""
    place = (f" while {step}" if step else "") + (f", at the op {op}" if op else "")
    message = f"{task} {reason}{place}.{f' Its last words: {output}' if output else ''}"
    return WorkerError(message, code=code, reason=reason, step=step, op=op, output=output)


def _error_to_report(error: CompressionError) -> dict[str, Any]:
    """Returns an error as JSON: its class and base classes, message and attributes."""
    classes = [(each.__module__, each.__name__) for each in type(error).__mro__ if issubclass(each, CompressionError)]
    return {"classes": classes, "message": str(error), "attributes": vars(error)}


def _error_from_report(report: Mapping[str, Any]) -> CompressionError:
    """Returns the error in a report, of the first of its classes that this process has imported."""
    classes = (getattr(sys.modules.get(module), name, None) for module, name in report["classes"])
    error = next(filter(None, classes))(report["message"])
    vars(error).update(report["attributes"])
    return error


def _wait(process: subprocess.Popen, timeout: float, max_memory: int | None) -> tuple[str, str] | None:
    """Waits for the end of a process; returns code and description of the limit that it exceeded, if any."""
    deadline = time.monotonic() + timeout
    while (remaining := deadline - time.monotonic()) > 0:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(min(remaining, _POLL_SECONDS) if max_memory else remaining)
            return None
        if max_memory and _memory(process.pid) > max_memory:
            return "out-of-memory", f"ran out of memory: it used more than {max_memory / 2**20:.0f} MB"
    return "hung", f"hung: no result in {timeout:g} s"


def _memory(pid: int) -> int:
    """Resident bytes of a process and those that it started."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
    return total


def _ending(status: int, words: str, told: Mapping[str, Any]) -> tuple[str, str]:
    """Returns code and description of how a process ended, from its exit status, output and report."""
    if told.get("memory") or "std::bad_alloc" in words[-_LAST_WORDS:]:
        return "out-of-memory", f"ran out of memory ({'MemoryError' if told.get('memory') else 'std::bad_alloc'})"
    if status == -signal.SIGKILL:
        return "killed", "was killed (SIGKILL), as the kernel does where memory runs out"
    if status < 0:
        return "crashed", f"crashed ({signal.Signals(-status).name})"
    return ("failed", "failed") if "failed" in told else ("no-answer", f"ended without an answer (status {status})")


def _tail(words: str) -> str:
    lines = [line.strip() for line in words.splitlines() if line.strip() and not _NOISE.search(line)]
    return " ".join(lines[-6:])[-_LAST_WORDS:]


def _told(report: IO[bytes]) -> dict[str, Any]:
    """All that the worker told, the last of each kind; a line that its end cut off is left out."""
    report.seek(0)
    found: dict[str, Any] = {}
    for line in report.read().splitlines(keepends=True):
        if line.endswith(b"\n"):
            found.update(json.loads(line))
    return found


_report: int | None = None  # a file that the parent reads; set in workers


def _tell(**said: Any) -> None:
    if _report is not None:
        os.write(_report, json.dumps(said).encode() + b"\n")


def _serve() -> None:
    """The worker's process: arguments are its module, the file to report to and the parent's id."""
    global _report  # noqa: PLW0603 - one process, one report
    module, report, parent = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before that
            sys.exit(1)
    os.set_inheritable(report, False)
    _report = report
    request = json.loads(sys.stdin.buffer.readline())
    try:
        answer = importlib.import_module(module).main(request)
    except CompressionError as error:
        _tell(error=_error_to_report(error))
        sys.exit(1)
    except Exception as error:
        _tell(failed=f"{type(error).__name__}: {error}", memory=isinstance(error, MemoryError))
        raise
    _tell(answer=answer)
