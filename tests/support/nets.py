"""The same small net as every kind of model, and recorders of its training."""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tfx_compression import model_handle
from tfx_compression.model_handle import ModelHandle
from tfx_compression.pruning.plan import PruningPlan
from tfx_compression.pruning.prune import PrunedModel, prune

from tests.support import helpers, kinds

KINDS = ("keras2", "keras3", "saved_model")
EVERY_KIND = ["keras2", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:])]
KERNELS = ("hidden", "y")
DENSE = {"protect": ()}  # for plans that may prune every layer


def dense(kind: str, folder: Any, optimizer: Any = "sgd", seed: int = 1) -> ModelHandle:
    """Returns `helpers.small_dense` as any kind of model, with the same weights.

    Keras models are compiled and run eagerly. A SavedModel has no loss: train it with `FineTuning(loss="mse")`.
    """
    source = helpers.small_dense(seed)
    if kind == "keras2":
        source.compile(optimizer, "mse", run_eagerly=True)
        return model_handle.wrap(source)
    if kind == "keras3":
        model = kinds.keras3_dense(seed)
        model.set_weights(source.get_weights())
        model.compile(optimizer=optimizer, loss="mse", run_eagerly=True)
        return model_handle.wrap(model)
    names = ("hidden", "hidden_bias", "y", "y_bias")
    weights = {name: tf.Variable(value, name=name) for name, value in zip(names, source.get_weights(), strict=True)}

    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        hidden = tf.nn.relu(x @ weights["hidden"] + weights["hidden_bias"])
        return {"y": hidden @ weights["y"] + weights["y_bias"]}

    path = folder / "saved_model"
    return model_handle.load(helpers.save_function(serve, [tf.TensorSpec([None, 4], tf.float32, "x")], path, **weights))


def kernels(model: Any) -> dict[str, np.ndarray]:
    """Returns the values of a model's kernels by name."""
    return {name: kernel.values.copy() for name, kernel in model_handle.wrap(model).kernels.items()}


def sparsity(values: np.ndarray) -> float:
    """Returns the fraction of zeros, which for a mask is the sparsity that it sets."""
    return float(np.mean(values == 0))


def points(rows: int = 64, size: int = 16, seed: int = 0) -> tf.data.Dataset:
    """Returns batches that the dense net learns."""
    return helpers.batches(*helpers.points(rows, seed), size=size)


def pruned(model: Any, data: tf.data.Dataset | None = None, **plan: Any) -> PrunedModel:
    """Returns the model after Pruner, by a plan that protects nothing."""
    return prune(model, PruningPlan(**{**DENSE, **plan}), data)


class _Recorder:
    """A callback that records kernels.

    Attributes:
      kernels: Kernels after each step; the first are those before any step.
      updates: Sparsity at each step after which masks changed.
    """

    def __init__(self, model: Any):
        super().__init__()
        self._recorded_model = model
        self.kernels = [kernels(model)]
        self.updates: dict[int, float] = {}

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.kernels.append(kernels(self._recorded_model))

    def on_prune(self, step: int, sparsity: float) -> None:
        self.updates[step] = sparsity


class _Recorder2(_Recorder, tf_keras.callbacks.Callback):
    pass


class _Recorder3(_Recorder, keras.callbacks.Callback):
    pass


def recorder(model: Any) -> Any:
    """Returns a callback of a model's Keras that records its kernels after each step."""
    return (_Recorder3 if model_handle.wrap(model).kind == "keras3" else _Recorder2)(model)


def unconstrained_steps(
    model: Any,
) -> tuple[Callable[[Any, Any], Mapping[str, Any]], list[dict[str, np.ndarray]]]:
    """Returns a train_step, to run eagerly, and a list of the kernels after each step before constraints apply."""
    recorded: list[dict[str, np.ndarray]] = []

    def step(network: Any, batch: Any) -> Mapping[str, Any]:
        logs = network.train_step(batch)
        recorded.append(kernels(model))
        return logs

    return step, recorded
