"""The flatbuffer of a TFLite model: parsing, writing, and its operators."""

import dataclasses
import struct
from typing import Any

from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils  # TensorFlow 2.16's drops what its own schema doesn't have

from tfx_compression.errors import ModelError

MODEL_FILE = "tflite"  # the name under Format-Serving/ that TFMA reads

# Bits of a number, by TensorType of the schema.
SUB_BYTE_BITS = {schema.TensorType.INT4: 4, schema.TensorType.INT2: 2}
BITS = {
    schema.TensorType.FLOAT32: 32,
    schema.TensorType.FLOAT16: 16,
    schema.TensorType.INT32: 32,
    schema.TensorType.UINT8: 8,
    schema.TensorType.INT64: 64,
    schema.TensorType.BOOL: 8,
    schema.TensorType.INT16: 16,
    schema.TensorType.INT8: 8,
    schema.TensorType.FLOAT64: 64,
    schema.TensorType.UINT64: 64,
    schema.TensorType.UINT32: 32,
    schema.TensorType.UINT16: 16,
    **SUB_BYTE_BITS,
}


@dataclasses.dataclass(frozen=True)
class Operator:
    """An operator of the main graph.

    Attributes:
      index: Position in the order in which the operators run.
      op: Name in the schema, such as `CONV_2D`; a custom operator's own name.
      layer: Name of the layer that it comes from, as far as the converter kept Keras' name; for the last operator, the
        output's name.
      inputs: Tensors of the graph; -1 is a missing optional input.
      outputs: Tensors of the graph.
    """

    index: int
    op: str
    layer: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def parse(content: bytes) -> Any:
    """Returns the flatbuffer as objects of the schema, with all data in them.

    Raises:
      ModelError: The content is no flatbuffer of TFLite (code `not-tflite`) or is damaged (`damaged-tflite`).
    """
    if content[4:8] != b"TFL3":
        raise ModelError(
            f"Not a TFLite model: {len(content)} bytes without the file identifier TFL3. "
            "Remedy: pass the content of a .tflite file.",
            code="not-tflite",
        )
    try:
        return flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    except (struct.error, TypeError, ValueError, IndexError, AttributeError) as error:
        raise damaged(content, error) from error


def damaged(content: bytes, error: Exception) -> ModelError:
    """Returns the error for a damaged flatbuffer."""
    return ModelError(
        f"A damaged TFLite model of {len(content)} bytes: {str(error).rstrip(' .')}. Remedy: convert or copy it again.",
        code="damaged-tflite",
    )


def serialize(model: Any) -> bytes:
    """Returns the flatbuffer of the objects that `parse` returned, changed or not."""
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def operators(model: Any) -> list[Operator]:
    """Returns the operators of the main graph of a parsed flatbuffer."""
    graph = model.subgraphs[0]
    outputs = {
        int(output.tensorIndex): output.name.decode()
        for signature in model.signatureDefs or ()
        if signature.subgraphIndex == 0
        for output in signature.outputs or ()
    }

    def layer(tensor: int) -> str:
        name = layer_name(graph.tensors[tensor].name.decode())
        return outputs.get(tensor, name) if "PartitionedCall" in name else name  # The converter renames outputs.

    return [
        Operator(
            index,
            _op_name(model, operator.opcodeIndex),
            layer(int(operator.outputs[0])) if len(operator.outputs) else "",
            tuple(int(tensor) for tensor in (operator.inputs if operator.inputs is not None else ())),
            tuple(int(tensor) for tensor in (operator.outputs if operator.outputs is not None else ())),
        )
        for index, operator in enumerate(graph.operators)
    ]


def builtin_name(model: Any, operator: Any) -> str:
    """Returns an operator's name in the schema, which is `CUSTOM` for every custom operator."""
    return str(flatbuffer_utils.opcode_to_name(model, operator.opcodeIndex))


def layer_name(tensor: str) -> str:
    """Returns the layer of a tensor: `digits/conv_1` for `digits/conv_1/Relu;digits/conv_1/BiasAdd;…`.

    A name without scopes is returned as it is.
    """
    scopes = [scope for scope in tensor.split(";", maxsplit=1)[0].split("/") if "PartitionedCall" not in scope]
    return "/".join(scopes[:-1]) or tensor


def sub_byte_tensors(model: Any) -> list[str]:
    """Returns the names of the tensors whose numbers take less than a byte each, in a parsed flatbuffer."""
    return [
        tensor.name.decode() for graph in model.subgraphs for tensor in graph.tensors if tensor.type in SUB_BYTE_BITS
    ]


def blockwise_quantization(tensor: Any) -> Any:
    """Returns the schema's BlockwiseQuantization of a constant with one scale per block; None for other tensors."""
    details = tensor.quantization.details if tensor.quantization is not None else None
    return details if isinstance(details, schema.BlockwiseQuantizationT) else None


def _op_name(model: Any, opcode: int) -> str:
    custom = model.operatorCodes[opcode].customCode
    return custom.decode() if custom else str(flatbuffer_utils.opcode_to_name(model, opcode))
