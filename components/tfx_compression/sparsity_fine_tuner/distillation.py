"""Distillation: the loss of a student that learns from teachers as well as from labels.

Importing this module imports TensorFlow and Keras 2.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfx_compression.errors import ConfigError
from tfx_compression.model_handle import ModelHandle
from tfx_compression.sparsity_fine_tuner.config import Distillation
from tfx_compression.sparsity_fine_tuner.model_interface import (
    Interface,
    describe,
    interfaces,
    layer_output,
    match,
)
from tfx_compression.sparsity_fine_tuner.output_forms import VALUES, output_forms
from tfx_compression.sparsity_fine_tuner.teachers import teacher_function

_TINY = 1e-20  # a probability whose reciprocal, scaled for 16 bits, is still a float32
_EPSILON = 1e-7  # the least distance from 1 at which float32 represents a probability


class DistillationLoss:
    """The loss of a student with teachers (Hinton et al. 2015, arXiv:1503.02531).

    It is `(1 - alpha)` times the student's own loss, plus `alpha` times the sum over the outputs of their distance from
    the teachers' outputs, plus `feature_weight` times the mean squared difference of each pair of layers (FitNets,
    arXiv:1412.6550). Rows, positions of a sequence and units of a multi-label output are averaged, as in Keras' losses.
    Sample weights and Keras masks apply to the student's own loss only.

    Several outputs are matched by name, or in order if both models return lists and the names differ. Inputs likewise.

    Args:
      config: Configuration of the distillation.
      student: Model that is trained.
      network: Its layers as they are trained, or None if it has none. If it is compiled, its loss takes precedence over
        the student's.
      teachers: Teachers of any kind. They don't change, and compute as in inference.

    Raises:
      ConfigError: If there is no teacher, or teacher, student and configuration don't match.
    """

    def __init__(self, config: Distillation, student: ModelHandle, network: Any, teachers: Sequence[ModelHandle]):
        if not teachers:
            raise ConfigError(
                "Distillation needs a teacher. Remedy: connect teacher_model (in Python, pass teacher=), or leave "
                "FineTuning.distillation out.",
                field="FineTuning.distillation",
                code="teacher-missing",
            )
        if any(teacher.model is student.model for teacher in teachers):
            raise ConfigError(
                "Distillation: the teacher is the model that is trained, so it changes with it. Remedy: load the dense "
                "model again, or clone it before it is pruned.",
                field="FineTuning.distillation",
                code="teacher-is-student",
            )
        inputs, self._outputs = interfaces(student, network)
        self._config = config
        self._forms = output_forms(config, student, network)
        for teacher in teachers:
            _require_same_forms(config, self._outputs, self._forms, teacher)
        _require_same_features(config, student, network, teachers[0])
        self._teachers = [teacher_function(teachers[0], tuple(config.features.values()), inputs, self._outputs)]
        self._teachers += [teacher_function(teacher, (), inputs, self._outputs) for teacher in teachers[1:]]

    def __call__(
        self, student_loss: tf.Tensor, features: Any, outputs: Any, layer_outputs: Mapping[str, tf.Tensor]
    ) -> tf.Tensor:
        """Returns the loss of a batch.

        Args:
          student_loss: Loss of the student without its teachers.
          features: Features of the batch.
          outputs: Outputs of the student.
          layer_outputs: Outputs of the student's layers that `config.features` names.
        """
        config = self._config
        answers = [teacher(features) for teacher in self._teachers]
        loss = tf.constant(0.0)
        for position, predicted in enumerate(self._outputs.flatten(outputs)):
            targets = [answer[position] for answer, _ in answers]
            loss += config.alpha * _distance(
                self._forms[position], tf.cast(predicted, tf.float32), targets, config.temperature
            )
        for name, feature in zip(config.features, answers[0][1], strict=True):
            loss += config.feature_weight * _mean_square(tf.cast(layer_outputs[name], tf.float32), feature)
        # Keras adds the gradients of all replicas, and has divided the student's loss already.
        loss /= tf.distribute.get_strategy().num_replicas_in_sync
        return (1.0 - config.alpha) * tf.cast(student_loss, tf.float32) + loss


def _distance(form: str, student: tf.Tensor, teachers: Sequence[tf.Tensor], temperature: float) -> tf.Tensor:
    """Returns how far an output is from the teachers' outputs.

    It is the Kullback-Leibler divergence from the mean of the teachers' softened distributions to the student's, times
    the squared temperature. For values, it is the mean squared difference from the teachers' mean.
    """
    if form == VALUES:
        return _mean_square(student, tf.add_n(teachers) / len(teachers))
    to_logits = LOGITS[form]
    softened = [tf.nn.log_softmax(to_logits(answer) / temperature) for answer in teachers]
    target = tf.reduce_logsumexp(tf.stack(softened), axis=0) - tf.math.log(float(len(teachers)))
    predicted = tf.nn.log_softmax(to_logits(student) / temperature)
    return temperature**2 * tf.reduce_mean(tf.reduce_sum(tf.exp(target) * (target - predicted), axis=-1))


def _mean_square(student: tf.Tensor, teacher: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.square(student - teacher))


def _softmax_logits(probabilities: tf.Tensor) -> tf.Tensor:
    return tf.math.log(tf.maximum(probabilities, _TINY))


def _sigmoid_logits(probabilities: tf.Tensor) -> tf.Tensor:
    clipped = tf.clip_by_value(probabilities, _EPSILON, 1.0 - _EPSILON)
    return _two_class_logits(tf.math.log(clipped) - tf.math.log1p(-clipped))


def _two_class_logits(logits: tf.Tensor) -> tf.Tensor:
    return tf.stack([tf.zeros_like(logits), logits], axis=-1)


# Functions from an output, by its form, to the logits of distributions over its last dimension.
LOGITS: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "softmax probabilities": _softmax_logits,
    "softmax logits": tf.identity,
    "sigmoid probabilities": _sigmoid_logits,
    "sigmoid logits": _two_class_logits,
}


def _require_same_forms(config: Distillation, outputs: Interface, forms: Sequence[str], teacher: ModelHandle) -> None:
    """Raises ConfigError if a teacher's layers show that its outputs have another form than the student's."""
    if config.outputs != "auto" or teacher.network is None:
        return
    teacher_forms = output_forms(config, teacher, teacher.network)
    positions = match("outputs", outputs, interfaces(teacher, teacher.network)[1], teacher)
    for form, position in zip(forms, positions, strict=True):
        if teacher_forms[position] not in (VALUES, form):  # a teacher saved without its loss seems to return values
            raise ConfigError(
                f"Distillation: the teacher, {describe(teacher)}, returns {teacher_forms[position]}, the student "
                f"returns {form}. Remedy: models with the same last activation and loss, or set Distillation.outputs "
                "if the detected form is wrong.",
                field="Distillation.outputs",
                code="teacher-form-mismatch",
            )


def _require_same_features(config: Distillation, student: ModelHandle, network: Any, teacher: ModelHandle) -> None:
    """Raises ConfigError for pairs of layers that can't be compared."""
    if not config.features:
        return
    for role, handle, layers in (("student", student, network), ("first teacher", teacher, teacher.network)):
        if layers is None:
            raise ConfigError(
                f"Distillation.features names layers, and the {role}, {describe(handle)}, has none. Remedy: a "
                "functional Keras model, or leave features out.",
                field="Distillation.features",
                code="no-layers",
            )
    for student_layer, teacher_layer in config.features.items():
        shape = tf.TensorShape(layer_output(network, student_layer).shape)
        teacher_shape = tf.TensorShape(layer_output(teacher.network, teacher_layer).shape)
        if not shape.is_compatible_with(teacher_shape):
            raise ConfigError(
                f"Distillation.features: the student's layer {student_layer!r} returns {shape}, the teacher's layer "
                f"{teacher_layer!r} returns {teacher_shape}. Remedy: layers whose outputs have the same shape; pruning "
                "channels changes it.",
                field="Distillation.features",
                code="feature-shape-mismatch",
            )
