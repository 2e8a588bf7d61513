"""Rules of dense layers and embeddings."""

from typing import Any

from tfx_compression.pruning.channel_map import ChannelIds, ChannelRegistry, UnsupportedLayer
from tfx_compression.pruning.channel_rules.registry import Inputs, Shapes, along_last, register_outputs, rule


@rule("Dense")
def _dense(registry: ChannelRegistry, layer: Any, inputs: Inputs, shapes: Shapes) -> list[ChannelIds]:
    registry.consume(layer, layer.kernel, 0, registry.last_axis(inputs[0]))
    outputs = registry.create(layer, int(layer.units))
    registry.produce(layer, "neuron", layer.kernel, 1, outputs, outputs)
    register_outputs(registry, layer, outputs)
    registry.edit_count(layer, "units", outputs)
    return [along_last(outputs, shapes[0])]


@rule("EinsumDense")
def _einsum_dense(registry: ChannelRegistry, layer: Any, inputs: Inputs, shapes: Shapes) -> list[ChannelIds]:
    """Handles equations that map the last axis of the input to the last axis of the output, as a dense layer."""
    operands, _, result = layer.equation.replace(" ", "").partition("->")
    given, weights = operands.split(",")
    if not (len(weights) == 2 and weights[0] == given[-1] and weights[1] == result[-1] and weights[0] not in result):
        raise UnsupportedLayer(f"multiplies by the equation {layer.equation!r}")
    if layer.bias is not None and layer.bias_axes != weights[1]:
        raise UnsupportedLayer(f"has a bias along {layer.bias_axes!r}")
    registry.consume(layer, layer.kernel, 0, registry.last_axis(inputs[0]))
    outputs = registry.create(layer, int(layer.kernel.shape[1]))
    registry.produce(layer, "neuron", layer.kernel, 1, outputs, outputs)
    register_outputs(registry, layer, outputs)
    shape = layer.get_config()["output_shape"]
    sizes = [shape] if isinstance(shape, int) else list(shape)
    registry.edit_config(layer, "output_shape", lambda keep: [*sizes[:-1], int(keep(outputs).sum())])
    return [along_last(outputs, shapes[0])]


@rule("Embedding")
def _embedding(registry: ChannelRegistry, layer: Any, inputs: Inputs, shapes: Shapes) -> list[ChannelIds]:
    outputs = registry.create(layer, int(layer.output_dim))
    registry.produce(layer, "neuron", layer.embeddings, 1, outputs, outputs)
    registry.edit_count(layer, "output_dim", outputs)
    return [along_last(outputs, shapes[0])]
