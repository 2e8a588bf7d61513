"""Quantization layer by layer: places integer activations around the chosen precisions and applies the recipe."""

from collections.abc import Iterable, Mapping

import numpy as np

from tfx_compression.errors import ConfigError, ModelError
from tfx_compression.tflite import flatbuffer
from tfx_compression.tflite.modes import PRECISIONS, Io, weightless_precision
from tfx_compression.tflite_quantizer.litert import qtyping
from tfx_compression.tflite_quantizer.precision_choice import require_supported
from tfx_compression.tflite_quantizer.precision_graph import PrecisionGraph
from tfx_compression.tflite_quantizer.recipe import PrecisionChoice, Recipe, supports
from tfx_compression.tflite_quantizer.ternary import clip_for_two_bits
from tfx_compression.tflite_quantizer.zero_channels import raise_scales, restore_weights

_ANY = -1  # bits of model inputs and of constants, which adapt to the operators around them


def quantize_layers(
    content: bytes,
    choices: Mapping[int, PrecisionChoice],
    ranges: Mapping[str, tuple[float, float]] | None = None,
    *,
    io: Io = "integer",
    per_channel: bool = True,
) -> bytes:
    """Quantizes each operator as chosen.

    Operators without a kernel and without a choice of integers get int8 (int16) activations between integer operators,
    to avoid pairs of DEQUANTIZE and QUANTIZE.

    Args:
      content: A float flatbuffer.
      choices: Precision by the operator's index in the main graph. Operators that are missing stay float32.
      ranges: Smallest and largest value of each activation of a calibrated precision, by the tensor's name.
      io: What the model takes and returns: `integer` (int8, or int16 if the operators next to it have that), `uint8`,
        or `float32`. A side stays in floats if an operator next to it computes in floats.
      per_channel: Whether each output channel of a kernel has a scale, or the kernel has one.

    Returns:
      The flatbuffer, with the same signatures.

    Raises:
      ModelError: If the model has loops or branches, or a range is missing.
      ConfigError: If an operator doesn't support its choice.
    """
    if len(flatbuffer.parse(content).subgraphs) > 1:
        raise ModelError(
            "The model has loops or branches, which can't be quantized layer by layer. Remedy: mode 'dynamic' or "
            "'float16'; for Keras' recurrent layers, unroll=True.",
            code="loops",
        )
    graph = PrecisionGraph(content)
    chosen = sorted(choices.keys() & graph.kernels.keys())
    for index in chosen:
        require_supported(graph, index, choices[index], per_channel)
    bits = place_integer_activations(graph, choices, io)
    recipe = _recipe(graph, choices, bits, per_channel)
    if not recipe:
        return content
    calibrated = {
        tensor
        for operator in graph.operators
        if bits[operator.index]
        for tensor in graph.activations((*operator.inputs, *operator.outputs))
    }
    if io != "float32":
        _add_boundaries(recipe, graph, bits, io)
    ternary = [graph.kernels[index] for index in chosen if PRECISIONS[choices[index].precision].weight_bits == 2]
    if ternary:
        content = clip_for_two_bits(content, ternary, per_channel)
    # The scale of a tensor of zeros would be so small that the next layer's bias saturates.
    ranges = {name: ends if any(ends) else (0.0, 1.0) for name, ends in (ranges or {}).items()}
    content, raised = raise_scales(content, graph, choices, ranges, per_channel)
    return restore_weights(recipe.apply(content, _tensor_ranges(graph, calibrated, ranges)), raised)


def place_integer_activations(
    graph: PrecisionGraph, choices: Mapping[int, PrecisionChoice], io: Io = "integer"
) -> dict[int, int]:
    """Returns the bits of each operator's calibrated activations, by its index; 0 means floats.

    Operators with a kernel, and others whose choice is supported, have the bits of their choice. The others get the
    bits of their inputs if all of those are integers (first pass, forward) and an operator that uses their result
    computes in integers too (second pass, backward).
    """
    boundary = 0 if io == "float32" else _ANY
    chosen = {
        index: bits
        for index, choice in choices.items()
        if (bits := PRECISIONS[choice.precision].activation_bits)
        and (index in graph.kernels or _supports_activations(graph, index, bits))
    }
    placed: dict[int, int] = {}
    tensor_bits = dict.fromkeys(graph.inputs, boundary)
    for operator in graph.operators:
        index = operator.index
        input_bits = {tensor_bits.get(tensor, 0) for tensor in graph.activations(operator.inputs)}
        if index not in graph.kernels and any(not graph.is_used(place) for place in operator.outputs):
            placed[index] = 0  # The quantizer leaves unused outputs in floats, beside integer ones.
            continue
        inherited = 0 if index in graph.kernels or 0 in input_bits else max(input_bits, default=_ANY)
        placed[index] = chosen.get(index, inherited)
        tensor_bits.update(dict.fromkeys(operator.outputs, placed[index]))
    used_as: dict[int, set[int]] = {tensor: {boundary} for tensor in graph.outputs}
    for operator in reversed(graph.operators):
        index = operator.index
        if placed[index] and index not in chosen:
            users = set().union(*(used_as.get(tensor, set()) for tensor in operator.outputs)) - {0}
            bits = placed[index] if placed[index] != _ANY else max(users, default=0)
            placed[index] = bits if users and bits > 0 and _supports_activations(graph, index, bits) else 0
        for tensor in operator.inputs:
            used_as.setdefault(tensor, set()).add(placed[index])
    return placed


def _supports_activations(graph: PrecisionGraph, index: int, bits: int) -> bool:
    choice = PrecisionChoice(weightless_precision(bits))
    return supports(graph.kind(index), choice, per_channel=True) and not graph.selects_constants(index)


def _recipe(
    graph: PrecisionGraph, choices: Mapping[int, PrecisionChoice], bits: Mapping[int, int], per_channel: bool
) -> Recipe:
    recipe = Recipe()
    for operator in graph.operators:
        index = operator.index
        if index in graph.kernels:
            if index in choices and PRECISIONS[choices[index].precision].quantized:
                recipe.add(graph.scope(index), graph.kind(index), choices[index], per_channel)
        elif bits[index]:
            choice = PrecisionChoice(weightless_precision(bits[index]))
            recipe.add(graph.scope(index), graph.kind(index), choice, per_channel)
    return recipe


def _add_boundaries(recipe: Recipe, graph: PrecisionGraph, bits: Mapping[int, int], io: Io) -> None:
    """Adds the model's inputs and outputs, where all operators next to them compute in integers."""
    readers = {bits[operator.index] for operator in graph.operators if set(operator.inputs) & set(graph.inputs)}
    writers = {bits[operator.index] for operator in graph.operators if set(operator.outputs) & set(graph.outputs)}
    for tensors, neighbors, kind in (
        (graph.inputs, readers, qtyping.TFLOperationName.INPUT),
        (graph.outputs, writers, qtyping.TFLOperationName.OUTPUT),
    ):
        if not tensors or not neighbors or 0 in neighbors:
            continue
        if io == "uint8" and 16 in neighbors:
            raise ConfigError(
                "io='uint8' doesn't go with the precision 'int16x8' of a layer next to the model's inputs or outputs: "
                "no kernel converts between them. Remedy: io 'integer' or 'float32'.",
                field="Quantization.io",
                code="incompatible-precision",
            )
        choice = PrecisionChoice(weightless_precision(8 if io == "uint8" else max(neighbors)))
        recipe.add(graph.boundary_scope(kind), kind, choice, per_channel=True, unsigned=io == "uint8")


def _tensor_ranges(
    graph: PrecisionGraph, tensors: Iterable[int], ranges: Mapping[str, tuple[float, float]]
) -> dict[str, dict[str, np.ndarray]]:
    """Returns the ranges of tensors in the quantizer's format."""
    values = {}
    for tensor in tensors:
        name = graph.name(tensor)
        if name not in ranges:
            raise ModelError(
                f"The tensor {name!r} has no range, which its quantization needs. Remedy: calibrate the same model; "
                f"there are ranges for: {', '.join(ranges) or 'none'}.",
                code="missing-range",
            )
        low, high = ranges[name]
        values[name] = {"min": np.array([low], np.float32), "max": np.array([high], np.float32)}
    return values
