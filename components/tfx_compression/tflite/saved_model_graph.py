"""The graph of a SavedModel, read from its file. Loading a large model would take a second or more."""

import os
import re
from collections.abc import Sequence

import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from tfx_compression.errors import ModelError
from tfx_compression.tf_graphs import walks
from tfx_compression.tflite.interpreter import SIGNATURE

_FAKE_QUANTIZATION = re.compile(r"FakeQuantWithMinMax\w+|QuantizeAndDequantizeV\d")
_LOOPS = re.compile(r"(Stateless)?(While|If|Case)")


class SavedModelGraph:
    """The graph of a SavedModel.

    Args:
      path: Path of the SavedModel.

    Raises:
      ModelError: There is no SavedModel (code `missing-model`).
    """

    def __init__(self, path: str):
        self.path = path
        stored = saved_model_pb2.SavedModel()
        try:
            with tf.io.gfile.GFile(os.path.join(path, "saved_model.pb"), "rb") as file:
                stored.ParseFromString(file.read())
        except tf.errors.NotFoundError as error:
            raise ModelError(
                f"There is no SavedModel in {path}: it has no saved_model.pb. Remedy: check the path.",
                code="missing-model",
            ) from error
        self._graph = stored.meta_graphs[0]

    def inputs(self, signature: str) -> dict[str, tf.TensorSpec]:
        """Returns the inputs of a signature, by name.

        Raises:
          ModelError: There is no such signature (code `missing-signature`).
        """
        return {
            name: tf.TensorSpec(tf.TensorShape(info.tensor_shape), tf.dtypes.as_dtype(info.dtype), name=name)
            for name, info in self._signature(signature).inputs.items()
        }

    def is_quantization_aware(self, signatures: Sequence[str] = (SIGNATURE,)) -> bool:
        """Returns whether signatures contain fake quantization, from which the converter takes ranges."""
        return self._has_operation(signatures, _FAKE_QUANTIZATION)

    def has_loops(self, signatures: Sequence[str] = (SIGNATURE,)) -> bool:
        """Returns whether signatures contain loops or branches."""
        return self._has_operation(signatures, _LOOPS)

    def _has_operation(self, signatures: Sequence[str], op_type: re.Pattern[str]) -> bool:
        library = {function.signature.name: function for function in self._graph.graph_def.library.function}
        outputs = {info.name for name in signatures for info in self._signature(name).outputs.values()}
        names = sorted({output.split(":")[0] for output in outputs})
        pending = list(walks.required_nodes(self._graph.graph_def, names).node)
        visited: set[str] = set()
        while pending:
            node = pending.pop()
            if op_type.fullmatch(node.op):
                return True
            called = {value.func.name for value in node.attr.values() if value.HasField("func")}
            called |= {function.name for value in node.attr.values() for function in value.list.func}
            for name in (called & library.keys()) - visited:
                visited.add(name)
                pending.extend(library[name].node_def)
        return False

    def _signature(self, name: str) -> meta_graph_pb2.SignatureDef:
        signatures = self._graph.signature_def
        if name not in signatures:
            others = ", ".join(sorted(key for key in signatures if not key.startswith("__"))) or "none"
            raise ModelError(
                f"The SavedModel in {self.path} has no signature {name!r}. Remedy: one of its signatures: {others}.",
                code="missing-signature",
            )
        return signatures[name]
