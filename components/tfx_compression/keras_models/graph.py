"""The graph of layers of a functional Keras model, in the same way for Keras 2 and Keras 3."""

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from tfx_compression.errors import ModelError
from tfx_compression.keras_models.library import keras_library


@dataclasses.dataclass(frozen=True)
class Call:
    """A layer, or an operation of Keras 3, called on symbolic tensors.

    Attributes:
      layer: The layer or operation.
      args: Positional arguments. Tensors can be anywhere in lists, tuples and dicts.
      kwargs: Keyword arguments, in the same form.
      arguments: Both, by name, in the order of the layer's parameters.
      inputs: Flat symbolic tensors in the arguments.
      outputs: Flat symbolic tensors of the result.
    """

    layer: Any
    args: tuple
    kwargs: dict
    arguments: dict[str, Any]
    inputs: tuple
    outputs: tuple


def is_functional(layer: Any) -> bool:
    """Returns whether a layer is a model with a graph of layers."""
    return bool(getattr(_functional(layer), "_nodes_by_depth", None)) and hasattr(layer, "inputs")


def calls(model: Any) -> Iterator[Call]:
    """Yields the calls of a functional model in an order in which they can be executed, without input layers.

    A nested model is one call.
    """
    nodes_by_depth = _functional(model)._nodes_by_depth
    for depth in sorted(nodes_by_depth, reverse=True):
        for node in nodes_by_depth[depth]:
            if hasattr(node, "operation"):  # Keras 3
                layer, args, kwargs = node.operation, node.arguments.args, node.arguments.kwargs
            else:
                layer, args, kwargs = node.layer, node.call_args or (), node.call_kwargs or {}
            if type(layer).__name__ != "InputLayer":
                arguments = _arguments_by_name(layer, args, kwargs)
                inputs = tuple(tensor for value in arguments.values() for tensor in flat_tensors(value))
                yield Call(layer, tuple(args), dict(kwargs), arguments, inputs, tuple(flat_tensors(node.outputs)))


def io_structures(model: Any) -> tuple[Any, Any]:
    """Returns the inputs and outputs of a functional model: symbolic tensors, in the structures it was built with."""
    functional = _functional(model)
    if hasattr(functional, "_inputs_struct"):  # Keras 3
        return functional._inputs_struct, functional._outputs_struct
    return functional._nested_inputs, functional._nested_outputs


def extract_network(model: Any) -> Any:
    """Returns a model of only the layers between a model's inputs and outputs, with the same structures and weights.

    Anything else that is attached to the model, such as the Transform layer of the serving signatures, is left out.

    Raises:
      ModelError: The model is subclassed, so it has no graph of layers (code `subclassed-model`).
    """
    library = keras_library(model)
    if not has_inputs_and_outputs(model):
        raise ModelError(
            f"The model {model.name!r} is subclassed: it has no graph of layers. "
            f"Remedy: build it with {library.__name__}.Sequential or the functional API.",
            code="subclassed-model",
        )
    return library.Model(*io_structures(model), name=model.name)


def has_inputs_and_outputs(model: Any) -> bool:
    """Returns whether a model has symbolic inputs and outputs, which a subclassed one lacks."""
    return bool(getattr(model, "inputs", None) and getattr(model, "outputs", None))


def flat_tensors(structure: Any) -> list[Any]:
    """Returns the symbolic tensors in lists, tuples and dicts in Keras' order, in which dicts are sorted by key."""
    if is_symbolic(structure):
        return [structure]
    if isinstance(structure, dict):
        structure = [structure[name] for name in sorted(structure)]
    if isinstance(structure, list | tuple):
        return [tensor for item in structure for tensor in flat_tensors(item)]
    return []


def map_tensors(structure: Any, function: Callable[[Any], Any]) -> Any:
    """Returns a structure with `function` applied to each symbolic tensor."""
    if is_symbolic(structure):
        return function(structure)
    if isinstance(structure, dict):
        return {name: map_tensors(item, function) for name, item in structure.items()}
    if isinstance(structure, list | tuple) and not hasattr(structure, "_fields"):
        return type(structure)(map_tensors(item, function) for item in structure)
    return structure


def add_loss_layers(model: Any) -> list[Any]:
    """Returns the layers in which Keras 2 keeps losses of symbolic tensors (add_loss). They lead to no output."""
    return [layer for layer in model.layers if type(layer).__name__ == "AddLoss"]


def is_symbolic(value: Any) -> bool:
    """Returns whether a value is a symbolic tensor of Keras 2 or Keras 3."""
    return any(base.__name__ == "KerasTensor" for base in type(value).__mro__)


def _arguments_by_name(layer: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    try:
        return dict(inspect.signature(layer.call).bind(*args, **kwargs).arguments)
    except (TypeError, ValueError):  # TensorFlow functions may have no Python signature.
        return {**{str(index): value for index, value in enumerate(args)}, **kwargs}


def _functional(model: Any) -> Any:
    """Returns the object that holds a model's graph, which in a Sequential of Keras 3 is an attribute."""
    return getattr(model, "_functional", None) or model
