"""Rules of recurrent layers and of layers that wrap another one."""

from typing import Any

import numpy as np

from tfx_compression.pruning.channel_map import ChannelIds, ChannelMap, ChannelRegistry, UnsupportedLayer
from tfx_compression.pruning.channel_rules.registry import (
    Inputs,
    Shapes,
    along_last,
    register_activation,
    rule,
    rule_of,
)


@rule("LSTM", "GRU", "SimpleRNN")
def _recurrent(registry: ChannelRegistry, layer: Any, inputs: Inputs, shapes: Shapes) -> list[ChannelIds]:
    """A unit is a column of each gate, a row of the recurrent kernel, and an output channel."""
    cell = layer.cell
    units = registry.create(layer, int(layer.units))
    for activation in (cell.activation, getattr(cell, "recurrent_activation", None)):
        register_activation(registry, layer, activation, units)
    gates = np.tile(units, int(cell.kernel.shape[1]) // units.size)
    registry.consume(layer, cell.kernel, 0, registry.last_axis(inputs[0]))
    registry.produce(layer, "neuron", cell.kernel, 1, gates, units)
    registry.consume(layer, cell.recurrent_kernel, 0, units, place=None)
    registry.index(cell.recurrent_kernel, 1, gates)
    if cell.use_bias:
        registry.index(cell.bias, -1, gates)
    for state in inputs[1:]:
        registry.couple(registry.last_axis(state), units)
    registry.edit_count(layer, "units", units)
    return [along_last(units, shape) for shape in shapes]


@rule("Bidirectional")
def _bidirectional(registry: ChannelRegistry, layer: Any, inputs: Inputs, shapes: Shapes) -> list[ChannelIds]:
    """Couples the units of both directions, which have one configuration."""
    directions = (layer.forward_layer, layer.backward_layer)
    sequence, *states = inputs
    units = []
    for place, direction in enumerate(directions):
        if rule_of(direction) is not _recurrent:
            raise UnsupportedLayer("is bidirectional over something else than an LSTM, GRU or SimpleRNN")
        initial = states[place * len(states) // 2 : (place + 1) * len(states) // 2]
        units.append(_recurrent(registry, direction, [sequence, *initial], shapes[:1])[0].reshape(-1))
    if units[0].shape != units[1].shape:
        raise UnsupportedLayer("has a backward layer of another size")
    registry.couple(*units)
    outputs = [units[0]] * len(shapes)  # of each direction, and the states
    if layer.merge_mode == "concat":
        outputs[0] = np.concatenate(units)
    return [along_last(ids, shape) for ids, shape in zip(outputs, shapes, strict=True)]


@rule("TimeDistributed")
def _time_distributed(registry: ChannelRegistry, layer: Any, inputs: Inputs, shapes: Shapes) -> list[ChannelIds]:
    """Applies the rule of the inner layer to one step."""
    tensor = inputs[0]
    if tensor.ids.shape[0] != 1:
        raise UnsupportedLayer("works step by step, and the channels lie along the steps")
    step = ChannelMap(tensor.ids[0], tensor.shape[1:])
    return [ids[None] for ids in rule_of(layer.layer)(registry, layer.layer, [step], [shapes[0][1:]])]
