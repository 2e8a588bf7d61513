"""Runs work in another process, with limits on time and memory.

TensorFlow's converter and interpreters can end the process that they run in. A worker is a module with a function
`main(request)`, whose return value is the answer. It reports its progress with `step`, can read `sys.stdin.buffer`, and
prints to the log.
"""

import contextlib
import ctypes
import importlib
import json
import logging
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

_log = logging.getLogger(__name__)

_POLL_SECONDS = 0.05
_OUTPUT_CHARACTERS = 1500  # Of a failed worker's output, at most these last ones are shown.
_OPS = re.compile(
    r"'(tfl?\.\w+)' op\b|Op type not registered '(\w+)'|Node number \d+ \((\w+)\)|for op: '(\w+)'|\b(tfl\.\w+)\b"
)
# Lines that TensorFlow prints at every start or for any graph.
_NOISE = re.compile(
    r"^\d{4}-\d\d-\d\d [\d:.]+: [IW] |Unable to register cu|^To enable the following|^[IW]0000 "
    r"|^WARNING: All log messages before absl|^INFO: Created TensorFlow Lite XNNPACK"
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
    """Runs `main(request)` of a worker module in another process and returns its answer.

    The process and its children have ended when this function returns or raises. They also end with this process. The
    output of a successful worker is logged at level INFO, which Python doesn't show by default.

    Args:
      module: Name of the worker module, importable from `sys.path`.
      request: Argument of `main`, which must be JSON.
      task: Description of the work, such as the model and the mode; error messages start with it.
      timeout: Time limit in seconds.
      max_memory: Limit of resident memory in bytes, of the process and its children together. It is checked 20 times a
        second. None sets no limit.
      input: Standard input of the worker.

    Raises:
      CompressionError: The worker raised it. Class, message, field and code are the same.
      WorkerError: The worker crashed, hung, ran out of memory or failed otherwise.
    """
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as report:
        stdin.write(json.dumps(request).encode() + b"\n" + input)
        stdin.seek(0)
        command = [sys.executable, "-c", f"from {__name__} import _serve; _serve()", module, str(report.fileno())]
        process = subprocess.Popen(
            [*command, str(os.getpid())],
            stdin=stdin,
            stdout=stdout,
            stderr=stdout,
            pass_fds=[report.fileno()],
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        try:
            exceeded = _wait(process, timeout, max_memory)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        messages = _read_report(report)
        stdout.seek(0)
        output = stdout.read().decode(errors="replace")
    if "answer" in messages and not exceeded and process.returncode == 0:
        if output:
            _log.info("%s printed:\n%s", task, output)
        return messages["answer"]
    if "error" in messages:
        raise _error_from_message(messages["error"])
    code, reason = exceeded or _ending(process.returncode, output, messages)
    raise _worker_error(task, code, reason, messages.get("step", ""), _tail(messages.get("failure") or output))


def step(name: str) -> None:
    """Reports the worker's current step to the process that started it. Does nothing outside of a worker.

    Args:
      name: Description of the step, such as "calibrating". Errors show it after "while".
    """
    _send(step=name)


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
    """Returns the resident bytes of a process and its children."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
    return total


def _ending(status: int, output: str, messages: Mapping[str, Any]) -> tuple[str, str]:
    """Returns code and description of how a process ended, from its exit status, output and messages."""
    if messages.get("memory") or "std::bad_alloc" in output[-_OUTPUT_CHARACTERS:]:
        return "out-of-memory", f"ran out of memory ({'MemoryError' if messages.get('memory') else 'std::bad_alloc'})"
    if status == -signal.SIGKILL:
        return "killed", "was killed (SIGKILL), as the kernel does when memory runs out"
    if status < 0:
        return "crashed", f"crashed ({signal.Signals(-status).name})"
    return (
        ("failed", "failed") if "failure" in messages else ("no-answer", f"ended without an answer (status {status})")
    )


def _tail(output: str) -> str:
    """Returns the last lines of a worker's output that say something, joined."""
    lines = [line.strip() for line in output.splitlines() if line.strip() and not _NOISE.search(line)]
    return " ".join(lines[-6:])[-_OUTPUT_CHARACTERS:]


def _worker_error(task: str, code: str, reason: str, step: str, output: str) -> WorkerError:
    matches = _OPS.findall(output)
    op = next((name for name in matches[0] if name), "") if matches else ""
    place = (f" while {step}" if step else "") + (f", at the op {op}" if op else "")
    message = f"{task} {reason}{place}.{f' Its output ended with: {output}' if output else ''}"
    return WorkerError(message, code=code, reason=reason, step=step, op=op, output=output)


def _error_to_message(error: CompressionError) -> dict[str, Any]:
    """Returns an error as JSON: its class and base classes, message and attributes."""
    classes = [(each.__module__, each.__name__) for each in type(error).__mro__ if issubclass(each, CompressionError)]
    return {"classes": classes, "message": str(error), "attributes": vars(error)}


def _error_from_message(message: Mapping[str, Any]) -> CompressionError:
    """Returns the error in a message, as the first of its classes that this process has imported."""
    classes = (getattr(sys.modules.get(module), name, None) for module, name in message["classes"])
    error = next(filter(None, classes))(message["message"])
    vars(error).update(message["attributes"])
    return error


def _read_report(report: IO[bytes]) -> dict[str, Any]:
    """Returns the worker's messages, the last of each kind. A line that the worker's end cut off is left out."""
    report.seek(0)
    messages: dict[str, Any] = {}
    for line in report.read().splitlines(keepends=True):
        if line.endswith(b"\n"):
            messages.update(json.loads(line))
    return messages


_report: int | None = None  # Descriptor of the file that the parent process reads. Workers set it.


def _send(**messages: Any) -> None:
    if _report is not None:
        os.write(_report, json.dumps(messages).encode() + b"\n")


def _serve() -> None:
    """Runs in the worker's process. Its arguments are the module, the descriptor of the report and the parent's id."""
    global _report  # noqa: PLW0603 - one process, one report
    module, report, parent = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # The parent ended before the call.
            sys.exit(1)
    os.set_inheritable(report, False)
    _report = report
    request = json.loads(sys.stdin.buffer.readline())
    try:
        answer = importlib.import_module(module).main(request)
    except CompressionError as error:
        _send(error=_error_to_message(error))
        sys.exit(1)
    except Exception as error:
        _send(failure=f"{type(error).__name__}: {error}", memory=isinstance(error, MemoryError))
        raise
    _send(answer=answer)
