"""Conversion of a SavedModel to a TFLite model by TensorFlow's converter.

The converter can crash the process that it runs in. `convert_in_worker` starts a process of its own for it; the other
functions are for processes that were started for this purpose.
"""

import dataclasses
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from tensorflow.lite.python import convert as lite_convert

from tfx_compression import worker
from tfx_compression.errors import CompressionError, ConfigError, DataError, ModelError, WorkerError
from tfx_compression.tflite import flatbuffer
from tfx_compression.tflite.features import fit_feature
from tfx_compression.tflite.interpreter import SIGNATURE
from tfx_compression.tflite.modes import MODES, Io, ModeSpec
from tfx_compression.tflite.saved_model_graph import SavedModelGraph

MODEL_FILE = "model.tflite"  # in the folder that the worker is given
_WORKER = "tfx_compression.tflite.convert_worker"
_MESSAGE_CHARACTERS = 1500  # of the converter's message
_FLOAT32 = schema.TensorType.FLOAT32

Columns = Mapping[str, np.ndarray]  # by input, [rows, …]


class ConversionError(ModelError):
    """TensorFlow's converter can't convert a model."""


@dataclasses.dataclass(frozen=True)
class ConversionOptions:
    """The options of the converter.

    Attributes:
      mode: Name of a mode of engine `converter` in `modes.MODES`.
      io: What a calibrated model takes and returns: `integer` (the type of its activations), `uint8`, or `float32` with
        the quantization inside.
      per_channel: Whether a kernel has one scale for each output channel, or a single one.
      select_tf_ops: Whether TensorFlow's own operators are used where TFLite has none.
      signatures: Signatures of the SavedModel to convert into one file.
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


def to_tflite(saved_model: str, options: ConversionOptions, columns: Columns | None = None) -> bytes:
    """Converts signatures of a SavedModel in this process, and returns the flatbuffer.

    A quantization-aware model (with TensorFlow's fake quantization) is not calibrated, but keeps the ranges that it was
    trained with, in the modes `float16` and `dynamic` too.

    Args:
      saved_model: Path of the SavedModel.
      options: Options of the converter.
      columns: Rows to measure activation ranges on, for calibrated modes: by input, [rows, …] real numbers. Each
        signature takes its own inputs, one row at a time, or a fixed batch.

    Raises:
      ConversionError: The converter can't convert the model (code `missing-operators`, `free-loop-rows`,
        `free-constant-rows` or `conversion-failed`).
      ModelError: A signature is missing (code `missing-signature`), or the rows don't fit.
      ConfigError: The mode doesn't have this `io` (code `inapplicable-field`).
    """
    mode = options.mode_spec
    if options.io not in mode.io:
        raise ConfigError(
            f"A model of mode {mode.name!r} can't have io={options.io!r}. Remedy: io {', '.join(mode.io)}.",
            field="ConversionOptions.io",
            code="inapplicable-field",
        )
    worker.step("reading the SavedModel")
    converter = _converter(saved_model, options, columns or {})
    worker.step("converting the graph")
    try:
        return bytes(converter.convert())
    except CompressionError:  # The rows don't fit.
        raise
    except (lite_convert.ConverterError, ValueError, RuntimeError) as error:
        raise _conversion_error(saved_model, options, str(error)) from error


def quantize_with_ranges(
    content: bytes, options: ConversionOptions, ranges: Mapping[str, tuple[float, float]]
) -> bytes:
    """Quantizes a float model to int8 with given activation ranges, by the function that the converter itself calls.

    Args:
      content: A float32 flatbuffer that `to_tflite` returned.
      options: Options of the converter, of which `io` and `per_channel` are used.
      ranges: Smallest and largest value of each float input and each operator's float output, by the name of the
        tensor in the main graph.

    Raises:
      ModelError: A tensor has no range, or a range has no tensor (code `unmatched-ranges`), or a range is not finite or
        reversed (`invalid-range`).
    """
    model = flatbuffer.parse(content)
    graph = model.subgraphs[0]
    computed = {int(index) for operator in graph.operators for index in operator.outputs}
    activations = {
        graph.tensors[index].name.decode(): graph.tensors[index]
        for index in sorted({*map(int, graph.inputs), *computed})
        if graph.tensors[index].type == _FLOAT32
    }
    if activations.keys() != ranges.keys():
        without, unknown = sorted(activations.keys() - ranges.keys()), sorted(ranges.keys() - activations.keys())
        raise ModelError(
            "Each float tensor of the main graph needs one range. "
            f"Tensors without a range: {without or 'none'}; ranges without a tensor: {unknown or 'none'}. "
            "Remedy: ranges measured on the same model.",
            code="unmatched-ranges",
        )
    for name, (low, high) in ranges.items():
        if not (np.isfinite([low, high]).all() and low <= high):
            raise ModelError(
                f"The range of the tensor {name!r} is {low} to {high}. Remedy: a finite range in ascending order.",
                code="invalid-range",
            )
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
    """Returns a model with its sparse kernels in sparse encoding, by the function that the converter itself calls.

    TensorFlow decides which kernels those are: float kernels of dense layers and convolutions that are mostly zeros.
    """
    worker.step("encoding sparse kernels")
    return bytes(lite_convert.mlir_sparsify(content))


def flex_operators(content: bytes) -> dict[str, tuple[str, ...]]:
    """Returns TensorFlow's own operators in a TFLite model (`FlexErf`, …), with the layers that use them."""
    model = flatbuffer.parse(content)
    layers_by_operator: dict[str, list[str]] = {}
    for graph in model.subgraphs:
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex].customCode or b""
            if code.startswith(b"Flex"):
                layers = layers_by_operator.setdefault(code.decode(), [])
                outputs = [graph.tensors[index].name.decode() for index in operator.outputs]
                layer = flatbuffer.layer_name(outputs[0]) if outputs else ""
                if layer not in layers:
                    layers.append(layer)
    return {name: tuple(layers) for name, layers in layers_by_operator.items()}


def convert_in_worker(path: str, mode: str) -> bytes:
    """Converts the `serving_default` of a SavedModel in another process, which also runs the result once, on zeros.

    The inputs of the TFLite model are called `serving_default_<feature>`.

    Args:
      path: Path of the SavedModel.
      mode: Name of a mode that isn't calibrated.

    Raises:
      ConversionError: The converter can't convert the model, crashes or hangs; the code is that of the cause.
    """
    with tempfile.TemporaryDirectory(prefix="tfx-compression-") as folder:
        task = f"TensorFlow's converter, given the model in {path}, in mode {mode!r},"
        try:
            worker.run(_WORKER, {"source": path, "mode": mode, "folder": folder}, task=task)
        except (ModelError, DataError, WorkerError) as error:
            raise ConversionError(str(error), field=error.field, code=error.code) from error
        with open(os.path.join(folder, MODEL_FILE), "rb") as file:
            return file.read()


def _converter(saved_model: str, options: ConversionOptions, columns: Columns) -> Any:
    """Returns TensorFlow's converter with the options set."""
    mode = options.mode_spec
    graph = SavedModelGraph(saved_model)
    inputs = {name: graph.inputs(name) for name in options.signatures}
    converter = tf.lite.TFLiteConverter.from_saved_model(saved_model, signature_keys=list(options.signatures))
    converter._experimental_disable_per_channel = not options.per_channel  # There is no public option.
    operators = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if mode.quantized:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if mode.weights == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if mode.calibrated:
        converter.inference_input_type = converter.inference_output_type = options.io_type
        quantization_aware = graph.is_quantization_aware(options.signatures)
        if quantization_aware and mode.activations == "int16":
            raise ModelError(
                f"The model in {saved_model} is quantization-aware, with ranges for 8 bits. Remedy: mode 'int8'.",
                code="quantization-aware",
            )
        if mode.activations == "int16":
            operators.append(tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8)
        elif not quantization_aware:  # With integer operators only, the converter requires rows.
            operators = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        if not quantization_aware:
            batches = _calibration_batches(inputs, columns, options)
            converter.representative_dataset = lambda: _reported(batches)
    if options.select_tf_ops:
        operators.append(tf.lite.OpsSet.SELECT_TF_OPS)
    converter.target_spec.supported_ops = operators
    return converter


def _reported(batches: Iterator[Any]) -> Iterator[Any]:
    """Yields batches, and reports the step that the converter is at before and after."""
    worker.step("calibrating")
    yield from batches
    worker.step("quantizing")


def _calibration_batches(
    inputs: Mapping[str, Mapping[str, tf.TensorSpec]], columns: Columns, options: ConversionOptions
) -> Iterator[Any]:
    """Yields batches in the converter's form: by input; with several signatures, paired with the signature's name."""
    if not columns:
        raise ModelError(
            f"Mode {options.mode!r} measures activation ranges on rows, and got none. Remedy: pass rows, or choose "
            "mode 'dynamic' or 'float16'.",
            code="missing-rows",
        )
    for signature, specs in inputs.items():
        model = f"signature {signature!r}"
        fitted = {name: _fit_column(name, columns, spec, model) for name, spec in specs.items()}
        lengths = {len(values) for values in fitted.values()}
        if len(lengths) != 1 or 0 in lengths:
            raise ModelError(
                f"The inputs of {model} have {sorted(lengths)} rows. Remedy: pass the same number for each, at least "
                "one.",
                code="rows",
            )
        (length,) = lengths
        size = max([spec.shape[0] or 1 for spec in specs.values() if spec.shape.rank], default=1)
        for start in range(0, length, size):
            rows = np.arange(start, start + size) % length  # The last batch is filled up with the first rows.
            batch = {name: values[rows] for name, values in fitted.items()}
            yield batch if len(inputs) == 1 else (signature, batch)


def _fit_column(name: str, columns: Columns, spec: tf.TensorSpec, model: str) -> np.ndarray:
    if spec.dtype == tf.string:
        raise ModelError(
            f"The {model} takes strings, {name!r}, which have no range. Remedy: look them up before the model, or "
            "choose mode 'dynamic'.",
            code="string-input",
        )
    shape = [-1 if size is None else size for size in spec.shape] if spec.shape.rank else [-1]
    return fit_feature(name, columns, shape, False, model).astype(spec.dtype.as_numpy_dtype)


def _conversion_error(saved_model: str, options: ConversionOptions, message: str) -> ConversionError:
    """Returns the error for a message of the converter, with the operators that are missing first."""
    problem = f"The model in {saved_model} can't be converted in mode {options.mode!r}: "
    if "element_shape to be static" in message:
        return ConversionError(
            f"{problem}TFLite must know how many rows a recurrent layer, or another loop that collects results, takes "
            "at once. Remedy: batch_size=1, or as many as the device passes at once.",
            code="free-loop-rows",
        )
    flex = re.findall(r"(?:TF Select|Flex) ops: (.+)", message)
    custom = re.findall(r"Custom ops: (.+)", message)
    if flex and not options.select_tf_ops:
        return ConversionError(
            f"{problem}TFLite has no operator for TensorFlow's {flex[0].strip()}. Remedy: select_tf_ops=True, which "
            "uses TensorFlow's own; the device then needs the Flex delegate, of several megabytes, and runs them on "
            "the CPU only. Or compute it outside of the model.",
            code="missing-operators",
        )
    if custom:
        return ConversionError(
            f"{problem}neither TFLite nor its Flex delegate has {custom[0].strip()}. "
            "Remedy: compute it outside of the model.",
            code="missing-operators",
        )
    if "Couldn't convert tensor proto to tensor" in message:
        return ConversionError(
            f"{problem}it computes with constants whose size depends on the number of rows (tf.math.lgamma does). "
            "Remedy: batch_size=1, or as many as the device passes at once.",
            code="free-constant-rows",
        )
    if options.mode_spec.activations == "int16" and not options.per_channel:
        problem += (
            "TensorFlow has no depthwise convolutions with a single scale in it. Remedy: per_channel=True. It said: "
        )
    lines = " ".join(line.strip() for line in message.splitlines() if line.strip())
    return ConversionError(problem + lines[:_MESSAGE_CHARACTERS], code="conversion-failed")
