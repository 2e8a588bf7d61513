"""Distillation: what a student learns from teachers beside its labels.

Importing this module imports TensorFlow and tf_keras.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import tensorflow as tf

from tfx_compression.errors import ConfigError
from tfx_compression.keras_models import graph
from tfx_compression.keras_models.library import keras_library
from tfx_compression.model_handle import ModelHandle
from tfx_compression.sparsity_fine_tuner.config import Distillation
from tfx_compression.sparsity_fine_tuner.trainee import Lesson, layer_output

# The student's features to a teacher's outputs, in the student's order, and the outputs of its layers.
_Ask = Callable[[Any], tuple[list[tf.Tensor], list[tf.Tensor]]]

_TINY = 1e-20  # a probability whose reciprocal, scaled for 16 bits, is still a float32
_EPSILON = 1e-7  # how near to 1 a float32 tells a probability from it


@dataclasses.dataclass(frozen=True)
class _Ends:
    """The inputs or the outputs of a model, flat: those of a dict by its sorted keys.

    Attributes:
      names: of each.
      shapes: of each.
      ordered: whether their order means something; that of a dict or a signature doesn't.
    """

    names: tuple[str, ...]
    shapes: tuple[tf.TensorShape, ...]
    ordered: bool

    def __str__(self) -> str:
        return ", ".join(f"{name} {shape}" for name, shape in zip(self.names, self.shapes, strict=True))

    def flat(self, values: Any) -> list[tf.Tensor]:
        """Tensors in the structure that a model takes or gives, in this order."""
        if isinstance(values, Mapping) and set(self.names) <= set(values):
            return [values[name] for name in self.names]
        found = tf.nest.flatten(values)
        if len(found) != len(self.names) or (isinstance(values, Mapping) and len(found) > 1):
            given = ", ".join(map(str, values)) if isinstance(values, Mapping) else f"{len(found)} tensors"
            raise ConfigError(
                f"Distillation: the student's tensors are {self}, but the data has {given}. "
                "Remedy: features by the names of the model's inputs."
            )
        return found


def lesson(config: Distillation, student: ModelHandle, network: Any, teachers: Sequence[ModelHandle]) -> Lesson:
    """The loss of a student that has teachers (Hinton et al. 2015, arXiv:1503.02531).

    It is `(1 - alpha)` times the student's own, plus `alpha` times the sum over the outputs of how far each is from the
    teachers', plus `feature_weight` times the mean squared difference of each pair of layers (arXiv:1412.6550). Rows,
    positions in a sequence, and the units of a multi-label output are averaged, as Keras' losses do. Sample weights and
    Keras masks weigh the student's own loss only.

    Several outputs are matched by name; two models whose outputs are both lists, with other names, in order. Inputs are
    the same.

    Args:
      config: how to compare.
      student: what is trained.
      network: its layers, as they are trained; None where it has none. If compiled, its loss goes before the student's.
      teachers: of any kind; they are not changed, and answer as they do when they serve.

    Raises:
      ConfigError: without a teacher, or where teacher, student and configuration don't fit together.
    """
    if not teachers:
        raise ConfigError(
            "Distillation has no teacher to learn from. Remedy: connect teacher_model (in Python, pass teacher=), or "
            "leave FineTuning.distillation out."
        )
    if any(teacher.model is student.model for teacher in teachers):
        raise ConfigError(
            "Distillation: the teacher is the very model that is trained, and changes with it. "
            "Remedy: load the dense model again, or clone it before it is pruned."
        )
    inputs, outputs = _ends_of(student, network)
    forms = _forms(config, student, network)
    for teacher in teachers:
        _require_same_forms(config, outputs, forms, teacher)
    _require_same_features(config, student, network, teachers[0])
    asks = [_asked(teachers[0], tuple(config.features.values()), inputs, outputs)]
    asks += [_asked(teacher, (), inputs, outputs) for teacher in teachers[1:]]

    def taught(own_loss: tf.Tensor, x: Any, y_pred: Any, taps: Mapping[str, tf.Tensor]) -> tf.Tensor:
        answers = [ask(x) for ask in asks]
        loss = tf.constant(0.0)
        for place, predicted in enumerate(outputs.flat(y_pred)):
            wanted = [answer[place] for answer, _ in answers]
            loss += config.alpha * _difference(forms[place], tf.cast(predicted, tf.float32), wanted, config)
        for name, feature in zip(config.features, answers[0][1], strict=True):
            loss += config.feature_weight * _mean_square(tf.cast(taps[name], tf.float32), feature)
        # Keras adds up the replicas' gradients, and has divided its own loss.
        loss /= tf.distribute.get_strategy().num_replicas_in_sync
        return (1.0 - config.alpha) * tf.cast(own_loss, tf.float32) + loss

    return taught


def _difference(form: str, student: tf.Tensor, teachers: Sequence[tf.Tensor], config: Distillation) -> tf.Tensor:
    """The Kullback-Leibler divergence from the teachers' mean softened distribution to the student's, times the squared
    temperature; of values, the mean squared difference from their mean.
    """
    if form == "values":
        return _mean_square(student, tf.add_n(teachers) / len(teachers))
    logits_of = _LOGITS_OF[form]
    softened = [tf.nn.log_softmax(logits_of(answer) / config.temperature) for answer in teachers]
    wanted = tf.reduce_logsumexp(tf.stack(softened), axis=0) - tf.math.log(float(len(teachers)))
    own = tf.nn.log_softmax(logits_of(student) / config.temperature)
    return config.temperature**2 * tf.reduce_mean(tf.reduce_sum(tf.exp(wanted) * (wanted - own), axis=-1))


def _mean_square(student: tf.Tensor, teacher: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.square(student - teacher))


def _of_softmax(probabilities: tf.Tensor) -> tf.Tensor:
    return tf.math.log(tf.maximum(probabilities, _TINY))


def _of_sigmoid(probabilities: tf.Tensor) -> tf.Tensor:
    clipped = tf.clip_by_value(probabilities, _EPSILON, 1.0 - _EPSILON)
    return _of_binary_logits(tf.math.log(clipped) - tf.math.log1p(-clipped))


def _of_binary_logits(logits: tf.Tensor) -> tf.Tensor:
    return tf.stack([tf.zeros_like(logits), logits], axis=-1)


# An output, by its form, as the logits of distributions over its last dimension.
_LOGITS_OF: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "softmax probabilities": _of_softmax,
    "softmax logits": tf.identity,
    "sigmoid probabilities": _of_sigmoid,
    "sigmoid logits": _of_binary_logits,
}


def _forms(config: Distillation, trained: ModelHandle, network: Any) -> list[str]:
    """The form of each output: one of those above, or `values`."""
    if network is None:
        if config.outputs == "auto":
            raise ConfigError(
                "Distillation.outputs = 'auto' looks at the student's last layers, and "
                f"{_name(trained)} shows none. Remedy: 'probabilities', 'logits' or 'values'."
            )
        return [_form(config.outputs, "", None, shape) for shape in _ends_of(trained, None)[1].shapes]
    loss = getattr(network, "loss", None) or getattr(trained.model, "loss", None)
    tensors, outputs = graph.flat_tensors(graph.io_structures(network)[1]), _ends_of(trained, network)[1]
    return [
        _form(config.outputs, _activation(network, tensor), _cross_entropy(_loss_at(loss, name, place)), shape)
        for place, (tensor, name, shape) in enumerate(zip(tensors, outputs.names, outputs.shapes, strict=True))
    ]


def _form(outputs: str, activation: str, cross_entropy: tuple[bool, bool] | None, shape: tf.TensorShape) -> str:
    """The form of an output.

    Args:
      outputs: as in the configuration.
      activation: of the layer that makes it.
      cross_entropy: whether its loss is the binary one, and takes logits; None for other losses.
      shape: of the output.
    """
    if outputs == "auto":
        outputs = _told(activation, cross_entropy)
    if outputs == "values":
        return outputs
    if activation in ("sigmoid", "softmax", "log_softmax"):
        binary = activation == "sigmoid"
    elif cross_entropy is not None:
        binary = cross_entropy[0]
    else:
        binary = shape.rank is not None and (shape.rank < 2 or shape[-1] == 1)
    return f"{'sigmoid' if binary else 'softmax'} {outputs}"


def _told(activation: str, cross_entropy: tuple[bool, bool] | None) -> str:
    if activation in ("softmax", "sigmoid"):
        return "probabilities"
    if activation == "log_softmax" or (cross_entropy is not None and cross_entropy[1]):
        return "logits"
    # A layer without an activation, such as Reshape, gives on what another made: the loss knows.
    return "values" if cross_entropy is None or activation == "linear" else "probabilities"


def _activation(network: Any, tensor: Any) -> str:
    """The name of the activation that made a symbolic tensor, or of the layer where it has none."""
    for call in graph.calls(network):
        for place, output in enumerate(call.outputs):
            if output is not tensor:
                continue
            if graph.is_functional(call.layer):
                return _activation(call.layer, graph.flat_tensors(graph.io_structures(call.layer)[1])[place])
            name = _activation_of(call.layer)
            if name == "linear" and type(call.layer).__name__ == "Activation":  # only changes the dtype
                return _activation(network, call.inputs[0])
            return name
    return ""  # an input


def _activation_of(layer: Any) -> str:
    layer = getattr(layer, "layer", layer)  # TimeDistributed, tfmot's wrapper
    if hasattr(layer, "activation"):
        activation = getattr(layer.activation, "activation", layer.activation)  # tfmot wraps it, too
        return str(getattr(activation, "__name__", type(activation).__name__.lower()))
    symbol = getattr(layer, "symbol", None) or type(layer).__name__  # tf.nn.softmax is a layer of Keras 2
    return str(symbol).split(".")[-1].lower()


def _loss_at(loss: Any, name: str, place: int) -> Any:
    """The loss of one of several outputs."""
    if isinstance(loss, Mapping):
        return loss.get(name)
    if isinstance(loss, list | tuple):
        return loss[place] if place < len(loss) else None
    return loss


def _cross_entropy(loss: Any) -> tuple[bool, bool] | None:
    """Whether a cross entropy is the binary one, and whether it takes logits; None for other losses."""
    options: Mapping[str, Any] = {}
    if hasattr(loss, "get_config"):
        options = loss.get_config()
        names = [loss.name or "", *(kind.__name__ for kind in type(loss).__mro__)]
    else:
        options = getattr(loss, "keywords", options)  # functools.partial
        function = getattr(loss, "func", loss)
        names = [loss if isinstance(loss, str) else getattr(function, "__name__", "")]
    known = {name.lower().replace("_", "").replace("bce", "binarycrossentropy") for name in names}
    if not any("crossentropy" in name for name in known):
        return None
    return any("binary" in name for name in known), bool(options.get("from_logits", False))


def _require_same_forms(config: Distillation, outputs: _Ends, forms: Sequence[str], teacher: ModelHandle) -> None:
    """Refuses a teacher whose layers say that it puts out something else than the student."""
    if config.outputs != "auto" or teacher.network is None:
        return
    theirs = _forms(config, teacher, teacher.network)
    for form, place in zip(
        forms, _places("outputs", outputs, _ends_of(teacher, teacher.network)[1], teacher), strict=True
    ):
        if theirs[place] not in ("values", form):  # values: it may have been saved without its loss
            raise ConfigError(
                f"Distillation: the teacher, {_name(teacher)}, puts out {theirs[place]}, the student {form}. Remedy: "
                "models with the same last activation and loss, or Distillation.outputs where this is mistaken."
            )


def _require_same_features(config: Distillation, student: ModelHandle, network: Any, teacher: ModelHandle) -> None:
    """Refuses pairs of layers that can't be compared."""
    if not config.features:
        return
    for who, trained, layers in (("student", student, network), ("first teacher", teacher, teacher.network)):
        if layers is None:
            raise ConfigError(
                f"Distillation.features names layers, and the {who}, {_name(trained)}, shows none. "
                "Remedy: a functional Keras model, or leave features out."
            )
    for own, other in config.features.items():
        shape = tf.TensorShape(layer_output(network, own).shape)
        wanted = tf.TensorShape(layer_output(teacher.network, other).shape)
        if not shape.is_compatible_with(wanted):
            raise ConfigError(
                f"Distillation.features: the student's layer {own!r} gives {shape}, the teacher's {other!r} {wanted}. "
                "Remedy: layers whose outputs have the same shape; pruning channels changes it."
            )


def _asked(teacher: ModelHandle, features: Sequence[str], inputs: _Ends, outputs: _Ends) -> _Ask:
    """A teacher as a function of the student's features; nothing is learnt through it."""
    if teacher.kind == "saved_model":
        ask = _asked_signature(teacher, inputs, outputs)
    elif teacher.network is not None:
        ask = _asked_network(teacher, features, inputs, outputs)
    else:
        ask = _asked_model(teacher, outputs)

    def alone(x: Any) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        answer, seen = ask(x)
        return [_constant(tensor) for tensor in answer], [_constant(tensor) for tensor in seen]

    return alone


def _constant(tensor: Any) -> tf.Tensor:
    return tf.stop_gradient(tf.cast(tensor, tf.float32))


def _asked_signature(teacher: ModelHandle, inputs: _Ends, outputs: _Ends) -> _Ask:
    signature = next(iter(teacher.model.signatures.values()))
    own_inputs, own_outputs = _ends_of(teacher, None)
    fed = _places("inputs", inputs, own_inputs, teacher)
    told = _places("outputs", outputs, own_outputs, teacher)
    specs = signature.structured_input_signature[1]

    def ask(x: Any) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        named = {own_inputs.names[place]: value for place, value in zip(fed, inputs.flat(x), strict=True)}
        answer = signature(**{name: tf.cast(value, specs[name].dtype) for name, value in named.items()})
        return [answer[own_outputs.names[place]] for place in told], []

    return ask


def _asked_network(teacher: ModelHandle, features: Sequence[str], inputs: _Ends, outputs: _Ends) -> _Ask:
    network = teacher.network
    own_inputs, own_outputs = _ends_of(teacher, network)
    fed = _places("inputs", inputs, own_inputs, teacher)
    told = _places("outputs", outputs, own_outputs, teacher)
    takes, gives = graph.io_structures(network)
    wanted = [*graph.flat_tensors(gives), *(layer_output(network, name) for name in features)]
    seeing = keras_library(network).Model(takes, wanted)

    def ask(x: Any) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        values = inputs.flat(x)
        own = [values[fed.index(place)] for place in range(len(fed))]
        answer = tf.nest.flatten(seeing(tf.nest.pack_sequence_as(takes, own), training=False))
        return [answer[place] for place in told], answer[len(told) :]

    return ask


def _asked_model(teacher: ModelHandle, outputs: _Ends) -> _Ask:
    """Of a subclassed model, which shows what it answers only when it does."""

    def ask(x: Any) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        answer = teacher.model(x, training=False)
        own_outputs = _ends(answer)
        told = _places("outputs", outputs, own_outputs, teacher)
        return [own_outputs.flat(answer)[place] for place in told], []

    return ask


def _ends_of(trained: ModelHandle, network: Any) -> tuple[_Ends, _Ends]:
    """The inputs and outputs of a network, or of the first signature of a SavedModel."""
    if network is not None:
        takes, gives = graph.io_structures(network)
        names = getattr(network, "input_names", None) or [tensor.name for tensor in network.inputs]
        return _ends(takes, names), _ends(gives, network.output_names)
    if trained.kind != "saved_model":
        raise ConfigError(
            f"Distillation: the student, {_name(trained)}, is subclassed: its outputs aren't known. "
            "Remedy: build it with Sequential or the functional API."
        )
    signature = next(iter(trained.model.signatures.values()))
    return _ends(signature.structured_input_signature[1]), _ends(signature.structured_outputs)


def _ends(structure: Any, names: Sequence[str] = ()) -> _Ends:
    """Of symbolic tensors, specs or tensors; `names` are those that are not in a dict."""
    parts = tf.nest.flatten(structure)
    keyed = isinstance(structure, Mapping) and len(structure) == len(parts)
    names = sorted(structure) if keyed else names
    if len(set(names)) != len(parts):  # the outputs of one layer share its name
        names = [str(place) for place in range(len(parts))]
    return _Ends(tuple(names), tuple(tf.TensorShape(part.shape) for part in parts), not keyed)


def _places(part: Literal["inputs", "outputs"], student: _Ends, teacher: _Ends, trained: ModelHandle) -> list[int]:
    """The place among the teacher's inputs or outputs of each of the student's.

    Raises:
      ConfigError: where they are not the same.
    """
    count = len(student.names)
    places = None
    if set(student.names) == set(teacher.names):
        places = [teacher.names.index(name) for name in student.names]
    elif len(teacher.names) == count and (count == 1 or (student.ordered and teacher.ordered)):
        places = list(range(count))
    if places is None or not all(
        shape.is_compatible_with(teacher.shapes[place]) for shape, place in zip(student.shapes, places, strict=True)
    ):
        raise ConfigError(
            f"Distillation: the teacher, {_name(trained)}, has the {part} {teacher}; the student has {student}. "
            f"Remedy: a teacher with the student's {part}."
        )
    return places


def _name(trained: ModelHandle) -> str:
    if trained.kind == "saved_model":
        return f"the SavedModel in {trained.path}"
    return f"the model {trained.model.name!r}"
