"""Quantization-aware networks: tfmot makes a network round like int8.

tfmot's schemes that preserve zeros and clusters are not used: the training's constraints keep both, on the kernels of
the network that this module returns.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import tensorflow as tf
import tf_keras

from tfx_compression import kernels
from tfx_compression.errors import ModelError
from tfx_compression.keras_models import graph
from tfx_compression.keras_models.clone import clone_layer, copy_trainable, finalize_state, input_like
from tfx_compression.keras_models.library import is_keras3

_REMEDY = "another FineTuning.mode, and TFLiteQuantizer after it"
_FOLDED_INTO = ("Conv2D", "DepthwiseConv2D", "Dense")
_NOT_FOLDED = "no quantized convolution or dense layer comes right before it"
_NORMALIZATION = ("BatchNormalization", "SyncBatchNormalization")
# Activations that tfmot's QuantizeAwareActivation and its configuration of Activation layers support.
_FUSED_ACTIVATIONS = ("linear", "relu", "softmax", "sigmoid", "tanh", "swish", "gelu")
_ACTIVATION_LAYERS = (*_FUSED_ACTIVATIONS, "relu6")


@dataclasses.dataclass(frozen=True)
class QuantizationAware:
    """A quantization-aware copy of a network.

    Attributes:
      network: Copy with the weights of the original, which doesn't change.
      notes: Layers that stay float, and the reasons.
    """

    network: Any
    notes: tuple[str, ...]


def quantization_aware(network: Any) -> QuantizationAware:
    """Returns a copy of a Keras 2 network that rounds like tfmot's default 8-bit scheme (arXiv:1712.05877).

    Kernels are rounded symmetrically, so zero stays zero: per output channel, or per tensor for Dense and transposed
    convolutions. Activations are rounded in ranges that training follows, see `calibrate`. Layers that tfmot can't
    quantize stay float. Layers keep their names. A network that is already quantization-aware is returned itself.

    Raises:
      ModelError: For a Keras 3 network, or one in which tfmot can quantize no layer.
    """
    if is_keras3(network):
        raise ModelError(
            f"The model {network.name!r} is a Keras 3 model, and tfmot supports only Keras 2. Remedy: a tf_keras model "
            f"in Trainer, or {_REMEDY}.",
            field="FineTuning.mode",
            code="keras3-not-supported",
        )
    if any(kernels.is_quantize_wrapper(layer) for layer in network.layers):
        return QuantizationAware(network, ())
    inputs, outputs = graph.io_structures(network)
    flat = tf_keras.Model(network.inputs, network.outputs, name=network.name)  # tfmot loses dicts
    reasons = _float_layers(flat)
    candidates = [layer.name for layer in _layers(flat) if layer.name not in reasons]
    quantized = _quantize_most(flat, candidates, reasons)
    if quantized is None:
        raise ModelError(
            f"tfmot can quantize no layer of {network.name!r}: {'; '.join(_notes(reasons))}. Remedy: {_REMEDY}.",
            field="FineTuning.mode",
            code="nothing-to-quantize",
        )
    _initialize_weight_ranges(quantized)
    copy = tf_keras.Model(
        tf.nest.pack_sequence_as(inputs, quantized.inputs),
        tf.nest.pack_sequence_as(outputs, quantized.outputs),
        name=network.name,
    )
    return QuantizationAware(copy, _notes(reasons))


def calibrate(network: Any, batches: Iterable[Any]) -> None:
    """Sets the activation ranges of a quantization-aware network to those on some batches of features.

    tfmot starts them at -6..6 and moves them by a thousandth in each step. It starts the ranges of inputs at 0..0:
    before the first step, all inputs would round to 0.
    """
    observer = _RangeObserver()
    places = list(_activation_quantizers(network))
    quantizers = [getattr(owner, attribute) for owner, attribute in places]
    try:
        for (owner, attribute), quantizer in zip(places, quantizers, strict=True):
            setattr(owner, attribute, [observer] if isinstance(quantizer, list) else observer)
        for features in batches:
            network(features, training=False)
    finally:
        for (owner, attribute), quantizer in zip(places, quantizers, strict=True):
            setattr(owner, attribute, quantizer)
    for variables, low, high in observer.ranges.values():
        variables["min_var"].assign(low)
        variables["max_var"].assign(high)


class _RangeObserver:
    """Replaces quantizers: it records the range of each one's inputs and rounds nothing."""

    def __init__(self) -> None:
        self.ranges: dict[int, tuple[Mapping[str, tf.Variable], float, float]] = {}

    def __call__(self, inputs: tf.Tensor, training: Any, weights: Mapping[str, tf.Variable], **more: Any) -> tf.Tensor:
        key = id(weights["min_var"])
        _, low, high = self.ranges.get(key, (weights, 0.0, 0.0))  # a range contains zero
        low, high = min(low, float(tf.reduce_min(inputs))), max(high, float(tf.reduce_max(inputs)))
        self.ranges[key] = (weights, low, high)
        return inputs


def _activation_quantizers(network: Any) -> Iterator[tuple[Any, str]]:
    """Yields the owners of activation quantizers, with the attribute that holds them."""
    for layer in network._flatten_layers(include_self=False):
        if type(layer).__name__ == "QuantizeLayer" and layer.quantizer is not None:
            yield layer, "quantizer"
        elif kernels.is_quantize_wrapper(layer):
            yield from ((activation, "quantizer") for activation in layer._quantize_activations)
            if layer._output_quantizers:
                yield layer, "_output_quantizers"


def _layers(network: Any) -> list[Any]:
    return [layer for layer in network.layers if type(layer).__name__ != "InputLayer"]


def _float_layers(network: Any) -> dict[str, str]:
    """Returns the layers that tfmot can't quantize, with the reasons."""
    import tensorflow_model_optimization as tfmot

    registry = tfmot.quantization.keras.default_8bit.Default8BitQuantizeRegistry()
    reasons = {}
    for layer in _layers(network):
        activation = getattr(layer, "activation", None)
        name = getattr(activation, "__name__", type(activation).__name__)
        supported = _ACTIVATION_LAYERS if type(layer).__name__ == "Activation" else _FUSED_ACTIVATIONS
        if type(layer).__name__ in _NORMALIZATION:
            continue  # depends on the layer before it, see below
        if not registry.supports(layer):
            reasons[layer.name] = f"tfmot can't quantize {type(layer).__name__}"
        elif type(layer).__name__ == "Conv2DTranspose":
            reasons[layer.name] = "with tfmot's Conv2DTranspose, no SavedModel can be written"
        elif activation is not None and name not in supported:
            reasons[layer.name] = f"tfmot can't quantize the activation {name}"
    folded = _folded(network)
    for layer in _layers(network):
        if type(layer).__name__ in _NORMALIZATION and folded.get(layer.name, layer.name) in {*reasons, layer.name}:
            reasons[layer.name] = _NOT_FOLDED
    return reasons


def _folded(network: Any) -> dict[str, str]:
    """Returns the normalization layers that TFLite folds into the layer before them, by tfmot's patterns.

    Keys are the names of normalization layers, values those of the layers before them.
    """
    calls = list(graph.calls(network))
    by_output = {id(tensor): call for call in calls for tensor in call.outputs}
    uses = [id(tensor) for call in calls for tensor in call.inputs] + [id(tensor) for tensor in network.outputs]
    names = [call.layer.name for call in calls]
    folded = {}
    for call in calls:
        if type(call.layer).__name__ not in _NORMALIZATION or len(call.inputs) != 1:
            continue
        before = by_output.get(id(call.inputs[0]))
        if (
            before is not None
            and type(before.layer).__name__ in _FOLDED_INTO
            and before.layer.activation.__name__ == "linear"
            and uses.count(id(call.inputs[0])) == 1
            and names.count(call.layer.name) == names.count(before.layer.name) == 1
        ):
            folded[call.layer.name] = before.layer.name
    return folded


def _quantize_most(network: Any, candidates: list[str], reasons: dict[str, str]) -> Any:
    """Returns the network with as many candidates quantized as tfmot can, or None.

    It adds to `reasons` why the others are not.
    """
    folded = _folded(network)
    best = None

    def add(base: list[str], more: list[str]) -> list[str]:
        nonlocal best
        names = base + more
        try:  # a normalization layer goes with the layer that it is folded into
            best = _quantized(network, {name for name in names if folded.get(name, name) in names})
            return names
        except Exception as error:  # noqa: BLE001 - tfmot raises anything for graphs that it doesn't expect
            if len(more) == 1:
                reasons[more[0]] = f"tfmot fails: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
                return base
            middle = len(more) // 2
            return add(add(base, more[:middle]), more[middle:])

    if candidates:
        add([], candidates)
    reasons.update({name: _NOT_FOLDED for name, before in folded.items() if before in reasons})
    return best


def _quantized(network: Any, names: set[str]) -> Any:
    """Returns a copy of the network with these layers quantized."""
    import tensorflow_model_optimization as tfmot

    quantization = tfmot.quantization.keras
    copies: dict[str, Any] = {}
    stand_in = _stand_in_class(copies)

    def annotated(layer: Any) -> Any:
        copy = copies[layer.name] = clone_layer(layer, layer.get_config())
        if layer.name in names:
            return quantization.quantize_annotate_layer(copy)
        return copy if _is_operation(layer) else stand_in(copy)

    inputs = [input_like(old, old.shape, name) for name, old in zip(network.input_names, network.inputs, strict=True)]
    draft = _with_layers(network, inputs, annotated)
    for layer in _layers(network):
        copy = copies[layer.name]
        copy_trainable(layer, copy)
        copy.set_weights(layer.get_weights())
        finalize_state(copy)
    with tf_keras.utils.custom_object_scope({stand_in.__name__: stand_in}):
        quantized = quantization.quantize_apply(draft, quantized_layer_name_prefix="")
    return _with_layers(quantized, quantized.inputs, _final_layer)


def _with_layers(network: Any, inputs: list[Any], replace: Callable[[Any], Any]) -> Any:
    """Returns a network that repeats the calls of another with replaced layers.

    clone_model can't do this: it hangs if the replacement of a nested model is not a model.
    """
    layers = {layer.name: replace(layer) for layer in _layers(network)}
    tensors = {id(old): new for old, new in zip(network.inputs, inputs, strict=True)}
    for call in graph.calls(network):
        args, kwargs = graph.map_tensors((call.args, call.kwargs), lambda tensor: tensors[id(tensor)])
        answer = layers[call.layer.name](*args, **kwargs)
        tensors.update({id(old): new for old, new in zip(call.outputs, graph.flat_tensors(answer), strict=True)})
    return tf_keras.Model(inputs, [tensors[id(old)] for old in network.outputs], name=network.name)


def _stand_in_class(copies: Mapping[str, Any]) -> Any:
    """Returns a class of layers that stand in for float layers: tfmot clones every layer, and not all can be cloned."""

    class StandIn(tf_keras.layers.Layer):
        def __init__(self, layer: Any):
            super().__init__(name=layer.name)
            self.float_layer = layer
            self.supports_masking = True

        def call(self, inputs: Any, *arguments: Any, **named: Any) -> Any:
            accepted = inspect.signature(self.float_layer.call).parameters
            given = {key: value for key, value in named.items() if key in accepted or key not in ("training", "mask")}
            return self.float_layer(inputs, *arguments, **given)

        def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
            return self.float_layer.compute_mask(inputs, mask)

        def get_config(self) -> dict[str, Any]:
            return {"name": self.name}

        @classmethod
        def from_config(cls, config: Mapping[str, Any]) -> Any:
            return cls(copies[config["name"]])

    return StandIn


def _is_operation(layer: Any) -> bool:
    """Returns whether a layer is a TensorFlow function on symbolic tensors, which Keras treats differently."""
    return type(layer).__module__.endswith("tf_op_layer")


def _final_layer(layer: Any) -> Any:
    """Returns a float layer for its stand-in, and a wrapped layer with its kernel rounded.

    tfmot doesn't round a kernel if a ReLU layer comes next; TFLite does.
    """
    import tensorflow_model_optimization as tfmot

    if hasattr(layer, "float_layer"):
        return layer.float_layer
    if not kernels.is_quantize_wrapper(layer):
        return layer
    registry = tfmot.quantization.keras.default_8bit.Default8BitQuantizeRegistry()
    if type(layer.quantize_config).__name__ == "NoOpQuantizeConfig" and registry.supports(layer.layer):
        config = registry.get_quantize_config(layer.layer)
        if getattr(config, "weight_attrs", None):
            config.activation_attrs = []
            return type(layer)(layer.layer, config, name_prefix="")
    return layer


def _initialize_weight_ranges(network: Any) -> None:
    """Sets the ranges of kernels to those of their weights, and keeps frozen layers frozen.

    tfmot starts the ranges at -6..6, and its wrapper trains every layer.
    """
    for layer in network._flatten_layers(include_self=False):
        if not kernels.is_quantize_wrapper(layer):
            continue
        for weight, quantizer, variables in layer._weight_vars:
            quantizer(weight, True, variables)
        if not layer.layer.trainable:
            layer._non_trainable_weights.extend(layer._trainable_weights)
            layer._trainable_weights.clear()


def _notes(reasons: Mapping[str, str]) -> tuple[str, ...]:
    """Returns a note for each reason, with the layers that it applies to."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_reason.setdefault(reason, []).append(name)
    return tuple(f"{', '.join(names)}: stays float, since {reason}" for reason, names in by_reason.items())
