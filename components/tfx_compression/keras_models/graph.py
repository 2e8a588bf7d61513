"""The calls that a functional Keras model is made of, alike for Keras 2 and Keras 3."""

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from tfx_compression.errors import ModelError
from tfx_compression.keras_models.library import keras_library


@dataclasses.dataclass(frozen=True)
class Call:
    """A layer (or a Keras 3 operation, which is none) called on symbolic tensors.

    Attributes:
      layer: what is called.
      args: positional arguments; tensors are anywhere in lists, tuples and dicts.
      kwargs: keyword arguments, the same.
      arguments: both by name, in the order of the layer's parameters.
      inputs: the symbolic tensors in the arguments, flat.
      outputs: the symbolic tensors that it returns, flat.
    """

    layer: Any
    args: tuple
    kwargs: dict
    arguments: dict[str, Any]
    inputs: tuple
    outputs: tuple


def is_functional(layer: Any) -> bool:
    """Whether a layer is a model with a graph of layers."""
    return bool(getattr(_graph_of(layer), "_nodes_by_depth", None)) and hasattr(layer, "inputs")


def calls(model: Any) -> Iterator[Call]:
    """The calls of a functional model in an order in which they can be made; input layers are none.

    A nested model is one call of its own.
    """
    graph = _graph_of(model)
    depths = sorted(graph._nodes_by_depth, reverse=True)
    for depth in depths:
        for node in graph._nodes_by_depth[depth]:
            if hasattr(node, "operation"):  # Keras 3
                layer, args, kwargs = node.operation, node.arguments.args, node.arguments.kwargs
            else:
                layer, args, kwargs = node.layer, node.call_args or (), node.call_kwargs or {}
            if type(layer).__name__ != "InputLayer":
                named = _arguments(layer, args, kwargs)
                inputs = tuple(tensor for value in named.values() for tensor in flat_tensors(value))
                yield Call(layer, tuple(args), dict(kwargs), named, inputs, tuple(flat_tensors(node.outputs)))


def io_structures(model: Any) -> tuple[Any, Any]:
    """What a functional model takes and returns: symbolic tensors, in the structures that it was made with."""
    made = _graph_of(model)
    if hasattr(made, "_inputs_struct"):  # Keras 3
        return made._inputs_struct, made._outputs_struct
    return made._nested_inputs, made._nested_outputs


def extract_network(model: Any) -> Any:
    """Returns a model of only the layers between a model's inputs and outputs, with the same structures and weights.

    Anything else that is attached to the model, such as the Transform layer of the serving signatures, is left out.

    Raises:
      ModelError: The model is subclassed, so it has no graph of layers.
    """
    library = keras_library(model)
    if not getattr(model, "inputs", None) or not getattr(model, "outputs", None):
        raise ModelError(
            f"The model {model.name!r} is subclassed: it has no graph of layers. "
            f"Remedy: build it with {library.__name__}.Sequential or the functional API."
        )
    return library.Model(*io_structures(model), name=model.name)


def flat_tensors(structure: Any) -> list[Any]:
    """The symbolic tensors in lists, tuples and dicts, in Keras' order: a dict's by its keys."""
    if is_symbolic(structure):
        return [structure]
    if isinstance(structure, dict):
        structure = [structure[name] for name in sorted(structure)]
    if isinstance(structure, list | tuple):
        return [tensor for part in structure for tensor in flat_tensors(part)]
    return []


def map_tensors(structure: Any, replace: Callable[[Any], Any]) -> Any:
    """`structure` with each symbolic tensor replaced."""
    if is_symbolic(structure):
        return replace(structure)
    if isinstance(structure, dict):
        return {name: map_tensors(part, replace) for name, part in structure.items()}
    if isinstance(structure, list | tuple) and not hasattr(structure, "_fields"):
        return type(structure)(map_tensors(part, replace) for part in structure)
    return structure


def add_loss_layers(model: Any) -> list[Any]:
    """The layers by which Keras 2 keeps losses of symbolic tensors (add_loss): they lead to no output."""
    return [layer for layer in model.layers if type(layer).__name__ == "AddLoss"]


def is_symbolic(value: Any) -> bool:
    """Whether a value is a symbolic tensor of Keras 2 or Keras 3."""
    return any(kind.__name__ == "KerasTensor" for kind in type(value).__mro__)


def _arguments(layer: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    try:
        return dict(inspect.signature(layer.call).bind(*args, **kwargs).arguments)
    except (TypeError, ValueError):  # a TensorFlow function without a signature
        return {**{str(place): value for place, value in enumerate(args)}, **kwargs}


def _graph_of(model: Any) -> Any:
    """The functional graph of a model: Keras 3 keeps a Sequential's apart."""
    return getattr(model, "_functional", None) or model
