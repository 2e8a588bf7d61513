"""The table of rules by layer class, and what the rules share."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tfx_compression.pruning.channel_map import ChannelIds, ChannelMap, ChannelRegistry, UnsupportedLayer

Shape = tuple[int | None, ...]
Inputs = Sequence[ChannelMap]
Shapes = Sequence[Shape]
Rule = Callable[[ChannelRegistry, Any, Inputs, Shapes], list[ChannelIds]]

RULES: dict[str, Rule] = {}

# Functions of single elements, as operations on tensors and as activations of layers. Spelled as by `_spelled`.
ELEMENTWISE = frozenset(
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
# Functions of elements at the same position.
COMBINING = frozenset(
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


def rule(*classes: str) -> Callable[[Rule], Rule]:
    """Returns a decorator that registers a function as the rule of layer classes."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(classes, function))
        return function

    return register


def rule_of(layer: Any) -> Rule:
    """Returns the rule of a layer, or of a TensorFlow or Keras 3 operation on symbolic tensors.

    Raises:
      UnsupportedLayer: The layer is not one of Keras, or has no rule.
    """
    kind = type(layer)
    if kind.__name__ == "TFOpLambda":  # a TensorFlow function on Keras 2 tensors
        name = layer.symbol.rsplit(".", 1)[-1]
        return _rule_of_operation(name, f"calls tf.{layer.symbol}, for which there is no rule")
    if not kind.__module__.startswith(("keras.", "tf_keras.")):
        raise UnsupportedLayer(f"is of the class {kind.__name__}, which is not one of Keras'")
    unsupported = f"is of the class {kind.__name__}, for which there is no rule"
    if kind.__module__.startswith("keras.src.ops."):
        return _rule_of_operation(kind.__name__, unsupported)
    if kind.__name__ not in RULES:
        raise UnsupportedLayer(unsupported)
    return RULES[kind.__name__]


def along_last(ids: ChannelIds, shape: Shape) -> ChannelIds:
    """Returns ids along the last axis of a tensor of a shape."""
    return ids.reshape([1] * (len(shape) - 1) + [-1])


def register_outputs(registry: ChannelRegistry, layer: Any, ids: ChannelIds) -> None:
    """Registers the bias and the activation of a layer whose outputs have these ids.

    Raises:
      UnsupportedLayer: The activation may depend on all channels together.
    """
    register_activation(registry, layer, layer.activation, ids)
    if layer.use_bias if hasattr(layer, "use_bias") else layer.bias is not None:
        registry.index(layer.bias, 0, ids)


def register_activation(registry: ChannelRegistry, layer: Any, activation: Any, ids: ChannelIds) -> None:
    """Blocks channels that go through a softmax.

    Raises:
      UnsupportedLayer: The activation may depend on all channels together.
    """
    if activation is None or RULES.get(type(activation).__name__) is RULES["ReLU"]:  # a layer as an activation
        return
    name = getattr(activation, "__name__", type(activation).__name__)
    known = getattr(activation, "__module__", "").startswith(("keras.", "tf_keras.", "tensorflow."))
    if known and name in ("softmax", "log_softmax"):
        registry.block(ids, f"goes through the softmax of layer {layer.name!r}")
    elif not known or _spelled(name) not in ELEMENTWISE:
        raise UnsupportedLayer(f"has the activation {name!r}, which may depend on all channels together")


def require_channels_last(layer: Any) -> None:
    """Raises UnsupportedLayer for a layer with channels first."""
    if getattr(layer, "data_format", None) == "channels_first":
        raise UnsupportedLayer("has its channels first; only channels_last is supported")


def fixed_ids(rank: int) -> ChannelIds:
    """Returns the ids of a tensor without channels."""
    return np.zeros([1] * rank, np.int64)


def _rule_of_operation(name: str, unsupported: str) -> Rule:
    name = _spelled(name)
    if name in ELEMENTWISE:
        return RULES["ReLU"]
    if name in COMBINING:
        return RULES["Add"]
    raise UnsupportedLayer(unsupported)


def _spelled(name: str) -> str:
    """Returns the one spelling of a function's name: `hard_sigmoid`, `HardSigmoid` and `hardsigmoid` are the same."""
    return name.replace("_", "").lower()
