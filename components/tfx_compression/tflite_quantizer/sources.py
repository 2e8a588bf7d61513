"""A SavedModel of any model, since that is what the converter takes."""

import os
import tempfile
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tfx_compression import model_handle
from tfx_compression.errors import ModelError
from tfx_compression.model_handle.compressed import Compressed
from tfx_compression.saved_models.saved_model import SIGNATURE


def as_saved_model(model: Any, folder: str, custom_objects: Mapping[str, Any] | None = None) -> str:
    """Returns the path of a SavedModel that computes what a model computes.

    Args:
      model: A Keras 2 or Keras 3 model, a result of `prune` or `fine_tune`, or the path of a Keras file or of a
        SavedModel. The path of a SavedModel is returned itself.
      folder: Folder to write the SavedModel to. The inputs and outputs of its `serving_default` have the names of the
        model's. A subclassed Keras 3 model has names only if it takes and returns dicts; otherwise, Keras' own names
        (`args_0`, `output_0`) are used.
      custom_objects: Classes and functions of a Keras file, by the names in it.

    Raises:
      ModelError: If there is no model, or a subclassed model was never called.
      ConfigError: If `custom_objects` is not a mapping.
    """
    if isinstance(model, str | os.PathLike) and tf.saved_model.contains_saved_model(os.fspath(model)):
        return os.fspath(model)
    if isinstance(model, Compressed):
        model.save(folder)
        return folder
    handle = model_handle.wrap(model, custom_objects)
    try:
        if handle.kind == "keras3" and handle.network is None:
            _export(handle.model, folder)
        else:
            handle.save(folder)
    except (ValueError, TypeError) as error:
        if isinstance(error, ModelError) or handle.network is not None:
            raise
        raise ModelError(
            f"The subclassed model {handle.model.name!r} can't be saved: {str(error).rstrip(' .')}. "
            "Remedy: call it once, on one batch, so that its inputs are known.",
            code="unknown-inputs",
        ) from error
    return folder


def describe(model: Any) -> str:
    """Returns what an error calls a model: by its path, or else by its name."""
    if isinstance(model, str | os.PathLike):
        return f"the model in {os.fspath(model)}"
    name = getattr(model.model if isinstance(model, Compressed) else model, "name", None)
    return f"the model {name!r}" if name else "the model"


def _export(model: Any, folder: str) -> None:
    """Writes a subclassed Keras 3 model, with the names in its dict of inputs, which Keras' `export` drops."""
    with tempfile.TemporaryDirectory(prefix="tfx-compression-") as exported:
        model.export(exported, verbose=False)
        loaded = tf.saved_model.load(exported)
        (serve,) = loaded.serve.concrete_functions
        (inputs, *others), _ = serve.structured_input_signature
        signature = loaded.signatures[SIGNATURE]
        if isinstance(inputs, Mapping) and not others:
            names = sorted(inputs)

            def serve_by_name(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
                results = loaded.serve(dict(zip(names, tensors, strict=True)))
                if isinstance(results, Mapping):
                    return dict(results)
                return {f"output_{index}": tensor for index, tensor in enumerate(tf.nest.flatten(results))}

            specs = [tf.TensorSpec(inputs[name].shape, inputs[name].dtype, name) for name in names]
            signature = tf.function(serve_by_name, input_signature=specs)
        tf.saved_model.save(loaded, folder, signatures={SIGNATURE: signature})
