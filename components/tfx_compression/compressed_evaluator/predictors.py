"""Runs any model on a batch of tf.Examples."""

import itertools
import os
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
import tensorflow as tf

from tfx_compression.errors import ModelError
from tfx_compression.saved_models.saved_model import SIGNATURE
from tfx_compression.tflite.features import fit_feature
from tfx_compression.tflite.interpreter import Interpreter

Features = Mapping[str, np.ndarray]
Shape = tuple[int, ...]


class Predictor(Protocol):
    """A loaded model.

    Attributes:
      kind: Format of the model, `saved_model` or `tflite`.
      outputs: Shape of each output without the batch; -1 for a size that is free.
      has_signature: Whether a signature names the outputs.
      runtime: Description of what runs the model.
      seconds: Time spent in the model's runtime so far.
    """

    kind: str
    outputs: dict[str, Shape]
    has_signature: bool
    runtime: str

    @property
    def seconds(self) -> float: ...

    def predict(self, examples: np.ndarray, features: Features) -> dict[str, np.ndarray]:
        """Returns the outputs of a batch.

        Args:
          examples: Serialized tf.Examples, [batch].
          features: Their features by name, [batch, …].
        """

    def prepare(self, examples: np.ndarray, features: Features) -> Callable[[], object]:
        """Returns a function that runs this batch and does nothing else, for timing."""


def load(path: str, num_threads: int = 1, reference_kernels: bool = False) -> Predictor:
    """Loads a model.

    Args:
      path: Path of a SavedModel or TFLite model, as `model_files.locate` returns it.
      num_threads: Threads of the TFLite interpreter. TensorFlow uses its own settings.
      reference_kernels: Whether a TFLite model runs on TFLite's reference kernels instead of XNNPACK.

    Raises:
      ModelError: The model can't be loaded.
    """
    try:
        if tf.io.gfile.isdir(path):
            return SavedModelPredictor(path)
        return TFLitePredictor(path, num_threads, reference_kernels)
    except ModelError as error:
        if path in str(error):
            raise
        raise ModelError(f"{path}: {error}", field=error.field, code=error.code) from error


class SavedModelPredictor:
    """Runs the `serving_default` signature of a SavedModel, on serialized tf.Examples or on features by name."""

    kind = "saved_model"
    has_signature = True

    def __init__(self, path: str):
        try:
            self._loaded = tf.saved_model.load(path)
        except (OSError, ValueError, tf.errors.OpError) as error:
            raise ModelError(f"The SavedModel in {path} can't be loaded: {error}", code="unreadable-model") from error
        if SIGNATURE not in self._loaded.signatures:
            raise ModelError(
                f"The SavedModel in {path} has no signature {SIGNATURE!r}, only: "
                f"{', '.join(self._loaded.signatures) or 'none'}. Remedy: save it with "
                f"signatures={{{SIGNATURE!r}: …}}.",
                code="no-serving-default",
            )
        self._signature = self._loaded.signatures[SIGNATURE]
        self._inputs: dict[str, tf.TensorSpec] = self._signature.structured_input_signature[1]
        takes_one_string = [spec.dtype for spec in self._inputs.values()] == [tf.string]
        self._takes_examples = takes_one_string and _parses_examples(self._signature.graph.as_graph_def())
        self.outputs = {
            name: tuple(-1 if size is None else size for size in tensor.shape[1:])
            for name, tensor in sorted(self._signature.structured_outputs.items())  # their order is arbitrary
        }
        self.runtime = f"TensorFlow {tf.__version__}"
        self.seconds = 0.0

    def predict(self, examples: np.ndarray, features: Features) -> dict[str, np.ndarray]:
        feeds = self._feeds(examples, features)
        started = time.perf_counter()
        try:
            outputs = {name: value.numpy() for name, value in self._signature(**feeds).items()}
        except tf.errors.InvalidArgumentError as error:  # for example, a feature that the parsing requires is missing
            raise ModelError(
                f"The SavedModel can't run a batch of {len(examples)} rows: {error.message}", code="failed-batch"
            ) from error
        self.seconds += time.perf_counter() - started
        return outputs

    def prepare(self, examples: np.ndarray, features: Features) -> Callable[[], object]:
        feeds = self._feeds(examples, features)
        return lambda: self._signature(**feeds)

    def _feeds(self, examples: np.ndarray, features: Features) -> dict[str, tf.Tensor]:
        if self._takes_examples:
            (name,) = self._inputs
            if name not in features:
                return {name: tf.constant(examples)}
        return {name: _input_tensor(name, features, spec) for name, spec in self._inputs.items()}


def _parses_examples(graph: tf.compat.v1.GraphDef) -> bool:
    """Returns whether the graph or a function in it has an operator that parses protos."""
    nodes = itertools.chain(graph.node, *(function.node_def for function in graph.library.function))
    return any(node.op.startswith(("Parse", "DecodeProto")) for node in nodes)


def _input_tensor(name: str, features: Features, spec: tf.TensorSpec) -> tf.Tensor:
    sizes = [-1 if size is None else size for size in spec.shape] if spec.shape.rank is not None else None
    shape = np.shape(features.get(name)) if sizes is None else sizes
    values = fit_feature(name, features, shape, spec.dtype == tf.string, "SavedModel")
    return tf.constant(values) if spec.dtype == tf.string else tf.cast(values, spec.dtype)


class TFLitePredictor:
    """Runs a TFLite model on features by name."""

    kind = "tflite"

    def __init__(self, path: str, num_threads: int, reference_kernels: bool):
        with tf.io.gfile.GFile(path, "rb") as file:
            self._interpreter = Interpreter(file.read(), num_threads, reference_kernels)
        self.outputs = {name: tensor.shape[1:] for name, tensor in self._interpreter.outputs.items()}
        self.has_signature = self._interpreter.has_signature
        self.runtime = self._interpreter.runtime

    @property
    def seconds(self) -> float:
        return self._interpreter.seconds

    def predict(self, examples: np.ndarray, features: Features) -> dict[str, np.ndarray]:
        del examples
        return self._interpreter.predict(features)

    def prepare(self, examples: np.ndarray, features: Features) -> Callable[[], object]:
        del examples
        return self._interpreter.prepare(features)


def threads(workers: int) -> int:
    """Returns the threads that each worker's interpreter may use, so that all workers together use each core once."""
    return max(1, (os.cpu_count() or 1) // max(1, workers))
