"""The variables of a Keras model that trains: its weights, its optimizer's state and its random generators."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from tfx_compression.keras_models.library import is_keras3


def unique(values: Iterable[Any]) -> list[tf.Variable]:
    """Returns the TensorFlow variables behind `values`, each once and in order.

    Args:
      values: TensorFlow variables, or variables of Keras 3.
    """
    by_id: dict[int, tf.Variable] = {}
    for value in values:
        variable = value if isinstance(value, tf.Variable) else value.value
        by_id.setdefault(id(variable), variable)
    return list(by_id.values())


def model_variables(model: Any) -> list[tf.Variable]:
    """Returns all variables that a training step changes, except the optimizer's.

    They are the weights and the states of layers, metrics and random generators, each once.
    """
    result = [*getattr(model, "variables", model.weights)]
    for metric in getattr(model, "metrics", []):
        result += metric.variables
    if not is_keras3(model):
        for layer in model._flatten_layers():
            generator = getattr(getattr(layer, "_random_generator", None), "_generator", None)
            if generator is not None:
                result.append(generator.state)
    return unique(result)


def optimizer_variables(model: Any) -> list[tf.Variable]:
    """Returns the state of a model's optimizer, which is created if it doesn't exist yet."""
    optimizer = model.optimizer
    inner = getattr(optimizer, "inner_optimizer", None)
    optimizers = (optimizer, *([inner] if inner is not None else []))
    for each in optimizers:
        if hasattr(each, "build"):
            each.build(model.trainable_variables)
        else:  # tf_keras.optimizers.legacy
            each._create_all_weights(model.trainable_variables)
    result: list[Any] = []
    for each in optimizers:
        result += each.variables() if _is_method(each.variables) else each.variables
        result += [value for value in vars(each).values() if isinstance(value, tf.Variable)]
        scale = getattr(each, "_loss_scale", None)  # Keras 2 keeps the scale's variables apart
        result += [value for value in getattr(scale, "_weights", {}).values() if isinstance(value, tf.Variable)]
    return unique(result)


def per_replica(values: Iterable[Any]) -> list[tf.Variable]:
    """Returns variables, each once; a variable that differs between replicas is replaced by its replicas' variables.

    Those are the states of metrics and of normalization. As one variable, a checkpoint would keep their sum or mean.
    """
    strategy = tf.distribute.get_strategy()
    return unique(
        local
        for variable in unique(values)
        for local in (
            strategy.experimental_local_results(variable)
            if variable.synchronization == tf.VariableSynchronization.ON_READ
            else (variable,)
        )
    )


def seed_layers(model: Any, seed: int) -> None:
    """Seeds the layers that draw random numbers, and keeps the state of their generators in variables.

    A layer with a seed keeps it. The others get `seed` plus their position among the layers that draw.
    """
    if is_keras3(model):
        generators = [each for layer in model._flatten_layers() for each in getattr(layer, "_seed_generators", ())]
        for position, generator in enumerate(generators):
            layer_seed = generator.get_config()["seed"]
            generator.state.assign([layer_seed if layer_seed is not None else seed + position, 0])
        return
    drawing = [layer for layer in model._flatten_layers() if hasattr(layer, "_random_generator")]
    for position, layer in enumerate(drawing):
        layer_seed = getattr(layer, "seed", None)
        generator_class = type(layer._random_generator)
        generator = generator_class(layer_seed if layer_seed is not None else seed + position, rng_type="stateful")
        generator._maybe_init()
        layer._random_generator = generator


def non_finite(weights: Iterable[Any]) -> list[str]:
    """Returns the names of the weights that hold NaN or an infinity."""
    return [
        getattr(weight, "path", weight.name)
        for weight in weights
        if hasattr(weight, "numpy") and weight.numpy().dtype.kind == "f" and not np.isfinite(weight.numpy()).all()
    ]


def _is_method(value: Any) -> bool:
    return callable(value) and not isinstance(value, list)
