"""Keras models that train a model of any kind: Keras 2, Keras 3, or a SavedModel through its signature.

Importing this module imports TensorFlow and Keras 2.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf
import tf_keras

from tfx_compression.errors import ConfigError, ModelError
from tfx_compression.keras_models import graph, keras2
from tfx_compression.keras_models.clone import clone_layer
from tfx_compression.keras_models.library import is_keras3, keras_library
from tfx_compression.kernels.variable_uses import output_op_type
from tfx_compression.model_handle import ModelHandle, copy_compilation
from tfx_compression.saved_models.saved_model import SavedModel
from tfx_compression.sparsity_fine_tuner.config import FineTuning
from tfx_compression.sparsity_fine_tuner.distillation import DistillationLoss
from tfx_compression.sparsity_fine_tuner.model_interface import layer_output

_LOGIT_OPERATIONS = ("BiasAdd", "Conv2D", "Einsum", "MatMul", "BatchMatMulV2", "LogSoftmax")
_PROBABILITY_OPERATIONS = ("Sigmoid", "Softmax")
CompileFn = Callable[[Any], None]
LossFn = Callable[[Any, Mapping[str, tf.Tensor]], tf.Tensor]


def from_network(handle: ModelHandle, network: Any, config: FineTuning, feature_layers: tuple[str, ...] = ()) -> Any:
    """Returns a compiled Keras model that trains the layers of `network` in place.

    Args:
      handle: Model that the network belongs to. The result is compiled as it is.
      network: Functional Keras 2 or Keras 3 model.
      config: Configuration whose optimizer and learning rate are used.
      feature_layers: Names of layers whose outputs the distillation loss compares.

    Raises:
      ModelError: If there is no loss.
      ConfigError: If there is no such layer.
    """
    _require_added_loss_kept(handle.model, network is handle.network)
    model = _training_model_class(keras_library(network).Model)(*graph.io_structures(network), name=network.name)
    for layer in graph.add_loss_layers(handle.model):
        model.add_loss(layer.input)
    if feature_layers:
        model.set_forward(_forward_with_features(network, feature_layers))
    copy_compilation(handle.model, model)
    if getattr(model, "optimizer", None) is None or (model.loss is None and not model.losses):
        raise ModelError(
            "The model was saved without being compiled (or with include_optimizer=False), so there is no loss to "
            "train it with. Remedy: a compile_fn(model) in the module file that calls model.compile(…), or "
            "FineTuning.loss.",
            field="FineTuning.loss",
            code="loss-missing",
        )
    # Set before the first step. It replaces the Trainer's learning rate schedule, to which no rate can be assigned.
    model.optimizer = _optimizer(model, config)
    if is_keras3(model):
        model.jit_compile = False  # the training loop compiles the step
    return model


def from_signature(saved: SavedModel, config: FineTuning, loss_fn: LossFn | None = None) -> Any:
    """Returns a compiled Keras model whose forward pass is the first signature of a SavedModel.

    It trains the SavedModel's variables in place.

    Args:
      saved: SavedModel.
      config: Configuration whose optimizer (adam by default), learning rate, loss and metrics are used.
      loss_fn: Function `loss_fn(labels, outputs)`, with outputs by name, that returns the mean loss of a batch, or the
        loss of each row.

    Raises:
      ModelError: If there is no loss, or nothing to train.
    """
    if loss_fn is None and config.loss is None:
        raise ModelError(
            f"The SavedModel in {saved.path} has no loss. Remedy: FineTuning.loss, a Keras name (with metrics), or a "
            "loss_fn(labels, outputs) in the module file.",
            field="FineTuning.loss",
            code="loss-missing",
        )
    model = _signature_model_class()(saved, loss_fn)
    model.compile(loss=_signature_loss(saved, config.loss), metrics=list(config.metrics))
    if loss_fn is not None:
        model.loss = loss_fn
    model.optimizer = _optimizer(model, config, "adam")
    return model


def with_precision(network: Any, policy: str) -> Any:
    """Returns a copy of a network whose layers compute by a Keras dtype policy. Output layers stay in float32.

    Its weights are in the same order, so that `network.set_weights(copy.get_weights())` copies them back.
    """
    results = {id(tensor) for tensor in network.outputs}
    output_layers = {
        id(call.layer) for call in graph.calls(network) if any(id(tensor) in results for tensor in call.outputs)
    }

    def cloned(layer: Any) -> Any:
        config = layer.get_config()
        keeps = id(layer) in output_layers or "dtype" not in config
        return clone_layer(layer, config if keeps else {**config, "dtype": policy})

    copy = keras_library(network).models.clone_model(network, clone_function=cloned)
    copy.set_weights(network.get_weights())
    return copy


def _require_added_loss_kept(model: Any, same_graph: bool) -> None:
    """Raises ModelError for a loss of symbolic tensors that a network of another graph would lose."""
    if graph.add_loss_layers(model) and not same_graph:
        raise ModelError(
            f"The model {model.name!r} has a loss of its own (add_loss on a tensor), which another network would lose. "
            "Remedy: add it in a layer's call, or mode 'fixed', 'gradual', 'dynamic' or 'cluster'.",
            code="added-loss",
        )


def _signature_loss(saved: SavedModel, name: str | None) -> Any:
    """Returns the loss of this name. A cross entropy takes logits unless the signature returns probabilities."""
    classes = {
        "binary_crossentropy": tf_keras.losses.BinaryCrossentropy,
        "categorical_crossentropy": tf_keras.losses.CategoricalCrossentropy,
        "sparse_categorical_crossentropy": tf_keras.losses.SparseCategoricalCrossentropy,
    }
    if name not in classes:
        return name
    operation = output_op_type(next(iter(saved.signatures.values())))
    if operation not in (*_LOGIT_OPERATIONS, *_PROBABILITY_OPERATIONS):
        raise ModelError(
            f"FineTuning.loss = {name!r} differs for logits and probabilities, and which of them the SavedModel in "
            f"{saved.path} returns is unknown: {operation} computes them. Remedy: a loss_fn(labels, outputs) in the "
            "module file.",
            field="FineTuning.loss",
            code="logits-or-probabilities",
        )
    return classes[name](from_logits=operation in _LOGIT_OPERATIONS)


def _optimizer(model: Any, config: FineTuning, default: str = "") -> Any:
    """Returns the configuration's optimizer, or the model's without its state, at the configuration's learning rate."""
    library = keras_library(model)
    name = config.optimizer or default
    template = library.optimizers.get(name) if name else model.optimizer
    optimizer = keras2.fresh_optimizer(template, config.learning_rate)
    previous = getattr(model, "optimizer", None)
    scaled = config.mixed_precision == "mixed_float16" or (previous is not None and _scales_loss(previous))
    if not scaled or _scales_loss(optimizer):
        return optimizer
    scaling = library.optimizers if is_keras3(model) else library.mixed_precision
    return scaling.LossScaleOptimizer(optimizer)  # small gradients would underflow in 16 bits


def _scales_loss(optimizer: Any) -> bool:
    return "inner_optimizer" in optimizer.get_config()


def _forward_with_features(
    network: Any, feature_layers: tuple[str, ...]
) -> Callable[[Any, Any], tuple[Any, dict[str, Any]]]:
    """Returns the network as a function of (inputs, training) that also returns the outputs of some layers."""
    inputs, outputs = graph.io_structures(network)
    features = [layer_output(network, name) for name in feature_layers]
    extended = keras_library(network).Model(inputs, [outputs, features])

    def forward(values: Any, training: Any) -> tuple[Any, dict[str, Any]]:
        answer, layer_outputs = extended(values, training=training)
        return answer, dict(zip(feature_layers, layer_outputs, strict=True))

    return forward


@functools.lru_cache
def _training_model_class(base: Any) -> Any:
    class TrainingModel(base):
        """A model that trains by a distillation loss, if it has one.

        Attributes:
          training_step: Whether a training step runs. In evaluation, the loss is the model's own.
          distillation_loss: Loss with teachers, or None.
          objective: Function that returns the distillation loss of the current step, or None without one.
        """

        training_step = False
        distillation_loss: DistillationLoss | None = None
        objective: Any = None
        _forward: Any = None

        def set_forward(self, forward: Any) -> None:
            """Replaces the forward pass by `forward(inputs, training)`, which also returns layers' outputs by name."""
            self._forward = forward

        def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
            if self._forward is None:
                return super().call(inputs, training=training, mask=mask)
            answer, self._layer_outputs = self._forward(inputs, training)
            return answer

        def compute_loss(
            self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, **more: Any
        ) -> Any:
            loss = super().compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, **more)
            return self._with_teachers(loss, x, y_pred)

        def _with_teachers(self, loss: Any, x: Any, y_pred: Any) -> Any:
            if self.training_step and self.distillation_loss is not None:
                layer_outputs = self._layer_outputs if self._forward is not None else {}
                loss = self.distillation_loss(loss, x, y_pred, layer_outputs)
                self.objective = _untracked(lambda: loss)
            return loss

    return TrainingModel


@functools.lru_cache
def _signature_model_class() -> Any:
    # It has a base class of its own: Keras 2 turns the class of a model with a graph into a Functional for good.
    class SignatureModel(_training_model_class.__wrapped__(tf_keras.Model)):  # type: ignore[misc]
        """The first signature of a SavedModel as a model."""

        def __init__(self, saved: SavedModel, loss_fn: LossFn | None):
            super().__init__(name="signature")
            signature = next(iter(saved.signatures.values()))
            trained = [variable for variable in saved.variables.values() if _is_trainable(variable)]
            if not trained:
                raise ModelError(
                    f"No variable of the SavedModel in {saved.path} is trainable.", code="nothing-to-train"
                )
            self.trained_variables = trained  # Keras tracks them as the model's weights
            self._signature = _untracked(signature)
            self._names = tuple(signature.structured_input_signature[1])
            self._loss_fn = _untracked(loss_fn) if loss_fn is not None else None
            if loss_fn is not None:
                self._mean_loss = tf_keras.metrics.Mean("loss")

        def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
            features = inputs if isinstance(inputs, Mapping) else {self._names[0]: inputs}
            missing = sorted(set(self._names) - set(features))
            if missing:
                raise ModelError(
                    f"The SavedModel's signature takes {', '.join(self._names)}; the data lacks {', '.join(missing)}. "
                    "Remedy: the examples that it serves, or an input_fn in the module file.",
                    code="features-missing",
                )
            answer = self._signature(**{name: features[name] for name in self._names})
            return answer if len(answer) > 1 or self._loss_fn is not None else next(iter(answer.values()))

        def compute_loss(
            self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, **more: Any
        ) -> Any:
            if self._loss_fn is None:
                return super().compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, **more)
            loss = self._loss_fn(y, y_pred)
            if sample_weight is not None:
                if loss.shape.rank == 0:
                    raise ConfigError(
                        "loss_fn returns one number for the batch, so its rows can't be weighted. Remedy: return the "
                        "loss of each row, [batch].",
                        field="loss_fn",
                        code="loss-not-by-row",
                    )
                loss = loss * tf.cast(tf.reshape(sample_weight, [-1]), loss.dtype)
            self._mean_loss.update_state(loss)
            loss = tf.reduce_mean(loss) / tf.distribute.get_strategy().num_replicas_in_sync
            return self._with_teachers(loss, x, y_pred)

        def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any) -> Any:
            if self._loss_fn is None:
                return super().compute_metrics(x, y, y_pred, sample_weight)
            if len(y_pred) == 1:
                return super().compute_metrics(x, y, next(iter(y_pred.values())), sample_weight)
            return {metric.name: metric.result() for metric in self.metrics}

    return SignatureModel


def _is_trainable(variable: tf.Variable) -> bool:
    return bool(variable.trainable and variable.dtype.is_floating)


def _untracked(function: Any) -> Any:
    """Returns a function that Keras doesn't track as a part of the model."""

    def call(*arguments: Any, **named: Any) -> Any:
        return function(*arguments, **named)

    return call
