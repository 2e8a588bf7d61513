"""One way to run any model on a batch of tf.Examples."""

import itertools
import os
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
import tensorflow as tf

from tfx_compression.errors import ModelError
from tfx_compression.saved_models import feature_signatures
from tfx_compression.tflite.features import fit_feature
from tfx_compression.tflite.interpreter import Interpreter

Features = Mapping[str, np.ndarray]
Shape = tuple[int, ...]


class Predictor(Protocol):
    """A loaded model.

    Attributes:
      kind: `saved_model` or `tflite`.
      outputs: the shape of each output, without the batch; -1 where a size is free.
      runtime: what runs it, in words.
      seconds: time spent in the model's own runtime so far.
    """

    kind: str
    outputs: dict[str, Shape]
    runtime: str

    @property
    def seconds(self) -> float: ...

    def predict(self, examples: np.ndarray, features: Features) -> dict[str, np.ndarray]:
        """Runs a batch: `examples` are the serialized tf.Examples, `features` their [batch, …] values by name."""

    def prepare(self, examples: np.ndarray, features: Features) -> Callable[[], object]:
        """What runs that batch and nothing else, for timing."""


def load(path: str, num_threads: int = 1, reference_kernels: bool = False) -> Predictor:
    """Loads the model at `path`, which is as `weights.locate` returns it.

    Args:
      path: of a SavedModel or a TFLite model.
      num_threads: of the TFLite interpreter; TensorFlow takes what its own settings say.
      reference_kernels: of TFLite, instead of XNNPACK.

    Raises:
      ModelError: where it can't be loaded, naming `path`.
    """
    try:
        return _SavedModel(path) if tf.io.gfile.isdir(path) else _TFLite(path, num_threads, reference_kernels)
    except ModelError as error:
        raise error if path in str(error) else ModelError(f"{path}: {error}") from error


class _SavedModel:
    kind = "saved_model"

    def __init__(self, path: str):
        try:
            self._loaded = tf.saved_model.load(path)
        except (OSError, ValueError, tf.errors.OpError) as error:
            raise ModelError(f"The SavedModel in {path} can't be loaded: {error}") from error
        if feature_signatures.SIGNATURE not in self._loaded.signatures:
            raise ModelError(
                f"The SavedModel in {path} has no signature {feature_signatures.SIGNATURE!r}, only: "
                f"{', '.join(self._loaded.signatures) or 'none'}. Remedy: save it with "
                f"signatures={{{feature_signatures.SIGNATURE!r}: …}}."
            )
        self._signature = self._loaded.signatures[feature_signatures.SIGNATURE]
        self._inputs: dict[str, tf.TensorSpec] = self._signature.structured_input_signature[1]
        self._takes_examples = [spec.dtype for spec in self._inputs.values()] == [tf.string] and _parses_examples(
            self._signature.graph.as_graph_def()
        )
        self.outputs = {
            name: tuple(-1 if size is None else size for size in tensor.shape[1:])
            for name, tensor in sorted(self._signature.structured_outputs.items())  # they come in any order
        }
        self.runtime = f"TensorFlow {tf.__version__}"
        self.seconds = 0.0

    def predict(self, examples: np.ndarray, features: Features) -> dict[str, np.ndarray]:
        feeds = self._feeds(examples, features)
        started = time.perf_counter()
        try:
            results = {name: value.numpy() for name, value in self._signature(**feeds).items()}
        except tf.errors.InvalidArgumentError as error:  # as of an example without a feature that the parsing requires
            raise ModelError(f"The SavedModel can't run a batch of {len(examples)} rows: {error.message}") from error
        self.seconds += time.perf_counter() - started
        return results

    def prepare(self, examples: np.ndarray, features: Features) -> Callable[[], object]:
        feeds = self._feeds(examples, features)
        return lambda: self._signature(**feeds)

    def _feeds(self, examples: np.ndarray, features: Features) -> dict[str, tf.Tensor]:
        if self._takes_examples:
            (name,) = self._inputs
            if name not in features:
                return {name: tf.constant(examples)}
        return {name: _fed(name, features, spec) for name, spec in self._inputs.items()}


def _parses_examples(graph: tf.compat.v1.GraphDef) -> bool:
    """Whether there is an operator that parses protos, in the graph or in a function that it calls."""
    nodes = itertools.chain(graph.node, *(function.node_def for function in graph.library.function))
    return any(node.op.startswith(("Parse", "DecodeProto")) for node in nodes)


def _fed(name: str, features: Features, spec: tf.TensorSpec) -> tf.Tensor:
    sizes = [-1 if size is None else size for size in spec.shape] if spec.shape.rank is not None else None
    shape = np.shape(features.get(name)) if sizes is None else sizes
    values = fit_feature(name, features, shape, spec.dtype == tf.string, "SavedModel")
    return tf.constant(values) if spec.dtype == tf.string else tf.cast(values, spec.dtype)


class _TFLite:
    kind = "tflite"

    def __init__(self, path: str, num_threads: int, reference_kernels: bool):
        with tf.io.gfile.GFile(path, "rb") as file:
            self.interpreter = Interpreter(file.read(), num_threads, reference_kernels)
        self.outputs = {name: tensor.shape[1:] for name, tensor in self.interpreter.outputs.items()}
        self.runtime = self.interpreter.runtime

    @property
    def seconds(self) -> float:
        return self.interpreter.seconds

    def predict(self, examples: np.ndarray, features: Features) -> dict[str, np.ndarray]:
        del examples
        return self.interpreter.predict(features)

    def prepare(self, examples: np.ndarray, features: Features) -> Callable[[], object]:
        del examples
        return self.interpreter.prepare(features)


def same_outputs(baseline: Predictor, candidates: Mapping[str, Predictor]) -> dict[str, dict[str, str]]:
    """What each candidate's outputs are called by the baseline.

    A single output is the other's single output. Outputs of a signature go by their names; those of a TFLite model
    without one by their shape.

    Returns:
      By candidate, its outputs' names to the baseline's.

    Raises:
      ModelError: naming candidate and shapes, where the outputs differ, or can't be told apart.
    """
    return {name: _matched(name, baseline, candidate) for name, candidate in candidates.items()}


def _matched(name: str, baseline: Predictor, candidate: Predictor) -> dict[str, str]:
    wanted, given = baseline.outputs, candidate.outputs
    if len(wanted) == len(given) == 1:
        names = dict(zip(given, wanted, strict=True))
    elif len(wanted) != len(given) or (_has_names(baseline) and _has_names(candidate)):
        names = {output: output for output in given}
    else:
        names = _by_shape(name, wanted, given)
    if len(wanted) != len(given) or any(
        target not in wanted or not _agree(wanted[target], given[output]) for output, target in names.items()
    ):
        raise ModelError(
            f"The outputs of candidate {name!r} ({_shapes(given)}) differ from the baseline's ({_shapes(wanted)}), so "
            "their metrics can't be compared. Remedy: compare models of the same task."
        )
    return names


def _has_names(model: Predictor) -> bool:
    return not isinstance(model, _TFLite) or model.interpreter.has_signature


def _by_shape(name: str, wanted: Mapping[str, Shape], given: Mapping[str, Shape]) -> dict[str, str]:
    """The only output of the baseline that each of the candidate's can be; "" where it can be none."""
    names = {}
    for output, shape in given.items():
        targets = [target for target, other in wanted.items() if _agree(shape, other)]
        others = [other for other in given if other != output and _agree(shape, given[other])]
        if len(targets) > 1 or (targets and others):
            raise ModelError(
                f"Candidate {name!r} or the baseline has no signature, and several outputs of the shape {list(shape)}, "
                f"so nobody can tell which of the baseline's outputs ({', '.join(wanted)}) each one is. Remedy: "
                "convert it from a SavedModel's signature: "
                "tf.lite.TFLiteConverter.from_saved_model(…, signature_keys=[…])."
            )
        names[output] = targets[0] if targets else ""
    return names


def _agree(shape: Shape, other: Shape) -> bool:
    """Whether two shapes can be the same: free sizes go with any."""
    return len(shape) == len(other) and all(
        size == its or -1 in (size, its) for size, its in zip(shape, other, strict=True)
    )


def _shapes(outputs: Mapping[str, Shape]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in outputs.items())


def threads(workers: int) -> int:
    """How many threads one worker's interpreter may take, so that all workers together take each core once."""
    return max(1, (os.cpu_count() or 1) // max(1, workers))
