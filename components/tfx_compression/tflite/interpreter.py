"""Running TFLite models on real numbers, with the kernels that a device runs."""

import dataclasses
import functools
import os
import re
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tfx_compression.errors import ModelError
from tfx_compression.tflite.features import fit_feature, is_string, pad_rows

SIGNATURE = "serving_default"


@dataclasses.dataclass(frozen=True)
class TensorDetails:
    """A tensor of a TFLite model.

    Attributes:
      name: Name in the model's signature; without a signature, or inside of the model, the tensor's own name.
      index: Index in the interpreter.
      dtype: NumPy dtype of the stored values.
      shape: Shape, with the batch first; -1 is a free size.
      scale: Scale in `real = (stored - zero_point) * scale`; 0 means that the tensor is not quantized.
      zero_point: Zero point in the same formula.
    """

    name: str
    index: int
    dtype: np.dtype
    shape: tuple[int, ...]
    scale: float
    zero_point: int

    def describe(self) -> dict[str, object]:
        """Returns the details as JSON."""
        return {
            "name": self.name,
            "dtype": np.dtype(self.dtype).name,
            "shape": list(self.shape),
            "scale": self.scale,
            "zero_point": self.zero_point,
        }


def quantize(values: np.ndarray, tensor: TensorDetails) -> np.ndarray:
    """Returns real values as a tensor stores them: divided by its scale, rounded, shifted and saturated.

    Halves are rounded away from zero, as in TFLite's reference kernel (`reference_ops::AffineQuantize`). Values of a
    tensor that is not quantized are cast.
    """
    if not tensor.scale:
        return np.asarray(values).astype(tensor.dtype)
    scaled = np.asarray(values, np.float32) / np.float32(tensor.scale)  # The kernel divides in float32, too.
    rounded = np.rint(scaled)  # Rounds halves to even; they are corrected below.
    scaled -= rounded
    half = np.abs(scaled, out=scaled) == 0.5
    if half.any():
        scaled = np.asarray(values, np.float32) / np.float32(tensor.scale)
        rounded[half] = scaled[half] + np.copysign(np.float32(0.5), scaled[half])
    rounded += np.float32(tensor.zero_point)
    limits: np.iinfo = np.iinfo(tensor.dtype)
    return np.clip(rounded, limits.min, limits.max, out=rounded).astype(tensor.dtype)


def dequantize(values: np.ndarray, tensor: TensorDetails) -> np.ndarray:
    """Returns stored values as real ones, in float32; values of a tensor that is not quantized stay as they are."""
    if not tensor.scale:
        return values
    return (values.astype(np.float32) - np.float32(tensor.zero_point)) * np.float32(tensor.scale)


class Interpreter:
    """A TFLite model that takes and returns real numbers by name.

    It runs on LiteRT, whose kernels are the newest and compute sub-byte weights right, unlike TensorFlow 2.16's. A
    model with TensorFlow's own operators (SELECT_TF_OPS) runs on TensorFlow's interpreter, which has them in
    version 2.16 and not in 2.21.

    Args:
      content: The flatbuffer.
      num_threads: Threads per invocation.
      reference_kernels: Whether TFLite's reference kernels run instead of XNNPACK and the optimized ones. They are slow
        and give the same bits on every machine.
      xnnpack: Whether XNNPACK runs the operators that it has, as on a device. Without it, the built-in kernels do.
      preserve_tensors: Whether every tensor keeps its values after a run, for `tensor_values`. Takes more memory.
      signature: Name of the signature to run. None means `serving_default`, or the only one.
      trusted: Whether to skip the check of the content, because it was checked before or a crash is provided for.

    Attributes:
      inputs: Inputs by name in the signature. Without a signature they go by the tensor's name, shortened from
        `serving_default_x:0` to `x` where that is unique.
      outputs: Outputs, named in the same way.
      has_signature: Whether the model has a signature.
      runtime: Name of the runtime and its kernels.
      seconds: Time spent in the interpreter so far.

    Raises:
      ModelError: The content is no TFLite model, or none that this runtime runs (code `not-runnable`), or it has
        several signatures and none is `serving_default` (`ambiguous-signature`).
    """

    def __init__(
        self,
        content: bytes,
        num_threads: int = 1,
        reference_kernels: bool = False,
        *,
        xnnpack: bool = True,
        preserve_tensors: bool = False,
        signature: str | None = None,
        trusted: bool = False,
    ):
        if not trusted:  # The interpreter reads beyond the end of a truncated file.
            from tfx_compression.tflite.flatbuffer import parse

            parse(content)
        try:
            self._interpreter, library = _load(content, num_threads, reference_kernels, xnnpack, preserve_tensors)
            if not _has_free_sizes(self._interpreter):  # Free sizes are known with the first batch only.
                self._interpreter.allocate_tensors()
            signature = signature or _choose_signature(self._interpreter.get_signature_list())
            self._runner = None
            if signature is None:
                self.inputs = _all_details(_by_plain_name(self._interpreter.get_input_details()))
                self.outputs = _all_details(_by_plain_name(self._interpreter.get_output_details()))
            else:
                runner = self._interpreter.get_signature_runner(signature)
                self.inputs = _all_details(runner.get_input_details())
                self.outputs = _all_details(runner.get_output_details())
                if runner._subgraph_index != 0:  # No public attribute tells.
                    self._runner = runner  # Only used here, since it allocates tensors at every call.
        except (ValueError, RuntimeError) as error:
            if isinstance(error, ModelError):
                raise
            raise ModelError(
                f"Not a TFLite model that this runtime can run: {str(error).rstrip(' .')}. "
                "Remedy: convert the model again, for operators that the runtime has.",
                code="not-runnable",
            ) from error
        self.has_signature = signature is not None
        threads = f"{num_threads} thread{'s' if num_threads > 1 else ''}"
        kernels = "reference kernels" if reference_kernels else "XNNPACK" if xnnpack else "built-in kernels"
        self.runtime = f"{library}, {kernels}, {threads}"
        self.seconds = 0.0
        self._shapes: dict[str, tuple[int, ...]] = {}

    @property
    def batch_size(self) -> int | None:
        """The number of rows that the model takes at once; None where it takes any.

        Raises:
          ModelError: The inputs have different fixed batch sizes (code `batch-sizes`).
        """
        fixed = {tensor.shape[0] for tensor in self.inputs.values() if tensor.shape[:1] not in ((), (-1,))}
        if len(fixed) > 1:
            raise ModelError(
                f"The TFLite model's inputs have different fixed batch sizes: {sorted(fixed)}. "
                "Remedy: convert it with one batch size.",
                code="batch-sizes",
            )
        return next(iter(fixed), None)

    def predict(self, features: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs the model on rows, in several batches where its batch size is fixed.

        Args:
          features: By input name, [rows, …] real numbers or strings. Each is reshaped to the shape of its input.

        Returns:
          By output name, [rows, …] real numbers.

        Raises:
          ModelError: A feature is missing or doesn't fit, the numbers of rows differ (code `rows`), or a kernel fails
            (`not-runnable`).
        """
        feeds = {name: self._feed(tensor, features) for name, tensor in self.inputs.items()}
        sizes = {len(feed) for feed in feeds.values()}
        if len(sizes) != 1 or 0 in sizes:
            raise ModelError(
                f"The features have {sorted(sizes)} rows. Remedy: pass the same number for each, at least one.",
                code="rows",
            )
        (rows,) = sizes
        size = self.batch_size
        if size is None:
            return self._invoke(feeds)
        batches = [
            self._invoke({name: pad_rows(feed[start : start + size], size) for name, feed in feeds.items()})
            for start in range(0, rows, size)
        ]
        return {name: np.concatenate([batch[name] for batch in batches])[:rows] for name in self.outputs}

    def prepare(self, features: Mapping[str, np.ndarray]) -> Callable[[], object]:
        """Sets the inputs to a batch and returns a function that runs the model on it, to measure latency."""
        feeds = {name: self._feed(tensor, features) for name, tensor in self.inputs.items()}
        self.predict(features)
        if self._runner is not None:
            return lambda: self._call(feeds)
        return self._interpreter.invoke

    def tensor_values(self, index: int) -> np.ndarray | None:
        """Returns the values of a tensor of the main graph after the last batch, as real numbers.

        Needs `preserve_tensors`. None means that the runtime doesn't show the tensor, for example in a loop.
        """
        try:
            stored = self._interpreter.get_tensor(index)
        except ValueError:
            return None
        return dequantize(stored, self._tensors[index])

    @functools.cached_property
    def _tensors(self) -> dict[int, TensorDetails]:
        details = self._interpreter.get_tensor_details()
        return {int(detail["index"]): _details(detail["name"], detail) for detail in details}

    def _feed(self, tensor: TensorDetails, features: Mapping[str, np.ndarray]) -> np.ndarray:
        strings = is_string(tensor.dtype)
        values = fit_feature(tensor.name, features, tensor.shape, strings, "TFLite model")
        return values if strings else quantize(values, tensor)

    def _invoke(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        started = time.perf_counter()
        try:
            stored = self._call(feeds)
        except (ValueError, RuntimeError) as error:
            shapes = ", ".join(f"{name} {list(feed.shape)}" for name, feed in feeds.items())
            raise ModelError(f"The TFLite model can't run a batch of {shapes}: {error}", code="not-runnable") from error
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


def _load(
    content: bytes, num_threads: int, reference_kernels: bool, xnnpack: bool, preserve_tensors: bool
) -> tuple[Any, str]:
    """Returns the interpreter and its name. Only TensorFlow's has TensorFlow's own operators."""
    if re.search(rb"Flex[A-Z]", content) and _needs_tensorflow(content):
        import tensorflow as tf

        xnnpack = False  # It refuses other numbers of rows after the first, beside TensorFlow's own operators.
        resolvers: Any = tf.lite.experimental.OpResolverType
        library, interpreter = f"TensorFlow {tf.__version__} Lite", tf.lite.Interpreter
    else:
        import importlib.metadata

        from ai_edge_litert import interpreter as litert

        if reference_kernels:
            _refuse_blockwise_weights(content)
        resolvers = litert.OpResolverType
        library, interpreter = f"LiteRT {importlib.metadata.version('ai-edge-litert')}", litert.Interpreter
    if reference_kernels:
        resolver = resolvers.BUILTIN_REF
    else:
        resolver = resolvers.AUTO if xnnpack else resolvers.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning: Enabling `experimental_preserve_all_tensors`")
        loaded = interpreter(
            model_content=content,
            num_threads=num_threads,
            experimental_op_resolver_type=resolver,
            experimental_preserve_all_tensors=preserve_tensors,
        )
    return loaded, library


def _needs_tensorflow(content: bytes) -> bool:
    """Returns whether a model has TensorFlow's own operators; refuses them beside sub-byte weights."""
    from tfx_compression.tflite.flatbuffer import parse, sub_byte_tensors

    model = parse(content)
    flex = [code.customCode.decode() for code in model.operatorCodes if (code.customCode or b"").startswith(b"Flex")]
    sub_byte = sub_byte_tensors(model)
    if flex and sub_byte:
        raise ModelError(
            f"The TFLite model has weights of less than a byte ({sub_byte[0]!r}), which LiteRT runs, and "
            f"TensorFlow's own operators ({', '.join(sorted(flex))}), which only TensorFlow's interpreter runs. "
            "TensorFlow's interpreter computes such weights wrong. "
            "Remedy: mode='int8', or a model that needs no select_tf_ops.",
            code="sub-byte-with-flex",
        )
    return bool(flex)


def _has_free_sizes(interpreter: Any) -> bool:
    """Returns whether an input has free sizes besides its batch; with ones in their place it may not run at all."""
    return any(-1 in detail.get("shape_signature", ())[1:] for detail in interpreter.get_input_details())


def _refuse_blockwise_weights(content: bytes) -> None:
    from tfx_compression.tflite.flatbuffer import blockwise_quantization, parse

    for tensor in (tensor for graph in parse(content).subgraphs for tensor in graph.tensors):
        if blockwise_quantization(tensor) is not None:
            raise ModelError(
                f"The weights {tensor.name.decode()!r} have one scale per block, with which LiteRT's reference kernels "
                "compute zeros. Remedy: reference_kernels=False, or block_size=0.",
                code="blockwise-reference-kernels",
            )


def _choose_signature(signatures: Sequence[str]) -> str | None:
    """Returns the signature to run: `serving_default`, or the only one; None where there is none."""
    if SIGNATURE in signatures:
        return SIGNATURE
    if len(signatures) > 1:
        raise ModelError(
            f"The TFLite model has the signatures {', '.join(signatures)} and none of them is {SIGNATURE!r}. "
            f"Remedy: convert it with a signature {SIGNATURE!r}, or with a single one.",
            code="ambiguous-signature",
        )
    return next(iter(signatures), None)


def _by_plain_name(details: Sequence[Mapping]) -> dict[str, Mapping]:
    plain = [os.path.basename(re.sub(r":\d+$", "", detail["name"])).removeprefix(f"{SIGNATURE}_") for detail in details]
    return {
        name if plain.count(name) == 1 else detail["name"]: detail for name, detail in zip(plain, details, strict=True)
    }


def _all_details(details: Mapping[str, Mapping]) -> dict[str, TensorDetails]:
    return {name: _details(name, detail) for name, detail in details.items()}


def _details(name: str, detail: Mapping) -> TensorDetails:
    scale, zero_point = detail["quantization"]
    shape = tuple(int(size) for size in detail.get("shape_signature", detail["shape"]))
    return TensorDetails(name, int(detail["index"]), np.dtype(detail["dtype"]), shape, float(scale), int(zero_point))
