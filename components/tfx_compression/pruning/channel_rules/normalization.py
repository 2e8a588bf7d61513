"""Rules of normalizations."""

from typing import Any

from tfx_compression.pruning.channel_map import ChannelIds, ChannelRegistry, UnsupportedLayer
from tfx_compression.pruning.channel_rules.registry import Inputs, Shapes, rule


@rule("BatchNormalization", "SyncBatchNormalization", "LayerNormalization", "RMSNormalization")
def _normalization(registry: ChannelRegistry, layer: Any, inputs: Inputs, shapes: Shapes) -> list[ChannelIds]:
    """Removal changes the outputs of layers that normalize over channels: mean and variance are of the kept ones."""
    axes = layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]
    rank = len(inputs[0].shape) + 1
    if [axis % rank for axis in axes] != [rank - 1]:
        raise UnsupportedLayer(f"normalizes along the axes {list(axes)}, not the last")
    ids = registry.last_axis(inputs[0])
    if not hasattr(layer, "moving_mean"):
        registry.note_inexact(ids, f"layer {layer.name!r} computes its statistics over the remaining channels")
    _register_weights(registry, layer, ids)
    return [inputs[0].ids]


@rule("GroupNormalization")
def _group_normalization(registry: ChannelRegistry, layer: Any, inputs: Inputs, shapes: Shapes) -> list[ChannelIds]:
    """Couples the channels of each normalization group, so that the statistics of the other groups don't change.

    A single group is treated as a layer normalization.
    """
    rank = len(inputs[0].shape) + 1
    if layer.axis % rank != rank - 1:
        raise UnsupportedLayer(f"normalizes along the axis {layer.axis}, not the last")
    ids = registry.last_axis(inputs[0])
    groups = ids.size if layer.groups == -1 else layer.groups
    if groups > 1:
        registry.couple(ids.reshape(groups, -1)[:, :1], ids.reshape(groups, -1))
        registry.couple_calls(layer, "groups", ids)
        registry.edit_count(layer, "groups", ids.reshape(groups, -1)[:, 0])
    else:
        registry.note_inexact(ids, f"layer {layer.name!r} computes its statistics over the remaining channels")
    _register_weights(registry, layer, ids)
    return [inputs[0].ids]


def _register_weights(registry: ChannelRegistry, layer: Any, ids: ChannelIds) -> None:
    scale = getattr(layer, "gamma", None)
    scale = getattr(layer, "scale", None) if scale is None else scale  # of RMSNormalization
    for variable in layer.weights:
        if variable is scale:
            registry.add_scale(variable, ids)
        elif len(variable.shape) == 1:
            registry.index(variable, 0, ids, measured=variable is not getattr(layer, "beta", None))
