"""The inputs and outputs of a model, by name and in order, and the outputs of its layers."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import tensorflow as tf

from tfx_compression.errors import ConfigError
from tfx_compression.keras_models import graph
from tfx_compression.model_handle import ModelHandle


@dataclasses.dataclass(frozen=True)
class Interface:
    """The inputs or the outputs of a model as a flat list. Those of a dict are in the order of its sorted keys.

    Attributes:
      names: Name of each tensor.
      shapes: Shape of each tensor.
      ordered: Whether their order has a meaning. The order of a dict or of a signature has none.
    """

    names: tuple[str, ...]
    shapes: tuple[tf.TensorShape, ...]
    ordered: bool

    def __str__(self) -> str:
        return ", ".join(f"{name} {shape}" for name, shape in zip(self.names, self.shapes, strict=True))

    def flatten(self, values: Any) -> list[tf.Tensor]:
        """Returns tensors, in the structure that a model takes or returns, as a list in this interface's order.

        Raises:
          ConfigError: If the tensors don't match the names, or differ in number.
        """
        if isinstance(values, Mapping) and set(self.names) <= set(values):
            return [values[name] for name in self.names]
        tensors = tf.nest.flatten(values)
        if len(tensors) != len(self.names) or (isinstance(values, Mapping) and len(tensors) > 1):
            given = ", ".join(map(str, values)) if isinstance(values, Mapping) else f"{len(tensors)} tensors"
            raise ConfigError(
                f"Distillation: the student's tensors are {self}, but the data has {given}. Remedy: features by the "
                "names of the model's inputs.",
                code="distillation-features-mismatch",
            )
        return tensors


def interfaces(handle: ModelHandle, network: Any) -> tuple[Interface, Interface]:
    """Returns the inputs and the outputs of a network, or of a SavedModel's first signature.

    Args:
      handle: Model.
      network: Functional Keras model with its layers, or None if it has no graph of layers.

    Raises:
      ConfigError: For a subclassed model, whose outputs are unknown.
    """
    if network is not None:
        inputs, outputs = graph.io_structures(network)
        names = getattr(network, "input_names", None) or [tensor.name for tensor in network.inputs]
        return interface_of(inputs, names), interface_of(outputs, network.output_names)
    if handle.kind != "saved_model":
        raise ConfigError(
            f"Distillation: the student, {describe(handle)}, is subclassed: its outputs are unknown. Remedy: build it "
            "with Sequential or the functional API.",
            code="subclassed-student",
        )
    signature = next(iter(handle.model.signatures.values()))
    return interface_of(signature.structured_input_signature[1]), interface_of(signature.structured_outputs)


def interface_of(structure: Any, names: Sequence[str] = ()) -> Interface:
    """Returns the interface of a structure.

    Args:
      structure: Symbolic tensors, specs or tensors.
      names: Names of the tensors in order, which apply unless the structure is a dict of tensors.
    """
    tensors = tf.nest.flatten(structure)
    named = isinstance(structure, Mapping) and len(structure) == len(tensors)
    names = sorted(structure) if named else names
    if len(set(names)) != len(tensors):  # several outputs of one layer share its name
        names = [str(position) for position in range(len(tensors))]
    return Interface(tuple(names), tuple(tf.TensorShape(tensor.shape) for tensor in tensors), not named)


def match(part: Literal["inputs", "outputs"], student: Interface, teacher: Interface, handle: ModelHandle) -> list[int]:
    """Returns, for each of the student's inputs or outputs, the position of the teacher's that corresponds to it.

    They are matched by name. Two lists with other names are matched in order.

    Args:
      part: Word for the error message.
      student: Interface of the student.
      teacher: Interface of the teacher.
      handle: Teacher.

    Raises:
      ConfigError: If they differ in number, or in names or shapes.
    """
    count = len(student.names)
    positions = None
    if set(student.names) == set(teacher.names):
        positions = [teacher.names.index(name) for name in student.names]
    elif len(teacher.names) == count and (count == 1 or (student.ordered and teacher.ordered)):
        positions = list(range(count))
    if positions is None or not all(
        shape.is_compatible_with(teacher.shapes[position])
        for shape, position in zip(student.shapes, positions, strict=True)
    ):
        raise ConfigError(
            f"Distillation: the teacher, {describe(handle)}, has the {part} {teacher}; the student has {student}. "
            f"Remedy: a teacher with the student's {part}.",
            code=f"teacher-{part}-mismatch",
        )
    return positions


def layer_output(network: Any, name: str) -> Any:
    """Returns the symbolic output of a layer of a functional network.

    Raises:
      ConfigError: If the network has no such layer. The message lists its layers.
    """
    outputs = {call.layer.name: call.outputs[0] for call in graph.calls(network)}
    if name not in outputs:
        raise ConfigError(
            f"Distillation.features names the layer {name!r}, which {network.name!r} doesn't have; its layers are: "
            f"{', '.join(outputs)}.",
            field="Distillation.features",
            code="unknown-layer",
        )
    return outputs[name]


def describe(handle: ModelHandle) -> str:
    """Returns the words for a model in an error message."""
    if handle.kind == "saved_model":
        return f"the SavedModel in {handle.path}"
    return f"the model {handle.model.name!r}"
