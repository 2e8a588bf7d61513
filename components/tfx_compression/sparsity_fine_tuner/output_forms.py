"""Detects whether a model returns probabilities, logits or plain values, which distillation compares differently."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from tfx_compression.errors import ConfigError
from tfx_compression.keras_models import graph
from tfx_compression.model_handle import ModelHandle
from tfx_compression.sparsity_fine_tuner.config import Distillation
from tfx_compression.sparsity_fine_tuner.model_interface import describe, interfaces

VALUES = "values"


class CrossEntropy(NamedTuple):
    """A cross-entropy loss.

    Attributes:
      binary: Whether it is the binary one, so that each unit is a distribution.
      from_logits: Whether it takes logits.
    """

    binary: bool
    from_logits: bool


def output_forms(config: Distillation, handle: ModelHandle, network: Any) -> list[str]:
    """Returns the form of each output: a key of `distillation.LOGITS`, or `VALUES`.

    Args:
      config: Configuration whose `outputs` is used.
      handle: Model, whose loss is used if the network has none.
      network: Functional Keras model with its layers, or None if it has no graph of layers.

    Raises:
      ConfigError: If `config.outputs` is `auto` and the model has no layers.
    """
    if network is None:
        if config.outputs == "auto":
            raise ConfigError(
                "Distillation.outputs = 'auto' looks at the student's last layers, and "
                f"{describe(handle)} has none. Remedy: 'probabilities', 'logits' or 'values'.",
                field="Distillation.outputs",
                code="unknown-outputs",
            )
        return [_form(config.outputs, "", None, shape) for shape in interfaces(handle, None)[1].shapes]
    loss = getattr(network, "loss", None) or getattr(handle.model, "loss", None)
    tensors, outputs = graph.flat_tensors(graph.io_structures(network)[1]), interfaces(handle, network)[1]
    return [
        _form(config.outputs, _activation(network, tensor), _cross_entropy(_loss_at(loss, name, position)), shape)
        for position, (tensor, name, shape) in enumerate(zip(tensors, outputs.names, outputs.shapes, strict=True))
    ]


def _form(outputs: str, activation: str, cross_entropy: CrossEntropy | None, shape: tf.TensorShape) -> str:
    """Returns the form of an output.

    Args:
      outputs: Value of `Distillation.outputs`.
      activation: Name of the activation that computes it.
      cross_entropy: Its loss, or None if that is no cross entropy.
      shape: Shape of the output.
    """
    if outputs == "auto":
        outputs = _detected(activation, cross_entropy)
    if outputs == VALUES:
        return outputs
    if activation in ("sigmoid", "softmax", "log_softmax"):
        binary = activation == "sigmoid"
    elif cross_entropy is not None:
        binary = cross_entropy.binary
    else:
        binary = shape.rank is not None and (shape.rank < 2 or shape[-1] == 1)
    return f"{'sigmoid' if binary else 'softmax'} {outputs}"


def _detected(activation: str, cross_entropy: CrossEntropy | None) -> str:
    if activation in ("softmax", "sigmoid"):
        return "probabilities"
    if activation == "log_softmax" or (cross_entropy is not None and cross_entropy.from_logits):
        return "logits"
    # A layer without an activation, such as Reshape, passes on what another layer computed: only the loss knows.
    return VALUES if cross_entropy is None or activation == "linear" else "probabilities"


def _activation(network: Any, tensor: Any) -> str:
    """Returns the name of the activation that computes a symbolic tensor, or of the layer if it has none."""
    for call in graph.calls(network):
        for position, output in enumerate(call.outputs):
            if output is not tensor:
                continue
            if graph.is_functional(call.layer):
                return _activation(call.layer, graph.flat_tensors(graph.io_structures(call.layer)[1])[position])
            name = _activation_of(call.layer)
            if name == "linear" and type(call.layer).__name__ == "Activation":  # it only changes the dtype
                return _activation(network, call.inputs[0])
            return name
    return ""  # an input


def _activation_of(layer: Any) -> str:
    layer = getattr(layer, "layer", layer)  # TimeDistributed, or tfmot's wrapper
    if hasattr(layer, "activation"):
        activation = getattr(layer.activation, "activation", layer.activation)  # tfmot wraps activations, too
        return str(getattr(activation, "__name__", type(activation).__name__.lower()))
    symbol = getattr(layer, "symbol", None) or type(layer).__name__  # tf.nn.softmax is a layer in Keras 2
    return str(symbol).split(".")[-1].lower()


def _loss_at(loss: Any, name: str, position: int) -> Any:
    """Returns the loss of one of several outputs."""
    if isinstance(loss, Mapping):
        return loss.get(name)
    if isinstance(loss, list | tuple):
        return loss[position] if position < len(loss) else None
    return loss


def _cross_entropy(loss: Any) -> CrossEntropy | None:
    """Returns what kind of cross entropy a loss is, or None for another loss."""
    options: Mapping[str, Any] = {}
    if hasattr(loss, "get_config"):
        options = loss.get_config()
        names = [loss.name or "", *(kind.__name__ for kind in type(loss).__mro__)]
    else:
        options = getattr(loss, "keywords", options)  # functools.partial
        function = getattr(loss, "func", loss)
        names = [loss if isinstance(loss, str) else getattr(function, "__name__", "")]
    spelled = {name.lower().replace("_", "").replace("bce", "binarycrossentropy") for name in names}
    if not any("crossentropy" in name for name in spelled):
        return None
    return CrossEntropy(any("binary" in name for name in spelled), bool(options.get("from_logits", False)))
