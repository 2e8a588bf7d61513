"""A Keras layer made anew from a configuration, with the state of the old that is not in its weights."""

import inspect
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from tfx_compression import kernels
from tfx_compression.keras_models.library import keras_library

# What layers note of the shapes that they were built for.
_SHAPES_SEEN = ("query_shape", "key_shape", "value_shape", "build_config")


def clone_layer(layer: Any, config: Mapping[str, Any]) -> Any:
    """A layer of the same class, not built yet, from the old one's configuration or one that was changed.

    Raises:
      TypeError, ValueError, NotImplementedError: where the class can't be built from the configuration.
    """
    kind = type(layer)
    config = {name: _plain(value) for name, value in config.items() if name not in _SHAPES_SEEN}
    # A function of the user's own needs no name to be found by.
    config.update({name: value for name, value in vars(layer).items() if name in config and _is_own_function(value)})
    if kind.__name__ == "MultiHeadAttention":
        new = kind(**config)  # Keras 2's from_config wants the shapes
    elif kind.__name__ == "Lambda":
        # As code in a configuration it would lose its globals, and Keras 3 refuses it.
        common = {name: config[name] for name in ("name", "trainable", "dtype") if name in config}
        new = kind(layer.function, layer._output_shape, layer.mask, layer.arguments, **common)
    else:
        with keras_library(layer).utils.custom_object_scope(dict(_own_objects(layer))):
            new = kind.from_config(config)
    if hasattr(layer, "load_assets"):  # a vocabulary
        with tempfile.TemporaryDirectory(prefix="tfx-compression-") as folder:
            layer.save_assets(folder)
            new.load_assets(folder)
    return new


def _plain(value: Any) -> Any:
    """What Keras 2 wraps to track it, a vocabulary for one, as the list or dict that a constructor takes."""
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return {name: _plain(part) for name, part in value.items()} if isinstance(value, dict) else value


def input_like(old: Any, shape: Any, name: str) -> Any:
    """A new input of a model: dense, sparse or ragged as the old one."""
    spec = getattr(old, "type_spec", None)  # of Keras 2
    kinds = {"sparse": getattr(old, "sparse", False), "ragged": getattr(old, "ragged", False)}
    if spec is not None:
        kinds = {kind: type(spec).__name__ == f"{kind.title()}TensorSpec" for kind in kinds}
    kinds = {kind: True for kind, wanted in kinds.items() if wanted}
    return keras_library(old).Input(batch_shape=tuple(shape), dtype=old.dtype, name=name, **kinds)


def copy_trainable(old: Any, new: Any) -> None:
    """Makes what is frozen in a layer frozen in another of its class, inner layers too."""
    if new.trainable != old.trainable:
        new.trainable = old.trainable
    for one, other in zip(kernels.sublayers(old), kernels.sublayers(new), strict=True):
        copy_trainable(one, other)


def finalize_state(layer: Any) -> None:
    """Derives what a preprocessing layer derives from its weights, once they are filled."""
    if hasattr(layer, "finalize_state"):
        layer.finalize_state()


def _own_objects(layer: Any) -> Iterator[tuple[str, Any]]:
    """The user's classes and functions, by name, that a layer's configuration may name, or its inner layers'."""
    for value in (type(layer), *vars(layer).values()):
        named = value if inspect.isfunction(value) or inspect.isclass(value) else type(value)
        if _is_own(named):
            yield named.__name__, named
    for child in kernels.sublayers(layer):
        yield from _own_objects(child)


def _is_own_function(value: Any) -> bool:
    return inspect.isfunction(value) and _is_own(value)


def _is_own(named: Any) -> bool:
    return not str(named.__module__).startswith(("keras.", "tf_keras.", "tensorflow.", "builtins"))
