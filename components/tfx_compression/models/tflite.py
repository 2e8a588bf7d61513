"""TFLite models: what is in them, and running them with the numbers that a device gets."""

import collections
import dataclasses
import itertools
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.lite.tools import flatbuffer_utils

from tfx_compression.models.keras2 import ModelError

FILE = "tflite"  # the name under Format-Serving/ that TFMA reads


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An input or output.

    Attributes:
      name: as in the model's signature; without one, the tensor's own name.
      index: the interpreter's.
      dtype: NumPy's.
      shape: -1 where the size is free; the first dimension is the batch.
      scale, zero_point: `real = (stored - zero_point) * scale`; a scale of 0 means not quantized.
    """

    name: str
    index: int
    dtype: np.dtype
    shape: tuple[int, ...]
    scale: float
    zero_point: int

    def describe(self) -> dict[str, object]:
        """The tensor as JSON has it."""
        return {
            "name": self.name,
            "dtype": np.dtype(self.dtype).name,
            "shape": list(self.shape),
            "scale": self.scale,
            "zero_point": self.zero_point,
        }


def quantize(values: np.ndarray, tensor: Tensor) -> np.ndarray:
    """Real values as `tensor` stores them: divided by the scale, rounded half away from zero, shifted, saturated.

    As TFLite's reference kernel does (`reference_ops::AffineQuantize`). Values of an unquantized tensor are cast.
    """
    if not tensor.scale:
        return np.asarray(values).astype(tensor.dtype)
    # float32 as in the kernel; the rounding in float64, where adding 0.5 is exact.
    scaled = (np.asarray(values, np.float32) / np.float32(tensor.scale)).astype(np.float64)
    rounded = np.copysign(np.floor(np.abs(scaled) + 0.5), scaled) + tensor.zero_point
    limits: np.iinfo = np.iinfo(tensor.dtype)
    return np.clip(rounded, limits.min, limits.max).astype(tensor.dtype)


def dequantize(values: np.ndarray, tensor: Tensor) -> np.ndarray:
    """Stored values as real ones, in float32; those of an unquantized tensor as they are."""
    if not tensor.scale:
        return values
    return (values.astype(np.float32) - np.float32(tensor.zero_point)) * np.float32(tensor.scale)


class Interpreter:
    """A TFLite model that takes and returns real numbers by name, on the kernels that a device runs (XNNPACK).

    Args:
      content: the flatbuffer.
      num_threads: threads per invocation.

    Raises:
      ModelError: where `content` is no TFLite model.
    """

    def __init__(self, content: bytes, num_threads: int = 1):
        _parse(content)  # the interpreter reads beyond the end of a file that was cut off
        try:
            self._interpreter = tf.lite.Interpreter(model_content=content, num_threads=num_threads)
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"Not a TFLite model that this runtime can run: {error}") from error
        signatures = self._interpreter.get_signature_list()
        if signatures:
            runner = self._interpreter.get_signature_runner(next(iter(signatures)))
            inputs, outputs = runner.get_input_details(), runner.get_output_details()
        else:
            inputs = {detail["name"]: detail for detail in self._interpreter.get_input_details()}
            outputs = {detail["name"]: detail for detail in self._interpreter.get_output_details()}
        self.inputs = {name: _tensor(name, detail) for name, detail in inputs.items()}
        self.outputs = {name: _tensor(name, detail) for name, detail in outputs.items()}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def predict(self, features: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs a batch.

        Args:
          features: by input name, [batch, …] real numbers; each is reshaped to what the input takes.

        Returns:
          By output name, [batch, …] real numbers.

        Raises:
          ModelError: where an input is missing or doesn't fit.
        """
        feeds = {name: self._feed(tensor, features) for name, tensor in self.inputs.items()}
        sizes = {len(feed) for feed in feeds.values()}
        if len(sizes) != 1 or 0 in sizes:
            raise ModelError(f"The features have {sorted(sizes)} rows; they must have as many each, and one at least.")
        (rows,) = sizes
        fixed = {tensor.name: tensor.shape[:1] for tensor in self.inputs.values() if tensor.shape[:1] != (-1,)}
        if not fixed:
            return self._invoke(feeds)
        if any(size != (1,) for size in fixed.values()):
            raise ModelError(
                f"The TFLite model takes batches of a fixed size: {fixed}. Remedy: convert it with a free batch "
                "or one of 1."
            )
        parts = [self._invoke({name: feed[row : row + 1] for name, feed in feeds.items()}) for row in range(rows)]
        return {name: np.concatenate([part[name] for part in parts]) for name in self.outputs}

    def prepare(self, features: Mapping[str, np.ndarray]) -> Callable[[], None]:
        """Sets the inputs of a batch and returns what runs the model on them: what a device's latency is made of."""
        self.predict(features)
        return self._interpreter.invoke

    def _feed(self, tensor: Tensor, features: Mapping[str, np.ndarray]) -> np.ndarray:
        if tensor.name not in features:
            raise ModelError(
                f"The TFLite model takes {tensor.name!r}, which is no feature of the examples; they have: "
                f"{', '.join(sorted(features)) or 'none'}. Remedy: name the signature's arguments after the features."
            )
        values = np.asarray(features[tensor.name])
        if not values.ndim:
            raise ModelError(f"The feature {tensor.name!r} is a single value; it must be a batch of them.")
        if values.dtype == object:
            raise ModelError(f"The feature {tensor.name!r}, which the TFLite model takes, is missing in some rows.")
        try:
            # Sizes that are free are the features' own.
            free = values.shape[1:] if values.ndim == len(tensor.shape) else ()
            shape = [own if size == -1 else size for size, own in itertools.zip_longest(tensor.shape[1:], free)]
            return quantize(values.reshape(len(values), *(-1 if size is None else size for size in shape)), tensor)
        except ValueError as error:
            raise ModelError(
                f"The feature {tensor.name!r} has shape {values.shape}, the TFLite model takes {tensor.shape}."
            ) from error

    def _invoke(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        shapes = {name: feed.shape for name, feed in feeds.items()}
        if shapes != self._shapes:
            for name, tensor in self.inputs.items():
                self._interpreter.resize_tensor_input(tensor.index, shapes[name])
            self._interpreter.allocate_tensors()
            self._shapes = shapes
        for name, tensor in self.inputs.items():
            self._interpreter.set_tensor(tensor.index, feeds[name])
        self._interpreter.invoke()
        return {
            name: dequantize(self._interpreter.get_tensor(tensor.index), tensor)
            for name, tensor in self.outputs.items()
        }


def _tensor(name: str, detail: Mapping) -> Tensor:
    scale, zero_point = detail["quantization"]
    signature = tuple(int(size) for size in detail.get("shape_signature", detail["shape"]))
    return Tensor(name, detail["index"], np.dtype(detail["dtype"]), signature, float(scale), int(zero_point))


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a flatbuffer holds.

    Attributes:
      ops: how often each operator occurs.
      float_ops: those that return floats; in a model for integer hardware there should be none.
      weights: by the layer that uses them, the constants of rank 2 or more, their zero point taken off: 0 is a zero
        weight.
    """

    ops: dict[str, int]
    float_ops: dict[str, int]
    weights: dict[str, np.ndarray]

    @property
    def sparsity(self) -> float:
        """Fraction of zeros in all weights."""
        size = sum(weight.size for weight in self.weights.values())
        return sum(weight.size - np.count_nonzero(weight) for weight in self.weights.values()) / size if size else 0.0


_DTYPES = {0: np.float32, 1: np.float16, 9: np.int8}  # TensorType of the TFLite schema
_FLOATS = (0, 1)


def contents(content: bytes) -> Contents:
    """Reads the operators and weights of a TFLite model without running it.

    Raises:
      ModelError: where `content` is no TFLite flatbuffer.
    """
    model = _parse(content)
    try:
        return _contents(model)
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        raise ModelError(f"A damaged TFLite model of {len(content)} bytes: {error}") from error


def _parse(content: bytes) -> Any:
    """The flatbuffer as objects; a ModelError where it is none, or was cut off."""
    if content[4:8] != b"TFL3":
        raise ModelError(f"Not a TFLite model: {len(content)} bytes without the file identifier TFL3.")
    try:
        return flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    except (struct.error, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ModelError(f"A damaged TFLite model of {len(content)} bytes: {error}") from error


def _contents(model: Any) -> Contents:
    ops: collections.Counter[str] = collections.Counter()
    float_ops: collections.Counter[str] = collections.Counter()
    weights = {}
    for graph in model.subgraphs:
        for operator in graph.operators:
            name = flatbuffer_utils.opcode_to_name(model, operator.opcodeIndex)
            ops[name] += 1
            if any(graph.tensors[index].type in _FLOATS for index in operator.outputs):
                float_ops[name] += 1
        for index, tensor in enumerate(graph.tensors):
            data = model.buffers[tensor.buffer].data
            if data is None or not len(data) or len(tensor.shape) < 2 or tensor.type not in _DTYPES:
                continue
            values = np.frombuffer(bytes(data), _DTYPES[tensor.type]).reshape(tensor.shape)
            zero = tensor.quantization.zeroPoint if tensor.quantization is not None else None
            offset = int(zero[0]) if zero is not None and len(zero) else 0
            layer = _layer(graph, index)
            name = layer if layer not in weights else f"{layer}/{index}"
            weights[name] = values - np.asarray(offset, np.int16) if offset else values
    return Contents(dict(ops), dict(float_ops), weights)


def _layer(graph: Any, weight: int) -> str:
    """The name of the layer that uses a constant: the converter names the constants `arith.constant7`, but what an
    operator returns after the layer, `digits/conv_1/Relu;digits/conv_1/BiasAdd;…`.
    """
    tensor = weight
    for operator in graph.operators:  # in the order they run, so a DEQUANTIZE comes before what uses its output
        if tensor in operator.inputs:
            tensor = operator.outputs[0]
            if len(operator.inputs) > 1:
                break
    own = graph.tensors[weight].name.decode()
    if tensor == weight:
        return own
    scopes = [
        part for part in graph.tensors[tensor].name.decode().split(";")[0].split("/") if "PartitionedCall" not in part
    ]
    return "/".join(scopes[:-1]) or own
