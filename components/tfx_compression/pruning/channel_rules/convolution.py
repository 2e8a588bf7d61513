"""Rules of convolutions."""

from typing import Any

import numpy as np

from tfx_compression.pruning.channel_map import ChannelIds, ChannelRegistry
from tfx_compression.pruning.channel_rules.registry import (
    Inputs,
    Shapes,
    along_last,
    register_outputs,
    require_channels_last,
    rule,
)


@rule("Conv1D", "Conv2D", "Conv3D")
def _convolution(registry: ChannelRegistry, layer: Any, inputs: Inputs, shapes: Shapes) -> list[ChannelIds]:
    """Couples the inputs and outputs of each group of a grouped convolution: pruning leaves fewer groups."""
    require_channels_last(layer)
    given = registry.last_axis(inputs[0])
    outputs = registry.create(layer, int(layer.filters))
    if layer.groups > 1:
        groups = layer.groups
        registry.couple(given.reshape(groups, -1)[:, :1], given.reshape(groups, -1))
        registry.couple(outputs.reshape(groups, -1)[:, :1], outputs.reshape(groups, -1))
        registry.couple(given.reshape(groups, -1)[:, 0], outputs.reshape(groups, -1)[:, 0])
        registry.edit_count(layer, "groups", outputs.reshape(groups, -1)[:, 0])
    else:
        registry.consume(layer, layer.kernel, -2, given)
    registry.produce(layer, "filter", layer.kernel, -1, outputs, outputs)
    register_outputs(registry, layer, outputs)
    registry.edit_count(layer, "filters", outputs)
    return [along_last(outputs, shapes[0])]


@rule("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")
def _transposed(registry: ChannelRegistry, layer: Any, inputs: Inputs, shapes: Shapes) -> list[ChannelIds]:
    require_channels_last(layer)
    registry.consume(layer, layer.kernel, -1, registry.last_axis(inputs[0]))
    outputs = registry.create(layer, int(layer.filters))
    registry.produce(layer, "filter", layer.kernel, -2, outputs, outputs)
    register_outputs(registry, layer, outputs)
    registry.edit_count(layer, "filters", outputs)
    return [along_last(outputs, shapes[0])]


@rule("DepthwiseConv1D", "DepthwiseConv2D")
def _depthwise(registry: ChannelRegistry, layer: Any, inputs: Inputs, shapes: Shapes) -> list[ChannelIds]:
    """Creates no channels: each output has the id of the input that it is computed from."""
    require_channels_last(layer)
    given = registry.last_axis(inputs[0])
    outputs = np.repeat(given, layer.depth_multiplier)
    kernel = getattr(layer, "depthwise_kernel", None)
    kernel = layer.kernel if kernel is None else kernel
    registry.produce(layer, "filter", kernel, -2, given, outputs if layer.depth_multiplier == 1 else None)
    register_outputs(registry, layer, outputs)
    return [along_last(outputs, shapes[0])]


@rule("SeparableConv1D", "SeparableConv2D")
def _separable(registry: ChannelRegistry, layer: Any, inputs: Inputs, shapes: Shapes) -> list[ChannelIds]:
    require_channels_last(layer)
    given = registry.last_axis(inputs[0])
    outputs = registry.create(layer, int(layer.filters))
    registry.consume(layer, layer.depthwise_kernel, -2, given)
    registry.consume(layer, layer.pointwise_kernel, -2, np.repeat(given, layer.depth_multiplier), along=given)
    registry.produce(layer, "filter", layer.pointwise_kernel, -1, outputs, outputs)
    register_outputs(registry, layer, outputs)
    registry.edit_count(layer, "filters", outputs)
    return [along_last(outputs, shapes[0])]
