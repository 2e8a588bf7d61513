"""Running TFLite models with the numbers that a device gets."""

import dataclasses
import itertools
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tfx_compression.errors import ModelError

SIGNATURE = "serving_default"


@dataclasses.dataclass(frozen=True)
class TensorDetails:
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


def quantize(values: np.ndarray, tensor: TensorDetails) -> np.ndarray:
    """Real values as `tensor` stores them: divided by the scale, rounded half away from zero, shifted, saturated.

    As TFLite's reference kernel does (`reference_ops::AffineQuantize`). Values of an unquantized tensor are cast.
    """
    if not tensor.scale:
        return np.asarray(values).astype(tensor.dtype)
    scaled = np.asarray(values, np.float32) / np.float32(tensor.scale)  # float32 as in the kernel
    rounded = np.rint(scaled)  # to even where it is half way: those go away from zero instead
    scaled -= rounded
    half = np.abs(scaled, out=scaled) == 0.5
    if half.any():
        scaled = np.asarray(values, np.float32) / np.float32(tensor.scale)
        rounded[half] = scaled[half] + np.copysign(np.float32(0.5), scaled[half])
    rounded += np.float32(tensor.zero_point)
    limits: np.iinfo = np.iinfo(tensor.dtype)
    return np.clip(rounded, limits.min, limits.max, out=rounded).astype(tensor.dtype)


def dequantize(values: np.ndarray, tensor: TensorDetails) -> np.ndarray:
    """Stored values as real ones, in float32; those of an unquantized tensor as they are."""
    if not tensor.scale:
        return values
    return (values.astype(np.float32) - np.float32(tensor.zero_point)) * np.float32(tensor.scale)


class Interpreter:
    """A TFLite model that takes and returns real numbers by name, on the kernels that a device runs.

    It runs on LiteRT, whose kernels are the newest and right on sub-byte weights, which TensorFlow 2.16's are not; a
    model with TensorFlow's own operators (SELECT_TF_OPS) runs on TensorFlow's interpreter, which has them (2.16's,
    not 2.21's).

    Args:
      content: the flatbuffer.
      num_threads: threads per invocation.
      reference_kernels: run TFLite's reference kernels instead of XNNPACK and the optimized ones: slow, and the same
        to the bit on every machine.
      trusted: the content was checked before, or a crash is expected and provided for.

    Attributes:
      inputs, outputs: by name in the signature (`serving_default`, or the only one); without a signature, by the
        tensor's name, `serving_default_x:0` as `x` where that tells it from the others.
      has_signature: whether there is one.
      runtime: what runs it, in words.
      seconds: time spent in the interpreter so far.

    Raises:
      ModelError: where `content` is no TFLite model, or none that this runtime can run.
    """

    def __init__(self, content: bytes, num_threads: int = 1, reference_kernels: bool = False, *, trusted: bool = False):
        if not trusted:  # the interpreter reads beyond the end of a file that was cut off
            from tfx_compression.tflite.flatbuffer import parse

            parse(content)
        try:
            self._interpreter, library = _load(content, num_threads, reference_kernels)
            if not _has_free_sizes(self._interpreter):  # those are known with the first batch
                self._interpreter.allocate_tensors()
            signature = _signature(self._interpreter.get_signature_list())
            self._runner = None
            if signature is None:
                self.inputs = _tensors(_by_plain_name(self._interpreter.get_input_details()))
                self.outputs = _tensors(_by_plain_name(self._interpreter.get_output_details()))
            else:
                runner = self._interpreter.get_signature_runner(signature)
                self.inputs = _tensors(runner.get_input_details())
                self.outputs = _tensors(runner.get_output_details())
                if runner._subgraph_index != 0:  # nothing public says so
                    self._runner = runner  # it allocates anew at every call
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"Not a TFLite model that this runtime can run: {error}") from error
        self.has_signature = signature is not None
        threads = f"{num_threads} thread{'s' if num_threads > 1 else ''}"
        self.runtime = f"{library}, {'reference kernels' if reference_kernels else 'XNNPACK'}, {threads}"
        self.seconds = 0.0
        self._shapes: dict[str, tuple[int, ...]] = {}

    def predict(self, features: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs a batch; a model with a batch of fixed size runs as often as it takes.

        Args:
          features: by input name, [batch, …] real numbers or strings; each is reshaped to what the input takes.

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
        fixed = {tensor.shape[0] for tensor in self.inputs.values() if tensor.shape[:1] not in ((), (-1,))}
        if not fixed:
            return self._invoke(feeds)
        if len(fixed) > 1:
            raise ModelError(f"The TFLite model's inputs have batches of different fixed sizes: {sorted(fixed)}.")
        (size,) = fixed
        parts = [
            self._invoke({name: pad_rows(feed[start : start + size], size) for name, feed in feeds.items()})
            for start in range(0, rows, size)
        ]
        return {name: np.concatenate([part[name] for part in parts])[:rows] for name in self.outputs}

    def prepare(self, features: Mapping[str, np.ndarray]) -> Callable[[], object]:
        """Sets the inputs of a batch and returns what runs the model on them: what a device's latency is made of."""
        feeds = {name: self._feed(tensor, features) for name, tensor in self.inputs.items()}
        self.predict(features)
        if self._runner is not None:
            return lambda: self._call(feeds)
        return self._interpreter.invoke

    def _feed(self, tensor: TensorDetails, features: Mapping[str, np.ndarray]) -> np.ndarray:
        strings = tensor.dtype.kind in "OSU"
        values = fit_feature(tensor.name, features, tensor.shape, strings, "TFLite model")
        return values if strings else quantize(values, tensor)

    def _invoke(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        started = time.perf_counter()
        try:
            stored = self._call(feeds)
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"The TFLite model can't run a batch of {_described(feeds)}: {error}") from error
        self.seconds += time.perf_counter() - started
        return {name: dequantize(stored[name], tensor) for name, tensor in self.outputs.items()}

    def _call(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self._runner is not None:
            return dict(self._runner(**feeds))
        shapes = {name: feed.shape for name, feed in feeds.items()}
        if shapes != self._shapes:
            for name, tensor in self.inputs.items():
                self._interpreter.resize_tensor_input(tensor.index, shapes[name])
            self._interpreter.allocate_tensors()
            self._shapes = shapes
        for name, tensor in self.inputs.items():
            self._interpreter.set_tensor(tensor.index, feeds[name])
        self._interpreter.invoke()
        return {name: self._interpreter.get_tensor(tensor.index) for name, tensor in self.outputs.items()}


def fit_feature(
    name: str, features: Mapping[str, np.ndarray], shape: Sequence[int], strings: bool, model: str
) -> np.ndarray:
    """A feature in the shape in which a model takes it.

    Args:
      name: of the model's input, and of the feature.
      features: [batch, …] real numbers or strings, by name.
      shape: [batch, …]; sizes of -1 are free, the feature's own.
      strings: whether the model takes strings.
      model: what it is, in words.

    Raises:
      ModelError: where the feature is missing, be it in some rows only, or doesn't fit.
    """
    if name not in features:
        raise ModelError(
            f"The {model} takes {name!r}, which is no feature of the examples; they have: "
            f"{', '.join(sorted(features)) or 'none'}. Remedy: name the signature's arguments after the features."
        )
    values = _require_every_row(name, features[name])
    if not values.ndim:
        raise ModelError(f"The feature {name!r} is a single value; it must be a batch of them.")
    if (values.dtype.kind in "OSU") != strings:
        raise ModelError(
            f"The feature {name!r} holds {'numbers' if strings else 'strings'}, the {model} takes "
            f"{'strings' if strings else 'numbers'}."
        )
    free = values.shape[1:] if values.ndim == len(shape) else ()
    sizes = [own if size == -1 else size for size, own in itertools.zip_longest(shape[1:], free)]
    try:
        return values.reshape(len(values), *(-1 if size is None else size for size in sizes))
    except ValueError as error:
        raise ModelError(f"The feature {name!r} has shape {values.shape}, the {model} takes {tuple(shape)}.") from error


def _require_every_row(name: str, values: Any) -> np.ndarray:
    array = None if values is None or hasattr(values, "_fields") else np.asarray(values)  # TFMA's ragged are tuples
    strings = (
        array is not None and array.dtype == object and all(isinstance(value, bytes | str) for value in array.flat)
    )
    if array is None or (array.dtype == object and not strings):
        raise ModelError(
            f"The feature {name!r}, which the model takes, is missing in some rows or has not the same number of "
            "values in each. Remedy: fill it in before the examples are written, or evaluate on rows that have it."
        )
    return array


def _load(content: bytes, num_threads: int, reference_kernels: bool) -> tuple[Any, str]:
    """The interpreter and its name. Only TensorFlow's has TensorFlow's own operators."""
    if re.search(rb"Flex[A-Z]", content) and _needs_tensorflow(content):
        import tensorflow as tf

        resolvers: Any = tf.lite.experimental.OpResolverType
        library, interpreter = f"TensorFlow {tf.__version__} Lite", tf.lite.Interpreter
    else:
        import importlib.metadata

        from ai_edge_litert import interpreter as litert

        if reference_kernels:
            _refuse_blocks(content)
        resolvers = litert.OpResolverType
        library, interpreter = f"LiteRT {importlib.metadata.version('ai-edge-litert')}", litert.Interpreter
    kind = resolvers.BUILTIN_REF if reference_kernels else resolvers.AUTO
    return interpreter(model_content=content, num_threads=num_threads, experimental_op_resolver_type=kind), library


def _needs_tensorflow(content: bytes) -> bool:
    """Whether there are TensorFlow's own operators; an error beside sub-byte weights, which it gets wrong."""
    from tfx_compression.tflite.flatbuffer import parse, sub_byte_tensors

    model = parse(content)
    flex = [code.customCode.decode() for code in model.operatorCodes if (code.customCode or b"").startswith(b"Flex")]
    packed = sub_byte_tensors(model)
    if flex and packed:
        raise ModelError(
            f"The TFLite model has weights of less than a byte ({packed[0]!r}), which LiteRT runs, and "
            f"TensorFlow's own operators ({', '.join(sorted(flex))}), which only TensorFlow's interpreter runs, and "
            "that computes such weights wrong. Remedy: mode='int8', or a model that needs no select_tf_ops."
        )
    return bool(flex)


def _has_free_sizes(interpreter: Any) -> bool:
    """Whether an input has free sizes beside its batch: with ones in their place it may not run at all."""
    return any(-1 in detail.get("shape_signature", ())[1:] for detail in interpreter.get_input_details())


def _refuse_blocks(content: bytes) -> None:
    from tfx_compression.tflite.flatbuffer import blockwise_quantization, parse

    for tensor in (tensor for graph in parse(content).subgraphs for tensor in graph.tensors):
        if blockwise_quantization(tensor) is not None:
            raise ModelError(
                f"The weights {tensor.name.decode()!r} have scales of blocks, with which LiteRT's reference kernels "
                "compute zeros. Remedy: reference_kernels=False, or block_size=0."
            )


def _signature(signatures: Sequence[str]) -> str | None:
    """The signature to run: `serving_default`, or the only one; None without any."""
    if SIGNATURE in signatures:
        return SIGNATURE
    if len(signatures) > 1:
        raise ModelError(
            f"The TFLite model has the signatures {', '.join(signatures)} and none of them is {SIGNATURE!r}. "
            f"Remedy: convert it with a signature {SIGNATURE!r}, or with one only."
        )
    return next(iter(signatures), None)


def _by_plain_name(details: Sequence[Mapping]) -> dict[str, Mapping]:
    plain = [os.path.basename(re.sub(r":\d+$", "", detail["name"])).removeprefix(f"{SIGNATURE}_") for detail in details]
    return {
        name if plain.count(name) == 1 else detail["name"]: detail for name, detail in zip(plain, details, strict=True)
    }


def pad_rows(rows: np.ndarray, size: int) -> np.ndarray:
    """`rows` with the last one repeated up to `size`."""
    return rows if len(rows) == size else np.concatenate([rows, np.repeat(rows[-1:], size - len(rows), axis=0)])


def _described(feeds: Mapping[str, np.ndarray]) -> str:
    return ", ".join(f"{name} {list(feed.shape)}" for name, feed in feeds.items())


def _tensors(details: Mapping[str, Mapping]) -> dict[str, TensorDetails]:
    return {name: _tensor(name, detail) for name, detail in details.items()}


def _tensor(name: str, detail: Mapping) -> TensorDetails:
    scale, zero_point = detail["quantization"]
    signature = tuple(int(size) for size in detail.get("shape_signature", detail["shape"]))
    return TensorDetails(
        name, int(detail["index"]), np.dtype(detail["dtype"]), signature, float(scale), int(zero_point)
    )
