"""The rule of multi-head attention."""

from typing import Any

from tfx_compression.pruning.channel_map import ChannelIds, ChannelRegistry, UnsupportedLayer
from tfx_compression.pruning.channel_rules.registry import Inputs, Shapes, along_last, rule


@rule("MultiHeadAttention")
def _attention(registry: ChannelRegistry, layer: Any, inputs: Inputs, shapes: Shapes) -> list[ChannelIds]:
    """Heads are removed as a whole; inputs and outputs are treated as those of dense layers."""
    if len(shapes) > 1 or any(len(tensor.shape) != 2 for tensor in inputs):
        raise UnsupportedLayer("attends over several axes, or returns its scores")
    query, value = inputs[0], inputs[1] if len(inputs) > 1 else inputs[0]
    key = inputs[2] if len(inputs) > 2 else value
    heads = registry.create(layer, int(layer.get_config()["num_heads"]), "heads")
    places = [0, min(2, len(inputs) - 1), min(1, len(inputs) - 1)]  # of query, key and value
    denses = [layer._query_dense, layer._key_dense, layer._value_dense]
    for tensor, dense, place in zip((query, key, value), denses, places, strict=True):
        registry.consume(dense, dense.kernel, 0, registry.last_axis(tensor), place)
        registry.produce(layer, "head", dense.kernel, 1, heads, None)
        if dense.bias is not None:
            registry.index(dense.bias, 0, heads)
    output = layer._output_dense
    registry.index(output.kernel, 0, heads)
    outputs = registry.create(layer, int(output.kernel.shape[-1]))
    registry.produce(layer, "neuron", output.kernel, 2, outputs, outputs)
    if output.bias is not None:
        registry.index(output.bias, 0, outputs)
    registry.edit_count(layer, "num_heads", heads)
    if layer.get_config().get("output_shape") is None:  # then the output is as wide as the query
        registry.couple(registry.last_axis(query), outputs)
    else:
        registry.edit_config(layer, "output_shape", lambda keep: [int(keep(outputs).sum())])
    return [along_last(outputs, shapes[0])]
