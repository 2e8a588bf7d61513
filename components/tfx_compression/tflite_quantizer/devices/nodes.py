"""The operators of a TFLite model with their options and tensors, as the rules of devices look at them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

SUB_BYTE = ("int4", "int2")
_UNPACKING = ("DEQUANTIZE", "DENSIFY")  # done when the model is loaded if the input is a constant


@dataclasses.dataclass(frozen=True)
class NodeTensor:
    """A tensor of the graph.

    Attributes:
      name: Name of the tensor itself.
      dtype: Type as in TFLite's schema, in lower case.
      shape: Sizes; -1 is a free size.
      constant: Whether the values are in the file, or computed once from values in the file.
      values: Integers of a 32-bit constant; None for other tensors.
      scales, zero_points: Quantization parameters.
      blockwise: Whether each block of weights has a scale.
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
        """Dimensions whose size differs from 1, counted from the end: -1 is the innermost."""
        return frozenset(place - len(self.shape) for place, size in enumerate(self.shape) if size != 1)


@dataclasses.dataclass(frozen=True)
class Node:
    """An operator.

    Attributes:
      index: Place in the order in which operators run.
      op: Name of the operator, such as CONV_2D.
      layer: Name of the layer that it comes from.
      version: Version of the operator in TFLite's schema.
      custom: Whether it is a custom operator.
      options: Options in TFLite's schema; None if it has none.
      activation: Fused activation: NONE, RELU, RELU6, …
      inputs: Input tensors; None for an optional input that is absent.
      outputs: Output tensors.
    """

    index: int
    op: str
    layer: str
    version: int
    custom: bool
    options: Any
    activation: str
    inputs: tuple[NodeTensor | None, ...]
    outputs: tuple[NodeTensor, ...]

    @property
    def folded(self) -> bool:
        """Whether the node unpacks a constant, which the runtime does once when it loads the model."""
        return self.op in _UNPACKING and self.inputs[0] is not None and self.inputs[0].constant

    @property
    def flex(self) -> bool:
        """Whether the operator is TensorFlow's own (SELECT_TF_OPS)."""
        return self.custom and self.op.startswith("Flex")

    def input(self, place: int) -> NodeTensor | None:
        """Returns the input at a place; None if there is none."""
        return self.inputs[place] if place < len(self.inputs) else None

    @property
    def computed(self) -> tuple[NodeTensor, ...]:
        """Tensors that are computed while the model runs: inputs that aren't constants, and outputs."""
        return (*(tensor for tensor in self.inputs if tensor is not None and not tensor.constant), *self.outputs)

    def __str__(self) -> str:
        return f"operator {self.index}, {self.op} of {self.layer!r}"


def unsupported_type(node: Node, allowed: Sequence[str]) -> str:
    """Returns the reason when a computed tensor has a type that is not allowed; empty otherwise."""
    for tensor in node.computed:
        if tensor.dtype not in allowed:
            return f"{tensor.dtype} tensor {tensor.name!r}; supported: {', '.join(allowed)}"
    return ""
