"""Copies of trained models, so that weight pruning can leave the caller's model as it is.

A model is copied in the cheapest way that keeps everything it can do:

- A SavedModel without layers is loaded again from its path.
- A Keras 2 model with signatures (a loaded SavedModel) is loaded again too: from its path if its files are still there,
  otherwise from a temporary SavedModel that lives as long as the copy.
- Any other functional model, of Keras 2 or Keras 3, is cloned layer by layer.
- A subclassed model is copied by Keras, which requires its `get_config()`.

The copy then gets the model's current weights, trainable flags and random states, and is compiled as the model is, with
an optimizer without state.
"""

import copy
import dataclasses
import os
import tempfile
import weakref
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from tfx_compression.errors import CompressionError, ModelError
from tfx_compression.keras_models import clone, graph, keras2, keras3
from tfx_compression.keras_models.keras3 import LOADING_FAILURES
from tfx_compression.keras_models.library import is_keras3, keras_library
from tfx_compression.model_handle import ModelHandle
from tfx_compression.model_handle.variable_matching import VariableMatching
from tfx_compression.pruning.network_rebuild import NetworkRebuilder
from tfx_compression.saved_models import saved_model
from tfx_compression.saved_models.saved_model import SavedModel


def copy_model(handle: ModelHandle) -> ModelHandle:
    """Returns a handle of a copy of a model, with the same weights, signatures and compilation.

    Args:
      handle: The model, which is left as it is.

    Raises:
      ModelError: The model can't be copied.
    """
    if handle.kind == "saved_model":
        return dataclasses.replace(handle, model=_copied_saved_model(handle.model))
    model = handle.model
    try:
        new = _copied_keras_model(handle)
        _copy_state(model, new)
        _compile(model, new)
    except CompressionError:
        raise
    except (*LOADING_FAILURES, NotImplementedError) as error:
        raise ModelError(
            f"The model {model.name!r} can't be copied: {str(error).rstrip(' .')}. Remedy: a get_config() in its "
            "classes that returns the arguments of their constructors, prune(path, …) with the path of the model, or "
            "pruning.prune.prune_step(wrap(model), …), which changes the model itself.",
            code="not-copyable",
        ) from error
    return dataclasses.replace(handle, model=new, matching=_matching(handle, new))


def _copied_saved_model(saved: SavedModel) -> SavedModel:
    new = saved_model.load(saved.path)
    for name, variable in new.variables.items():
        variable.assign(saved.variables[name])
    return new


def _copied_keras_model(handle: ModelHandle) -> Any:
    """Returns a model of the same class and layers, with any weights."""
    model = handle.model
    if getattr(model, "signatures", None):
        return _loaded_again(handle)
    if graph.is_functional(model):
        return _cloned(model)
    with keras_library(model).utils.custom_object_scope(_custom_objects(model)):
        new = copy.deepcopy(model)
    _copy_input_specs(model, new)
    return new


def _copy_input_specs(model: Any, new: Any) -> None:
    """Gives the copy of a subclassed model the shapes of its inputs, which it knows from its first call."""
    if is_keras3(model):
        new._called = model._called
        new._build_shapes_dict = model._build_shapes_dict
    elif model._saved_model_arg_spec is not None:
        args, kwargs = model._saved_model_arg_spec
        new._set_save_spec(args[0], list(args[1:]), kwargs)


def _loaded_again(handle: ModelHandle) -> Any:
    """Returns a Keras 2 model with signatures, loaded from its own files or from a temporary copy of them."""
    custom_objects = _custom_objects(handle.model)
    if handle.path is not None and tf.saved_model.contains_saved_model(handle.path):
        return keras2.load(handle.path, custom_objects)
    folder = tempfile.TemporaryDirectory(prefix="tfx-compression-")
    path = os.path.join(folder.name, "model")
    keras2.save(handle.model, path)
    new = keras2.load(path, custom_objects)
    weakref.finalize(new, folder.cleanup)  # saving the copy reads its assets
    return new


def _cloned(model: Any) -> Any:
    """Returns a functional model with new layers, in nested models too."""

    def new_layer(layer: Any) -> Any:
        return _cloned(layer) if graph.is_functional(layer) else clone.clone_layer(layer, layer.get_config())

    library = keras_library(model)
    if not is_keras3(model):
        return library.models.clone_model(model, clone_function=new_layer)
    # Keras 3's clone_model would compile the clone from a configuration, which knows no loss of the user's own.
    if isinstance(model, library.Sequential):
        (given,) = model.inputs
        first = clone.input_like(given, given.shape, given._keras_history.operation.name)
        return library.Sequential([first, *map(new_layer, model.layers)], name=model.name)
    return NetworkRebuilder(new_layer).rebuild(model, _functional_class(model))


def _functional_class(model: Any) -> Any:
    """Returns the class of a Keras 3 model; `keras.Model` if the class has a constructor of its own."""
    own_constructor = any(
        "__init__" in vars(base) and not base.__module__.startswith(("keras.", "builtins"))
        for base in type(model).__mro__
    )
    return keras_library(model).Model if own_constructor else type(model)


def _copy_state(model: Any, new: Any) -> None:
    """Gives a copy the weights, trainable flags and random states of a model."""
    if not is_keras3(model):
        _share_variables(model, new)
    clone.copy_trainable(model, new)  # Keras 2 lists trainable weights first
    for old, copied in zip(_variables(model), _variables(new), strict=True):
        if hasattr(old, "numpy"):  # a vocabulary has no array
            copied.assign(old.numpy())
    for layer in new._flatten_layers():
        clone.finalize_state(layer)


def _share_variables(model: Any, new: Any) -> None:
    """Makes the layers of a Keras 2 copy share the variables that the layers of the model share."""
    copies: dict[int, Any] = {}
    for old_layer, new_layer in zip(model._flatten_layers(), new._flatten_layers(), strict=True):
        for name, variable in list(vars(old_layer).items()):
            if isinstance(variable, tf.Variable) and name in vars(new_layer):  # `adapt` leaves others
                copied = vars(new_layer)[name]
                first = copies.setdefault(id(variable), copied)
                if first is not copied:
                    setattr(new_layer, name, first)


def _variables(model: Any) -> list[Any]:
    """Returns the weights of a model and the states of its random generators."""
    if is_keras3(model):
        return list(model.variables)
    return [*model.weights, *_generator_states(model)]


def _generator_states(model: Any) -> Iterator[Any]:
    """Yields the states of the random generators of a Keras 2 model's layers."""
    for layer in model._flatten_layers():
        generator = getattr(getattr(layer, "_random_generator", None), "_generator", None)
        if generator is not None:
            yield generator.state


def _compile(model: Any, new: Any) -> None:
    """Compiles a copy as the model is, also one that was loaded with the compilation of its files."""
    if is_keras3(model):
        if model.compiled:
            keras3.copy_compilation(model, new)
    elif compilation := keras2.compile_arguments(model):
        new.compile(**compilation)


def _matching(handle: ModelHandle, new: Any) -> VariableMatching | None:
    """Returns the matching of the copy's weights with the SavedModel beside the Keras file."""
    if handle.matching is None:
        return None
    copies = dict(zip(map(id, handle.model.weights), new.weights, strict=True))
    variables = {name: (copies[id(weight)], matched) for name, (weight, matched) in handle.matching.variables.items()}
    return dataclasses.replace(handle.matching, variables=variables)


def _custom_objects(model: Any) -> dict[str, Any]:
    """Returns the user's classes and functions that the model's layers use."""
    return dict(clone._user_objects(model))
