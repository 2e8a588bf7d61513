"""Runs nets of the zoo and compares what they return, without the library's own code."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

Rows = Mapping[str, np.ndarray]
Outputs = Mapping[str, np.ndarray]


class Net:
    """A net, loaded with TensorFlow and Keras alone.

    Args:
      source: A Keras model, or the path of a Keras file or SavedModel.

    Attributes:
      model: The Keras model, or the loaded SavedModel.
      path: Path of the SavedModel; empty for a Keras model.
      keras: 2 or 3; 0 for a SavedModel.
    """

    def __init__(self, source: Any):
        self.model, self.path, self.keras = source, "", 0
        if isinstance(source, str) and source.endswith(".keras"):
            import keras

            self.model, self.keras = keras.saving.load_model(source, compile=False), 3
        elif isinstance(source, str) and source.endswith((".h5", ".hdf5")):
            import tf_keras

            self.model, self.keras = tf_keras.models.load_model(source, compile=False), 2
        elif isinstance(source, str):
            self.model, self.path = tf.saved_model.load(source), source
        else:
            self.keras = 3 if type(source).__module__.startswith("keras.") else 2

    @property
    def inputs(self) -> list[str]:
        """Names of the inputs."""
        if self.keras:
            return [tensor.name.partition(":")[0] for tensor in self.model.inputs]
        return list(self.model.signatures["serving_default"].structured_input_signature[1])

    def run(self, rows: Rows) -> dict[str, np.ndarray]:
        """Returns the outputs by name; those that are strings are left out."""
        if not self.keras:
            return run_signature(self.model, rows)
        values = [tf.constant(rows[name]) for name in self.inputs]
        outputs = self.model(values if len(values) > 1 else values[0], training=False)
        outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
        names = getattr(self.model, "output_names", None) or [f"output_{place}" for place in range(len(outputs))]
        return {name: np.asarray(value) for name, value in zip(names, outputs, strict=True)}


def run_signature(loaded: Any, rows: Rows) -> dict[str, np.ndarray]:
    """Returns what `serving_default` of a loaded SavedModel returns; strings are left out."""
    outputs = loaded.signatures["serving_default"](**{name: tf.constant(values) for name, values in rows.items()})
    return {name: value.numpy() for name, value in outputs.items() if value.dtype != tf.string}


def run_tflite(content: bytes, rows: Rows) -> dict[str, np.ndarray]:
    """Runs a TFLite model on LiteRT, on all rows at once, or one by one where its batch is fixed.

    Inputs and outputs go by their names in the signature; those of a model without one by their order.
    """
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content)
    signatures = interpreter.get_signature_list()
    if not signatures:
        return _run_in_order(interpreter, rows)
    runner = interpreter.get_signature_runner("serving_default" if "serving_default" in signatures else None)
    inputs = runner.get_input_details()
    unnamed = dict(zip(inputs, rows, strict=True)) if set(inputs) != set(rows) else {name: name for name in inputs}
    given = {name: _quantized(rows[unnamed[name]], details) for name, details in inputs.items()}
    fixed = any(details["shape_signature"][:1].tolist() == [1] for details in inputs.values())
    count = len(next(iter(given.values())))
    step = 1 if fixed else count
    batches = [
        runner(**{name: values[start : start + step] for name, values in given.items()})
        for start in range(0, count, step)
    ]
    details = runner.get_output_details()
    return {
        name: _real(np.concatenate([batch[name] for batch in batches]), details[name])
        for name in batches[0]
        if batches[0][name].dtype.kind not in "OSU"
    }


def _run_in_order(interpreter: Any, rows: Rows) -> dict[str, np.ndarray]:
    for details, values in zip(interpreter.get_input_details(), rows.values(), strict=True):
        interpreter.resize_tensor_input(details["index"], values.shape)
    interpreter.allocate_tensors()
    for details, values in zip(interpreter.get_input_details(), rows.values(), strict=True):
        interpreter.set_tensor(details["index"], _quantized(values, details))
    interpreter.invoke()
    return {
        details["name"]: _real(interpreter.get_tensor(details["index"]), details)
        for details in interpreter.get_output_details()
    }


def _quantized(values: np.ndarray, details: Mapping[str, Any]) -> np.ndarray:
    scale, zero_point = details["quantization"]
    if not scale:
        return values if details["dtype"] in (bytes, np.object_, str) else values.astype(details["dtype"])
    limits = np.iinfo(details["dtype"])
    return np.clip(np.rint(values / scale) + zero_point, limits.min, limits.max).astype(details["dtype"])


def _real(values: np.ndarray, details: Mapping[str, Any]) -> np.ndarray:
    scale, zero_point = details["quantization"]
    return (values.astype(np.float32) - zero_point) * np.float32(scale) if scale else values


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How far outputs are from the expected ones; the worst of all outputs.

    Attributes:
      cosine: Cosine of the angle between the two, over all rows, less the expected values' mean over the rows where
        they vary by a tenth of their size or more; None if an output is not finite.
      largest_error: Largest difference, as a fraction of the largest expected value.
      agreement: Share of the rows (or positions) whose largest value is at the same place; None for single values.
    """

    cosine: float | None
    largest_error: float | None
    agreement: float | None


def compare(expected: Outputs, actual: Outputs) -> Comparison:
    """Compares outputs by name, or by shape where the names differ."""
    cosines, errors, agreements = [], [], []
    for name, given in _pairs(expected, actual).items():
        right, left = expected[name].astype(np.float64), given.astype(np.float64)
        if right.shape != left.shape:
            raise ValueError(f"The output {name!r} has the shape {left.shape} instead of {right.shape}.")
        if not np.isfinite(left).all():
            return Comparison(None, None, None)
        cosines.append(_cosine(right, left))
        errors.append(float(np.abs(right - left).max() / max(np.abs(right).max(), 1e-30)))
        if right.ndim > 1 and right.shape[-1] > 1:
            agreements.append(float((right.argmax(-1) == left.argmax(-1)).mean()))
    return Comparison(min(cosines), max(errors), min(agreements, default=None))


def _cosine(expected: np.ndarray, actual: np.ndarray) -> float:
    mean = expected.mean(0)
    if np.linalg.norm(expected - mean) > 0.1 * np.linalg.norm(expected):
        expected, actual = expected - mean, actual - mean
    norms = float(np.linalg.norm(expected) * np.linalg.norm(actual))
    if not norms:
        return float(not np.any(expected) and not np.any(actual))
    return float((expected * actual).sum()) / norms


def _pairs(expected: Outputs, actual: Outputs) -> dict[str, np.ndarray]:
    if set(expected) <= set(actual):
        return {name: actual[name] for name in expected}
    left = list(actual.values())
    pairs = {}
    for name, values in expected.items():
        place = next((place for place, given in enumerate(left) if given.shape == values.shape), None)
        if place is None:
            raise ValueError(f"No output has the shape {values.shape}; there are {[given.shape for given in left]}.")
        pairs[name] = left.pop(place)
    return pairs


def zeroed_outputs(net: Net, pruned: Any, channels: Mapping[str, Sequence[int]], rows: Rows) -> dict[str, np.ndarray]:
    """Returns the outputs of the original network with everything that removed channels compute set to zero.

    Kernels and biases are set to zero at the channels that the record doesn't list as kept. A normalization's scale and
    shift are set to zero at the channels whose parameters are missing in the pruned network.

    Raises:
      LookupError: A layer or a normalization's channels can't be told.
    """
    layers, narrow = _layers(net.model), _layers(pruned)
    values = [(weight, np.asarray(weight)) for weight in net.model.weights]
    try:
        for name, kept in channels.items():
            _zero(*_layer(layers, name), kept)
        for name, layer in layers.items():
            if "Normalization" in type(layer).__name__ and layer.weights:
                _zero_normalization(layer, narrow[name])
        return net.run(rows)
    finally:
        for weight, value in values:
            weight.assign(value)


def _layers(model: Any) -> dict[str, Any]:
    """Returns all layers by name; the name of two layers stands for neither."""
    layers: dict[str, Any] = {}
    for layer in model._flatten_layers(include_self=False, recursive=True):
        layers[layer.name] = None if layer.name in layers else layer
    return {name: layer for name, layer in layers.items() if layer is not None}


def _layer(layers: Mapping[str, Any], name: str) -> tuple[Any, bool]:
    """Returns the layer that the record calls `name`, and whether its heads are meant."""
    path = name.removesuffix("/heads")
    for part in reversed(path.split("/")):
        if part in layers:
            return layers[part], path != name
    raise LookupError(f"The original has no single layer {name!r}.")


def _zero(layer: Any, heads: bool, kept: Sequence[int]) -> None:
    kind = type(layer).__name__
    if kind == "MultiHeadAttention":
        if heads:
            _zero_axis(layer._output_dense.kernel, 0, kept)
            return
        layer, kind = layer._output_dense, "Dense"
    if kind in ("LSTM", "GRU", "SimpleRNN"):
        units = int(layer.units)
        for weight in layer.weights:
            gates = int(weight.shape[-1]) // units
            _zero_axis(weight, -1, [gate * units + unit for gate in range(gates) for unit in kept])
            if "recurrent" in weight.name:
                _zero_axis(weight, 0, kept)
        return
    axis = -2 if kind.startswith("Depthwise") or kind.endswith("Transpose") else -1
    for weight in layer.weights:
        if "depthwise" not in weight.name or kind.startswith("Depthwise"):
            _zero_axis(weight, axis if len(weight.shape) > 1 else -1, kept)


def _zero_axis(weight: Any, axis: int, kept: Sequence[int]) -> None:
    value = np.moveaxis(np.array(weight), axis, -1)
    removed = np.setdiff1d(np.arange(value.shape[-1]), kept)
    value[..., removed] = 0
    weight.assign(np.moveaxis(value, -1, axis))


def _zero_normalization(layer: Any, narrow: Any) -> None:
    """Zeroes the channels whose parameters the narrow layer doesn't have, found by their values, in order."""
    columns = np.stack([np.asarray(weight) for weight in layer.weights], -1)
    left = np.stack([np.asarray(weight) for weight in narrow.weights], -1)
    if len(left) == len(columns):
        return
    if len(np.unique(columns, axis=0)) < len(columns):
        raise LookupError(f"Two channels of {layer.name!r} have the same parameters.")
    kept = [place for place, column in enumerate(columns) if (left == column).all(-1).any()]
    if len(kept) != len(left):
        raise LookupError(f"The parameters of {layer.name!r} changed.")
    for weight in (layer.gamma, layer.beta, getattr(layer, "moving_mean", None)):
        if weight is not None:
            _zero_axis(weight, 0, kept)


def sparsity(model: Any) -> float:
    """Returns the share of zeros in a Keras model's weights of two and more axes."""
    kernels = [np.asarray(weight) for weight in model.weights if len(weight.shape) > 1]
    return float(sum((kernel == 0).sum() for kernel in kernels) / max(1, sum(kernel.size for kernel in kernels)))
