"""Any trained model as a Keras model that trains: of Keras 2, Keras 3, or a SavedModel through its signature.

Importing this module imports TensorFlow and tf_keras.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
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

_LINEAR = ("BiasAdd", "Conv2D", "Einsum", "MatMul", "BatchMatMulV2", "LogSoftmax")  # what logits are computed by
_PROBABILITIES = ("Sigmoid", "Softmax")
CompileFn = Callable[[Any], None]
LossFn = Callable[[Any, Mapping[str, tf.Tensor]], tf.Tensor]
# (the model's own loss, features, the model's answer, what it tapped) to the loss that is trained.
Lesson = Callable[[tf.Tensor, Any, Any, Mapping[str, tf.Tensor]], tf.Tensor]


def of_network(trained: ModelHandle, network: Any, config: FineTuning, taps: tuple[str, ...] = ()) -> Any:
    """A compiled Keras model that trains the layers of `network`, in place.

    Args:
      trained: what the network is of; it is compiled as that is.
      network: functional, of Keras 2 or Keras 3.
      config: its optimizer and learning rate are used.
      taps: layers whose outputs a lesson sees.

    Raises:
      ModelError: where there is no loss, or no such layer.
    """
    _require_own_loss_kept(trained.model, network is trained.network)
    model = _class_of(network)(*graph.io_structures(network), name=network.name)
    for layer in graph.add_loss_layers(trained.model):
        model.add_loss(layer.input)
    if taps:
        model.see(_tap(network, taps))
    copy_compilation(trained.model, model)
    if getattr(model, "optimizer", None) is None or (model.loss is None and not model.losses):
        raise ModelError(
            "The model was saved without being compiled (or with include_optimizer=False), so there is no loss to "
            "train it with. Remedy: a compile_fn(model) in the module file that calls model.compile(…), or "
            "FineTuning.loss."
        )
    # Set before the first step; a schedule of the Trainer's is replaced, which assigning a rate to it could not.
    model.optimizer = _optimizer(model, config)
    if is_keras3(model):
        model.jit_compile = False  # the loop compiles the step
    return model


def _require_own_loss_kept(model: Any, same_graph: bool) -> None:
    """Raises ModelError for a loss of symbolic tensors that a network of another graph would lose."""
    if graph.add_loss_layers(model) and not same_graph:
        raise ModelError(
            f"The model {model.name!r} has a loss of its own (add_loss on a tensor), which another network would lose. "
            "Remedy: add it in a layer's call, or mode 'fixed', 'gradual', 'dynamic' or 'cluster'."
        )


def require_known_step(model: Any) -> None:
    """Raises ModelError for a model of a class that trains in its own way, which would be replaced silently."""
    base = keras_library(model).Model
    own = [name for name in ("train_step", "compute_loss") if getattr(type(model), name) is not getattr(base, name)]
    if own:
        raise ModelError(
            f"The model {model.name!r} is a {type(model).__name__}, whose {own[0]} of its own would not be used. "
            "Remedy: train_step(model, batch) in the module file (fine_tune(…, train_step=…)), which is."
        )


def of_signature(saved: SavedModel, config: FineTuning, loss_fn: LossFn | None = None) -> Any:
    """A compiled Keras model whose forward pass is the first signature of a SavedModel; its variables are trained.

    Args:
      saved: the SavedModel.
      config: its optimizer (adam by default), learning rate, loss and metrics are used.
      loss_fn: `loss_fn(labels, outputs)`, outputs by name, to the mean loss of a batch or one of each row.

    Raises:
      ModelError: where there is no loss.
    """
    if loss_fn is None and config.loss is None:
        raise ModelError(
            f"The SavedModel in {saved.path} doesn't say what its loss is. Remedy: FineTuning.loss, a Keras name "
            "(with metrics), or a loss_fn(labels, outputs) in the module file."
        )
    model = _signature_class()(saved, loss_fn)
    model.compile(loss=_loss_of(saved, config.loss), metrics=list(config.metrics))
    if loss_fn is not None:
        model.loss = loss_fn
    model.optimizer = _optimizer(model, config, "adam")
    return model


def _loss_of(saved: SavedModel, name: str | None) -> Any:
    """The loss of this name; a cross entropy takes logits where the signature's answer is no probability."""
    classes = {
        "binary_crossentropy": tf_keras.losses.BinaryCrossentropy,
        "categorical_crossentropy": tf_keras.losses.CategoricalCrossentropy,
        "sparse_categorical_crossentropy": tf_keras.losses.SparseCategoricalCrossentropy,
    }
    if name not in classes:
        return name
    made_by = output_op_type(next(iter(saved.signatures.values())))
    if made_by not in (*_LINEAR, *_PROBABILITIES):
        raise ModelError(
            f"Whether the SavedModel in {saved.path} answers logits or probabilities can't be told: {made_by} makes "
            f"them, and FineTuning.loss = {name!r} is another for each. Remedy: a loss_fn(labels, outputs) in the "
            "module file."
        )
    return classes[name](from_logits=made_by in _LINEAR)


def copied(network: Any, policy: str) -> Any:
    """A copy of a network whose layers compute by a Keras dtype policy; what its outputs come from computes in float32.

    Its weights are in the same order, so that `network.set_weights(copy.get_weights())` brings them back.
    """
    lasts = {id(tensor) for tensor in network.outputs}
    last = {id(call.layer) for call in graph.calls(network) if any(id(tensor) in lasts for tensor in call.outputs)}

    def layer(old: Any) -> Any:
        config = old.get_config()
        return clone_layer(old, config if id(old) in last or "dtype" not in config else {**config, "dtype": policy})

    copy = keras_library(network).models.clone_model(network, clone_function=layer)
    copy.set_weights(network.get_weights())
    return copy


def variables(model: Any) -> list[tf.Variable]:
    """All that a step changes, but for the optimizer's: weights, states of layers and of metrics; each once."""
    found = [*getattr(model, "variables", model.weights)]
    for metric in getattr(model, "metrics", []):
        found += metric.variables
    if not is_keras3(model):
        for layer in model._flatten_layers():
            generator = getattr(getattr(layer, "_random_generator", None), "_generator", None)
            if generator is not None:
                found.append(generator.state)
    return unique(found)


def optimizer_variables(model: Any) -> list[tf.Variable]:
    """The optimizer's state; it is made where it isn't yet."""
    optimizer = model.optimizer
    inner = getattr(optimizer, "inner_optimizer", None)
    for each in (optimizer, *([inner] if inner is not None else [])):
        if hasattr(each, "build"):
            each.build(model.trainable_variables)
        else:  # tf_keras.optimizers.legacy
            each._create_all_weights(model.trainable_variables)
    found: list[Any] = []
    for each in (optimizer, *([inner] if inner is not None else [])):
        found += each.variables() if _is_method(each.variables) else each.variables
        found += [value for value in vars(each).values() if isinstance(value, tf.Variable)]
        scale = getattr(each, "_loss_scale", None)  # of Keras 2, with variables of its own
        found += [value for value in getattr(scale, "_weights", {}).values() if isinstance(value, tf.Variable)]
    return unique(found)


def of_replicas(values: Any) -> list[tf.Variable]:
    """Variables, each once, those that differ among replicas (states of metrics and normalisation) one by one.

    Together, TensorFlow would keep their sum or mean.
    """
    apart = [
        local
        for variable in unique(values)
        for local in (
            tf.distribute.get_strategy().experimental_local_results(variable)
            if variable.synchronization == tf.VariableSynchronization.ON_READ
            else (variable,)
        )
    ]
    return unique(apart)


def seed_layers(model: Any, seed: int) -> None:
    """Has layers draw the seed's random numbers, by generators whose state is a variable, so that it can be kept."""
    if is_keras3(model):
        generators = [each for layer in model._flatten_layers() for each in getattr(layer, "_seed_generators", ())]
        for place, generator in enumerate(generators):
            own = generator.get_config()["seed"]
            generator.state.assign([own if own is not None else seed + place, 0])
        return
    drawing = [layer for layer in model._flatten_layers() if hasattr(layer, "_random_generator")]
    for place, layer in enumerate(drawing):
        own = getattr(layer, "seed", None)
        kind = type(layer._random_generator)
        generator = kind(own if own is not None else seed + place, rng_type="stateful")
        generator._maybe_init()
        layer._random_generator = generator


def unique(values: Any) -> list[tf.Variable]:
    """Variables as TensorFlow's, each once."""
    found: dict[int, tf.Variable] = {}
    for value in values:
        variable = value if isinstance(value, tf.Variable) else value.value
        found.setdefault(id(variable), variable)
    return list(found.values())


def _is_method(value: Any) -> bool:
    return callable(value) and not isinstance(value, list)


def _optimizer(model: Any, config: FineTuning, default: str = "") -> Any:
    """The model's optimizer without its state, or the configuration's, at the configuration's rate."""
    library = keras_library(model)
    name = config.optimizer or default
    try:
        made = library.optimizers.get(name) if name else model.optimizer
    except ValueError as error:
        raise ConfigError(
            f"FineTuning.optimizer = {name!r} is none of Keras. Remedy: adam, sgd, rmsprop, adamw, …"
        ) from error
    fresh = keras2.fresh_optimizer(made, config.learning_rate)
    before = getattr(model, "optimizer", None)
    scaled = config.mixed_precision == "mixed_float16" or (before is not None and _scales(before))
    if not scaled or _scales(fresh):
        return fresh
    scaling = library.optimizers if is_keras3(model) else library.mixed_precision
    return scaling.LossScaleOptimizer(fresh)  # small gradients would be zero in 16 bits


def _scales(optimizer: Any) -> bool:
    """Whether an optimizer scales the loss, for gradients of 16 bits."""
    return "inner_optimizer" in optimizer.get_config()


def _tap(network: Any, taps: tuple[str, ...]) -> Callable[[Any, Any], tuple[Any, dict[str, Any]]]:
    """The network as a function of (inputs, training) that also returns the outputs of some layers."""
    inputs, outputs = graph.io_structures(network)
    tapped = keras_library(network).Model(inputs, [outputs, [layer_output(network, name) for name in taps]])

    def call(features: Any, training: Any) -> tuple[Any, dict[str, Any]]:
        answer, seen = tapped(features, training=training)
        return answer, dict(zip(taps, seen, strict=True))

    return call


def layer_output(network: Any, name: str) -> Any:
    """The symbolic output of a layer of a network.

    Raises:
      ConfigError: naming the layers that there are.
    """
    found = {call.layer.name: call.outputs[0] for call in graph.calls(network)}
    if name not in found:
        raise ConfigError(
            f"Distillation.features names the layer {name!r}, which {network.name!r} has not; its layers: "
            f"{', '.join(found)}."
        )
    return found[name]


def _class_of(network: Any) -> Any:
    return _trainee(keras_library(network).Model)


@functools.lru_cache
def _trainee(base: Any) -> Any:
    class Trainee(base):
        """A model that may be taught: its loss, while it trains, is what a lesson makes of it."""

        teaching = False
        lesson: Lesson | None = None
        objective: Any = None  # in a step, the loss that the lesson made of the model's own
        _look: Any = None

        def see(self, look: Any) -> None:
            """Has `look(inputs, training)` answer, and shows what it tapped to the lesson."""
            self._look = look

        def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
            if self._look is None:
                return super().call(inputs, training=training, mask=mask)
            answer, self._seen = self._look(inputs, training)
            return answer

        def compute_loss(
            self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, **more: Any
        ) -> Any:
            loss = super().compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, **more)
            return self._taught(loss, x, y_pred)

        def _taught(self, loss: Any, x: Any, y_pred: Any) -> Any:
            if self.teaching and self.lesson is not None:
                loss = self.lesson(loss, x, y_pred, self._seen if self._look is not None else {})
                self.objective = _hidden(lambda: loss)
            return loss

    return Trainee


@functools.lru_cache
def _signature_class() -> Any:
    # A class of its own below: Keras 2 turns that of a model with a graph into a Functional, for good.
    class Through(_trainee.__wrapped__(tf_keras.Model)):  # type: ignore[misc]
        """A SavedModel's signature as a model."""

        def __init__(self, saved: SavedModel, loss_fn: LossFn | None):
            super().__init__(name="signature")
            signature = next(iter(saved.signatures.values()))
            trained = [variable for variable in saved.variables.values() if _trains(variable)]
            if not trained:
                raise ModelError(f"No variable of the SavedModel in {saved.path} is trainable.")
            self.trained_variables = trained  # Keras takes them for its weights
            self._run = _hidden(signature)
            self._names = tuple(signature.structured_input_signature[1])
            self._loss_fn = _hidden(loss_fn) if loss_fn is not None else None
            if loss_fn is not None:
                self._mean_loss = tf_keras.metrics.Mean("loss")

        def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
            features = inputs if isinstance(inputs, Mapping) else {self._names[0]: inputs}
            missing = sorted(set(self._names) - set(features))
            if missing:
                raise ModelError(
                    f"The SavedModel's signature takes {', '.join(self._names)}; the data lacks {', '.join(missing)}. "
                    "Remedy: the examples that it serves, or an input_fn in the module file."
                )
            answer = self._run(**{name: features[name] for name in self._names})
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
                        "loss_fn answers one number for the batch, so its rows can't be weighted. Remedy: the loss of "
                        "each row, [batch]."
                    )
                loss = loss * tf.cast(tf.reshape(sample_weight, [-1]), loss.dtype)
            self._mean_loss.update_state(loss)
            loss = tf.reduce_mean(loss) / tf.distribute.get_strategy().num_replicas_in_sync
            return self._taught(loss, x, y_pred)

        def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any) -> Any:
            if self._loss_fn is None:
                return super().compute_metrics(x, y, y_pred, sample_weight)
            if len(y_pred) == 1:
                return super().compute_metrics(x, y, next(iter(y_pred.values())), sample_weight)
            return {metric.name: metric.result() for metric in self.metrics}

    return Through


def _trains(variable: tf.Variable) -> bool:
    return bool(variable.trainable and variable.dtype.is_floating)


def _hidden(function: Any) -> Any:
    """A function that Keras doesn't take for a part of the model."""

    def call(*arguments: Any, **named: Any) -> Any:
        return function(*arguments, **named)

    return call


def finite(model: Any) -> list[str]:
    """The weights of a model that are not finite, by name."""
    return [
        getattr(weight, "path", weight.name)
        for weight in model.weights
        if hasattr(weight, "numpy") and weight.numpy().dtype.kind == "f" and not np.isfinite(weight.numpy()).all()
    ]
