"""Clones of Keras layers and inputs, with the state that isn't in their weights."""

import inspect
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf

from tfx_compression import kernels
from tfx_compression.keras_models.library import keras_library

# Configuration entries that record the shapes that a layer was built for.
_BUILT_SHAPES = ("query_shape", "key_shape", "value_shape", "build_config")


def clone_layer(layer: Any, config: Mapping[str, Any]) -> Any:
    """Returns a new layer of the same class, not built yet, from the layer's configuration or a changed one.

    Raises:
      TypeError, ValueError, NotImplementedError: The class can't be built from the configuration.
    """
    layer_class = type(layer)
    config = {name: _plain(value) for name, value in config.items() if name not in _BUILT_SHAPES}
    # User functions are passed as they are, because they may not be registered under a name.
    config.update({name: value for name, value in vars(layer).items() if name in config and _is_user_function(value)})
    if hasattr(layer, "load_assets") and not config.get("vocabulary"):
        config["vocabulary"] = None  # Keras 2 loads a SavedModel with an empty one in the configuration.
    if layer_class.__name__ == "MultiHeadAttention":
        clone = layer_class(**config)  # Keras 2's from_config requires the built shapes.
    elif layer_class.__name__ == "Lambda":
        # Its function would lose its globals as code in a configuration, which Keras 3 refuses anyway.
        common = {name: config[name] for name in ("name", "trainable", "dtype") if name in config}
        clone = layer_class(layer.function, layer._output_shape, layer.mask, layer.arguments, **common)
    else:
        with keras_library(layer).utils.custom_object_scope(dict(_user_objects(layer))):
            clone = layer_class.from_config(config)
    if hasattr(layer, "load_assets"):  # The layer has a vocabulary.
        with tempfile.TemporaryDirectory(prefix="tfx-compression-") as folder:
            layer.save_assets(folder)
            try:
                clone.load_assets(folder)
            except tf.errors.InvalidArgumentError as error:
                raise ValueError(
                    f"The vocabulary of {layer.name!r} is empty; .h5 files don't keep those that were adapted. Remedy: "
                    'model.save("….keras")'
                ) from error
    return clone


def input_like(old: Any, shape: Any, name: str) -> Any:
    """Returns a new input of a model that is dense, sparse or ragged, as the old one is."""
    spec = getattr(old, "type_spec", None)  # only in Keras 2
    kinds = {"sparse": getattr(old, "sparse", False), "ragged": getattr(old, "ragged", False)}
    if spec is not None:
        kinds = {kind: type(spec).__name__ == f"{kind.title()}TensorSpec" for kind in kinds}
    kinds = {kind: True for kind, applies in kinds.items() if applies}
    return keras_library(old).Input(batch_shape=tuple(shape), dtype=old.dtype, name=name, **kinds)


def copy_trainable(source: Any, target: Any) -> None:
    """Copies `trainable` from a layer to another one of its class, for inner layers too."""
    if target.trainable != source.trainable:
        target.trainable = source.trainable
    for inner_source, inner_target in zip(kernels.sublayers(source), kernels.sublayers(target), strict=True):
        copy_trainable(inner_source, inner_target)


def finalize_state(layer: Any) -> None:
    """Computes the state that a preprocessing layer derives from its weights. Call it once they are set."""
    if hasattr(layer, "finalize_state"):
        layer.finalize_state()


def _plain(value: Any) -> Any:
    """Returns a value without the wrappers by which Keras 2 tracks lists and dicts, such as a vocabulary."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return {name: _plain(item) for name, item in value.items()} if isinstance(value, dict) else value


def _user_objects(layer: Any) -> Iterator[tuple[str, Any]]:
    """Yields the user's classes and functions that the configuration of a layer or an inner one may name."""
    for value in (type(layer), *vars(layer).values()):
        named = value if inspect.isfunction(value) or inspect.isclass(value) else type(value)
        if _is_user_object(named):
            yield named.__name__, named
    for sublayer in kernels.sublayers(layer):
        yield from _user_objects(sublayer)


def _is_user_function(value: Any) -> bool:
    return inspect.isfunction(value) and _is_user_object(value)


def _is_user_object(named: Any) -> bool:
    return not str(named.__module__).startswith(("keras.", "tf_keras.", "tensorflow.", "builtins"))
