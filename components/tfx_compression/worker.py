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

from tfx_compression.errors import ModelError

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


class WorkerError(ModelError):
    """The worker's process was ended before it had an answer.

    Attributes:
      how: it ended, in words: `crashed (SIGSEGV)`, `hung: no result in 60 s`, `ran out of memory: …`, `failed (…)`.
      step: the last one that it told; empty before the first.
      op: the operator that its last words name, if any.
      words: the last ones.
    """

    def __init__(self, what: str, how: str, step: str, words: str):
        named = _OPS.findall(words)
        self.how, self.step, self.words = how, step, words
        self.op = next((name for name in named[0] if name), "") if named else ""
        place = (f" while {step}" if step else "") + (f", at the op {self.op}" if self.op else "")
        super().__init__(f"{what} {how}{place}.{f' Its last words: {words}' if words else ''}")


def run(
    module: str,
    request: Mapping[str, Any],
    *,
    what: str,
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
      what: is done, in words that an error begins with: the model and the mode.
      timeout: seconds that it may take.
      max_memory: bytes that it and its children may hold (resident, looked at 20 times a second); None is no limit.
      input: its standard input.

    Raises:
      ModelError: as the worker raised it.
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
    if "refused" in told:
        raise ModelError(told["refused"])
    how = stopped or _how(process.returncode, words, told)
    raise WorkerError(what, how, told.get("step", ""), _tail(told.get("failed") or words))


def step(name: str) -> None:
    """Tells the process that started this worker what is done from here on; elsewhere it does nothing.

    Args:
      name: as an error has it behind "while": `calibrating`.
    """
    _tell(step=name)


def _wait(process: subprocess.Popen, timeout: float, max_memory: int | None) -> str:
    """Waits for the end of a process; why it has to be ended, empty where it ended itself."""
    deadline = time.monotonic() + timeout
    while (remaining := deadline - time.monotonic()) > 0:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(min(remaining, _POLL_SECONDS) if max_memory else remaining)
            return ""
        if max_memory and _memory(process.pid) > max_memory:
            return f"ran out of memory: it used more than {max_memory / 2**20:.0f} MB"
    return f"hung: no result in {timeout:g} s"


def _memory(pid: int) -> int:
    """Resident bytes of a process and those that it started."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
    return total


def _how(status: int, words: str, told: Mapping[str, Any]) -> str:
    if told.get("memory") or "std::bad_alloc" in words[-_LAST_WORDS:]:
        return f"ran out of memory ({'MemoryError' if told.get('memory') else 'std::bad_alloc'})"
    if status == -signal.SIGKILL:
        return "was killed (SIGKILL), as the kernel does where memory runs out"
    if status < 0:
        return f"crashed ({signal.Signals(-status).name})"
    return "failed" if "failed" in told else f"ended without an answer (status {status})"


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
    except ModelError as error:
        _tell(refused=str(error))
        sys.exit(1)
    except Exception as error:
        _tell(failed=f"{type(error).__name__}: {error}", memory=isinstance(error, MemoryError))
        raise
    _tell(answer=answer)
