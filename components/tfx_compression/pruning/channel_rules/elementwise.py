"""Rules of layers that compute element by element, of one tensor or of several."""

from typing import Any

import numpy as np

from tfx_compression.pruning.channel_map import ChannelIds, ChannelRegistry, UnsupportedLayer
from tfx_compression.pruning.channel_rules.registry import (
    RULES,
    Inputs,
    Shapes,
    fixed_ids,
    register_activation,
    rule,
)


@rule(
    *("ReLU", "LeakyReLU", "ELU", "ThresholdedReLU", "Identity", "ActivityRegularization", "StochasticDepth"),
    *("Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D"),
    *("GaussianNoise", "GaussianDropout", "AlphaDropout"),
)
def _elementwise(registry: ChannelRegistry, layer: Any, inputs: Inputs, shapes: Shapes) -> list[ChannelIds]:
    if {*(getattr(layer, "noise_shape", None) or ())} - {None, 1}:
        raise UnsupportedLayer("drops by a noise_shape of its own")
    return [inputs[0].ids]


@rule("Activation")
def _activation(registry: ChannelRegistry, layer: Any, inputs: Inputs, shapes: Shapes) -> list[ChannelIds]:
    register_activation(registry, layer, layer.activation, inputs[0].ids)
    return [inputs[0].ids]


@rule("Softmax")
def _softmax(registry: ChannelRegistry, layer: Any, inputs: Inputs, shapes: Shapes) -> list[ChannelIds]:
    """Blocks the channels, unless the softmax is over positions and treats each channel separately."""
    axes = layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]
    ids = inputs[0].ids
    if any(ids.shape[axis % (ids.ndim + 1) - 1] > 1 for axis in axes):
        registry.block(ids, f"goes through the softmax of layer {layer.name!r}")
    return [ids]


@rule("Rescaling")
def _rescaling(registry: ChannelRegistry, layer: Any, inputs: Inputs, shapes: Shapes) -> list[ChannelIds]:
    if np.ndim(layer.scale) or np.ndim(layer.offset):
        raise UnsupportedLayer("rescales each channel by its position")
    return [inputs[0].ids]


@rule("PReLU")
def _prelu(registry: ChannelRegistry, layer: Any, inputs: Inputs, shapes: Shapes) -> list[ChannelIds]:
    ids = registry.last_axis(inputs[0])
    if int(layer.alpha.shape[-1]) == ids.size:
        registry.index(layer.alpha, -1, ids)
    return [inputs[0].ids]


@rule("LayerScale")
def _layer_scale(registry: ChannelRegistry, layer: Any, inputs: Inputs, shapes: Shapes) -> list[ChannelIds]:
    """The layer of ConvNeXt."""
    ids = registry.last_axis(inputs[0])
    registry.index(layer.gamma, 0, ids)
    registry.edit_count(layer, "projection_dim", ids)
    return [inputs[0].ids]


@rule("Add", "Subtract", "Multiply", "Maximum", "Minimum", "Average")
def _combine(registry: ChannelRegistry, layer: Any, inputs: Inputs, shapes: Shapes) -> list[ChannelIds]:
    """Couples the channels of all inputs. A single channel that is broadcast over others is blocked."""
    rank = len(shapes[0])
    is_layer = type(layer).__name__ in RULES  # layers insert missing axes after the batch axis, operators before it
    if not is_layer and any(len(tensor.shape) != rank for tensor in inputs):
        raise UnsupportedLayer("combines tensors of different ranks")
    result: ChannelIds | None = None
    for tensor in inputs:
        lead = (1,) * (rank - len(tensor.shape))
        ids, shape = tensor.ids.reshape(lead + tensor.ids.shape), lead + tensor.shape
        if shape[-1] == 1 and shapes[0][-1] != 1:
            registry.block(ids, "is one channel that is broadcast over others")
            continue
        result = ids if result is None else registry.couple(*np.broadcast_arrays(result, ids))
    return [fixed_ids(rank) if result is None else result]
