"""Students and teachers of both Keras libraries or as SavedModels without layers, and their distillation losses."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from scipy import special, stats
from tfx_compression import model_handle
from tfx_compression.model_handle import ModelHandle
from tfx_compression.sparsity_fine_tuner.config import Distillation
from tfx_compression.sparsity_fine_tuner.distillation import DistillationLoss
from tfx_compression.sparsity_fine_tuner.variables import unique

from tests.support import helpers

LIBRARIES = pytest.mark.parametrize("library", [tf_keras, keras], ids=["Keras 2", "Keras 3"])


def net(
    library: Any = tf_keras,
    activation: str = "softmax",
    loss: Any = None,
    units: int = 3,
    seed: int = 1,
    name: str = "student",
    hidden: int = 5,
) -> Any:
    """Returns a model from four numbers, `x`, to `y`; compiled if there is a loss."""
    library.utils.set_random_seed(seed)
    x = library.Input((4,), name="x")
    inner = library.layers.Dense(hidden, activation="tanh", name="hidden")(x)
    model = library.Model(x, library.layers.Dense(units, activation=activation, name="y")(inner), name=name)
    if loss is not None:
        model.compile("sgd", loss)
    return model


def teacher(library: Any = tf_keras, seed: int = 2, **fields: Any) -> Any:
    """Returns a `net` with other weights."""
    return net(library, seed=seed, name="teacher", **fields)


def signature(model: Any, path: Any) -> ModelHandle:
    """Returns a `net` as a SavedModel without layers."""
    spec = tf.TensorSpec([None, 4], tf.float32, name="x")
    weights = unique(model.weights)
    return model_handle.load(helpers.save_function(lambda x: {"y": model(x)}, [spec], path, weights=weights))


def two_inputs(library: Any, form: str, order: Sequence[str] = ("a", "b"), seed: int = 1) -> Any:
    """Returns a model of two different inputs, in a list or a dict, and one output."""
    library.utils.set_random_seed(seed)
    inputs = {name: library.Input((1,), name=name) for name in ("a", "b")}
    hidden = library.layers.Concatenate()([inputs["a"], inputs["b"]])
    y = library.layers.Dense(3, activation="softmax", name="y")(hidden)
    return library.Model([inputs[name] for name in order] if form == "list" else inputs, y)


def two_outputs(library: Any, form: str, names: Sequence[str] = ("p", "v"), seed: int = 1, loss: Any = None) -> Any:
    """Returns a model of probabilities and values, in a list or a dict."""
    library.utils.set_random_seed(seed)
    x = library.Input((4,), name="x")
    outputs = {
        names[0]: library.layers.Dense(3, activation="softmax", name=names[0])(x),
        names[1]: library.layers.Dense(3, name=names[1])(x),
    }
    model = library.Model(x, outputs if form == "dict" else [outputs[name] for name in names])
    model.compile("sgd", loss=loss or {names[0]: "categorical_crossentropy", names[1]: "mse"})
    return model


# Losses.

X = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
STUDENT_LOSS = 0.75


def outputs(model: Any, x: Any = X) -> np.ndarray:
    """Returns the outputs of a model in 64 bits."""
    return np.float64(tf.convert_to_tensor(model(x)))


def distilled(
    student: Any,
    teachers: Sequence[Any],
    x: Any = X,
    layer_outputs: Any = None,
    y_pred: Any = None,
    student_loss: float = STUDENT_LOSS,
    **config: Any,
) -> float:
    """Returns the distillation loss of a student."""
    student, teachers = model_handle.wrap(student), [model_handle.wrap(each) for each in teachers]
    distillation_loss = DistillationLoss(Distillation(**config), student, student.network, teachers)
    y_pred = student.model(x) if y_pred is None else y_pred
    return float(distillation_loss(tf.constant(student_loss), x, y_pred, layer_outputs or {}))


def divergence(student: Any, teachers: Sequence[Any], temperature: float) -> float:
    """Returns the mean KL divergence of softened distributions from logits."""
    expected = np.mean([special.softmax(each / temperature, -1) for each in teachers], axis=0)
    return np.mean(stats.entropy(expected, special.softmax(student / temperature, -1), axis=-1))


def distilled_signature(student: Any, teachers: Sequence[Any], x: Any, y_pred: Any, **config: Any) -> float:
    """Returns the distillation loss of a student without layers that returns probabilities."""
    distillation_loss = DistillationLoss(Distillation(outputs="probabilities", **config), student, None, teachers)
    return float(distillation_loss(tf.constant(STUDENT_LOSS), x, y_pred, {}))
