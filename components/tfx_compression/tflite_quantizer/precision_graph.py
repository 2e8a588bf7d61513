"""The operators of a float TFLite model, as the choice of precisions looks at them."""

from collections.abc import Iterable

from ai_edge_litert import schema_py_generated as schema

from tfx_compression.tflite import flatbuffer
from tfx_compression.tflite.modes import PRECISIONS
from tfx_compression.tflite_quantizer import recipe
from tfx_compression.tflite_quantizer.litert import tfl_flatbuffer_utils
from tfx_compression.tflite_quantizer.recipe import PrecisionChoice

_FLOAT32 = schema.TensorType.FLOAT32
# The quantizer supports these for operators with weights only.
_WEIGHT_ONLY = tuple(name for name, spec in PRECISIONS.items() if spec.dequantized_weights)


class PrecisionGraph:
    """The main graph of a float TFLite model.

    Attributes:
      operators: Operators in the order in which they run.
      kernels: Tensor with the weights, by the index of each operator whose weights can be quantized.
      inputs, outputs: Float inputs and outputs.
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
        self._used = {int(place) for place in self._graph.outputs}.union(*(each.inputs for each in self.operators))

    def is_float(self, tensor: int) -> bool:
        """Returns whether a tensor holds floats."""
        return tensor >= 0 and self._graph.tensors[tensor].type == _FLOAT32

    def is_constant(self, tensor: int) -> bool:
        """Returns whether the values of a tensor are in the file."""
        return self._buffers[self._graph.tensors[tensor].buffer].data is not None

    def is_table_lookup(self, operator: flatbuffer.Operator) -> bool:
        """Returns whether an operator looks up constants, as Keras' embeddings do; the quantizer sees no weights."""
        table = operator.inputs[0] if operator.op == "GATHER" else -1
        return self.is_float(table) and self.is_constant(table)

    def selects_constants(self, index: int) -> bool:
        """Returns whether an operator chooses between computed and constant floats, which the quantizer fails on."""
        operator = self.operators[index]
        constants = (self.is_float(tensor) and self.is_constant(tensor) for tensor in operator.inputs)
        return operator.op in ("SELECT", "SELECT_V2") and any(constants)

    def is_used(self, tensor: int) -> bool:
        """Returns whether a tensor is the input of an operator or an output of the model."""
        return tensor in self._used

    def activations(self, tensors: Iterable[int]) -> list[int]:
        """Returns those of `tensors` that hold computed floats."""
        return [tensor for tensor in tensors if self.is_float(tensor) and not self.is_constant(tensor)]

    def name(self, tensor: int) -> str:
        """Returns the name of a tensor, as calibration uses it."""
        return str(tfl_flatbuffer_utils.get_tensor_name(self._graph.tensors[tensor]))

    def input_size(self, index: int) -> int:
        """Returns the size of the last axis of an operator's kernel."""
        return int(self._graph.tensors[self.kernels[index]].shape[-1])

    def kind(self, index: int) -> str | None:
        """Returns the quantizer's name of an operator; None if it doesn't know it."""
        return tfl_flatbuffer_utils.TFL_OP_CODE_TO_NAME.get(self._codes[index])

    def scope(self, index: int) -> str:
        """Returns the name that the quantizer matches with an operator."""
        return str(tfl_flatbuffer_utils.get_op_scope(self._graph.operators[index], self._graph.tensors))

    def boundary_scope(self, kind: str) -> str:
        """Returns the scope of the quantizer's pseudo-operator INPUT or OUTPUT."""
        boundaries = tfl_flatbuffer_utils.get_subgraph_input_output_operators(self._graph)
        (boundary,) = (each for each in boundaries if each.op_key == kind)
        return str(tfl_flatbuffer_utils.get_op_scope(boundary, self._graph.tensors))

    def _kernel(self, operator: flatbuffer.Operator) -> int | None:
        kind = self.kind(operator.index)
        if not any(recipe.supports(kind, PrecisionChoice(name), per_channel=True) for name in _WEIGHT_ONLY):
            return None
        constants = [place for place in operator.inputs[:2] if self.is_float(place) and self.is_constant(place)]
        return constants[0] if constants else None
