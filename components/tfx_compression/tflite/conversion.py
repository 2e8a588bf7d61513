"""From a SavedModel to a TFLite model, by TensorFlow's converter, which can end the process that it runs in.

`convert_in_worker` gives it a process of its own; the other functions are for processes that are there for that.
"""

import dataclasses
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.lite.python import convert as lite_convert

from tfx_compression import worker
from tfx_compression.errors import ConfigError, DataError, ModelError, WorkerError
from tfx_compression.tflite import flatbuffer
from tfx_compression.tflite.features import fit_feature
from tfx_compression.tflite.interpreter import SIGNATURE
from tfx_compression.tflite.modes import MODES, Io, ModeSpec

_WORKER = "tfx_compression.tflite.convert_worker"
MODEL_FILE = "model.tflite"  # in the folder that the worker is given
_FAKE_QUANTIZATION = re.compile(r"FakeQuantWithMinMax\w+|QuantizeAndDequantizeV\d")
_LOOPS = re.compile(r"(Stateless)?(While|If|Case)")
_FLOAT32 = schema.TensorType.FLOAT32


class ConversionError(ModelError):
    """TensorFlow's converter can't make a TFLite model of it."""


@dataclasses.dataclass(frozen=True)
class ConversionOptions:
    """What the converter is asked for.

    Attributes:
      mode: Name of a mode of engine `converter` in `modes.MODES`.
      io: What a calibrated model takes and returns: `integer` (the type of its activations), `uint8`, or `float32` with
        the quantization inside.
      per_channel: a scale for each output channel of a kernel, or one for all of it.
      select_tf_ops: TensorFlow's own operators where TFLite has none.
      signatures: of the SavedModel, all in one file.
    """

    mode: str
    io: Io = "float32"
    per_channel: bool = True
    select_tf_ops: bool = False
    signatures: tuple[str, ...] = (SIGNATURE,)

    @property
    def mode_spec(self) -> ModeSpec:
        """The mode's row."""
        return MODES[self.mode]

    @property
    def io_type(self) -> tf.DType:
        """Type of `io` in this mode."""
        return tf.dtypes.as_dtype(self.mode_spec.activations if self.io == "integer" else self.io)


def to_tflite(saved_model: str, options: ConversionOptions, columns: Mapping[str, np.ndarray] | None = None) -> bytes:
    """The TFLite model of a SavedModel's signatures, made in this process.

    A quantization-aware model (with TensorFlow's fake quantization) keeps the ranges that it was trained in: it is not
    calibrated, and has them in the modes `float16` and `dynamic` too.

    Args:
      saved_model: its path.
      options: what to make.
      columns: of the calibrated modes, rows to measure activation ranges on: by input, [rows, …] real numbers. Each
        signature takes its own inputs, one row at a time, or as many as its batch has.

    Raises:
      ConversionError: where the converter refuses the model.
      ModelError: where a signature is missing, or the rows don't fit.
    """
    mode = options.mode_spec
    if options.io not in mode.io:
        raise ConfigError(
            f"A model of mode {mode.name!r} can't have io={options.io!r}. Remedy: io {', '.join(mode.io)}.",
            field="ConversionOptions.io",
            code="inapplicable-field",
        )
    worker.step("reading the SavedModel")
    graph = _SavedModel(saved_model)
    inputs = {name: graph.inputs(name) for name in options.signatures}
    converter = tf.lite.TFLiteConverter.from_saved_model(saved_model, signature_keys=list(options.signatures))
    converter._experimental_disable_per_channel = not options.per_channel  # nothing public does so
    operators = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if mode.quantized:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if mode.weights == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if mode.calibrated:
        converter.inference_input_type = converter.inference_output_type = options.io_type
        aware = graph.has_operation(options.signatures, _FAKE_QUANTIZATION)
        if aware and mode.activations == "int16":
            raise ModelError(
                f"The model in {saved_model} is quantization-aware: its ranges are of 8 bits. Remedy: mode 'int8'."
            )
        if mode.activations == "int16":
            operators.append(tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8)
        elif not aware:  # of whole numbers only, the converter insists on rows
            operators = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        if not aware:
            rows = _rows(inputs, columns or {}, options)
            converter.representative_dataset = lambda: _told(rows)
    if options.select_tf_ops:
        operators.append(tf.lite.OpsSet.SELECT_TF_OPS)
    converter.target_spec.supported_ops = operators
    worker.step("converting the graph")
    try:
        return bytes(converter.convert())
    except ModelError:  # of the rows
        raise
    except (lite_convert.ConverterError, ValueError, RuntimeError) as error:
        raise _explained(saved_model, options, str(error)) from error


def is_quantization_aware(saved_model: str, signatures: Sequence[str] = (SIGNATURE,)) -> bool:
    """Whether signatures of a SavedModel have fake quantization in them, which the converter takes ranges from."""
    return _SavedModel(saved_model).has_operation(signatures, _FAKE_QUANTIZATION)


def has_loops(saved_model: str, signatures: Sequence[str] = (SIGNATURE,)) -> bool:
    """Whether signatures of a SavedModel have loops or branches in them."""
    return _SavedModel(saved_model).has_operation(signatures, _LOOPS)


def quantize_with_ranges(
    content: bytes, options: ConversionOptions, ranges: Mapping[str, tuple[float, float]]
) -> bytes:
    """An int8 model, made of a float one and the ranges of its activations, by what the converter itself calls.

    Args:
      content: a float32 flatbuffer, as `to_tflite` makes it.
      options: `io` and `per_channel` are used.
      ranges: by the name of a tensor of the main graph, the least and the largest value that it shall hold; of each
        float input and each operator's float output.

    Raises:
      ModelError: where a tensor has no range, a range is none, or belongs to no tensor.
    """
    model = flatbuffer.parse(content)
    graph = model.subgraphs[0]
    returned = {int(place) for operator in graph.operators for place in operator.outputs}
    activations = {
        graph.tensors[place].name.decode(): graph.tensors[place]
        for place in sorted({*map(int, graph.inputs), *returned})
        if graph.tensors[place].type == _FLOAT32
    }
    if activations.keys() != ranges.keys():
        lacking, unknown = sorted(activations.keys() - ranges.keys()), sorted(ranges.keys() - activations.keys())
        raise ModelError(
            f"Ranges belong to the float tensors of the main graph, one to each. Without one: {lacking or 'none'}; "
            f"ranges of no tensor: {unknown or 'none'}."
        )
    for name, (low, high) in ranges.items():
        if not (np.isfinite([low, high]).all() and low <= high):
            raise ModelError(f"The range of the tensor {name!r} is {low} to {high}: it must be finite, and in order.")
        quantization = activations[name].quantization or schema.QuantizationParametersT()
        quantization.min, quantization.max = [low], [high]
        activations[name].quantization = quantization
    worker.step("quantizing by ranges")
    quantized = lite_convert.mlir_quantize(
        flatbuffer.serialize(model),
        disable_per_channel=not options.per_channel,
        input_data_type=options.io_type,
        output_data_type=options.io_type,
    )
    return bytes(lite_convert.deduplicate_readonly_buffers(bytes(quantized)))


def encode_sparse(content: bytes) -> bytes:
    """A model with its sparse kernels encoded as such, by what the converter itself calls.

    Which ones, TensorFlow decides: float kernels of dense layers and convolutions that are mostly zeros.
    """
    worker.step("encoding sparse kernels")
    return bytes(lite_convert.mlir_sparsify(content))


def flex_operators(content: bytes) -> dict[str, tuple[str, ...]]:
    """TensorFlow's own operators in a TFLite model (`FlexErf`, …), with the layers that ask for them."""
    model = flatbuffer.parse(content)
    found: dict[str, list[str]] = {}
    for graph in model.subgraphs:
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex].customCode or b""
            if code.startswith(b"Flex"):
                layers = found.setdefault(code.decode(), [])
                layer = (
                    flatbuffer.layer_name(graph.tensors[operator.outputs[0]].name.decode())
                    if len(operator.outputs)
                    else ""
                )
                if layer not in layers:
                    layers.append(layer)
    return {name: tuple(layers) for name, layers in found.items()}


def convert_in_worker(path: str, mode: str) -> bytes:
    """The TFLite model of the `serving_default` of the SavedModel in `path`, made in another process.

    Its inputs are called `serving_default_<feature>`. It is run there once, on zeros.

    Args:
      path: Path of the SavedModel.
      mode: Name of a mode that isn't calibrated.

    Raises:
      ConversionError: where the converter refuses the model, crashes or hangs.
    """
    with tempfile.TemporaryDirectory(prefix="tfx-compression-") as folder:
        task = f"TensorFlow's converter, given the model in {path}, in mode {mode!r},"
        try:
            worker.run(_WORKER, {"source": path, "mode": mode, "folder": folder}, task=task)
        except (ModelError, DataError, WorkerError) as error:
            raise ConversionError(str(error)) from error
        with open(os.path.join(folder, MODEL_FILE), "rb") as file:
            return file.read()


def _told(rows: Iterator[Any]) -> Iterator[Any]:
    worker.step("calibrating")
    yield from rows
    worker.step("quantizing")


def _rows(
    inputs: Mapping[str, Mapping[str, tf.TensorSpec]], columns: Mapping[str, np.ndarray], options: ConversionOptions
) -> Iterator[Any]:
    """What the converter calibrates on: batches of one signature by input, of several with the signature's name."""
    if not columns:
        raise ModelError(
            f"Mode {options.mode!r} measures activation ranges on rows, and got none. Remedy: give it some, or choose "
            "mode 'dynamic' or 'float16'."
        )
    for signature, specs in inputs.items():
        model = f"signature {signature!r}"
        fitted = {name: _fitted(name, columns, spec, model) for name, spec in specs.items()}
        lengths = {len(values) for values in fitted.values()}
        if len(lengths) != 1 or 0 in lengths:
            raise ModelError(f"The inputs of {model} have {sorted(lengths)} rows; as many each, and one at least.")
        (length,) = lengths
        size = max([spec.shape[0] or 1 for spec in specs.values() if spec.shape.rank], default=1)
        for start in range(0, length, size):
            places = np.arange(start, start + size) % length  # the last batch is filled up from the front
            batch = {name: values[places] for name, values in fitted.items()}
            yield batch if len(inputs) == 1 else (signature, batch)


def _fitted(name: str, columns: Mapping[str, np.ndarray], spec: tf.TensorSpec, model: str) -> np.ndarray:
    if spec.dtype == tf.string:
        raise ModelError(
            f"The {model} takes strings, {name!r}, which can't be calibrated on. Remedy: look them up before the "
            "model, or choose mode 'dynamic'."
        )
    shape = [-1 if size is None else size for size in spec.shape] if spec.shape.rank else [-1]
    return fit_feature(name, columns, shape, False, model).astype(spec.dtype.as_numpy_dtype)


class _SavedModel:
    """The graph of a SavedModel as it is written, without loading it: a second or more on large ones."""

    def __init__(self, path: str):
        self.path = path
        stored = saved_model_pb2.SavedModel()
        try:
            with tf.io.gfile.GFile(os.path.join(path, "saved_model.pb"), "rb") as file:
                stored.ParseFromString(file.read())
        except tf.errors.NotFoundError as error:
            raise ModelError(f"There is no SavedModel in {path}: it has no saved_model.pb.") from error
        self._graph = stored.meta_graphs[0]

    def inputs(self, signature: str) -> dict[str, tf.TensorSpec]:
        return {
            name: tf.TensorSpec(tf.TensorShape(info.tensor_shape), tf.dtypes.as_dtype(info.dtype), name=name)
            for name, info in self._signature(signature).inputs.items()
        }

    def has_operation(self, signatures: Sequence[str], kind: re.Pattern[str]) -> bool:
        library = {function.signature.name: function for function in self._graph.graph_def.library.function}
        outputs = {info.name for name in signatures for info in self._signature(name).outputs.values()}
        places = sorted({output.split(":")[0] for output in outputs})
        todo = list(tf.compat.v1.graph_util.extract_sub_graph(self._graph.graph_def, places).node)
        seen: set[str] = set()
        while todo:
            node = todo.pop()
            if kind.fullmatch(node.op):
                return True
            called = {value.func.name for value in node.attr.values() if value.HasField("func")}
            called |= {function.name for value in node.attr.values() for function in value.list.func}
            for name in (called & library.keys()) - seen:
                seen.add(name)
                todo.extend(library[name].node_def)
        return False

    def _signature(self, name: str) -> Any:
        found = self._graph.signature_def
        if name not in found:
            there = ", ".join(sorted(key for key in found if not key.startswith("__"))) or "none"
            raise ModelError(f"The SavedModel in {self.path} has no signature {name!r}, only: {there}.")
        return found[name]


def _explained(saved_model: str, options: ConversionOptions, words: str) -> ConversionError:
    """What the converter said, with the operators that it lacks in front."""
    lacks = f"The model in {saved_model} can't be converted in mode {options.mode!r}: "
    if "element_shape to be static" in words:
        return ConversionError(
            f"{lacks}TFLite must know how many rows a recurrent layer, or another loop that collects results, takes at "
            "once. Remedy: batch_size=1, or as many as the device gives it."
        )
    listed = re.findall(r"(?:TF Select|Flex) ops: (.+)", words)
    custom = re.findall(r"Custom ops: (.+)", words)
    if listed and not options.select_tf_ops:
        return ConversionError(
            f"{lacks}TFLite has no operator for TensorFlow's {listed[0].strip()}. Remedy: select_tf_ops=True, which "
            "takes TensorFlow's own; the device then needs the Flex delegate, of several megabytes, and runs them on "
            "the CPU only. Or do it outside of the model."
        )
    if custom:
        return ConversionError(
            f"{lacks}neither TFLite nor its Flex delegate has {custom[0].strip()}. Remedy: do it outside of the model."
        )
    if options.mode_spec.activations == "int16" and not options.per_channel:
        lacks += "TensorFlow has no depthwise convolutions with one scale in it. Remedy: per_channel=True. It said: "
    return ConversionError(lacks + " ".join(line.strip() for line in words.splitlines() if line.strip())[:1500])
