"""Recipes of litert-quantizer: what its policy supports, and the flatbuffer that a recipe makes.

Weights of 4 bits and less run on LiteRT only. TensorFlow 2.16's interpreter computes some of them wrong, silently.
"""

import re
from typing import Any, NamedTuple

import numpy as np

from tfx_compression.errors import ModelError
from tfx_compression.tflite import flatbuffer
from tfx_compression.tflite.interpreter import Interpreter
from tfx_compression.tflite.modes import PRECISIONS
from tfx_compression.tflite_quantizer.litert import algorithm_manager, qtyping, quantizer


class PrecisionChoice(NamedTuple):
    """The precision of an operator. `block_size` is that of a `PrecisionRule`."""

    precision: str
    block_size: int = 0


def supports(kind: str | None, choice: PrecisionChoice, per_channel: bool) -> bool:
    """Returns whether operators of a kind can be quantized as chosen.

    Args:
      kind: The quantizer's name of the operator; None for an operator that it doesn't know.
      choice: The precision.
      per_channel: Whether weights have a scale per channel.
    """
    spec = PRECISIONS[choice.precision]
    if not spec.quantized:
        return True
    if kind is None or (spec.operators and kind not in spec.operators):
        return False
    algorithm, config = _operator_config(choice, per_channel)
    try:
        algorithm_manager.check_op_quantization_config(algorithm, kind, config)
    except ValueError:
        return False
    return True


def has_channel_scales(kind: Any, choice: PrecisionChoice, per_channel: bool) -> bool:
    """Returns whether a kernel gets a scale per channel, where `per_channel` is asked for."""
    # The dynamic depthwise kernel reads a scale per channel, whether they are there or not.
    return per_channel or (kind == qtyping.TFLOperationName.DEPTHWISE_CONV_2D and PRECISIONS[choice.precision].dynamic)


class Recipe:
    """The configuration of each operator that is quantized."""

    def __init__(self) -> None:
        self._entries: list[tuple[str, Any, Any, str]] = []

    def __bool__(self) -> bool:
        return bool(self._entries)

    def add(self, scope: str, kind: Any, choice: PrecisionChoice, per_channel: bool, unsigned: bool = False) -> None:
        """Adds an operator.

        Args:
          scope: The name that the quantizer matches with the operator.
          kind: The quantizer's name of the operator.
          choice: Its precision.
          per_channel: Whether its weights have a scale per channel.
          unsigned: Whether its activations are unsigned.
        """
        per_channel = has_channel_scales(kind, choice, per_channel)
        algorithm, config = _operator_config(choice, per_channel, unsigned)
        self._entries.append((rf"\A{re.escape(scope)}\Z", kind, config, algorithm))

    def apply(self, content: bytes, ranges: dict[str, dict[str, np.ndarray]]) -> bytes:
        """Returns the quantized model.

        Args:
          content: A float flatbuffer.
          ranges: `min` and `max` of each calibrated tensor, by its name.

        Raises:
          ModelError: If the quantizer refuses the recipe.
        """
        engine = quantizer.Quantizer(bytearray(content))
        for scope, kind, config, algorithm in self._entries:
            engine.update_quantization_recipe(scope, kind, config, algorithm)
        try:
            result = engine.quantize(ranges or None, enable_progress_bar=False, enable_progress_report=False)
        except (RuntimeError, TypeError, ValueError) as error:
            _refuse_free_sizes(content, error)
            raise ModelError(
                f"litert-quantizer can't quantize the model as chosen: {str(error).rstrip(' .')}. Remedy: mode 'int8' "
                "or 'dynamic', or another precision for the layers that it names.",
                code="refused-by-quantizer",
            ) from error
        return _as_converter_writes(bytes(result.quantized_model))


def _refuse_free_sizes(content: bytes, error: Exception) -> None:
    """Raises an error that names the inputs with free sizes, if a model has them and its kernels can't be prepared.

    The quantizer prepares them with ones in place of free sizes, which is smaller than the kernel of a convolution.
    """
    inputs = Interpreter(content).inputs.values()
    free = [f"{tensor.name!r} {list(tensor.shape)}" for tensor in inputs if -1 in tensor.shape[1:]]
    if not free or "failed to prepare" not in str(error):
        return
    raise ModelError(
        f"The model has inputs of free size, {', '.join(free)} (-1 is free), which litert-quantizer takes as 1, and a "
        f"layer doesn't take that: {str(error).rstrip(' .')}. Remedy: an input of fixed size, such as "
        "Input((30, 4)) instead of Input((None, 4)), or mode 'int8', 'dynamic' or 'int4_dynamic'.",
        code="free-size",
    ) from error


def _operator_config(choice: PrecisionChoice, per_channel: bool, unsigned: bool = False) -> tuple[str, Any]:
    """Returns the quantizer's algorithm and configuration for a choice other than float32."""
    spec = PRECISIONS[choice.precision]
    if spec.weights == "float16":
        weights = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
        return algorithm_manager.AlgorithmName.FLOAT_CASTING, qtyping.OpQuantizationConfig(
            weight_tensor_config=weights, compute_precision=qtyping.ComputePrecision.FLOAT, explicit_dequantize=True
        )
    granularity = qtyping.QuantGranularity
    blocks = granularity[f"BLOCKWISE_{choice.block_size}"] if choice.block_size else None
    weights = qtyping.TensorQuantizationConfig(
        num_bits=spec.weight_bits,
        granularity=blocks or (granularity.CHANNELWISE if per_channel else granularity.TENSORWISE),
    )
    activations = None
    if spec.calibrated:
        activations = qtyping.TensorQuantizationConfig(
            num_bits=spec.activation_bits,
            symmetric=spec.activation_bits == 16,
            dtype=qtyping.TensorDataType.UINT if unsigned else qtyping.TensorDataType.INT,
        )
    compute = qtyping.ComputePrecision
    return algorithm_manager.AlgorithmName.MIN_MAX_UNIFORM_QUANT, qtyping.OpQuantizationConfig(
        activation_tensor_config=activations,
        weight_tensor_config=weights,
        compute_precision=compute.FLOAT if spec.dequantized_weights else compute.INTEGER,
        explicit_dequantize=spec.dequantized_weights,
    )


def _as_converter_writes(content: bytes) -> bytes:
    """Returns the quantizer's model in the form in which TensorFlow's converter writes it.

    All data moves into the flatbuffer: the quantizer puts much of it behind, where older runtimes don't look. The
    conversions that it inserted return as many rows as they take, not one.
    """
    model = flatbuffer.parse(content)
    tensors = model.subgraphs[0].tensors
    for operator in flatbuffer.operators(model):
        if operator.op in ("QUANTIZE", "DEQUANTIZE"):
            source, output = tensors[operator.inputs[0]], tensors[operator.outputs[0]]
            if output.shapeSignature is None:
                output.shapeSignature = source.shapeSignature
    return flatbuffer.serialize(model)
