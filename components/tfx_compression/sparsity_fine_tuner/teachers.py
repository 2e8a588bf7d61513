"""Teachers of any kind as functions of the student's features."""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfx_compression.keras_models import graph
from tfx_compression.keras_models.library import keras_library
from tfx_compression.model_handle import ModelHandle
from tfx_compression.sparsity_fine_tuner.model_interface import (
    Interface,
    interface_of,
    interfaces,
    layer_output,
    match,
)

# Maps the student's features to the teacher's outputs, in the student's order, and the outputs of its layers.
Teacher = Callable[[Any], tuple[list[tf.Tensor], list[tf.Tensor]]]


def teacher_function(handle: ModelHandle, layers: Sequence[str], inputs: Interface, outputs: Interface) -> Teacher:
    """Returns a teacher as a function of the student's features. No gradient flows through it.

    Args:
      handle: Teacher.
      layers: Names of the layers whose outputs are returned too.
      inputs: Inputs of the student.
      outputs: Outputs of the student.

    Raises:
      ConfigError: If inputs or outputs of teacher and student don't match.
    """
    if handle.kind == "saved_model":
        call = _of_signature(handle, inputs, outputs)
    elif handle.network is not None:
        call = _of_network(handle, layers, inputs, outputs)
    else:
        call = _of_subclassed(handle, outputs)

    def teacher(features: Any) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        answers, layer_outputs = call(features)
        return [_constant(tensor) for tensor in answers], [_constant(tensor) for tensor in layer_outputs]

    return teacher


def _constant(tensor: Any) -> tf.Tensor:
    return tf.stop_gradient(tf.cast(tensor, tf.float32))


def _of_signature(handle: ModelHandle, inputs: Interface, outputs: Interface) -> Teacher:
    signature = next(iter(handle.model.signatures.values()))
    teacher_inputs, teacher_outputs = interfaces(handle, None)
    input_positions = match("inputs", inputs, teacher_inputs, handle)
    output_positions = match("outputs", outputs, teacher_outputs, handle)
    specs = signature.structured_input_signature[1]

    def call(features: Any) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        values = zip(input_positions, inputs.flatten(features), strict=True)
        named = {teacher_inputs.names[position]: value for position, value in values}
        answer = signature(**{name: tf.cast(value, specs[name].dtype) for name, value in named.items()})
        return [answer[teacher_outputs.names[position]] for position in output_positions], []

    return call


def _of_network(handle: ModelHandle, layers: Sequence[str], inputs: Interface, outputs: Interface) -> Teacher:
    network = handle.network
    teacher_inputs, teacher_outputs = interfaces(handle, network)
    input_positions = match("inputs", inputs, teacher_inputs, handle)
    output_positions = match("outputs", outputs, teacher_outputs, handle)
    arguments, results = graph.io_structures(network)
    tensors = [*graph.flat_tensors(results), *(layer_output(network, name) for name in layers)]
    extended = keras_library(network).Model(arguments, tensors)

    def call(features: Any) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        values = inputs.flatten(features)
        ordered = [values[input_positions.index(position)] for position in range(len(input_positions))]
        answer = tf.nest.flatten(extended(tf.nest.pack_sequence_as(arguments, ordered), training=False))
        return [answer[position] for position in output_positions], answer[len(output_positions) :]

    return call


def _of_subclassed(handle: ModelHandle, outputs: Interface) -> Teacher:
    """Returns a subclassed teacher, whose outputs are known only once it is called."""

    def call(features: Any) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        answer = handle.model(features, training=False)
        teacher_outputs = interface_of(answer)
        positions = match("outputs", outputs, teacher_outputs, handle)
        return [teacher_outputs.flatten(answer)[position] for position in positions], []

    return call
