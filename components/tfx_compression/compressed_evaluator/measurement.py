"""Measures models: size, memory, sparsity, weights compared with the baseline's, and latency."""

import concurrent.futures
import contextlib
import dataclasses
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf
from tensorflow_metadata.proto.v0 import schema_pb2
from tensorflow_model_analysis.proto import config_pb2

from tfx_compression import files
from tfx_compression.compressed_evaluator import latency, predictors
from tfx_compression.compressed_evaluator.latency import Latency
from tfx_compression.compressed_evaluator.predictors import Predictor
from tfx_compression.compressed_evaluator.records import LayerMeasurements, ModelMeasurements
from tfx_compression.data import examples
from tfx_compression.data.iteration import numpy_elements
from tfx_compression.errors import DataError, ModelError
from tfx_compression.model_handle import model_files
from tfx_compression.tflite import conversion
from tfx_compression.tflite.contents import ModelContents, read_contents

# One serialized tf.Example, [1], and its features by name, [1, …].
ExampleRow = tuple[np.ndarray, dict[str, np.ndarray]]

# Name of the baseline as float TFLite among the models that are measured: no model of an evaluation has it.
_FLOAT_BASELINE = ""


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to run.

    Attributes:
      path: Path of the model, as `model_files.locate` returns it.
      predictor: The model, loaded, on one thread.
      contents: Contents of the flatbuffer; None for a SavedModel.
    """

    path: str
    predictor: Predictor
    contents: ModelContents | None


def load(path: str, contents: ModelContents | None, reference_kernels: bool = False) -> LoadedModel:
    """Loads the model at `path`."""
    return LoadedModel(path, predictors.load(path, reference_kernels=reference_kernels), contents)


def read(path: str) -> bytes:
    """Returns the bytes of the file at `path`."""
    with tf.io.gfile.GFile(path, "rb") as file:
        return bytes(file.read())


def first_row(
    files: Sequence[str], patterns: Sequence[str], schema: schema_pb2.Schema | None, config: config_pb2.EvalConfig
) -> ExampleRow:
    """Returns the first tf.Example and its features.

    Raises:
      DataError: The schema or the example lacks the label.
    """
    spec = config.model_specs[0] if config.model_specs else config_pb2.ModelSpec()
    labels = [label for label in (spec.label_key, *spec.label_keys.values()) if label]
    for label in labels if schema is not None else ():
        examples.resolve_label(schema, (), label)
    record = next(numpy_elements(examples.records(files)))
    features = {}
    for name, feature in tf.train.Example.FromString(record).features.feature.items():
        kind = feature.WhichOneof("kind")
        features[name] = np.asarray([getattr(feature, kind).value]) if kind else np.empty([1, 0])
    if missing := [label for label in labels if label not in features]:
        raise DataError(
            f"The examples of {', '.join(patterns)} have no feature {missing[0]!r} for the label; the first one has: "
            f"{', '.join(sorted(features))}. Remedy: set label_key to one of them.",
            field="label_key",
            code="no-label",
        )
    return np.asarray([record], object), features


def measure(
    models: Mapping[str, LoadedModel], baseline: str | None, float_baseline: LoadedModel | None, row: ExampleRow
) -> dict[str, ModelMeasurements]:
    """Measures size, sparsity and latency of every model.

    Args:
      models: The models by name.
      baseline: Name of the model that the others' weights are compared with.
      float_baseline: The baseline as float TFLite. It is timed with the others, and becomes the baseline's `tflite`.
      row: The row that is timed.
    """
    everything = {**models, **({_FLOAT_BASELINE: float_baseline} if float_baseline is not None else {})}
    times = latency.measure({name: model.predictor.prepare(*row) for name, model in everything.items()})
    kernels = {name: _kernels(model) for name, model in everything.items()}
    reference = kernels.get(_FLOAT_BASELINE) or kernels.get(baseline or "", {})
    measured = {name: _measure(model, kernels[name], times[name], reference) for name, model in everything.items()}
    if baseline is not None and float_baseline is not None:
        measured[baseline] = measured[baseline].model_copy(update={"tflite": measured.pop(_FLOAT_BASELINE)})
    return measured


def measure_size(path: str, failure: str = "") -> ModelMeasurements:
    """Measures only the size of a model.

    Args:
      path: Path of the model.
      failure: Why it can't be run, if it can't.
    """
    size = files.size(path)
    return ModelMeasurements(
        kind=model_files.model_format(path),
        uri=path,
        bytes=size.raw,
        bytes_gzip=size.gzip,
        latency_ms=None,
        latency_spread_ms=None,
        failure=failure,
    )


def _measure(
    model: LoadedModel, kernels: Mapping[str, np.ndarray], times: Latency, reference: Mapping[str, np.ndarray]
) -> ModelMeasurements:
    total = sum(kernel.size for kernel in kernels.values())
    zeros = sum(kernel.size - np.count_nonzero(kernel) for kernel in kernels.values())
    layers = tuple(
        LayerMeasurements(
            name=name,
            size=kernel.size,
            sparsity=model_files.sparsity(kernel),
            snr_db=_snr_db(reference.get(name), kernel),
        )
        for name, kernel in kernels.items()
    )
    return measure_size(model.path).model_copy(
        update={
            "runtime": model.predictor.runtime,
            "latency_ms": times.median,
            "latency_spread_ms": times.spread,
            "latency_quantiles_ms": times.quantiles,
            "latency_repeats": times.repeats,
            "arena_bytes": model.contents.arena_bytes if model.contents is not None else None,
            "ops": model.contents.ops if model.contents is not None else {},
            "sparsity": float(zeros / total) if total else None,
            "layers": layers,
        }
    )


def _kernels(model: LoadedModel) -> dict[str, np.ndarray]:
    """Returns the kernels by name, dequantized."""
    if model.contents is not None:
        return {name: model.contents.real_weights(name) for name in model.contents.weights}
    return model_files.read_kernels(model.path)


def _snr_db(reference: np.ndarray | None, kernel: np.ndarray) -> float | None:
    """Returns the signal-to-noise ratio in decibels: 10 log10 of the reference's energy over the difference's."""
    if reference is None or reference.shape != kernel.shape:
        return None
    noise = float(np.sum((kernel.astype(np.float64) - reference) ** 2))
    signal = float(np.sum(reference.astype(np.float64) ** 2))
    return (10 * math.log10(signal / noise) if signal else -math.inf) if noise else math.inf


@contextlib.contextmanager
def float_tflite(path: str | None) -> Iterator[Callable[[], LoadedModel | None]]:
    """Converts a SavedModel to float TFLite in the background, as the reference for the speedup of TFLite candidates.

    Args:
      path: Path of the model; None if it isn't needed.

    Yields:
      A function that waits for the conversion and returns the model. It returns None if `path` is None or a TFLite
      model, or if the model can't be converted.
    """
    if path is None or not tf.io.gfile.isdir(path):
        yield lambda: None
        return
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(1) as background:
        converting = background.submit(_convert, path)

        def converted() -> LoadedModel | None:
            content = converting.result()
            if content is None:
                return None
            written = os.path.join(folder, "baseline.tflite")
            with open(written, "wb") as file:
                file.write(content)
            return load(written, read_contents(content))

        yield converted


def _convert(path: str) -> bytes | None:
    try:
        return conversion.convert_in_worker(path, "float32")
    except ModelError as error:
        tf.get_logger().warning("The baseline can't be converted to TFLite, so speedups are unknown: %s", error)
        return None
