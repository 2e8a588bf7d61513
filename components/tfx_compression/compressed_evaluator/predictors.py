"""One way to run any model on a batch of tf.Examples."""

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
import tensorflow as tf

from tfx_compression.models import serving, tflite
from tfx_compression.models.keras2 import ModelError

Features = Mapping[str, np.ndarray]


class Predictor(Protocol):
    """A loaded model.

    Attributes:
      kind: `saved_model` or `tflite`.
      outputs: the shape of each output, without the batch; -1 where a size is free.
    """

    kind: str
    outputs: dict[str, tuple[int, ...]]

    def predict(self, examples: np.ndarray, features: Features) -> dict[str, np.ndarray]:
        """Runs a batch: `examples` are the serialized tf.Examples, `features` their [batch, …] values by name."""

    def prepare(self, examples: np.ndarray, features: Features) -> Callable[[], object]:
        """What runs that batch and nothing else, for timing."""


def load(path: str) -> Predictor:
    """Loads the model at `path`, which is as `weights.locate` returns it."""
    return _SavedModel(path) if tf.io.gfile.isdir(path) else _TFLite(path)


class _SavedModel:
    kind = "saved_model"

    def __init__(self, path: str):
        self._loaded = tf.saved_model.load(path)
        if serving.SIGNATURE not in self._loaded.signatures:
            raise ModelError(f"The SavedModel in {path} has no signature {serving.SIGNATURE!r}.")
        self._signature = self._loaded.signatures[serving.SIGNATURE]
        self._inputs: dict[str, tf.TensorSpec] = self._signature.structured_input_signature[1]
        self.outputs = {
            name: tuple(-1 if size is None else size for size in tensor.shape[1:])
            for name, tensor in self._signature.structured_outputs.items()
        }

    def predict(self, examples: np.ndarray, features: Features) -> dict[str, np.ndarray]:
        results = self._signature(**self._feeds(examples, features))
        return {name: value.numpy() for name, value in results.items()}

    def prepare(self, examples: np.ndarray, features: Features) -> Callable[[], object]:
        feeds = self._feeds(examples, features)
        return lambda: self._signature(**feeds)

    def _feeds(self, examples: np.ndarray, features: Features) -> dict[str, tf.Tensor]:
        if len(self._inputs) == 1:
            ((name, spec),) = self._inputs.items()
            if spec.dtype == tf.string and name not in features:
                return {name: tf.constant(examples)}
        missing = [name for name in self._inputs if name not in features]
        if missing:
            raise ModelError(
                f"The SavedModel takes {', '.join(missing)}, no feature of the examples; they have: "
                f"{', '.join(sorted(features)) or 'none'}."
            )
        return {
            name: tf.reshape(tf.cast(features[name], spec.dtype), [-1, *spec.shape[1:]])
            for name, spec in self._inputs.items()
        }


class _TFLite:
    kind = "tflite"

    def __init__(self, path: str):
        with tf.io.gfile.GFile(path, "rb") as file:
            self._interpreter = tflite.Interpreter(file.read())
        self.outputs = {name: tensor.shape[1:] for name, tensor in self._interpreter.outputs.items()}

    def predict(self, examples: np.ndarray, features: Features) -> dict[str, np.ndarray]:
        del examples
        return self._interpreter.predict(features)

    def prepare(self, examples: np.ndarray, features: Features) -> Callable[[], object]:
        del examples
        return self._interpreter.prepare(features)


def require_same_outputs(baseline: Predictor, candidates: Mapping[str, Predictor]) -> None:
    """Raises ModelError, naming candidate and shapes, where a candidate's outputs differ from the baseline's."""
    for name, candidate in candidates.items():
        if len(baseline.outputs) == len(candidate.outputs) == 1:
            same = [*baseline.outputs.values()] == [*candidate.outputs.values()]
        else:
            same = baseline.outputs == candidate.outputs
        if not same:
            raise ModelError(
                f"The outputs of candidate {name!r} ({_shapes(candidate)}) differ from the baseline's "
                f"({_shapes(baseline)}), so their metrics can't be compared. Remedy: compare models of the same task."
            )


def _shapes(predictor: Predictor) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in predictor.outputs.items())
