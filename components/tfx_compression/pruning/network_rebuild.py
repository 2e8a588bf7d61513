"""Rebuilding of a functional Keras model, call by call, from new layers."""

from collections.abc import Callable, Mapping
from typing import Any

from tfx_compression.keras_models import clone, graph
from tfx_compression.keras_models.library import keras_library


class NetworkRebuilder:
    """Builds functional models again, in which other layers take the place of theirs.

    Args:
      new_layer: Function that returns the new layer for a layer that is no model. It is called once for each layer.
      fill: Function that gives a built layer the state of the old one: `fill(old, new)`.
    """

    def __init__(self, new_layer: Callable[[Any], Any], fill: Callable[[Any, Any], None] | None = None):
        self._new_layer = new_layer
        self._fill = fill
        self._layers: dict[int, Any] = {}  # new layers, by the id of the old one

    def rebuild(self, model: Any, model_class: Any = None) -> Any:
        """Returns a model with new layers and inputs, of the same names and structure, not compiled.

        Args:
          model: A functional Keras 2 or Keras 3 model, which is left as it is.
          model_class: Class of the result; by default `Model` of the same Keras.
        """
        return self._rebuild(model, model.inputs, model_class or keras_library(model).Model)

    def _rebuild(self, model: Any, like: list[Any], model_class: Any) -> Any:
        """Builds a model on new inputs with the shapes of `like`."""
        inputs = [
            clone.input_like(old, tensor.shape, name)
            for old, tensor, name in zip(model.inputs, like, _input_names(model), strict=True)
        ]
        tensors = dict(zip(map(id, model.inputs), inputs, strict=True))
        for call in graph.calls(model):
            layer = self._layer(call, tensors)
            args, kwargs = graph.map_tensors((call.args, call.kwargs), lambda tensor: tensors[id(tensor)])
            outputs = graph.flat_tensors(layer(*args, **kwargs))
            tensors.update(zip(map(id, call.outputs), outputs, strict=True))
        structures = graph.io_structures(model)
        built = model_class(
            *(graph.map_tensors(each, lambda tensor: tensors[id(tensor)]) for each in structures), name=model.name
        )
        for old in model.layers:
            if self._fill is not None and id(old) in self._layers and not graph.is_functional(old):
                self._fill(old, self._layers[id(old)])
        if not model.trainable:
            built.trainable = False
        return built

    def _layer(self, call: graph.Call, tensors: Mapping[int, Any]) -> Any:
        """Returns the new layer for the called one, the same at every call."""
        layer = call.layer
        if id(layer) not in self._layers:
            if graph.is_functional(layer):
                given = graph.flat_tensors(next(iter(call.arguments.values())))
                new = self._rebuild(layer, [tensors[id(tensor)] for tensor in given], keras_library(layer).Model)
            elif hasattr(layer, "weights"):
                new = self._new_layer(layer)
            else:
                new = layer  # an operation of Keras 3, which has no state
            self._layers[id(layer)] = new
        return self._layers[id(layer)]


def _input_names(model: Any) -> list[str]:
    names = getattr(model, "input_names", None)  # of Keras 2
    return list(names) if names else [tensor._keras_history.operation.name for tensor in model.inputs]
