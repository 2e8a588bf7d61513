"""From a SavedModel to a TFLite model, in a process of its own: TensorFlow's converter can end the one it runs in."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence

import numpy as np

from tfx_compression.models.errors import ModelError
from tfx_compression.models.serving import FeatureSignature

_TIMEOUT_SECONDS = 3600.0


class ConversionError(ModelError):
    """TensorFlow's converter can't make a TFLite model of it."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What the converting process is asked for; all paths but `source` are local.

    The model to convert is in `saved_model`, with a signature of features; where there is a `source`, it is first made
    there, of the `serving_default` of that SavedModel.
    """

    source: str
    saved_model: str
    mode: str
    io: str
    calibration: str
    output: str


def convert(
    signature: FeatureSignature | str,
    mode: str,
    io: str = "float32",
    calibration: Sequence[Mapping[str, np.ndarray]] = (),
) -> bytes:
    """The TFLite model of a signature, its inputs called `serving_default_<feature>`.

    Args:
      signature: what to convert; or the path of the SavedModel whose `serving_default` it is: then all of the work is
        done in the other process.
      mode: `float32`, `float16`, `dynamic` or `int8`.
      io: for `int8`, what the model takes and returns: `int8` or `float32`.
      calibration: for `int8` of a FeatureSignature, rows as `{feature: [1, …] array}`.

    Raises:
      ConversionError: where the converter refuses the model, crashes or hangs.
    """
    with tempfile.TemporaryDirectory(prefix="tfx-compression-") as folder:
        request = Request(
            source=signature if isinstance(signature, str) else "",
            saved_model=os.path.join(folder, "saved_model"),
            mode=mode,
            io=io,
            calibration=os.path.join(folder, "calibration.npz"),
            output=os.path.join(folder, "model.tflite"),
        )
        if not isinstance(signature, str):
            signature.save(request.saved_model)
        names = () if isinstance(signature, str) or not calibration else tuple(signature.features)
        columns = {f"feature/{name}": np.concatenate([row[name] for row in calibration]) for name in names}
        np.savez(request.calibration, **columns)
        _run(request)
        with open(request.output, "rb") as file:
            return file.read()


def _run(request: Request) -> None:
    command = [sys.executable, "-m", "tfx_compression.models.convert_worker", json.dumps(dataclasses.asdict(request))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise ConversionError(
            f"TensorFlow's converter hung in mode {request.mode!r}: no result in {error.timeout:.0f} s."
        ) from error
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise ConversionError(
            f"TensorFlow's converter crashed in mode {request.mode!r} ({name}). Its last words: {_tail(done.stderr)}"
        )
    if done.returncode:
        raise ConversionError(
            f"TensorFlow's converter refused the model in mode {request.mode!r}: {_tail(done.stderr)}"
        )
    sys.stderr.write(done.stderr)


def _tail(output: str) -> str:
    lines = [line for line in output.strip().splitlines() if line.strip()]
    return " ".join(lines[-3:])[-1500:] or "nothing"
