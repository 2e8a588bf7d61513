"""What the rules of a device look at: each operator with its options and tensors; and a verdict made of a rule."""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfx_compression.tflite.flatbuffer import operators
from tfx_compression.tflite_quantizer.record import DelegateVerdict, OperatorVerdict

SUB_BYTE = ("int4", "int2")
_TYPES = {number: name.lower() for name, number in vars(schema.TensorType).items() if isinstance(number, int)} | {
    17: "int4",
    19: "int2",
}
_ACTIVATIONS = {number: name for name, number in vars(schema.ActivationFunctionType).items() if isinstance(number, int)}
_BLOCKWISE = 2  # QuantizationDetails of the schema; newer than TensorFlow 2.16's
_MADE_ONCE = ("DEQUANTIZE", "DENSIFY")  # of a constant: done as the model is loaded


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of the graph.

    Attributes:
      name: its own.
      dtype: as the schema has it, in lower case.
      shape: -1 where the size is free.
      constant: in the file, or made once of what is in the file.
      values: the integers of a constant of 32 bits; None of everything else.
      scales, zero_points: of its quantization.
      blockwise: whether its scales are of blocks.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    constant: bool
    values: tuple[int, ...] | None
    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    blockwise: bool

    @property
    def axes(self) -> frozenset[int]:
        """The dimensions that differ from 1, counted from the end: -1 is the innermost."""
        return frozenset(place - len(self.shape) for place, size in enumerate(self.shape) if size != 1)


@dataclasses.dataclass(frozen=True)
class Node:
    """An operator: `version` is its schema's; `inputs` has None for an optional one that is not there."""

    index: int
    op: str
    layer: str
    version: int
    custom: bool
    options: Any
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]

    @property
    def activation(self) -> str:
        """The fused activation: NONE, RELU, RELU6, …"""
        return _ACTIVATIONS[getattr(self.options, "fusedActivationFunction", 0)]

    @property
    def folded(self) -> bool:
        """Whether it makes floats of constants: done as the model is loaded, by whatever runs what uses them."""
        return self.op in _MADE_ONCE and self.inputs[0] is not None and self.inputs[0].constant

    @property
    def flex(self) -> bool:
        """Whether it is one of TensorFlow's own."""
        return self.custom and self.op.startswith("Flex")

    def input(self, place: int) -> Tensor | None:
        """The input at a place; None where there is none."""
        return self.inputs[place] if place < len(self.inputs) else None

    @property
    def flowing(self) -> tuple[Tensor, ...]:
        """The tensors that are made as the model runs: inputs that are no constants, and outputs."""
        return (*(tensor for tensor in self.inputs if tensor is not None and not tensor.constant), *self.outputs)

    def __str__(self) -> str:
        return f"operator {self.index}, {self.op} of {self.layer!r}"


Rule = Callable[[Node], str]  # why an operator is not taken; empty where it is


def nodes(model: Any, subgraph: int = 0) -> list[Node]:
    """The operators of a subgraph of a parsed flatbuffer."""
    graph = model.subgraphs[subgraph]
    alone = copy.copy(model)
    alone.subgraphs = [graph]
    tensors = [_tensor(model, tensor) for tensor in graph.tensors]
    found = []
    for operator, raw in zip(operators(alone), graph.operators, strict=True):
        code = model.operatorCodes[raw.opcodeIndex]
        node = Node(
            operator.index,
            operator.op,
            operator.layer,
            int(code.version),
            bool(code.customCode),
            raw.builtinOptions,
            tuple(None if place < 0 else tensors[place] for place in operator.inputs),
            tuple(tensors[place] for place in operator.outputs),
        )
        if node.folded:
            for place in operator.outputs:
                tensors[place] = dataclasses.replace(tensors[place], constant=True)
        found.append(node)
    return found


def _tensor(model: Any, tensor: Any) -> Tensor:
    data = model.buffers[tensor.buffer].data
    constant = data is not None and len(data) > 0
    free = tensor.shapeSignature if tensor.shapeSignature is not None else ()
    shape = free if len(free) else (tensor.shape if tensor.shape is not None else ())
    dtype = _TYPES.get(tensor.type, f"type {tensor.type}")
    quantization = tensor.quantization
    scales = quantization.scale if quantization is not None and quantization.scale is not None else ()
    zeros = quantization.zeroPoint if quantization is not None and quantization.zeroPoint is not None else ()
    return Tensor(
        tensor.name.decode(),
        dtype,
        tuple(int(size) for size in shape),
        constant,
        tuple(np.frombuffer(bytes(data), np.int32).tolist()) if constant and dtype == "int32" else None,
        tuple(float(scale) for scale in scales),
        tuple(int(zero) for zero in zeros),
        quantization is not None and quantization.detailsType == _BLOCKWISE,
    )


def delegate(
    name: str, source: str, date: str, found: Sequence[Node], rule: Rule, only_first: bool = False
) -> DelegateVerdict:
    """The verdict of an accelerator.

    Args:
      name: in words.
      source: where the rule is from.
      date: of it.
      found: the operators, in the order in which they run.
      rule: why one is not taken.
      only_first: the accelerator takes one piece only: what comes after the first operator behind it that is not
        taken is not taken either.
    """
    verdicts: list[OperatorVerdict] = []
    cut, first = "", None
    for node in found:
        reason = rule(node)
        if only_first and cut and not reason:
            reason = f"after the cut at {first}"
        elif reason and not cut and (not only_first or not _converts(node)):
            first, cut = node, f"{node}: {reason}"
        verdicts.append(
            OperatorVerdict(index=node.index, op=node.op, layer=node.layer, mapped=not reason, reason=reason)
        )
    mapped = [verdict.mapped for verdict in verdicts]
    segments = sum(now and not before for before, now in zip([False, *mapped], mapped, strict=False))
    return DelegateVerdict(name=name, ops=tuple(verdicts), segments=segments, cut=cut, source=source, source_date=date)


def _converts(node: Node) -> bool:
    """Whether it is the conversion between floats and integers at an end of the graph."""
    return node.op in ("QUANTIZE", "DEQUANTIZE") and any(tensor.dtype == "float32" for tensor in node.flowing)


def types_but(node: Node, allowed: Sequence[str]) -> str:
    """The reason where a tensor that flows is of a type that is not allowed."""
    for tensor in node.flowing:
        if tensor.dtype not in allowed:
            return f"{tensor.dtype} tensor {tensor.name!r}; taken are {', '.join(allowed)}"
    return ""
