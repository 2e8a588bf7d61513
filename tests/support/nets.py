"""The same small net as every kind of model, and what is done with it."""

import itertools
from collections.abc import Callable, Iterator, Mapping
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
DENSE = {"protect": ()}  # of plans: everything may be pruned


def dense(kind: str, folder: Any, optimizer: Any = "sgd", seed: int = 1) -> ModelHandle:
    """`helpers.small_dense` as any kind of model, with the same weights; those of Keras are compiled, and run eagerly.

    A SavedModel doesn't know its loss: train it with `FineTuning(loss="mse")`.
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
    """The kernels' values by name."""
    return {name: kernel.values.copy() for name, kernel in model_handle.wrap(model).kernels.items()}


def points(rows: int = 64, size: int = 16, seed: int = 0) -> tf.data.Dataset:
    """Batches that the dense net learns."""
    return helpers.batches(*helpers.points(rows, seed), size=size)


def pruned(model: Any, **plan: Any) -> PrunedModel:
    """The model after Pruner, by a plan that protects nothing."""
    return prune(model, PruningPlan(**{**DENSE, **plan}))


class _Seen:
    """The kernels after each step, by step (0 is before the first), and when masks moved."""

    def __init__(self, model: Any):
        super().__init__()
        self._seen_model = model
        self.kernels = [kernels(model)]
        self.moved: dict[int, float] = {}

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.kernels.append(kernels(self._seen_model))

    def on_prune(self, step: int, sparsity: float) -> None:
        self.moved[step] = sparsity


class _Seen2(_Seen, tf_keras.callbacks.Callback):
    pass


class _Seen3(_Seen, keras.callbacks.Callback):
    pass


def seen(model: Any) -> Any:
    """A callback for a model's Keras that keeps its kernels after each step."""
    return (_Seen3 if model_handle.wrap(model).kind == "keras3" else _Seen2)(model)


@pytest.fixture
def eagerly() -> Iterator[None]:
    """Everything runs eagerly: Python code in a step sees values, and nothing is compiled."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def before_holds(model: Any) -> tuple[Callable[[Any, Any], Mapping[str, Any]], list[dict[str, np.ndarray]]]:
    """A train_step, to run eagerly, and a list of what the optimizer makes of the kernels in each step."""
    made: list[dict[str, np.ndarray]] = []

    def step(network: Any, batch: Any) -> Mapping[str, Any]:
        logs = network.train_step(batch)
        made.append(kernels(model))
        return logs

    return step, made


def pairs(values: list[Any]) -> list[tuple[Any, Any]]:
    """Each with the one after it."""
    return list(itertools.pairwise(values))
