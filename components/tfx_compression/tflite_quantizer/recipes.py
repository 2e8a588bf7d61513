"""Quantization layer by layer: which precision each operator has, and the flatbuffer that comes of it.

The engine is ai-edge-quantizer; its own policy says what an operator can have. What is in 4 bits runs on LiteRT only:
TensorFlow 2.16's interpreter computes some of it wrong without saying so.
"""

import collections
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing
from ai_edge_litert import schema_py_generated as schema
from ai_edge_quantizer import algorithm_manager, qtyping, quantizer
from ai_edge_quantizer.utils import tfl_flatbuffer_utils

from tfx_compression.errors import ModelError
from tfx_compression.tflite import flatbuffer
from tfx_compression.tflite.modes import PRECISIONS, Io, weightless_precision
from tfx_compression.tflite_quantizer.config import PrecisionRule


class Choice(NamedTuple):
    """The precision of an operator; `block_size` as a `PrecisionRule` has it."""

    precision: str
    block_size: int = 0


_FLOAT32 = schema.TensorType.FLOAT32
_ANY = -1  # bits of what comes from outside, or of constants: as the neighbors have it


class Graph:
    """A float flatbuffer's main graph as recipes need it.

    Attributes:
      operators: in the order in which they run.
      kernels: by the index of an operator that is quantized by its weights, the tensor that holds them.
    """

    def __init__(self, content: bytes):
        model = flatbuffer.parse(content)
        self._graph = model.subgraphs[0]
        self._buffers = model.buffers
        self._codes = [model.operatorCodes[operator.opcodeIndex].builtinCode for operator in self._graph.operators]
        self.operators = flatbuffer.operators(model)
        self.kernels = {
            operator.index: kernel for operator in self.operators if (kernel := self._kernel(operator)) is not None
        }
        self.inputs = [int(place) for place in self._graph.inputs if self.is_float(int(place))]
        self.outputs = [int(place) for place in self._graph.outputs if self.is_float(int(place))]
        self._taken = {int(place) for place in self._graph.outputs}.union(*(each.inputs for each in self.operators))

    def is_float(self, tensor: int) -> bool:
        """Whether `tensor` holds floats."""
        return tensor >= 0 and self._graph.tensors[tensor].type == _FLOAT32

    def is_constant(self, tensor: int) -> bool:
        """Whether the values of `tensor` are in the file."""
        return self._buffers[self._graph.tensors[tensor].buffer].data is not None

    def is_table(self, operator: flatbuffer.Operator) -> bool:
        """Whether an operator looks up constants, as Keras' embeddings do: no weights to the quantizer."""
        table = operator.inputs[0] if operator.op == "GATHER" else -1
        return self.is_float(table) and self.is_constant(table)

    def is_taken(self, tensor: int) -> bool:
        """Whether an operator or the caller takes what is in `tensor`."""
        return tensor in self._taken

    def activations(self, tensors: Iterable[int]) -> list[int]:
        """Those of `tensors` that hold floats which are computed."""
        return [tensor for tensor in tensors if self.is_float(tensor) and not self.is_constant(tensor)]

    def name(self, tensor: int) -> str:
        """The name of a tensor, as calibration has it."""
        return str(tfl_flatbuffer_utils.get_tensor_name(self._graph.tensors[tensor]))

    def shape(self, tensor: int) -> tuple[int, ...]:
        """The shape of a tensor."""
        return tuple(int(size) for size in self._graph.tensors[tensor].shape)

    def kind(self, index: int) -> str | None:
        """The quantizer's name of an operator's kind; None where it knows none."""
        return tfl_flatbuffer_utils.TFL_OP_CODE_TO_NAME.get(self._codes[index])

    def scope(self, index: int) -> str:
        """What the quantizer matches an operator's regular expressions with."""
        return str(tfl_flatbuffer_utils.get_op_scope(self._graph.operators[index], self._graph.tensors))

    def end(self, kind: str) -> str:
        """The scope of what the quantizer calls the operator INPUT or OUTPUT."""
        ends = tfl_flatbuffer_utils.get_subgraph_input_output_operators(self._graph)
        (end,) = (end for end in ends if end.op_key == kind)
        return str(tfl_flatbuffer_utils.get_op_scope(end, self._graph.tensors))

    def _kernel(self, operator: flatbuffer.Operator) -> int | None:
        if not any(_supported(self.kind(operator.index), Choice(name), True) for name in _WEIGHTS_ONLY):
            return None
        constants = [place for place in operator.inputs[:2] if self.is_float(place) and self.is_constant(place)]
        return constants[0] if constants else None


_WEIGHTS_ONLY: tuple[str, ...] = ("float16", "int8_weight_only")


def allowed(graph: Graph, index: int, per_channel: bool = True) -> tuple[str, ...]:
    """The precisions that an operator with a kernel can have."""
    kind = graph.kind(index)
    return tuple(name for name in PRECISIONS if _supported(kind, Choice(name), per_channel))


def resolve(content: bytes, rules: Sequence[PrecisionRule], per_channel: bool = True) -> dict[int, Choice]:
    """The precision of each operator that a rule fits, by its place in the graph; the last rule that fits wins.

    An operator without a kernel (pooling, reshape, …) takes from its rule how many bits activations have, if at all;
    where it can't have that it stays as its neighbors are.

    Args:
      content: a float flatbuffer.
      rules: at least one.
      per_channel: see `Quantization`.

    Raises:
      ModelError: where a rule fits no layer, or a layer with a kernel can't have what the rule says.
    """
    graph = Graph(content)
    choices: dict[int, Choice] = {}
    for rule in rules:
        fitting = [operator.index for operator in graph.operators if re.search(rule.layers, operator.layer)]
        if not fitting:
            layers = dict.fromkeys(operator.layer for operator in graph.operators)
            raise ModelError(
                f"The rule layers={rule.layers!r} fits no layer of the model; it has: {', '.join(layers)}."
            )
        choices.update(dict.fromkeys(fitting, Choice(rule.precision, rule.block_size)))
    for index in choices.keys() & graph.kernels.keys():
        _require_possible(graph, index, choices[index], per_channel)
    for operator in (graph.operators[index] for index in choices):
        precision = choices[operator.index].precision
        if graph.is_table(operator) and not PRECISIONS[precision].weightless:
            possible = ", ".join(name for name, spec in PRECISIONS.items() if spec.weightless)
            raise ModelError(
                f"The layer {operator.layer!r} ({operator.op}) can't have precision {precision!r}: a lookup table can "
                f"have: {possible}. Remedy: a rule after that one with one of these."
            )
    return choices


def uniform(content: bytes, precision: str, block_size: int = 0, per_channel: bool = True) -> dict[int, Choice]:
    """`precision` for every operator that can have it.

    Of fewer bits, the others with a kernel have the next more, 8 at most; what can have none of them stays float32. A
    `block_size` that doesn't divide what a layer takes in leaves that layer with one scale per channel.
    """
    graph = Graph(content)
    choices = {}
    for operator in graph.operators:
        index = operator.index
        wanted = Choice(precision, block_size)
        if block_size and index in graph.kernels and not _divides(graph, index, block_size):
            wanted = Choice(precision)
        others = (Choice(name) for name in (*PRECISIONS[precision].fallbacks, "float32"))
        kind = graph.kind(index)
        choices[index] = next(
            choice
            for choice in (wanted, Choice(precision), *others)
            if index not in graph.kernels or _supported(kind, choice, per_channel)
        )
    return choices


def quantize_layers(
    content: bytes,
    choices: Mapping[int, Choice],
    ranges: Mapping[str, tuple[float, float]] | None = None,
    *,
    io: Io = "integer",
    per_channel: bool = True,
) -> bytes:
    """Quantizes each operator as chosen.

    An operator without a kernel and without a choice in whole numbers has int8 (int16) activations where what it takes
    comes in so and somebody takes on what it returns so: nothing is turned into floats and back in between.

    Args:
      content: a float flatbuffer.
      choices: by the operator's place in the main graph; those that are not in it stay float32.
      ranges: smallest and largest value of the activations, by the tensor's name; of the calibrated precisions.
      io: what the model takes and returns: `integer` (int8, or int16 where the operators next to it have that),
        `uint8`, or `float32`. Floats stay floats on a side where an operator next to it computes in floats.
      per_channel: a scale for each output channel of a kernel, or one for all of it.

    Returns:
      The flatbuffer; signatures are as before.

    Raises:
      ModelError: where an operator can't have what was chosen, or a range is missing.
    """
    if len(flatbuffer.parse(content).subgraphs) > 1:
        raise ModelError(
            "The model has loops or branches, which can't be quantized layer by layer. Remedy: mode 'dynamic' or "
            "'float16'; of Keras' recurrent layers, unroll=True."
        )
    graph = Graph(content)
    for index in choices.keys() & graph.kernels.keys():
        _require_possible(graph, index, choices[index], per_channel)
    bits = _activation_bits(graph, choices, io)
    recipe = _Recipe()
    for operator in graph.operators:
        index = operator.index
        if index in graph.kernels and index in choices and choices[index].precision != "float32":
            recipe.add(graph.scope(index), graph.kind(index), choices[index], per_channel)
        elif index not in graph.kernels and bits[index]:
            recipe.add(graph.scope(index), graph.kind(index), Choice(weightless_precision(bits[index])), per_channel)
    if not recipe.entries:
        return content
    needed = {
        tensor
        for operator in graph.operators
        if bits[operator.index]
        for tensor in graph.activations((*operator.inputs, *operator.outputs))
    }
    if io != "float32":
        _add_io(recipe, graph, bits, io)
    ternary = [
        index for index in graph.kernels if index in choices and PRECISIONS[choices[index].precision].weights == "int2"
    ]
    return recipe.applied(
        _clipped(content, graph, ternary, per_channel) if ternary else content, _values(graph, needed, ranges or {})
    )


def _clipped(content: bytes, graph: Graph, indices: Iterable[int], per_channel: bool) -> bytes:
    """The model with kernels clipped for 2 bits: the quantizer makes -1, 0 or 1 times the largest weight of each."""
    model = flatbuffer.parse(content)
    tensors = model.subgraphs[0].tensors
    uses = collections.Counter(tensor.buffer for subgraph in model.subgraphs for tensor in subgraph.tensors)
    for index in indices:
        tensor = tensors[graph.kernels[index]]
        buffer = model.buffers[tensor.buffer]
        if uses[tensor.buffer] == 1:  # another layer's weights stay as they are
            kernel = np.frombuffer(bytes(buffer.data), np.float32).reshape(tensor.shape)
            scales = ternary_scales(kernel if per_channel else kernel.reshape(1, -1))
            clipped = np.clip(kernel, -scales, scales) if per_channel else np.clip(kernel, -scales[0], scales[0])
            buffer.data = np.frombuffer(clipped.astype(np.float32).tobytes(), np.uint8)
    return flatbuffer.serialize(model)


def ternary_scales(rows: np.ndarray) -> np.ndarray:
    """The scale that leaves each row of weights least squared error as -1, 0 and 1 times it.

    Li and Liu 2016, "Ternary weight networks", arXiv:1605.04711, equations 4 to 6, solved exactly: of the k largest
    absolute weights, the k with the largest `(sum)^2 / k` are not zero, and their mean is the scale.

    Args:
      rows: [rows, weights].

    Returns:
      [rows, 1].
    """
    sums = np.cumsum(-np.sort(-np.abs(rows.astype(np.float64)), axis=1), axis=1)
    counts = np.arange(1, rows.shape[1] + 1)
    best = np.argmax(sums**2 / counts, axis=1)[:, None]
    return np.take_along_axis(sums, best, 1) / (best + 1)


class _Recipe:
    """What ai-edge-quantizer is told."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, Any, Any, str]] = []

    def add(self, scope: str, kind: Any, choice: Choice, per_channel: bool, unsigned: bool = False) -> None:
        if kind == qtyping.TFLOperationName.DEPTHWISE_CONV_2D and PRECISIONS[choice.precision].dynamic:
            per_channel = True  # the kernel reads as many scales, be they there or not
        algorithm, config = _configured(choice, per_channel, unsigned)
        self.entries.append((rf"\A{re.escape(scope)}\Z", kind, config, algorithm))

    def applied(self, content: bytes, values: dict[str, dict[str, np.ndarray]]) -> bytes:
        engine = quantizer.Quantizer(bytearray(content))
        for scope, kind, config, algorithm in self.entries:
            engine.update_quantization_recipe(scope, kind, config, algorithm)
        try:
            made = engine.quantize(values or None, enable_progress_bar=False, enable_progress_report=False)
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"ai-edge-quantizer can't quantize the model as chosen: {error}") from error
        return _plain(bytes(made.quantized_model))


def _plain(content: bytes) -> bytes:
    """What the quantizer made, as TensorFlow's converter writes it.

    All data lies in the flatbuffer: much of it was behind it, where older runtimes don't look. The conversions that
    were put in return as many rows as they take, not one.
    """
    model = flatbuffer.parse(content)
    tensors = model.subgraphs[0].tensors
    for operator in flatbuffer.operators(model):
        if operator.op in ("QUANTIZE", "DEQUANTIZE"):
            taken, returned = tensors[operator.inputs[0]], tensors[operator.outputs[0]]
            if returned.shapeSignature is None:
                returned.shapeSignature = taken.shapeSignature
    return flatbuffer.serialize(model)


def _add_io(recipe: _Recipe, graph: Graph, bits: Mapping[int, int], io: Io) -> None:
    """The entries of what the model takes and returns, where all operators next to it compute in whole numbers."""
    takers = {bits[operator.index] for operator in graph.operators if set(operator.inputs) & set(graph.inputs)}
    givers = {bits[operator.index] for operator in graph.operators if set(operator.outputs) & set(graph.outputs)}
    for names, neighbors, kind in (
        (graph.inputs, takers, qtyping.TFLOperationName.INPUT),
        (graph.outputs, givers, qtyping.TFLOperationName.OUTPUT),
    ):
        if names and neighbors and 0 not in neighbors:
            if io == "uint8" and 16 in neighbors:
                raise ModelError(
                    "io='uint8' doesn't go with the precision 'int16x8' of a layer next to the model's inputs or "
                    "outputs: there is no kernel from one to the other. Remedy: io 'integer' or 'float32'."
                )
            choice = Choice(weightless_precision(8 if io == "uint8" else max(neighbors)))
            recipe.add(graph.end(kind), kind, choice, True, unsigned=io == "uint8")


def _configured(choice: Choice, per_channel: bool, unsigned: bool = False) -> tuple[str, Any]:
    """The algorithm and the configuration of a choice other than float32."""
    granularity, spec = qtyping.QuantGranularity, PRECISIONS[choice.precision]
    if spec.weights == "float16":
        weights = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
        return algorithm_manager.AlgorithmName.FLOAT_CASTING, qtyping.OpQuantizationConfig(
            weight_tensor_config=weights, compute_precision=qtyping.ComputePrecision.FLOAT, explicit_dequantize=True
        )
    blocks = granularity[f"BLOCKWISE_{choice.block_size}"] if choice.block_size else None
    weights = qtyping.TensorQuantizationConfig(
        num_bits=spec.weight_bits,
        granularity=blocks or (granularity.CHANNELWISE if per_channel else granularity.TENSORWISE),
    )
    bits = spec.activation_bits
    activations = bits and qtyping.TensorQuantizationConfig(
        num_bits=bits,
        symmetric=bits == 16,
        dtype=qtyping.TensorDataType.UINT if unsigned else qtyping.TensorDataType.INT,
    )
    precisions = qtyping.ComputePrecision
    return algorithm_manager.AlgorithmName.MIN_MAX_UNIFORM_QUANT, qtyping.OpQuantizationConfig(
        activation_tensor_config=activations or None,
        weight_tensor_config=weights,
        compute_precision=precisions.FLOAT if spec.dequantized_weights else precisions.INTEGER,
        explicit_dequantize=spec.dequantized_weights,
    )


def _supported(kind: str | None, choice: Choice, per_channel: bool) -> bool:
    """Whether the quantizer's policy has a choice for a kind of operator."""
    if choice.precision == "float32":
        return True
    if kind is None:
        return False
    operators = PRECISIONS[choice.precision].operators
    if operators and kind not in operators:
        return False
    algorithm, config = _configured(choice, per_channel)
    try:
        algorithm_manager.check_op_quantization_config(algorithm, kind, config)
    except ValueError:
        return False
    return True


def _divides(graph: Graph, index: int, block_size: int) -> bool:
    return graph.shape(graph.kernels[index])[-1] % block_size == 0


def _require_possible(graph: Graph, index: int, choice: Choice, per_channel: bool) -> None:
    operator, kind = graph.operators[index], graph.kind(index)
    where = f"The layer {operator.layer!r} ({operator.op})"
    if not _supported(kind, Choice(choice.precision), per_channel):
        possible = ", ".join(allowed(graph, index, per_channel))
        raise ModelError(
            f"{where} can't have precision {choice.precision!r}; it can have: {possible}. "
            "Remedy: a rule after that one with one of these."
        )
    if not choice.block_size:
        return
    if not _supported(kind, choice, per_channel):
        raise ModelError(
            f"{where} can't have block_size={choice.block_size} with precision {choice.precision!r}: blocks are of "
            "'int4_dynamic' and of dense layers and embeddings only. Remedy: a rule with block_size 0 for it."
        )
    if not _divides(graph, index, choice.block_size):
        raise ModelError(
            f"{where} takes {graph.shape(graph.kernels[index])[-1]} numbers, which block_size={choice.block_size} "
            "doesn't divide. Remedy: a smaller block_size, or 0, for it."
        )


def _activation_bits(graph: Graph, choices: Mapping[int, Choice], io: Io) -> dict[int, int]:
    """By operator, the bits in which its activations are calibrated; 0 is floats."""
    outside = 0 if io == "float32" else _ANY
    chosen = {
        index: bits
        for index, choice in choices.items()
        if (bits := PRECISIONS[choice.precision].activation_bits)
        and (index in graph.kernels or _supported(graph.kind(index), Choice(weightless_precision(bits)), True))
    }
    found: dict[int, int] = {}
    of_tensor = dict.fromkeys(graph.inputs, outside)
    for operator in graph.operators:
        index = operator.index
        comes = {of_tensor.get(tensor, 0) for tensor in graph.activations(operator.inputs)}
        if index not in graph.kernels and any(not graph.is_taken(place) for place in operator.outputs):
            found[index] = 0  # the quantizer leaves what nobody takes in floats, beside outputs in whole numbers
            continue
        found[index] = chosen.get(index, 0 if index in graph.kernels or 0 in comes else max(comes, default=_ANY))
        of_tensor.update(dict.fromkeys(operator.outputs, found[index]))
    taken: dict[int, set[int]] = {tensor: {outside} for tensor in graph.outputs}
    for operator in reversed(graph.operators):
        index = operator.index
        if found[index] and index not in chosen:
            goes = set().union(*(taken.get(tensor, set()) for tensor in operator.outputs)) - {0}
            bits = found[index] if found[index] != _ANY else max(goes, default=0)
            usable = goes and bits > 0 and _supported(graph.kind(index), Choice(weightless_precision(bits)), True)
            found[index] = bits if usable else 0
        for tensor in operator.inputs:
            taken.setdefault(tensor, set()).add(found[index])
    return found


def _values(
    graph: Graph, needed: Iterable[int], ranges: Mapping[str, tuple[float, float]]
) -> dict[str, dict[str, np.ndarray]]:
    """The ranges as the quantizer takes them."""
    values = {}
    for tensor in needed:
        name = graph.name(tensor)
        if name not in ranges:
            raise ModelError(
                f"The tensor {name!r} has no range, which its quantization needs. Remedy: calibrate the same model; "
                f"there are ranges of: {', '.join(ranges) or 'none'}."
            )
        low, high = ranges[name]
        values[name] = {"min": np.array([low], np.float32), "max": np.array([high], np.float32)}
    return values
