"""What data tells of a Keras 2 or Keras 3 model: gradients, activations, metrics.

Importing this module imports TensorFlow and tf_keras.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from tfx_compression.errors import ModelError
from tfx_compression.keras_models import graph
from tfx_compression.kernels import Kernel, sublayers

NORMALISATIONS = ("BatchNormalization", "SyncBatchNormalization", "LayerNormalization", "GroupNormalization")
# Layers that change no channel into another, so that what follows sees the same ones: after normalisation and
# activation it is clear which are zero.
ELEMENTWISE = (
    *NORMALISATIONS,
    *("Activation", "ReLU", "LeakyReLU", "PReLU", "ELU", "ThresholdedReLU", "Softmax"),
    *("Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "GaussianNoise", "GaussianDropout"),
    *(
        "Relu",
        "Relu6",
        "LeakyRelu",
        "Elu",
        "Selu",
        "Gelu",
        "Silu",
        "Sigmoid",
        "Tanh",
        "HardSwish",
        "HardSilu",
    ),  # Keras 3
)
FUNCTIONS = ("nn.relu", "nn.relu6", "nn.elu", "nn.selu", "nn.gelu", "nn.silu", "nn.swish", "math.sigmoid", "math.tanh")
GATES = {"LSTM": 4, "GRU": 3, "SimpleRNN": 1}


class Sample:
    """The first rows of some data, which stay in memory.

    They are read once: another pass over shuffled data would give other rows, and a sensitivity that is noise.

    Args:
      data: Batches; None has no rows.
      rows: Number of rows.
      batch_size: Rows per batch.
      model: Name of the model, for the error message.
    """

    def __init__(self, data: tf.data.Dataset | None, rows: int, batch_size: int, model: str):
        self.data = () if data is None else data.unbatch().take(rows).batch(batch_size).cache()
        self._name = model

    def batches(self) -> Iterator[Any]:
        """In batches of the plan's size.

        Raises:
          ModelError: where there are no rows.
        """
        empty = True
        for batch in self.data:
            empty = False
            yield batch
        if empty:
            raise ModelError(f"The model {self._name!r} can't be looked at: the data has no rows.")

    def rows(self) -> Iterator[Any]:
        """In batches of one row."""
        for batch in self.batches():
            yield from tf.data.Dataset.from_tensors(batch).unbatch().batch(1)


class KerasStatistics(Sample):
    """A compiled Keras model and a sample of data: `criteria.Statistics` of it, in inference mode.

    Args:
      model: of Keras 2 or Keras 3. Gradients and metrics need it compiled, activations and scales functional.
      data: batches of (features, labels) or (features, labels, weights), as `fit` takes them. None suffices for
        `scales`.
      kernels: of the model, by name.
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
        """Of the batch's mean loss, with the model's regularisation, by each of these kernels.

        Raises:
          ModelError: for a model without a loss, or data without labels.
        """
        found = self._gradients_by(batch, [self._kernels[name].variable for name in names])
        return dict(zip(names, found, strict=True))

    def gates(self, batch: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Of the batch's mean loss by a factor on each output channel of the layers with a normalisation or a bias.

        By a factor on all weights that a channel is made of last: scale and shift of the normalisation that follows,
        or else kernel and bias.

        Raises:
          ModelError: for a model without a loss, or data without labels.
        """
        made_of = {name: terms for name, terms in self._last_terms.items() if name in names}
        variables = [variable for terms in made_of.values() for variable, _ in terms]
        gradients = iter(self._gradients_by(batch, variables))
        return {
            name: sum((np.asarray(variable.numpy()) * next(gradients)).sum(axis=axes) for variable, axes in terms)
            for name, terms in made_of.items()
        }

    @functools.cached_property
    def _last_terms(self) -> dict[str, list[tuple[Any, tuple[int, ...]]]]:
        """By kernel, the weights that its layer's channels are made of last, and the axes that are not channels."""
        if not graph.is_functional(self._model):
            return {}
        found: dict[str, list[tuple[Any, tuple[int, ...]]]] = {}
        for name, kernel in self._kernels.items():
            if (
                kernel.kind in ("dense", "convolution", "transposed")
                and getattr(kernel.layer, "bias", None) is not None
            ):
                found[name] = [(kernel.variable, kernel.input_axes), (kernel.layer.bias, ())]
        for name, layer in _normalisations(self._model, _by_layer(self._kernels.values())):
            beta = getattr(layer, "beta", None)
            found[name] = [(layer.gamma, ()), *([(beta, ())] if beta is not None else [])]
        return found

    def _gradients_by(self, batch: Any, variables: Sequence[Any]) -> list[np.ndarray]:
        self._require_loss()
        features, labels, weights = tf_keras.utils.unpack_x_y_sample_weight(batch)
        if labels is None and self._model.loss is not None:
            raise ModelError(
                f"The loss of the model {self._model.name!r} needs labels, and the data has none. "
                "Remedy: PruningPlan.label_key, or batches of (features, labels)."
            )
        watched = tuple(_tensorflow(variable) for variable in variables)
        key = tuple(map(id, watched))
        if key not in self._traced:
            self._traced[key] = tf.function(
                functools.partial(self._gradients, watched), autograph=False, reduce_retracing=True
            )
        return [value.numpy() for value in self._traced[key](features, labels, weights)]

    def activations(self, batch: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
        """The output of each kernel's layer behind the normalisations and activations that only it feeds.

        A layer that is called several times shows all of its outputs; a recurrent one its units, once for each gate.
        Kernels inside other layers than models and plain recurrent ones (attention, bidirectional) are left out.

        Raises:
          ModelError: for a subclassed model, which has no graph.
        """
        self._require_graph()
        features, _, _ = tf_keras.utils.unpack_x_y_sample_weight(batch)
        wanted = _by_layer(self._kernels[name] for name in names)
        structure = (getattr(self._model, "_functional", None) or self._model).input  # a Keras 3 Sequential has none
        found: dict[str, list[np.ndarray]] = {}
        for name, values in _outputs(self._model, structure, features, wanted):
            found.setdefault(name, []).append(values)
        return {name: np.concatenate(values) for name, values in found.items()}

    def scales(self) -> dict[str, np.ndarray]:
        """The gamma of the first normalisation behind each kernel's layer, where there is one.

        Raises:
          ModelError: for a subclassed model, which has no graph.
        """
        self._require_graph()
        found = _normalisations(self._model, _by_layer(self._kernels.values()))
        return {name: np.asarray(layer.gamma.numpy()) for name, layer in found}

    def metrics(self) -> dict[str, float]:
        """Loss and metrics on the sample, as `evaluate` gives them, with the weights of now.

        Raises:
          ModelError: for a model without a loss.
        """
        self._require_loss()
        return {
            name: float(value) for name, value in self._model.evaluate(self.data, verbose=0, return_dict=True).items()
        }

    def _gradients(self, variables: Sequence[Any], features: Any, labels: Any, weights: Any) -> list[tf.Tensor]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            answer = self._model(features, training=False)
            loss = self._model.compute_loss(x=features, y=labels, y_pred=answer, sample_weight=weights)
        found = tape.gradient(loss, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return [tf.convert_to_tensor(gradient) for gradient in found]  # an embedding's are slices

    def _require_loss(self) -> None:
        compiled = getattr(self._model, "compiled", None) or getattr(self._model, "_is_compiled", False)
        if not compiled or (self._model.loss is None and not self._model.losses):
            raise ModelError(
                f"The model {self._model.name!r} was saved without its loss, which the plan's criterion or allocation "
                "looks at. Remedy: save it compiled, or define compile_fn(model) in the module file, which compiles it."
            )

    def _require_graph(self) -> None:
        if not graph.is_functional(self._model):
            raise ModelError(
                f"The model {self._model.name!r} is subclassed: it has no graph of layers, so what follows a layer "
                "can't be seen. Remedy: a criterion that doesn't look at activations or scales, or the functional API."
            )


def _tensorflow(variable: Any) -> Any:
    """The tf.Variable behind a Keras 3 Variable."""
    return variable if isinstance(variable, tf.Variable) else variable.value


def _by_layer(kernels: Iterable[Kernel]) -> dict[int, list[Kernel]]:
    """The kernels whose channels a layer puts out: not a separable convolution's depthwise one, which come before."""
    found: dict[int, list[Kernel]] = {}
    for kernel in kernels:
        if kernel.layer is not None and not (kernel.kind == "depthwise" and hasattr(kernel.layer, "pointwise_kernel")):
            found.setdefault(id(kernel.layer), []).append(kernel)
    return found


def _normalisations(model: Any, wanted: Mapping[int, list[Kernel]]) -> Iterator[tuple[str, Any]]:
    """By kernel, the first normalisation with a scale that follows its layer."""
    calls = list(graph.calls(model))
    for call in calls:
        if graph.is_functional(call.layer):
            yield from _normalisations(call.layer, wanted)
        for kernel in wanted.get(id(call.layer), ()):
            for layer, _ in _behind(call.outputs[0], calls, model):
                if type(layer).__name__ in NORMALISATIONS and getattr(layer, "gamma", None) is not None:
                    yield kernel.name, layer
                    break


def _outputs(
    model: Any, inputs: Any, values: Any, wanted: Mapping[int, list[Kernel]]
) -> Iterator[tuple[str, np.ndarray]]:
    """What follows the wanted layers, [positions, channels], in one pass through the model and those nested in it.

    `inputs` are the model's symbolic tensors, and `values` what they stand for.
    """
    calls = list(graph.calls(model))
    seen: list[tuple[Any, list[tuple[Kernel, int]]]] = []
    nested = [call for call in calls if graph.is_functional(call.layer)]
    for call in calls:
        if kernels := _shown(call.layer, wanted):
            end = [call.outputs[0], *(tensor for _, tensor in _behind(call.outputs[0], calls, model))][-1]
            seen.append((end, kernels))
    tensors = [end for end, _ in seen] + [tensor for call in nested for tensor in call.inputs]
    if not tensors:
        return
    answers = iter(tf.nest.flatten(_part(model, inputs, tensors)(values, training=False)))  # a single one comes bare
    for (_, kernels), value in zip(seen, answers, strict=False):
        flat = np.asarray(value).reshape(-1, value.shape[-1])
        yield from ((kernel.name, np.tile(flat, gates)) for kernel, gates in kernels)
    for call in nested:
        yield from _outputs(call.layer, call.layer.inputs, [next(answers) for _ in call.inputs], wanted)


def _shown(layer: Any, wanted: Mapping[int, list[Kernel]]) -> list[tuple[Kernel, int]]:
    """The wanted kernels whose channels a layer's output shows, and how many columns each has for one of them."""
    shown = [(kernel, 1) for kernel in wanted.get(id(layer), ())]
    if gates := GATES.get(type(layer).__name__):
        shown += [(kernel, gates) for cell in sublayers(layer) for kernel in wanted.get(id(cell), ())]
    return shown


def _behind(tensor: Any, calls: Sequence[graph.Call], model: Any) -> Iterator[tuple[Any, Any]]:
    """The elementwise layers that follow a tensor, as long as nothing else sees it, and what they put out."""
    while not any(tensor is output for output in model.outputs):
        users = [call for call in calls if any(tensor is used for used in call.inputs)]
        if len(users) != 1 or len(users[0].inputs) != 1 or not _elementwise(users[0].layer):
            return
        tensor = users[0].outputs[0]
        yield users[0].layer, tensor


def _elementwise(layer: Any) -> bool:
    return type(layer).__name__ in ELEMENTWISE or getattr(layer, "symbol", None) in FUNCTIONS


def _part(model: Any, inputs: Any, outputs: list[Any]) -> Any:
    """The model up to some of its tensors, sharing its weights."""
    if isinstance(model, tf_keras.Model):
        return tf_keras.Model(inputs, outputs)
    import keras

    return keras.Model(inputs, outputs)
