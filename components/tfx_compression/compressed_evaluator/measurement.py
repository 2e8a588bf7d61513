"""Models in numbers: size, memory, sparsity, weights beside the baseline's, latency."""

import concurrent.futures
import contextlib
import dataclasses
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import tensorflow as tf

from tfx_compression import files
from tfx_compression.compressed_evaluator import latency, predictors
from tfx_compression.compressed_evaluator.evaluation import Layer, Measured
from tfx_compression.errors import ModelError
from tfx_compression.model_handle import model_files
from tfx_compression.tflite import conversion, flatbuffer

Row = tuple[np.ndarray, dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Model:
    """A model that runs.

    Attributes:
      path: as `model_files.locate` returns it.
      predictor: it, loaded, on one thread.
      contents: what is in the flatbuffer; None of a SavedModel.
    """

    path: str
    predictor: predictors.Predictor
    contents: flatbuffer.ModelContents | None


def load(path: str, contents: flatbuffer.ModelContents | None, reference_kernels: bool = False) -> Model:
    """The model at `path`."""
    return Model(path, predictors.load(path, reference_kernels=reference_kernels), contents)


def read(path: str) -> bytes:
    """The file at `path`."""
    with tf.io.gfile.GFile(path, "rb") as file:
        return bytes(file.read())


def measure(models: Mapping[str, Model], baseline: str | None, twin: Model | None, row: Row) -> dict[str, Measured]:
    """Sizes, sparsity and latency of every model.

    Args:
      models: by name.
      baseline: the name of the one that the others' weights are compared with.
      twin: the baseline as float TFLite: it is timed beside the others, and stands in the baseline's `tflite`.
      row: one serialized tf.Example and its features.
    """
    everything = {**models, **({"": twin} if twin is not None else {})}
    times = latency.measure({name: model.predictor.prepare(*row) for name, model in everything.items()})
    kernels = {name: _kernels(model) for name, model in everything.items()}
    reference = kernels.get("") or kernels.get(baseline or "", {})
    measured = {name: _measured(model, kernels[name], times[name], reference) for name, model in everything.items()}
    if baseline is not None and twin is not None:
        measured[baseline] = measured[baseline].model_copy(update={"tflite": measured.pop("")})
    return measured


def unmeasured(path: str, failure: str = "") -> Measured:
    """A model of which only the size is known, and why it did not run."""
    size = files.size(path)
    return Measured(
        kind=model_files.model_format(path),
        uri=path,
        bytes=size.raw,
        bytes_gzip=size.gzip,
        latency_ms=None,
        latency_spread_ms=None,
        failure=failure,
    )


def _measured(
    model: Model, kernels: Mapping[str, np.ndarray], took: latency.Latency, reference: Mapping[str, np.ndarray]
) -> Measured:
    total = sum(kernel.size for kernel in kernels.values())
    zeros = sum(kernel.size - np.count_nonzero(kernel) for kernel in kernels.values())
    return unmeasured(model.path).model_copy(
        update={
            "runtime": model.predictor.runtime,
            "latency_ms": took.median,
            "latency_spread_ms": took.spread,
            "latency_quantiles_ms": took.quantiles,
            "latency_repeats": took.repeats,
            "arena_bytes": model.contents.arena_bytes if model.contents is not None else None,
            "ops": model.contents.ops if model.contents is not None else {},
            "sparsity": float(zeros / total) if total else None,
            "layers": tuple(
                Layer(
                    name=name,
                    size=kernel.size,
                    sparsity=model_files.sparsity(kernel),
                    snr_db=_snr(reference.get(name), kernel),
                )
                for name, kernel in kernels.items()
            ),
        }
    )


def _kernels(model: Model) -> dict[str, np.ndarray]:
    """The kernels as real numbers."""
    if model.contents is not None:
        return {name: model.contents.real_weights(name) for name in model.contents.weights}
    return model_files.read_kernels(model.path)


def _snr(reference: np.ndarray | None, kernel: np.ndarray) -> float | None:
    """Signal-to-noise ratio in decibels: ten times the logarithm of the energies of kernel and difference."""
    if reference is None or reference.shape != kernel.shape:
        return None
    noise = float(np.sum((kernel.astype(np.float64) - reference) ** 2))
    signal = float(np.sum(reference.astype(np.float64) ** 2))
    return (10 * math.log10(signal / noise) if signal else -math.inf) if noise else math.inf


@contextlib.contextmanager
def float_twin(path: str | None, wanted: bool) -> Iterator[Callable[[], Model | None]]:
    """Converts the baseline to float TFLite, what a TFLite candidate's speed-up is against, while other work goes on.

    Args:
      path: of the baseline, or None.
      wanted: whether there is a TFLite candidate.

    Yields:
      What waits for the model; it is None where it is not wanted, the baseline is a TFLite model itself, or it can't be
      converted.
    """
    if path is None or not wanted or not tf.io.gfile.isdir(path):
        yield lambda: None
        return
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(1) as background:
        converting = background.submit(_convert, path)

        def twin() -> Model | None:
            content = converting.result()
            if content is None:
                return None
            written = os.path.join(folder, "baseline.tflite")
            with open(written, "wb") as file:
                file.write(content)
            return load(written, flatbuffer.read_contents(content))

        yield twin


def _convert(path: str) -> bytes | None:
    try:
        return conversion.convert_in_worker(path, "float32")
    except ModelError as error:
        tf.get_logger().warning("The baseline has no float TFLite twin, so speed-ups are unknown: %s", error)
        return None
