"""Whether removal is exact: the network without channels answers as the one in which their weights are zero."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from tfx_compression import kernels
from tfx_compression.keras_models import graph
from tfx_compression.pruning.dependency_graph import DependencyGraph

Choices = Mapping[str, np.ndarray]


def trained(model: Any, seed: int = 0) -> Any:
    """The model with weights as after training: biases and statistics that do something, outputs of moderate size."""
    generator = np.random.default_rng(seed)
    for layer in kernels.leaf_layers(model).values():
        if type(layer).__name__ in ("Normalization", "StringLookup"):
            continue
        for weight in kernels.direct_weights(layer):
            shape = tuple(weight.shape)
            if len(shape) >= 2:
                values = generator.normal(size=shape) * np.sqrt(2.0 / max(1, np.prod(shape[:-1])))
            else:
                values = generator.uniform(0.5, 1.5, shape)
                values *= 1.0 if _positive(layer, weight) else generator.choice([-1.0, 1.0], shape)
            weight.assign(values.astype(np.float32))
    return model


def _positive(layer: Any, weight: Any) -> bool:
    return weight is getattr(layer, "moving_variance", None)


def inputs_of(model: Any, seed: int = 0, rows: int = 3) -> Any:
    """Random inputs, in the structure that the model takes; 4 where a size is not fixed."""
    generator = np.random.default_rng(seed)

    def values(tensor: Any) -> np.ndarray:
        shape = (rows, *(size or 4 for size in tuple(tensor.shape)[1:]))
        kind = getattr(tensor.dtype, "name", tensor.dtype)
        made = generator.integers(0, 7, shape) if "int" in kind else generator.normal(size=shape)
        return made.astype(kind)

    names = [tensor.name.split(":")[0] for tensor in model.inputs]
    arrays = dict(zip(names, map(values, model.inputs), strict=True))
    if isinstance(graph.io_structures(model)[0], dict):
        return arrays
    return list(arrays.values()) if len(arrays) > 1 else arrays[names[0]]


def answers(model: Any, inputs: Any) -> dict[str, np.ndarray]:
    """What a model answers, by the place or name of the output."""
    made = model(inputs, training=False)
    if not isinstance(made, dict):
        made = dict(enumerate(made if isinstance(made, list | tuple) else [made]))
    return {str(name): np.asarray(value, np.float32) for name, value in made.items()}


def random_choices(structure: DependencyGraph, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Of each group that is not blocked some units, at least one, that stay."""
    choices = {}
    for name, group in structure.groups.items():
        if not group.blocked:
            choices[name] = generator.random(group.size) < generator.uniform(0.2, 0.9)
            choices[name][generator.integers(group.size)] = True
    return choices


def zero(structure: DependencyGraph, choices: Choices, own: bool = False) -> None:
    """Sets the weights of what `choices` drops to zero, in the structure's model.

    With `own` only those that make the channels: their kernels, biases and normalisations; else also those of the
    layers that they go into.
    """
    kept = structure.kept(choices)
    made = {(id(source.variable), source.axis) for source in structure.channels.sources}
    for (variable, axis), each in structure.channels.slices.items():
        values = each.variable.numpy()
        if not own or (variable, axis) in made or values.ndim == 1:
            shape = [1] * values.ndim
            shape[axis] = -1
            each.variable.assign(values * kept(each.channel_ids).reshape(shape).astype(values.dtype))
    normalise_over_what_stays(structure, choices)


def normalise_over_what_stays(structure: DependencyGraph, choices: Choices) -> None:
    """Makes normalisations over all channels take their mean and variance over those that stay, as a reference."""
    kept = structure.kept(choices)
    for layer in kernels.leaf_layers(structure.model).values():
        gamma = id(getattr(layer, "gamma", None)), 0
        over_channels = type(layer).__name__ == "LayerNormalization" or getattr(layer, "groups", None) == 1
        if over_channels and gamma in structure.channels.slices:
            layer.call = _masked_normalisation(
                layer, kept(structure.channels.slices[gamma].channel_ids).astype(np.float32)
            )


def _masked_normalisation(layer: Any, stays: np.ndarray) -> Any:
    def call(x: Any) -> Any:
        axes = [-1] if type(layer).__name__ == "LayerNormalization" else list(range(1, len(x.shape)))
        mask = tf.broadcast_to(stays, tf.shape(x))
        count = tf.reduce_sum(mask, axes, keepdims=True)
        mean = tf.reduce_sum(x * mask, axes, keepdims=True) / count
        variance = tf.reduce_sum(tf.square(x - mean) * mask, axes, keepdims=True) / count
        x = (x - mean) / tf.sqrt(variance + layer.epsilon) * layer.gamma
        return (x + layer.beta if layer.center else x) * mask

    return call


def assert_same(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], tolerance: float = 1e-5) -> None:
    """Answers are equal, up to `tolerance` of the largest."""
    assert list(one) == list(other)
    for name, values in one.items():
        assert values.shape == other[name].shape
        np.testing.assert_allclose(other[name], values, rtol=0, atol=tolerance * max(1.0, np.abs(values).max()))
