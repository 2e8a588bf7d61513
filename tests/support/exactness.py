"""Reference for the removal of channels: a network in which their weights are zero has the same outputs."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from tfx_compression import kernels
from tfx_compression.keras_models import graph
from tfx_compression.pruning.dependency_graph import DependencyGraph

Kept = Mapping[str, np.ndarray]  # the units that are kept, by group


def with_random_weights(model: Any, seed: int = 0) -> Any:
    """Returns the model with random weights, biases and statistics that keep its outputs moderate."""
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


def random_inputs(model: Any, seed: int = 0, rows: int = 3) -> Any:
    """Returns random inputs in the structure that the model takes; sizes that are not fixed are 4."""
    generator = np.random.default_rng(seed)

    def values(tensor: Any) -> np.ndarray:
        shape = (rows, *(size or 4 for size in tuple(tensor.shape)[1:]))
        kind = getattr(tensor.dtype, "name", tensor.dtype)
        array = generator.integers(0, 7, shape) if "int" in kind else generator.normal(size=shape)
        return array.astype(kind)

    names = [tensor.name.split(":")[0] for tensor in model.inputs]
    arrays = dict(zip(names, map(values, model.inputs), strict=True))
    if isinstance(graph.io_structures(model)[0], dict):
        return arrays
    return list(arrays.values()) if len(arrays) > 1 else arrays[names[0]]


def outputs(model: Any, inputs: Any) -> dict[str, np.ndarray]:
    """Returns the outputs of a model by name or position."""
    values = model(inputs, training=False)
    if not isinstance(values, dict):
        values = dict(enumerate(values if isinstance(values, list | tuple) else [values]))
    return {str(name): np.asarray(value, np.float32) for name, value in values.items()}


def random_units(dependencies: DependencyGraph, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Returns random units to keep, at least one of each group that is not blocked."""
    kept = {}
    for name, group in dependencies.groups.items():
        if not group.blocked:
            kept[name] = generator.random(group.size) < generator.uniform(0.2, 0.9)
            kept[name][generator.integers(group.size)] = True
    return kept


def zero(dependencies: DependencyGraph, kept: Kept, producers_only: bool = False) -> None:
    """Sets the weights of the units that are not kept to zero, in the graph's model.

    Args:
      dependencies: Dependency graph of the model.
      kept: The units that are kept.
      producers_only: Whether only the weights that produce the units are set to zero (kernels, biases and
        normalizations), and not those of the layers that use them.
    """
    keep = dependencies.keep_fn(kept)
    producing = {(id(producer.variable), producer.axis) for producer in dependencies.registry.producers}
    for (variable, axis), weight_axis in dependencies.registry.weight_axes.items():
        values = weight_axis.variable.numpy()
        if not producers_only or (variable, axis) in producing or values.ndim == 1:
            shape = [1] * values.ndim
            shape[axis] = -1
            weight_axis.variable.assign(values * keep(weight_axis.ids).reshape(shape).astype(values.dtype))
    _normalize_over_kept(dependencies, kept)


def _normalize_over_kept(dependencies: DependencyGraph, kept: Kept) -> None:
    """Makes normalizations over all channels compute mean and variance over the kept ones."""
    keep = dependencies.keep_fn(kept)
    for layer in kernels.leaf_layers(dependencies.model).values():
        gamma = id(getattr(layer, "gamma", None)), 0
        over_channels = type(layer).__name__ == "LayerNormalization" or getattr(layer, "groups", None) == 1
        if over_channels and gamma in dependencies.registry.weight_axes:
            mask = keep(dependencies.registry.weight_axes[gamma].ids).astype(np.float32)
            layer.call = _masked_normalization(layer, mask)


def _masked_normalization(layer: Any, stays: np.ndarray) -> Any:
    def call(x: Any) -> Any:
        axes = [-1] if type(layer).__name__ == "LayerNormalization" else list(range(1, len(x.shape)))
        mask = tf.broadcast_to(stays, tf.shape(x))
        count = tf.reduce_sum(mask, axes, keepdims=True)
        mean = tf.reduce_sum(x * mask, axes, keepdims=True) / count
        variance = tf.reduce_sum(tf.square(x - mean) * mask, axes, keepdims=True) / count
        x = (x - mean) / tf.sqrt(variance + layer.epsilon) * layer.gamma
        return (x + layer.beta if layer.center else x) * mask

    return call


def assert_equal(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], tolerance: float = 1e-5) -> None:
    """Asserts that outputs are equal, up to `tolerance` of the largest value."""
    assert list(one) == list(other)
    for name, values in one.items():
        assert values.shape == other[name].shape
        np.testing.assert_allclose(other[name], values, rtol=0, atol=tolerance * max(1.0, np.abs(values).max()))
