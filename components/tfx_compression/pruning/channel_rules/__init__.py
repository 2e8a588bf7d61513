"""How each kind of layer treats channels: one function per kind, for Keras 2 and Keras 3 alike.

A rule is a function with the decorator `rule` and the class names of its layers. It gets the channel registry, the
layer, the channel maps of the inputs and the shapes of the outputs, and returns the channel ids of each output. It
raises `UnsupportedLayer` if it can't handle the layer, whose inputs are then left alone.
"""

from tfx_compression.pruning.channel_rules import (  # noqa: F401 - registers the rules
    attention,
    convolution,
    dense,
    elementwise,
    normalization,
    recurrent,
    shape,
)
from tfx_compression.pruning.channel_rules.registry import rule_of

__all__ = ["rule_of"]
