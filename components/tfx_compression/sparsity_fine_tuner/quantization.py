"""Quantization-aware training: a network that rounds as int8 will, by tfmot.

tfmot's schemes that preserve zeros and clusters are not used: the training's holds keep both, on the kernels of the
network that is made here.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from tfx_compression import kernels
from tfx_compression.errors import ModelError
from tfx_compression.keras_models import graph
from tfx_compression.keras_models.clone import clone_layer, copy_trainable, finalize_state, input_like
from tfx_compression.keras_models.library import is_keras3
from tfx_compression.kernels import Kernel
from tfx_compression.model_handle.compressed import Masks
from tfx_compression.tflite import conversion
from tfx_compression.tflite.contents import read_contents

_OTHERWISE = "another FineTuning.mode, and TFLiteQuantizer behind it"
_FOLDED_INTO = ("Conv2D", "DepthwiseConv2D", "Dense")
_ALONE = "no convolution or dense layer that is quantized is right before it"
_NORMALISATION = ("BatchNormalization", "SyncBatchNormalization")
# What tfmot's QuantizeAwareActivation knows, and its configuration of Activation layers.
_FUSED_ACTIVATIONS = ("linear", "relu", "softmax", "sigmoid", "tanh", "swish", "gelu")
_ACTIVATION_LAYERS = (*_FUSED_ACTIVATIONS, "relu6")


@dataclasses.dataclass(frozen=True)
class Aware:
    """A network that is quantization-aware.

    Attributes:
      network: with the weights of the original, which is left as it was.
      notes: which layers stay float, and why.
    """

    network: Any
    notes: tuple[str, ...]


def aware(network: Any) -> Aware:
    """A copy of a Keras 2 network that rounds as tfmot's default 8-bit scheme does (arXiv:1712.05877).

    Kernels are rounded per output channel (of Dense and transposed convolutions, as a whole), symmetrically, so zero
    stays zero; activations in ranges that training follows, see `calibrate`. A layer that tfmot can't quantize stays
    float. Layers keep their names. A network that is quantization-aware already is returned itself.

    Raises:
      ModelError: for a Keras 3 network, or one without a layer that tfmot can quantize.
    """
    if is_keras3(network):
        raise ModelError(
            f"The model {network.name!r} is of Keras 3, and tfmot makes only Keras 2 models quantization-aware. "
            f"Remedy: a tf_keras model in Trainer, or {_OTHERWISE}."
        )
    if any(kernels.is_quantize_wrapper(layer) for layer in network.layers):
        return Aware(network, ())
    inputs, outputs = graph.io_structures(network)
    flat = tf_keras.Model(network.inputs, network.outputs, name=network.name)  # tfmot loses dicts
    reasons = _reasons(flat)
    wanted = [layer.name for layer in _layers(flat) if layer.name not in reasons]
    found = _largest(flat, wanted, reasons)
    if found is None:
        raise ModelError(
            f"tfmot can quantize no layer of {network.name!r}: {'; '.join(_notes(reasons))}. Remedy: {_OTHERWISE}."
        )
    _round_weights(found)
    made = tf_keras.Model(
        tf.nest.pack_sequence_as(inputs, found.inputs),
        tf.nest.pack_sequence_as(outputs, found.outputs),
        name=network.name,
    )
    return Aware(made, _notes(reasons))


def calibrate(network: Any, batches: Iterable[Any]) -> None:
    """Sets the ranges of a quantization-aware network's activations to what they are on some batches of features.

    tfmot starts them at -6..6 and moves them by a thousandth each step, and those of the inputs at 0..0: before the
    first step, all inputs round to 0.
    """
    observer = _Observer()
    places = list(_activation_quantizers(network))
    before = [getattr(place, attribute) for place, attribute in places]
    try:
        for (place, attribute), old in zip(places, before, strict=True):
            setattr(place, attribute, [observer] if isinstance(old, list) else observer)
        for features in batches:
            network(features, training=False)
    finally:
        for (place, attribute), old in zip(places, before, strict=True):
            setattr(place, attribute, old)
    for ranges, low, high in observer.seen.values():
        ranges["min_var"].assign(low)
        ranges["max_var"].assign(high)


class _Observer:
    """In the place of quantizers: rounds nothing, and notes between which values each would have to."""

    def __init__(self) -> None:
        self.seen: dict[int, tuple[Mapping[str, tf.Variable], float, float]] = {}

    def __call__(self, inputs: tf.Tensor, training: Any, weights: Mapping[str, tf.Variable], **more: Any) -> tf.Tensor:
        _, low, high = self.seen.get(id(weights["min_var"]), (weights, 0.0, 0.0))  # zero must be in the range
        low, high = min(low, float(tf.reduce_min(inputs))), max(high, float(tf.reduce_max(inputs)))
        self.seen[id(weights["min_var"])] = (weights, low, high)
        return inputs


def _activation_quantizers(network: Any) -> Iterator[tuple[Any, str]]:
    """The places that hold them: an object and its attribute."""
    for layer in network._flatten_layers(include_self=False):
        if type(layer).__name__ == "QuantizeLayer" and layer.quantizer is not None:
            yield layer, "quantizer"
        elif kernels.is_quantize_wrapper(layer):
            yield from ((activation, "quantizer") for activation in layer._quantize_activations)
            if layer._output_quantizers:
                yield layer, "_output_quantizers"


def zeros_after_conversion(path: str, own: Mapping[str, Kernel], masks: Masks) -> dict[str, int]:
    """Converts a quantization-aware SavedModel to TFLite and finds what its masks prune among the zeros there.

    Args:
      path: of the SavedModel, whose `serving_default` is converted in another process, in the ranges that it was
        trained in; what is float in it gets int8 weights.
      own: its kernels.
      masks: by kernel name, 0 where it is pruned.

    Returns:
      By kernel name, how many of the weights that its mask prunes are zero in TFLite.

    Raises:
      ModelError: where those are not all, or the model can't be converted.
    """
    content = conversion.convert_in_worker(
        path, "dynamic"
    )  # without calibration, so by the ranges that the model brings
    weights = list(read_contents(content).weights.values())
    zeros, apart = {}, {}
    for name, mask in masks.items():
        pruned = int(mask.size - np.count_nonzero(mask))
        found = _zeros(own[name], mask.astype(bool), weights)
        if found is None:
            apart[name] = pruned
        elif found < pruned:
            raise ModelError(
                f"{path}: of the {pruned} weights of layer {name!r} that were pruned, {found} are zero after "
                f"conversion to int8. Remedy: {_OTHERWISE}."
            )
        else:
            zeros[name] = found
    there = sum(int(weight.size - np.count_nonzero(weight)) for weight in weights) - sum(zeros.values())
    if sum(apart.values()) > there:
        raise ModelError(
            f"{path}: of the {sum(apart.values())} weights of the layers {', '.join(apart)} that were pruned, at most "
            f"{there} are zero after conversion to int8. Remedy: {_OTHERWISE}."
        )
    return zeros | apart


def _zeros(kernel: Kernel, mask: np.ndarray, weights: list[np.ndarray]) -> int | None:
    """How many masked weights are zero in the TFLite constant that is likest; None where there is none of that size.

    TFLite lays a kernel out with the axes that are summed over last, a depthwise one as Keras does.
    """
    pruned = ~kernel.to_matrix(mask)
    counts = [
        int(np.count_nonzero(weight.ravel()[order.ravel()] == 0))
        for weight in weights
        if weight.size == mask.size
        for order in (pruned.T, pruned)
    ]
    return max(counts, default=None)


def _layers(network: Any) -> list[Any]:
    return [layer for layer in network.layers if type(layer).__name__ != "InputLayer"]


def _reasons(network: Any) -> dict[str, str]:
    """By layer that tfmot can't quantize, why."""
    import tensorflow_model_optimization as tfmot

    registry = tfmot.quantization.keras.default_8bit.Default8BitQuantizeRegistry()
    found = {}
    for layer in _layers(network):
        activation = getattr(layer, "activation", None)
        name = getattr(activation, "__name__", type(activation).__name__)
        known = _ACTIVATION_LAYERS if type(layer).__name__ == "Activation" else _FUSED_ACTIVATIONS
        if type(layer).__name__ in _NORMALISATION:
            continue  # judged by what is before it
        if not registry.supports(layer):
            found[layer.name] = f"tfmot can't quantize {type(layer).__name__}"
        elif type(layer).__name__ == "Conv2DTranspose":
            found[layer.name] = "with tfmot's Conv2DTranspose no SavedModel can be written"
        elif activation is not None and name not in known:
            found[layer.name] = f"tfmot can't quantize the activation {name}"
    folded = _folded(network)
    for layer in _layers(network):
        if type(layer).__name__ in _NORMALISATION and folded.get(layer.name, layer.name) in {*found, layer.name}:
            found[layer.name] = _ALONE
    return found


def _folded(network: Any) -> dict[str, str]:
    """By normalisation that TFLite folds into the layer before it, that layer; as tfmot's patterns have it."""
    calls = list(graph.calls(network))
    by_output = {id(tensor): call for call in calls for tensor in call.outputs}
    taken = [id(tensor) for call in calls for tensor in call.inputs] + [id(tensor) for tensor in network.outputs]
    times = [call.layer.name for call in calls]
    found = {}
    for call in calls:
        if type(call.layer).__name__ not in _NORMALISATION or len(call.inputs) != 1:
            continue
        before = by_output.get(id(call.inputs[0]))
        if (
            before is not None
            and type(before.layer).__name__ in _FOLDED_INTO
            and before.layer.activation.__name__ == "linear"
            and taken.count(id(call.inputs[0])) == 1
            and times.count(call.layer.name) == times.count(before.layer.name) == 1
        ):
            found[call.layer.name] = before.layer.name
    return found


def _largest(network: Any, wanted: list[str], reasons: dict[str, str]) -> Any:
    """The network with as many of the wanted layers quantized as tfmot can; notes why others are not."""
    folded = _folded(network)
    best = None

    def add(base: list[str], more: list[str]) -> list[str]:
        nonlocal best
        both = base + more
        try:  # a normalisation goes with the layer that it is folded into
            best = _quantized(network, {name for name in both if folded.get(name, name) in both})
            return both
        except Exception as error:  # noqa: BLE001 - whatever tfmot stumbles over, in a graph that it doesn't expect
            if len(more) == 1:
                reasons[more[0]] = f"tfmot fails: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
                return base
            middle = len(more) // 2
            return add(add(base, more[:middle]), more[middle:])

    if wanted:
        add([], wanted)
    reasons.update({name: _ALONE for name, before in folded.items() if before in reasons})
    return best


def _quantized(network: Any, names: set[str]) -> Any:
    """A copy of the network with these layers quantized."""
    import tensorflow_model_optimization as tfmot

    quantization = tfmot.quantization.keras
    copies: dict[str, Any] = {}
    stand_in = _stand_in(copies)

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
        made = quantization.quantize_apply(draft, quantized_layer_name_prefix="")
    return _with_layers(made, made.inputs, _settled)


def _with_layers(network: Any, inputs: list[Any], change: Callable[[Any], Any]) -> Any:
    """The network's calls made again with other layers. clone_model hangs where a nested model becomes no model."""
    layers = {layer.name: change(layer) for layer in _layers(network)}
    tensors = {id(old): new for old, new in zip(network.inputs, inputs, strict=True)}
    for call in graph.calls(network):
        args, kwargs = graph.map_tensors((call.args, call.kwargs), lambda tensor: tensors[id(tensor)])
        answer = layers[call.layer.name](*args, **kwargs)
        tensors.update({id(old): new for old, new in zip(call.outputs, graph.flat_tensors(answer), strict=True)})
    return tf_keras.Model(inputs, [tensors[id(old)] for old in network.outputs], name=network.name)


def _stand_in(copies: Mapping[str, Any]) -> Any:
    """A layer for tfmot in the place of those that stay float: it makes layers anew, which not all of them can be."""

    class StandIn(tf_keras.layers.Layer):
        def __init__(self, layer: Any):
            super().__init__(name=layer.name)
            self.stays = layer
            self.supports_masking = True

        def call(self, inputs: Any, *arguments: Any, **named: Any) -> Any:
            taken = inspect.signature(self.stays.call).parameters
            given = {key: value for key, value in named.items() if key in taken or key not in ("training", "mask")}
            return self.stays(inputs, *arguments, **given)

        def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
            return self.stays.compute_mask(inputs, mask)

        def get_config(self) -> dict[str, Any]:
            return {"name": self.name}

        @classmethod
        def from_config(cls, config: Mapping[str, Any]) -> Any:
            return cls(copies[config["name"]])

    return StandIn


def _is_operation(layer: Any) -> bool:
    """Whether it is a TensorFlow function that was called on symbolic tensors: Keras treats those apart."""
    return type(layer).__module__.endswith("tf_op_layer")


def _settled(layer: Any) -> Any:
    """A layer as it stays: without its stand-in, frozen where it was, and its kernel rounded.

    Where a ReLU layer comes next, tfmot doesn't round the kernel of the layer before; TFLite will.
    """
    import tensorflow_model_optimization as tfmot

    if hasattr(layer, "stays"):
        return layer.stays
    if not kernels.is_quantize_wrapper(layer):
        return layer
    registry = tfmot.quantization.keras.default_8bit.Default8BitQuantizeRegistry()
    if type(layer.quantize_config).__name__ == "NoOpQuantizeConfig" and registry.supports(layer.layer):
        config = registry.get_quantize_config(layer.layer)
        if getattr(config, "weight_attrs", None):
            config.activation_attrs = []
            return type(layer)(layer.layer, config, name_prefix="")
    return layer


def _round_weights(network: Any) -> None:
    """Sets the ranges of kernels to those of their weights, and keeps what is frozen from training.

    tfmot starts the former at -6..6, and its wrapper trains whatever it wraps.
    """
    for layer in network._flatten_layers(include_self=False):
        if not kernels.is_quantize_wrapper(layer):
            continue
        for weight, quantizer, ranges in layer._weight_vars:
            quantizer(weight, True, ranges)
        if not layer.layer.trainable:
            layer._non_trainable_weights.extend(layer._trainable_weights)
            layer._trainable_weights.clear()


def _notes(reasons: Mapping[str, str]) -> tuple[str, ...]:
    """One line for each reason, with the layers that it holds for."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_reason.setdefault(reason, []).append(name)
    return tuple(f"{', '.join(names)}: stays float, since {reason}" for reason, names in by_reason.items())
