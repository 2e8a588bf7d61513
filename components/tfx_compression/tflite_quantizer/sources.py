"""A SavedModel of any model: what is converted always is one."""

import os
import tempfile
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tfx_compression import model_handle
from tfx_compression.errors import ModelError
from tfx_compression.saved_models.saved_model import SIGNATURE


def saved_model_of(model: Any, folder: str) -> str:
    """The path of a SavedModel that answers as `model` does.

    Args:
      model: a Keras 2 or Keras 3 model in memory, or the path of a `.keras` or `.h5` file or of a SavedModel, whose own
        path is returned.
      folder: where the SavedModel is written, unless it is one already. Its `serving_default` has the names of the
        model's inputs and outputs; of a subclassed Keras 3 model those of its dicts, or else Keras' own (`args_0`,
        `output_0`).

    Raises:
      ModelError: where there is no model, or a subclassed one was never called.
    """
    if isinstance(model, str | os.PathLike) and tf.saved_model.contains_saved_model(os.fspath(model)):
        return os.fspath(model)
    own = model_handle.wrap(model)
    try:
        if own.kind == "keras3" and own.network is None:
            _export(own.model, folder)
        else:
            own.save(folder)
    except (ValueError, TypeError) as error:
        if isinstance(error, ModelError) or own.network is not None:
            raise
        raise ModelError(
            f"The subclassed model {own.model.name!r} can't be saved: {str(error).rstrip(' .')}. "
            "Remedy: call it once, on one batch, so that its inputs are known."
        ) from error
    return folder


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

            def answer(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
                results = loaded.serve(dict(zip(names, tensors, strict=True)))
                if isinstance(results, Mapping):
                    return dict(results)
                return {f"output_{index}": tensor for index, tensor in enumerate(tf.nest.flatten(results))}

            specs = [tf.TensorSpec(inputs[name].shape, inputs[name].dtype, name) for name in names]
            signature = tf.function(answer, input_signature=specs)
        tf.saved_model.save(loaded, folder, signatures={SIGNATURE: signature})
