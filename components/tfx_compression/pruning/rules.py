"""How each kind of layer treats channels: one function per kind, for Keras 2 and Keras 3 alike.

A rule gets the layer, the flows that go in, and the shapes that come out, and returns the channel ids of each output.
It raises Unsupported for what it can't do; the layer is then left as it is, with all that goes in.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tfx_compression.pruning.channel_map import FIXED, ChannelIds, ChannelMap, ChannelRegistry, KeepFn, Unsupported

Shape = tuple[int | None, ...]
Rule = Callable[[ChannelRegistry, Any, Sequence[ChannelMap], Sequence[Shape]], list[ChannelIds]]

RULES: dict[str, Rule] = {}


def _rule(*kinds: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(kinds, rule))
        return rule

    return register


def rule_of(layer: Any) -> Rule:
    """The rule for a layer.

    Raises:
      Unsupported: for a layer that is none of Keras' own, or one without a rule.
    """
    kind = type(layer)
    if kind.__name__ == "TFOpLambda":  # a TensorFlow function on Keras 2 tensors
        return _rule_of_operation(
            layer.symbol.rsplit(".", 1)[-1], f"calls tf.{layer.symbol}, for which there is no rule"
        )
    if not kind.__module__.startswith(("keras.", "tf_keras.")):
        raise Unsupported(f"is of the class {kind.__name__}, which is not one of Keras'")
    without_rule = f"is of the class {kind.__name__}, for which there is no rule"
    if kind.__module__.startswith("keras.src.ops."):
        return _rule_of_operation(kind.__name__, without_rule)
    if kind.__name__ not in RULES:
        raise Unsupported(without_rule)
    return RULES[kind.__name__]


def _rule_of_operation(name: str, without_rule: str) -> Rule:
    name = _spelled(name)
    if name in _ELEMENTWISE:
        return _same
    if name in _COMBINING:
        return _combine
    raise Unsupported(without_rule)


def _spelled(name: str) -> str:
    """The name of a function, which is spelled `hard_sigmoid`, `HardSigmoid` or `hardsigmoid`, in one spelling."""
    return name.replace("_", "").lower()


# Functions of each element for itself; as operations on tensors and as layers' activations.
_ELEMENTWISE = frozenset(
    [
        "relu",
        "relu6",
        "leakyrelu",
        "elu",
        "selu",
        "celu",
        "gelu",
        "silu",
        "swish",
        "mish",
        "sigmoid",
        "hardsigmoid",
        "hardsilu",
        "hardswish",
        "logsigmoid",
        "tanh",
        "hardtanh",
        "softplus",
        "softsign",
        "squareplus",
        "exponential",
        "exp",
        "linear",
        "identity",
        "abs",
        "absolute",
        "neg",
        "negative",
        "square",
        "sqrt",
        "rsqrt",
        "cast",
        "stopgradient",
        "clip",
        "clipbyvalue",
    ]
)
# Functions of elements at the same place.
_COMBINING = frozenset(
    [
        "add",
        "addv2",
        "sub",
        "subtract",
        "mul",
        "multiply",
        "div",
        "truediv",
        "truedivide",
        "divide",
        "maximum",
        "minimum",
    ]
)


@_rule(
    *("ReLU", "LeakyReLU", "ELU", "ThresholdedReLU", "Identity", "ActivityRegularization", "StochasticDepth"),
    *("Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D"),
    *("GaussianNoise", "GaussianDropout", "AlphaDropout"),
)
def _same(
    channels: ChannelRegistry, layer: Any, inputs: Sequence[ChannelMap], shapes: Sequence[Shape]
) -> list[ChannelIds]:
    if {*(getattr(layer, "noise_shape", None) or ())} - {None, 1}:
        raise Unsupported("drops by a noise_shape of its own")
    return [inputs[0].channel_ids]


@_rule("Activation")
def _activation(
    channels: ChannelRegistry, layer: Any, inputs: Sequence[ChannelMap], shapes: Sequence[Shape]
) -> list[ChannelIds]:
    _activate(channels, layer, layer.activation, inputs[0].channel_ids)
    return [inputs[0].channel_ids]


@_rule("Softmax")
def _softmax(
    channels: ChannelRegistry, layer: Any, inputs: Sequence[ChannelMap], shapes: Sequence[Shape]
) -> list[ChannelIds]:
    """Over places it treats each channel for itself."""
    axes = layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]
    channel_ids = inputs[0].channel_ids
    if any(channel_ids.shape[axis % (channel_ids.ndim + 1) - 1] > 1 for axis in axes):
        channels.block(channel_ids, f"goes through the softmax of layer {layer.name!r}")
    return [channel_ids]


@_rule("Rescaling")
def _rescaling(
    channels: ChannelRegistry, layer: Any, inputs: Sequence[ChannelMap], shapes: Sequence[Shape]
) -> list[ChannelIds]:
    if np.ndim(layer.scale) or np.ndim(layer.offset):
        raise Unsupported("rescales each channel by its place")
    return [inputs[0].channel_ids]


@_rule("PReLU")
def _prelu(
    channels: ChannelRegistry, layer: Any, inputs: Sequence[ChannelMap], shapes: Sequence[Shape]
) -> list[ChannelIds]:
    channel_ids = channels.last_axis(inputs[0])
    if int(layer.alpha.shape[-1]) == channel_ids.size:
        channels.index(layer.alpha, -1, channel_ids)
    return [inputs[0].channel_ids]


@_rule("LayerScale")
def _layer_scale(
    channels: ChannelRegistry, layer: Any, inputs: Sequence[ChannelMap], shapes: Sequence[Shape]
) -> list[ChannelIds]:
    """ConvNeXt's."""
    channel_ids = channels.last_axis(inputs[0])
    channels.index(layer.gamma, 0, channel_ids)
    channels.count(layer, "projection_dim", channel_ids)
    return [inputs[0].channel_ids]


@_rule("Conv1D", "Conv2D", "Conv3D")
def _convolution(
    channels: ChannelRegistry, layer: Any, inputs: Sequence[ChannelMap], shapes: Sequence[Shape]
) -> list[ChannelIds]:
    _require_channels_last(layer)
    into = channels.last_axis(inputs[0])
    out = channels.make(layer, int(layer.filters))
    if layer.groups > 1:
        # A group's inputs and outputs go together: what is left is a grouped convolution with fewer groups.
        groups = layer.groups
        channels.unify(into.reshape(groups, -1)[:, :1], into.reshape(groups, -1))
        channels.unify(out.reshape(groups, -1)[:, :1], out.reshape(groups, -1))
        channels.unify(into.reshape(groups, -1)[:, 0], out.reshape(groups, -1)[:, 0])
        channels.count(layer, "groups", out.reshape(groups, -1)[:, 0])
    else:
        channels.index(layer.kernel, -2, into)
    channels.source(layer, "filter", layer.kernel, -1, out, out)
    _finish(channels, layer, out)
    channels.count(layer, "filters", out)
    return [_along_last(out, shapes[0])]


@_rule("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")
def _transposed(
    channels: ChannelRegistry, layer: Any, inputs: Sequence[ChannelMap], shapes: Sequence[Shape]
) -> list[ChannelIds]:
    _require_channels_last(layer)
    channels.index(layer.kernel, -1, channels.last_axis(inputs[0]))
    out = channels.make(layer, int(layer.filters))
    channels.source(layer, "filter", layer.kernel, -2, out, out)
    _finish(channels, layer, out)
    channels.count(layer, "filters", out)
    return [_along_last(out, shapes[0])]


@_rule("DepthwiseConv1D", "DepthwiseConv2D")
def _depthwise(
    channels: ChannelRegistry, layer: Any, inputs: Sequence[ChannelMap], shapes: Sequence[Shape]
) -> list[ChannelIds]:
    """Makes no channels of its own: each belongs to the one it is made from."""
    _require_channels_last(layer)
    into = channels.last_axis(inputs[0])
    out = np.repeat(into, layer.depth_multiplier)
    kernel = getattr(layer, "depthwise_kernel", None)
    kernel = layer.kernel if kernel is None else kernel
    channels.source(layer, "filter", kernel, -2, into, out if layer.depth_multiplier == 1 else None)
    _finish(channels, layer, out)
    return [_along_last(out, shapes[0])]


@_rule("SeparableConv1D", "SeparableConv2D")
def _separable(
    channels: ChannelRegistry, layer: Any, inputs: Sequence[ChannelMap], shapes: Sequence[Shape]
) -> list[ChannelIds]:
    _require_channels_last(layer)
    into = channels.last_axis(inputs[0])
    out = channels.make(layer, int(layer.filters))
    channels.index(layer.depthwise_kernel, -2, into)
    channels.index(layer.pointwise_kernel, -2, np.repeat(into, layer.depth_multiplier))
    channels.source(layer, "filter", layer.pointwise_kernel, -1, out, out)
    _finish(channels, layer, out)
    channels.count(layer, "filters", out)
    return [_along_last(out, shapes[0])]


@_rule("Dense")
def _dense(
    channels: ChannelRegistry, layer: Any, inputs: Sequence[ChannelMap], shapes: Sequence[Shape]
) -> list[ChannelIds]:
    channels.index(layer.kernel, 0, channels.last_axis(inputs[0]))
    out = channels.make(layer, int(layer.units))
    channels.source(layer, "neuron", layer.kernel, 1, out, out)
    _finish(channels, layer, out)
    channels.count(layer, "units", out)
    return [_along_last(out, shapes[0])]


@_rule("EinsumDense")
def _einsum_dense(
    channels: ChannelRegistry, layer: Any, inputs: Sequence[ChannelMap], shapes: Sequence[Shape]
) -> list[ChannelIds]:
    """As a dense layer: the last axis of the input to the last axis of the output."""
    rest, _, result = layer.equation.replace(" ", "").partition("->")
    given, weights = rest.split(",")
    if not (len(weights) == 2 and weights[0] == given[-1] and weights[1] == result[-1] and weights[0] not in result):
        raise Unsupported(f"multiplies by the equation {layer.equation!r}")
    if layer.bias is not None and layer.bias_axes != weights[1]:
        raise Unsupported(f"has a bias along {layer.bias_axes!r}")
    channels.index(layer.kernel, 0, channels.last_axis(inputs[0]))
    out = channels.make(layer, int(layer.kernel.shape[1]))
    channels.source(layer, "neuron", layer.kernel, 1, out, out)
    _finish(channels, layer, out)
    shape = layer.get_config()["output_shape"]
    before = [shape] if isinstance(shape, int) else list(shape)
    channels.edit(layer, "output_shape", lambda kept: [*before[:-1], int(kept(out).sum())])
    return [_along_last(out, shapes[0])]


@_rule("Embedding")
def _embedding(
    channels: ChannelRegistry, layer: Any, inputs: Sequence[ChannelMap], shapes: Sequence[Shape]
) -> list[ChannelIds]:
    out = channels.make(layer, int(layer.output_dim))
    channels.source(layer, "neuron", layer.embeddings, 1, out, out)
    channels.count(layer, "output_dim", out)
    return [_along_last(out, shapes[0])]


@_rule("BatchNormalization", "SyncBatchNormalization", "LayerNormalization", "RMSNormalization")
def _normalisation(
    channels: ChannelRegistry, layer: Any, inputs: Sequence[ChannelMap], shapes: Sequence[Shape]
) -> list[ChannelIds]:
    """Where it normalises each place, mean and variance are then over what stays: removal changes them."""
    axes = layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]
    rank = len(inputs[0].shape) + 1
    if [axis % rank for axis in axes] != [rank - 1]:
        raise Unsupported(f"normalises along the axes {list(axes)}, not the last")
    _normalised(channels, layer, channels.last_axis(inputs[0]))
    return [inputs[0].channel_ids]


@_rule("GroupNormalization")
def _group_normalisation(
    channels: ChannelRegistry, layer: Any, inputs: Sequence[ChannelMap], shapes: Sequence[Shape]
) -> list[ChannelIds]:
    """A normalisation group goes as a whole, so that the statistics of the others stay what they are.

    Not where there is only one: that is as with a layer normalisation.
    """
    rank = len(inputs[0].shape) + 1
    if layer.axis % rank != rank - 1:
        raise Unsupported(f"normalises along the axis {layer.axis}, not the last")
    channel_ids = channels.last_axis(inputs[0])
    groups = channel_ids.size if layer.groups == -1 else layer.groups
    if groups > 1:
        channels.unify(channel_ids.reshape(groups, -1)[:, :1], channel_ids.reshape(groups, -1))
        channels.tie(layer, "groups", channel_ids)
        channels.count(layer, "groups", channel_ids.reshape(groups, -1)[:, 0])
    _normalised(channels, layer, channel_ids)
    return [inputs[0].channel_ids]


@_rule(
    *(
        f"{kind}{rank}D"
        for kind in ("MaxPooling", "AveragePooling", "ZeroPadding", "Cropping", "UpSampling")
        for rank in "123"
    ),
    *(f"Global{kind}Pooling{rank}D" for kind in ("Max", "Average") for rank in "123"),
    "RepeatVector",
    "Resizing",
)
def _over_places(
    channels: ChannelRegistry, layer: Any, inputs: Sequence[ChannelMap], shapes: Sequence[Shape]
) -> list[ChannelIds]:
    """Layers that treat every channel alike, and make more, fewer or other places of it."""
    _require_channels_last(layer)
    return [_along_last(channels.last_axis(inputs[0]), shapes[0])]


@_rule("Flatten")
def _flatten(
    channels: ChannelRegistry, layer: Any, inputs: Sequence[ChannelMap], shapes: Sequence[Shape]
) -> list[ChannelIds]:
    _require_channels_last(layer)
    return [np.zeros(1, np.int64) if inputs[0].fixed else inputs[0].whole().reshape(-1)]


@_rule("Reshape")
def _reshape(
    channels: ChannelRegistry, layer: Any, inputs: Sequence[ChannelMap], shapes: Sequence[Shape]
) -> list[ChannelIds]:
    shape = shapes[0]
    if inputs[0].fixed:
        return [np.zeros([1] * len(shape), np.int64)]
    if None in shape:
        return [_reshape_of_any_size(channels, layer, inputs[0], shape)]
    channel_ids = inputs[0].whole().reshape([int(size or 0) for size in shape])
    varying = [axis for axis in range(channel_ids.ndim) if (channel_ids != channel_ids.take([0], axis)).any()]
    if len(varying) > 1:  # what stays must be a box: couple everything over all axes but the last of them
        rows = np.moveaxis(channel_ids, varying[-1], -1).reshape(-1, channel_ids.shape[varying[-1]])
        for row in rows[1:]:
            channels.unify(rows[0], row)
        varying = varying[-1:]
        channel_ids = np.moveaxis(
            np.broadcast_to(rows[0], np.moveaxis(channel_ids, varying[0], -1).shape), -1, varying[0]
        )
    for axis in range(channel_ids.ndim):
        if axis not in varying:
            channel_ids = channel_ids.take([0], axis)
    channels.tie(layer, "reshape", channel_ids)
    sizes = list(shape)

    def target(kept: KeepFn) -> list[int | None]:
        return [int(kept(channel_ids).sum()) if axis in varying else size for axis, size in enumerate(sizes)]

    channels.edit(layer, "target_shape", target)
    return [channel_ids]


def _reshape_of_any_size(channels: ChannelRegistry, layer: Any, flow: ChannelMap, shape: Shape) -> ChannelIds:
    """Where the number of places is not fixed, but each keeps its channels."""
    channel_ids = channels.last_axis(flow)
    if flow.shape[-1] != shape[-1]:
        raise Unsupported(f"makes a tensor whose shape is not fixed: {shape}")
    channels.tie(layer, "reshape", channel_ids)
    before = [-1 if size is None else size for size in shape[:-1]]
    channels.edit(layer, "target_shape", lambda kept: [*before, int(kept(channel_ids).sum())])
    return _along_last(channel_ids, shape)


@_rule("Permute")
def _permute(
    channels: ChannelRegistry, layer: Any, inputs: Sequence[ChannelMap], shapes: Sequence[Shape]
) -> list[ChannelIds]:
    return [inputs[0].channel_ids.transpose([axis - 1 for axis in layer.dims])]


@_rule("Concatenate")
def _concatenate(
    channels: ChannelRegistry, layer: Any, inputs: Sequence[ChannelMap], shapes: Sequence[Shape]
) -> list[ChannelIds]:
    rank = len(shapes[0])
    axis = layer.axis % (rank + 1) - 1
    if all(flow.fixed for flow in inputs):
        return [np.zeros([1] * rank, np.int64)]
    if any(flow.channel_ids.shape[other] > 1 for flow in inputs for other in range(rank) if other != axis):
        # Side by side along an axis without channels: theirs must be the same.
        if axis == rank - 1:
            raise Unsupported("concatenates along the last axis, and the channels lie along another one")
        channel_ids = [channels.last_axis(flow) for flow in inputs]
        for other in channel_ids[1:]:
            channels.unify(channel_ids[0], other)
        return [_along_last(channel_ids[0], shapes[0])]
    parts = []
    for flow in inputs:
        size = flow.shape[axis]
        if size is None:
            raise Unsupported(f"concatenates along an axis whose size is not fixed: {flow.shape}")
        whole = list(flow.channel_ids.shape)
        whole[axis] = size
        parts.append(np.broadcast_to(flow.channel_ids, whole))
    return [np.concatenate(parts, axis)]


@_rule("Add", "Subtract", "Multiply", "Maximum", "Minimum", "Average")
def _combine(
    channels: ChannelRegistry, layer: Any, inputs: Sequence[ChannelMap], shapes: Sequence[Shape]
) -> list[ChannelIds]:
    """Element by element. An axis of size 1 is spread over the other's: its one channel stays."""
    rank = len(shapes[0])
    merges = type(layer).__name__ in RULES  # missing axes are put behind the batch's, by operators before it
    if not merges and any(len(flow.shape) != rank for flow in inputs):
        raise Unsupported("combines tensors of different ranks")
    result: ChannelIds | None = None
    for flow in inputs:
        lead = (1,) * (rank - len(flow.shape))
        channel_ids, shape = flow.channel_ids.reshape(lead + flow.channel_ids.shape), lead + flow.shape
        if shape[-1] == 1 and shapes[0][-1] != 1:
            channels.block(channel_ids, "is one channel that is spread over others")
            continue
        result = channel_ids if result is None else channels.unify(*np.broadcast_arrays(result, channel_ids))
    return [np.zeros([1] * rank, np.int64) if result is None else result]


@_rule("LSTM", "GRU", "SimpleRNN")
def _recurrent(
    channels: ChannelRegistry, layer: Any, inputs: Sequence[ChannelMap], shapes: Sequence[Shape]
) -> list[ChannelIds]:
    """A unit is a column of each gate, a row of the recurrent kernel, and an output channel."""
    cell = layer.cell
    units = channels.make(layer, int(layer.units))
    for activation in (cell.activation, getattr(cell, "recurrent_activation", None)):
        _activate(channels, layer, activation, units)
    gates = np.tile(units, int(cell.kernel.shape[1]) // units.size)
    channels.index(cell.kernel, 0, channels.last_axis(inputs[0]))
    channels.source(layer, "neuron", cell.kernel, 1, gates, units)
    channels.index(cell.recurrent_kernel, 0, units)
    channels.index(cell.recurrent_kernel, 1, gates)
    if cell.use_bias:
        channels.index(cell.bias, -1, gates)
    for state in inputs[1:]:
        channels.unify(channels.last_axis(state), units)
    channels.count(layer, "units", units)
    return [_along_last(units, shape) for shape in shapes]


@_rule("Bidirectional")
def _bidirectional(
    channels: ChannelRegistry, layer: Any, inputs: Sequence[ChannelMap], shapes: Sequence[Shape]
) -> list[ChannelIds]:
    """Both directions lose the same units: one configuration serves both."""
    both = (layer.forward_layer, layer.backward_layer)
    sequence, *states = inputs
    units = []
    for place, each in enumerate(both):
        if rule_of(each) is not _recurrent:
            raise Unsupported("is bidirectional over something else than an LSTM, GRU or SimpleRNN")
        own = states[place * len(states) // 2 : (place + 1) * len(states) // 2]
        units.append(_recurrent(channels, each, [sequence, *own], shapes[:1])[0].reshape(-1))
    if units[0].shape != units[1].shape:
        raise Unsupported("has a backward layer of another size")
    channels.unify(*units)
    outputs = [units[0]] * len(shapes)  # each direction's, and the states
    if layer.merge_mode == "concat":
        outputs[0] = np.concatenate(units)
    return [_along_last(channel_ids, shape) for channel_ids, shape in zip(outputs, shapes, strict=True)]


@_rule("TimeDistributed")
def _time_distributed(
    channels: ChannelRegistry, layer: Any, inputs: Sequence[ChannelMap], shapes: Sequence[Shape]
) -> list[ChannelIds]:
    """The inner layer at each step."""
    flow = inputs[0]
    if flow.channel_ids.shape[0] != 1:
        raise Unsupported("works step by step, and the channels lie along the steps")
    inner = ChannelMap(flow.channel_ids[0], flow.shape[1:])
    return [channel_ids[None] for channel_ids in rule_of(layer.layer)(channels, layer.layer, [inner], [shapes[0][1:]])]


@_rule("MultiHeadAttention")
def _attention(
    channels: ChannelRegistry, layer: Any, inputs: Sequence[ChannelMap], shapes: Sequence[Shape]
) -> list[ChannelIds]:
    """Heads go as a whole; what comes in and what goes out is as with dense layers."""
    if len(shapes) > 1 or any(len(flow.shape) != 2 for flow in inputs):
        raise Unsupported("attends over several axes, or returns its scores")
    query, value = inputs[0], inputs[1] if len(inputs) > 1 else inputs[0]
    key = inputs[2] if len(inputs) > 2 else value
    heads = channels.make(layer, int(layer.get_config()["num_heads"]), "heads")
    for flow, dense in ((query, layer._query_dense), (key, layer._key_dense), (value, layer._value_dense)):
        channels.index(dense.kernel, 0, channels.last_axis(flow))
        channels.source(layer, "head", dense.kernel, 1, heads, None)
        if dense.bias is not None:
            channels.index(dense.bias, 0, heads)
    output = layer._output_dense
    channels.index(output.kernel, 0, heads)
    out = channels.make(layer, int(output.kernel.shape[-1]))
    channels.source(layer, "neuron", output.kernel, 2, out, out)
    if output.bias is not None:
        channels.index(output.bias, 0, out)
    channels.count(layer, "num_heads", heads)
    if layer.get_config().get("output_shape") is None:  # as wide as the query, then
        channels.unify(channels.last_axis(query), out)
    else:
        channels.edit(layer, "output_shape", lambda kept: [int(kept(out).sum())])
    return [_along_last(out, shapes[0])]


def _along_last(channel_ids: ChannelIds, shape: Shape) -> ChannelIds:
    return channel_ids.reshape([1] * (len(shape) - 1) + [-1])


def _finish(channels: ChannelRegistry, layer: Any, channel_ids: ChannelIds) -> None:
    """The bias and the activation of a layer."""
    _activate(channels, layer, layer.activation, channel_ids)
    if layer.use_bias if hasattr(layer, "use_bias") else layer.bias is not None:
        channels.index(layer.bias, 0, channel_ids)


def _activate(channels: ChannelRegistry, layer: Any, activation: Any, channel_ids: ChannelIds) -> None:
    """Blocks what goes through a softmax.

    Raises:
      Unsupported: for an activation that may look at all channels together.
    """
    if activation is None or RULES.get(type(activation).__name__) is _same:  # the latter is a layer
        return
    name = getattr(activation, "__name__", type(activation).__name__)
    known = getattr(activation, "__module__", "").startswith(("keras.", "tf_keras.", "tensorflow."))
    if known and name in ("softmax", "log_softmax"):
        channels.block(channel_ids, f"goes through the softmax of layer {layer.name!r}")
    elif not known or _spelled(name) not in _ELEMENTWISE:
        raise Unsupported(f"has the activation {name!r}, which may look at all channels together")


def _normalised(channels: ChannelRegistry, layer: Any, channel_ids: ChannelIds) -> None:
    scale = getattr(layer, "gamma", None)
    scale = getattr(layer, "scale", None) if scale is None else scale  # RMSNormalization's
    for variable in layer.weights:
        if variable is scale:
            channels.scale(variable, channel_ids)
        elif len(variable.shape) == 1:
            channels.index(variable, 0, channel_ids)


def _require_channels_last(layer: Any) -> None:
    if getattr(layer, "data_format", None) == "channels_first":
        raise Unsupported("has its channels first; only channels_last is supported")


__all__ = ["FIXED", "RULES", "rule_of"]
