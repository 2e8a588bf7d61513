"""What removed units still put out once their weights are zero: constants that move into the biases of the next layers.

A unit whose kernel, bias, scale and shift are zero puts out f(0), which is not zero for sigmoid, softplus, exponential,
hard_sigmoid and others, nor behind a normalization without a scale, whose moving statistics stay. Dropping it would
shift every layer that uses it. Each such layer multiplies linearly, so that its own kernel tells what the constant adds
to its output. With data, the unit's mean takes the place of the constant.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfx_compression import kernels
from tfx_compression.errors import CompressionError
from tfx_compression.keras_models import clone, execution, graph
from tfx_compression.keras_models.keras3 import LOADING_FAILURES
from tfx_compression.pruning.channel_map import ConsumingAxis, KeepFn
from tfx_compression.pruning.dependency_graph import DependencyGraph
from tfx_compression.pruning.model_pruner import assigned
from tfx_compression.pruning.sample import Sample, finite_inputs

_RECURRENT = ("LSTM", "GRU", "SimpleRNN")
_FREE_SIZE = 64  # of an input's axis whose size is not fixed
_TOLERANCE = 1e-5  # relative difference between positions
_MOST_NAMES = 8

Key = tuple[int, int, int | None]  # ids of a call's output and of a layer, and the place of the layer's input


@dataclasses.dataclass
class Folding:
    """Changed values of a network that loses channels.

    Attributes:
      values: Values of biases and moving means, by the variable's id.
      inexact: Reason why the removal of a group is not exact, by group.
      notes: Messages for the user.
    """

    values: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)
    inexact: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)


def zeroed_values(dependencies: DependencyGraph, keep: KeepFn) -> list[tuple[Any, np.ndarray]]:
    """Returns the weights that produce, scale or shift removed channels, with zeros for these channels."""
    registry = dependencies.registry
    values: dict[int, tuple[Any, np.ndarray]] = {}
    for key, weight_axis in registry.weight_axes.items():
        stays = keep(weight_axis.ids)
        if key not in registry.consumers and not weight_axis.measured and not stays.all():
            variable, value = values.get(key[0], (weight_axis.variable, None))
            value = np.asarray(variable.numpy()) if value is None else value
            shape = [-1 if axis == weight_axis.axis else 1 for axis in range(value.ndim)]
            values[key[0]] = (variable, value * stays.reshape(shape).astype(value.dtype))
    return list(values.values())


def fold(dependencies: DependencyGraph, kept: Mapping[str, np.ndarray], sample: Sample | None = None) -> Folding:
    """Returns the biases that make up for what removed units put out.

    Args:
      dependencies: Dependency graph of the network, which is left as it is.
      kept: The units to keep, [units] of bool, by group.
      sample: Rows on which units whose constant is not zero are averaged; None folds the constants.

    Raises:
      DataError: The sample has no rows, or a value is NaN or infinite.
    """
    try:
        with assigned([(state, state.numpy()) for state in _states(dependencies.model)]):
            return _Folder(dependencies, dependencies.keep_fn(kept)).fold(sample)
    except CompressionError:
        raise
    except (*LOADING_FAILURES, NotImplementedError, tf.errors.OpError) as error:
        note = f"What removed units put out could not be computed, and was dropped: {str(error).splitlines()[0]}"
        return Folding(notes=[note])


@dataclasses.dataclass
class _Target:
    """A bias, or a moving mean that takes its place, and what it makes up for.

    Attributes:
      variable: The variable.
      sign: 1 for a bias, -1 for a moving mean.
      consumer: Kernel that removed units no longer reach.
      channels: Its inputs whose removed units put out something at one of its calls.
      outputs: What they add to the output of the layer, [positions, *bias shape], for each call.
    """

    variable: Any
    sign: float
    consumer: ConsumingAxis
    channels: np.ndarray
    outputs: list[np.ndarray]

    def change(self) -> np.ndarray:
        """Returns what is added to the variable: the mean over positions and calls."""
        mean = self.sign * np.concatenate(self.outputs).mean(axis=0, dtype=np.float64)
        if len(self.variable.shape) == 2 and mean.ndim == 1:  # a GRU's: one row for the inputs, one for the state
            return np.stack([mean, 0 * mean] if self.consumer.place == 0 else [0 * mean, mean])
        return np.asarray(mean)

    def inexact(self, layer: str, on_data: bool) -> str:
        """Returns the reason why the change is not exact; empty if it is."""
        if on_data:
            return "their means on the data take the place of removed units"
        joined = np.concatenate(self.outputs)
        if self.consumer.place is None or np.ptp(joined, axis=0).max() > _TOLERANCE * np.abs(joined).max():
            return f"layer {layer!r} gets the average of their constants, which differ at its borders, steps or calls"
        return ""


class _Folder:
    """The search for what removed units put out."""

    def __init__(self, dependencies: DependencyGraph, keep: KeepFn):
        self._dependencies = dependencies
        self._keep = keep
        self._consumers: dict[tuple[int, int | None], ConsumingAxis] = {}
        for consumer in dependencies.registry.consumers.values():
            if not keep(consumer.ids).all():
                self._consumers.setdefault((id(consumer.layer), consumer.place), consumer)
        self._normalizations = dict(_normalizations_after(dependencies.model))

    def fold(self, sample: Sample | None) -> Folding:
        if not self._consumers:
            return Folding()
        with assigned(zeroed_values(self._dependencies, self._keep)):
            constants = {key: value.numpy() for key, value in self._inputs(self._one_row(sample)).items()}
        constants = {key: self._removed(key, value) for key, value in constants.items()}
        channels = {key: value.any(axis=tuple(range(value.ndim - 1))) for key, value in constants.items()}
        used = {key[1:] for key, mask in channels.items() if mask.any()}
        channels = {key: mask for key, mask in channels.items() if key[1:] in used}  # a call that gets zeros counts too
        if not channels:
            return Folding()
        if sample is None:
            outputs = {key: self._linear(key, constants[key]) for key in channels}
        else:
            outputs = self._mean_outputs(sample, channels)
        return self._assign(outputs, channels, sample is not None)

    def _one_row(self, sample: Sample | None) -> list[Any]:
        model = self._dependencies.model
        if sample is not None:
            first, *_ = sample.batches()  # TensorFlow warns of a cache that isn't read to its end
            return [value[:1] for value in finite_inputs(model, first[0])]
        return [_ones(tensor) for tensor in model.inputs]

    def _inputs(self, inputs: list[Any]) -> dict[Key, tf.Tensor]:
        """Returns the mean over rows of what the consuming layers get."""
        means: dict[Key, tf.Tensor] = {}

        def apply(call: graph.Call) -> Any:
            for layer in _nested_layers(call.layer):
                for place in (0, 1, 2, None):
                    if (id(layer), place) in self._consumers:
                        value = tf.cast(_input_of(call, layer, place), tf.float32)
                        means[id(call.outputs[0]), id(layer), place] = tf.reduce_mean(value, 0, keepdims=True)
            return execution.call_layer(call)

        execution.execute(self._dependencies.model, inputs, apply)
        return means

    def _removed(self, key: Key, value: np.ndarray) -> np.ndarray:
        """Returns the input of a consuming layer with zeros for the channels that are kept."""
        removed = ~self._keep(self._consumers[key[1:]].ids)
        return np.where(removed, value, np.float32(0))

    def _mean_outputs(self, sample: Sample, channels: Mapping[Key, np.ndarray]) -> dict[Key, np.ndarray]:
        rows, totals = 0, dict.fromkeys(channels, np.float64(0))
        keys: list[Key] = []

        def means(inputs: list[Any]) -> list[tf.Tensor]:
            values = self._inputs(inputs)
            keys[:] = values
            return list(values.values())

        # TensorFlow counts the traces of a function's code, over all networks; a partial has none.
        traced = tf.function(functools.partial(means), autograph=False, reduce_retracing=True)
        for batch in sample.batches():
            inputs = finite_inputs(self._dependencies.model, batch[0], rows)
            count = int(tf.nest.flatten(inputs)[0].shape[0])
            values = dict(zip(keys, results, strict=True)) if (results := traced(inputs)) else {}
            for key, mask in channels.items():
                output = self._linear(key, np.where(mask, values[key].numpy(), np.float32(0)))
                totals[key] = totals[key] + count * output.mean(axis=0, keepdims=True, dtype=np.float64)
            rows += count
        return {key: np.asarray(total) / rows for key, total in totals.items()}

    def _linear(self, key: Key, value: np.ndarray) -> np.ndarray:
        """Returns what an input adds to the output of a consuming layer before its bias, [positions, *bias shape]."""
        consumer = self._consumers[key[1:]]
        layer = consumer.layer
        if type(layer).__name__ in _RECURRENT:
            kernel = np.asarray(consumer.variable.numpy(), np.float32)
            return value.reshape(-1, kernel.shape[0]) @ kernel
        config = {**layer.get_config(), "activation": "linear", "dtype": "float32"}
        linear = clone.clone_layer(layer, config)
        linear(value)
        for old, new in zip(layer.weights, linear.weights, strict=True):
            new.assign(np.zeros(new.shape) if old is layer.bias else np.asarray(old.numpy()))
        output = np.asarray(linear(value))
        shape = output.shape[-1:] if layer.bias is None else tuple(layer.bias.shape)
        return output.reshape(-1, *shape)

    def _assign(self, outputs: Mapping[Key, np.ndarray], channels: Mapping[Key, np.ndarray], on_data: bool) -> Folding:
        """Adds the mean over positions and calls to each layer's bias."""
        folding = Folding()
        what = "means on the data" if on_data else "constants"
        targets: dict[tuple[int, int, int | None], _Target] = {}
        changed, dropped, infinite = {}, {}, {}
        for key, output in outputs.items():
            consumer = self._consumers[key[1:]]
            variable, sign = self._variable_for(key)
            if variable is not None:
                target = _Target(variable, sign, consumer, channels[key], [])
                target = targets.setdefault((id(variable), *key[1:]), target)
                target.outputs.append(output)
                target.channels = target.channels | channels[key]
            elif channels[key].any():
                name = self._dependencies.name_of(consumer.layer)
                dropped[name] = True
                self._note_groups(folding, consumer, channels[key], f"layer {name!r} has no bias for their constants")
        for target in targets.values():
            if not target.channels.any():
                continue
            name = self._dependencies.name_of(target.consumer.layer)
            value = folding.values.get(id(target.variable), np.asarray(target.variable.numpy()))
            with np.errstate(over="ignore", invalid="ignore"):
                value = (value + target.change()).astype(value.dtype)
            if np.isfinite(value).all():
                changed[name] = True
                folding.values[id(target.variable)] = value
                reason = target.inexact(name, on_data)
            else:
                infinite[name] = True
                reason = f"their {what}, which layer {name!r} gets, are not finite"
            if reason:
                self._note_groups(folding, target.consumer, target.channels, reason)
        units = f"Removed units whose activation of zero is not zero: their {what} are"
        remedy = "Remedy: fine-tuning, or a rule of sparsity 0 for the layers before."
        if changed:
            folding.notes.append(f"{units} in the biases of {_listed(changed)}.")
        if dropped:
            folding.notes.append(
                f"{units} lost to {_listed(dropped)}: no bias there, and no batch normalization right behind. {remedy}"
            )
        if infinite:
            folding.notes.append(f"{units} lost to {_listed(infinite)}: they are not finite there. {remedy}")
        return folding

    def _variable_for(self, key: Key) -> tuple[Any, float]:
        """Returns the variable that takes what a consuming layer loses, and the sign; None without one."""
        layer = self._consumers[key[1:]].layer
        bias = getattr(getattr(layer, "cell", layer), "bias", None)
        if bias is not None:
            return bias, 1.0
        normalization = self._normalizations.get(key[0])
        if normalization is not None and getattr(getattr(layer, "activation", None), "__name__", "linear") == "linear":
            return normalization.moving_mean, -1.0
        return None, 0.0

    def _note_groups(self, folding: Folding, consumer: ConsumingAxis, mask: np.ndarray, reason: str) -> None:
        roots = self._dependencies.registry.roots(consumer.ids[mask])
        for name, group in self._dependencies.groups.items():
            if np.isin(group.roots, roots).any():
                folding.inexact.setdefault(name, reason)


def _ones(tensor: Any) -> Any:
    """Returns one row for an input; a batch of ones if the number of rows is fixed."""
    shape = [tensor.shape[0] or 1, *(size or _FREE_SIZE for size in tuple(tensor.shape)[1:])]
    dtype = tf.as_dtype(getattr(tensor.dtype, "name", tensor.dtype))
    return tf.fill(shape, "") if dtype == tf.string else tf.ones(shape, dtype)


def _states(model: Any) -> list[Any]:
    """Returns the states that stateful layers keep from call to call."""
    layers = [layer for layer in model._flatten_layers() if getattr(layer, "stateful", False)]
    return [state for layer in layers for state in tf.nest.flatten(layer.states) if hasattr(state, "assign")]


def _nested_layers(layer: Any) -> Iterable[Any]:
    yield layer
    if hasattr(layer, "weights"):
        for inner in kernels.sublayers(layer):
            yield from _nested_layers(inner)


def _input_of(call: graph.Call, layer: Any, place: int | None) -> Any:
    """Returns the tensor that a layer multiplies by a kernel when a layer that holds it, or itself, is called."""
    given = [value for name, value in call.arguments.items() if "mask" not in name]
    tensors = [value for value in tf.nest.flatten(given) if tf.is_tensor(value)]
    if place is None:
        return _mean_state(call, layer, tensors)
    tensor = tensors[place]
    if type(call.layer).__name__ == "TimeDistributed":
        tensor = tf.reshape(tensor, tf.concat([[-1], tf.shape(tensor)[2:]], 0))
    return tensor


def _mean_state(call: graph.Call, layer: Any, tensors: list[Any]) -> Any:
    """Returns the state that a recurrent layer multiplies by its recurrent kernel, averaged over the steps."""
    _, *states = tensors
    if layer is not call.layer:  # inside a bidirectional layer, which halves its initial states
        half = len(states) // 2
        states = states[:half] if layer is call.layer.forward_layer else states[half:]
    masks = {name: value for name, value in call.arguments.items() if name == "mask" and tf.is_tensor(value)}
    returns_sequences = layer.return_sequences
    try:
        layer.return_sequences = True
        outputs = tf.nest.flatten(layer(tensors[0], initial_state=states or None, **masks))[0]
    finally:
        layer.return_sequences = returns_sequences
    first = states[0] if states else tf.zeros_like(outputs[:, 0])
    return tf.reduce_mean(tf.concat([tf.cast(first, outputs.dtype)[:, None], outputs[:, :-1]], 1), 1)


def _normalizations_after(model: Any) -> Iterable[tuple[int, Any]]:
    """Yields the id of each tensor that only a batch normalization of its own uses, and the normalization.

    The normalization has one moving mean for each index of the last axis.
    """
    calls = list(graph.calls(model))
    users: dict[int, list[Any]] = {id(tensor): [None] for tensor in model.outputs}
    times: dict[int, int] = {}
    ranks = {id(tensor): len(tensor.shape) for call in calls for tensor in call.outputs}
    for call in calls:
        times[id(call.layer)] = times.get(id(call.layer), 0) + 1
        for tensor in call.inputs:
            users.setdefault(id(tensor), []).append(call.layer)
        if graph.is_functional(call.layer):
            yield from _normalizations_after(call.layer)
    for tensor_id, layers in users.items():
        if len(layers) == 1 and hasattr(layers[0], "moving_mean") and times[id(layers[0])] == 1:
            axes = tf.nest.flatten(layers[0].axis)
            if tensor_id in ranks and [axis % ranks[tensor_id] for axis in axes] == [ranks[tensor_id] - 1]:
                yield tensor_id, layers[0]


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more
