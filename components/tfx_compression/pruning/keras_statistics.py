"""Statistics of a Keras 2 or Keras 3 model: gradients, activations and metrics.

Importing this module imports TensorFlow and tf_keras.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from tfx_compression.errors import DataError, ModelError
from tfx_compression.keras_models import graph
from tfx_compression.kernels import Kernel, sublayers
from tfx_compression.pruning.sample import Sample

NORMALIZATIONS = ("BatchNormalization", "SyncBatchNormalization", "LayerNormalization", "GroupNormalization")
# Layers that keep channels apart. Which activations are zero shows after the normalization and the activation function.
ELEMENTWISE = (
    *NORMALIZATIONS,
    *("Activation", "ReLU", "LeakyReLU", "PReLU", "ELU", "ThresholdedReLU", "Softmax"),
    *("Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "GaussianNoise", "GaussianDropout"),
    # Operations of Keras 3.
    *("Relu", "Relu6", "LeakyRelu", "Elu", "Selu", "Gelu", "Silu", "Sigmoid", "Tanh", "HardSwish", "HardSilu"),
)
# TensorFlow functions on Keras 2 tensors that keep channels apart.
FUNCTIONS = ("nn.relu", "nn.relu6", "nn.elu", "nn.selu", "nn.gelu", "nn.silu", "nn.swish", "math.sigmoid", "math.tanh")
GATES = {"LSTM": 4, "GRU": 3, "SimpleRNN": 1}  # gates of recurrent layers, whose columns lie side by side

KernelsOfLayer = Mapping[int, list[Kernel]]  # by the id of the layer


class KerasStatistics(Sample):
    """`Statistics` of a Keras model and a sample of data, in inference mode.

    Args:
      model: A Keras 2 or Keras 3 model. Gradients and metrics require a compiled one, activations and scales a
        functional one.
      data: Batches of (features, labels) or (features, labels, weights), as `fit` takes them. None suffices for
        `scales`.
      kernels: Kernels of the model, by name.
      rows: Number of rows of the data to use.
      batch_size: Rows per batch.
    """

    def __init__(
        self, model: Any, data: tf.data.Dataset | None, kernels: Mapping[str, Kernel], rows: int, batch_size: int
    ) -> None:
        super().__init__(data, rows, batch_size, model.name)
        self._model = model
        self._kernels = kernels
        self._traced: dict[tuple[int, ...], Any] = {}

    def gradients(self, batch: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns the gradient of the batch's mean loss, with regularization, with respect to each kernel.

        Raises:
          ModelError: The model has no loss.
          DataError: The data has no labels.
        """
        gradients = self._gradients_of(batch, [self._kernels[name].variable for name in names])
        return dict(zip(names, gradients, strict=True))

    def gates(self, batch: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns the gradient of the mean loss with respect to a multiplicative gate on each output channel.

        It is computed as the gradient with respect to a factor on all weights that produce the channel last: scale and
        shift of the normalization that follows, or else kernel and bias. Layers with neither are left out.

        Raises:
          ModelError: The model has no loss.
          DataError: The data has no labels.
        """
        terms_of = {name: terms for name, terms in self._last_terms.items() if name in names}
        variables = [variable for terms in terms_of.values() for variable, _ in terms]
        gradients = iter(self._gradients_of(batch, variables))
        return {
            name: sum((np.asarray(variable.numpy()) * next(gradients)).sum(axis=axes) for variable, axes in terms)
            for name, terms in terms_of.items()
        }

    @functools.cached_property
    def _last_terms(self) -> dict[str, list[tuple[Any, tuple[int, ...]]]]:
        """By kernel, the weights that produce the layer's channels last, with the axes that are not channels."""
        if not graph.is_functional(self._model):
            return {}
        terms: dict[str, list[tuple[Any, tuple[int, ...]]]] = {}
        for name, kernel in self._kernels.items():
            bias = getattr(kernel.layer, "bias", None)
            if kernel.kind in ("dense", "convolution", "transposed") and bias is not None:
                rows = tuple(range(len(bias.shape) - 1))  # a GRU has one for its inputs and one for its state
                terms[name] = [(kernel.variable, kernel.input_axes), (bias, rows)]
        for name, layer in _normalizations(self._model, _by_layer(self._kernels.values())):
            beta = getattr(layer, "beta", None)
            terms[name] = [(layer.gamma, ()), *([(beta, ())] if beta is not None else [])]
        return terms

    def _gradients_of(self, batch: Any, variables: Sequence[Any]) -> list[np.ndarray]:
        self._require_loss()
        features, labels, weights = tf_keras.utils.unpack_x_y_sample_weight(batch)
        if labels is None and self._model.loss is not None:
            raise DataError(
                f"The loss of the model {self._model.name!r} requires labels, and the data has none. "
                "Remedy: PruningPlan.label_key, or batches of (features, labels).",
                field="PruningPlan.label_key",
                code="no-labels",
            )
        watched = tuple(_tf_variable(variable) for variable in variables)
        key = tuple(map(id, watched))
        if key not in self._traced:
            self._traced[key] = tf.function(
                functools.partial(self._gradients, watched), autograph=False, reduce_retracing=True
            )
        return [value.numpy() for value in self._traced[key](features, labels, weights)]

    def activations(self, batch: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns the output of each kernel's layer after the normalizations and activations that follow only it.

        The outputs of all calls of a layer are joined. A recurrent layer shows its units once for each gate. Kernels
        inside other layers than models and plain recurrent ones (attention, bidirectional) are left out.

        Raises:
          ModelError: The model is subclassed, so it has no graph.
        """
        self._require_graph()
        features, _, _ = tf_keras.utils.unpack_x_y_sample_weight(batch)
        wanted = _by_layer(self._kernels[name] for name in names)
        structure = (getattr(self._model, "_functional", None) or self._model).input  # a Keras 3 Sequential has none
        outputs: dict[str, list[np.ndarray]] = {}
        for name, values in _outputs(self._model, structure, features, wanted):
            outputs.setdefault(name, []).append(values)
        return {name: np.concatenate(values) for name, values in outputs.items()}

    def scales(self) -> dict[str, np.ndarray]:
        """Returns the scale (gamma) of the first normalization that follows each kernel's layer, if there is one.

        Raises:
          ModelError: The model is subclassed, so it has no graph.
        """
        self._require_graph()
        normalizations = _normalizations(self._model, _by_layer(self._kernels.values()))
        return {name: np.asarray(layer.gamma.numpy()) for name, layer in normalizations}

    def metrics(self) -> dict[str, float]:
        """Returns loss and metrics on the sample, as `evaluate` does, with the current weights.

        Raises:
          ModelError: The model has no loss.
        """
        self._require_loss()
        return {
            name: float(value) for name, value in self._model.evaluate(self.data, verbose=0, return_dict=True).items()
        }

    def _gradients(self, variables: Sequence[Any], features: Any, labels: Any, weights: Any) -> list[tf.Tensor]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            outputs = self._model(features, training=False)
            loss = self._model.compute_loss(x=features, y=labels, y_pred=outputs, sample_weight=weights)
        gradients = tape.gradient(loss, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return [tf.convert_to_tensor(gradient) for gradient in gradients]  # an embedding's are slices

    def _require_loss(self) -> None:
        compiled = getattr(self._model, "compiled", None) or getattr(self._model, "_is_compiled", False)
        if not compiled or (self._model.loss is None and not self._model.losses):
            raise ModelError(
                f"The model {self._model.name!r} was saved without its loss, which the plan's criterion or allocation "
                "requires. Remedy: save it compiled, or define compile_fn(model) in the module file.",
                code="model-without-loss",
            )

    def _require_graph(self) -> None:
        if not graph.is_functional(self._model):
            raise ModelError(
                f"The model {self._model.name!r} is subclassed: it has no graph of layers, so the layers that follow a "
                "kernel are unknown. Remedy: a criterion without activations or scales, or the functional API.",
                code="no-layer-graph",
            )


def _tf_variable(variable: Any) -> Any:
    """Returns the tf.Variable of a Keras 3 Variable."""
    return variable if isinstance(variable, tf.Variable) else variable.value


def _by_layer(kernels: Iterable[Kernel]) -> dict[int, list[Kernel]]:
    """Returns the kernels whose channels are a layer's outputs, by layer.

    The depthwise kernel of a separable convolution is left out: its channels are the pointwise kernel's inputs.
    """
    by_layer: dict[int, list[Kernel]] = {}
    for kernel in kernels:
        if kernel.layer is not None and not (kernel.kind == "depthwise" and hasattr(kernel.layer, "pointwise_kernel")):
            by_layer.setdefault(id(kernel.layer), []).append(kernel)
    return by_layer


def _normalizations(model: Any, wanted: KernelsOfLayer) -> Iterator[tuple[str, Any]]:
    """Yields each kernel's name with the first normalization with a scale that follows its layer."""
    calls = list(graph.calls(model))
    for call in calls:
        if graph.is_functional(call.layer):
            yield from _normalizations(call.layer, wanted)
        for kernel in wanted.get(id(call.layer), ()):
            for layer, _ in _following(call.outputs[0], calls, model):
                if type(layer).__name__ in NORMALIZATIONS and getattr(layer, "gamma", None) is not None:
                    yield kernel.name, layer
                    break


def _outputs(model: Any, inputs: Any, values: Any, wanted: KernelsOfLayer) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the activations of the wanted kernels, [positions, channels].

    Each model, nested or not, is called once.

    Args:
      model: The model, or a model nested in it.
      inputs: Symbolic inputs of the model.
      values: Values of the inputs.
      wanted: The kernels, by layer.
    """
    calls = list(graph.calls(model))
    ends: list[tuple[Any, list[tuple[Kernel, int]]]] = []
    nested = [call for call in calls if graph.is_functional(call.layer)]
    for call in calls:
        if kernels := _visible(call.layer, wanted):
            end = [call.outputs[0], *(tensor for _, tensor in _following(call.outputs[0], calls, model))][-1]
            ends.append((end, kernels))
    tensors = [end for end, _ in ends] + [tensor for call in nested for tensor in call.inputs]
    if not tensors:
        return
    outputs = iter(tf.nest.flatten(_submodel(model, inputs, tensors)(values, training=False)))  # one comes without list
    for (_, kernels), value in zip(ends, outputs, strict=False):
        flat = np.asarray(value).reshape(-1, value.shape[-1])
        yield from ((kernel.name, np.tile(flat, gates)) for kernel, gates in kernels)
    for call in nested:
        yield from _outputs(call.layer, call.layer.inputs, [next(outputs) for _ in call.inputs], wanted)


def _visible(layer: Any, wanted: KernelsOfLayer) -> list[tuple[Kernel, int]]:
    """Returns the wanted kernels whose channels are a layer's outputs, with the number of columns per channel."""
    visible = [(kernel, 1) for kernel in wanted.get(id(layer), ())]
    if gates := GATES.get(type(layer).__name__):
        visible += [(kernel, gates) for cell in sublayers(layer) for kernel in wanted.get(id(cell), ())]
    return visible


def _following(tensor: Any, calls: Sequence[graph.Call], model: Any) -> Iterator[tuple[Any, Any]]:
    """Yields the elementwise layers that follow a tensor and their outputs, as long as each has only one user."""
    while not any(tensor is output for output in model.outputs):
        users = [call for call in calls if any(tensor is used for used in call.inputs)]
        if len(users) != 1 or len(users[0].inputs) != 1 or not _is_elementwise(users[0].layer):
            return
        tensor = users[0].outputs[0]
        yield users[0].layer, tensor


def _is_elementwise(layer: Any) -> bool:
    return type(layer).__name__ in ELEMENTWISE or getattr(layer, "symbol", None) in FUNCTIONS


def _submodel(model: Any, inputs: Any, outputs: list[Any]) -> Any:
    """Returns the model up to some of its tensors, with the same weights."""
    if isinstance(model, tf_keras.Model):
        return tf_keras.Model(inputs, outputs)
    import keras

    return keras.Model(inputs, outputs)
