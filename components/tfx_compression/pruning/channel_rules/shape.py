"""Rules of layers that move, pool or join elements."""

from typing import Any

import numpy as np

from tfx_compression.pruning.channel_map import ChannelIds, ChannelMap, ChannelRegistry, KeepFn, UnsupportedLayer
from tfx_compression.pruning.channel_rules.registry import (
    Inputs,
    Shape,
    Shapes,
    along_last,
    fixed_ids,
    require_channels_last,
    rule,
)


@rule(
    *(
        f"{kind}{rank}D"
        for kind in ("MaxPooling", "AveragePooling", "ZeroPadding", "Cropping", "UpSampling")
        for rank in "123"
    ),
    *(f"Global{kind}Pooling{rank}D" for kind in ("Max", "Average") for rank in "123"),
    "RepeatVector",
    "Resizing",
)
def _positions(registry: ChannelRegistry, layer: Any, inputs: Inputs, shapes: Shapes) -> list[ChannelIds]:
    """Layers that treat all channels alike and change the number of positions."""
    require_channels_last(layer)
    return [along_last(registry.last_axis(inputs[0]), shapes[0])]


@rule("Flatten")
def _flatten(registry: ChannelRegistry, layer: Any, inputs: Inputs, shapes: Shapes) -> list[ChannelIds]:
    require_channels_last(layer)
    return [fixed_ids(1) if inputs[0].fixed else inputs[0].broadcast().reshape(-1)]


@rule("Reshape")
def _reshape(registry: ChannelRegistry, layer: Any, inputs: Inputs, shapes: Shapes) -> list[ChannelIds]:
    """Couples channels such that the kept elements of the output form a box."""
    shape = shapes[0]
    if inputs[0].fixed:
        return [fixed_ids(len(shape))]
    if None in shape:
        return [_reshape_of_any_size(registry, layer, inputs[0], shape)]
    ids = inputs[0].broadcast().reshape([int(size or 0) for size in shape])
    varying = [axis for axis in range(ids.ndim) if (ids != ids.take([0], axis)).any()]
    if len(varying) > 1:  # couple the channels over all of these axes but the last
        rows = np.moveaxis(ids, varying[-1], -1).reshape(-1, ids.shape[varying[-1]])
        for row in rows[1:]:
            registry.couple(rows[0], row)
        varying = varying[-1:]
        ids = np.moveaxis(np.broadcast_to(rows[0], np.moveaxis(ids, varying[0], -1).shape), -1, varying[0])
    for axis in range(ids.ndim):
        if axis not in varying:
            ids = ids.take([0], axis)
    registry.couple_calls(layer, "reshape", ids)
    sizes = list(shape)

    def target_shape(keep: KeepFn) -> list[int | None]:
        return [int(keep(ids).sum()) if axis in varying else size for axis, size in enumerate(sizes)]

    registry.edit_config(layer, "target_shape", target_shape)
    return [ids]


def _reshape_of_any_size(registry: ChannelRegistry, layer: Any, tensor: ChannelMap, shape: Shape) -> ChannelIds:
    """Handles a number of positions that is not fixed, if each position keeps its channels."""
    ids = registry.last_axis(tensor)
    if tensor.shape[-1] != shape[-1]:
        raise UnsupportedLayer(f"makes a tensor whose shape is not fixed: {shape}")
    registry.couple_calls(layer, "reshape", ids)
    sizes = [-1 if size is None else size for size in shape[:-1]]
    registry.edit_config(layer, "target_shape", lambda keep: [*sizes, int(keep(ids).sum())])
    return along_last(ids, shape)


@rule("Permute")
def _permute(registry: ChannelRegistry, layer: Any, inputs: Inputs, shapes: Shapes) -> list[ChannelIds]:
    return [inputs[0].ids.transpose([axis - 1 for axis in layer.dims])]


@rule("Concatenate")
def _concatenate(registry: ChannelRegistry, layer: Any, inputs: Inputs, shapes: Shapes) -> list[ChannelIds]:
    rank = len(shapes[0])
    axis = layer.axis % (rank + 1) - 1
    if all(tensor.fixed for tensor in inputs):
        return [fixed_ids(rank)]
    if any(tensor.ids.shape[other] > 1 for tensor in inputs for other in range(rank) if other != axis):
        # The tensors are joined along an axis without channels, so they must keep the same ones.
        if axis == rank - 1:
            raise UnsupportedLayer("concatenates along the last axis, and the channels lie along another one")
        ids = [registry.last_axis(tensor) for tensor in inputs]
        for other_ids in ids[1:]:
            registry.couple(ids[0], other_ids)
        return [along_last(ids[0], shapes[0])]
    joined = []
    for tensor in inputs:
        size = tensor.shape[axis]
        if size is None:
            raise UnsupportedLayer(f"concatenates along an axis whose size is not fixed: {tensor.shape}")
        shape = list(tensor.ids.shape)
        shape[axis] = size
        joined.append(np.broadcast_to(tensor.ids, shape))
    return [np.concatenate(joined, axis)]
