"""Loading a model of any kind, from memory or from files."""

import os
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tfx_compression.errors import ConfigError, ModelError
from tfx_compression.keras_models import graph, keras2, keras3
from tfx_compression.keras_models.library import is_keras3
from tfx_compression.model_handle.handle import ModelHandle, ModelKind
from tfx_compression.model_handle.layout import KERAS_ENDINGS, METADATA_FILE, keras_files
from tfx_compression.model_handle.variable_matching import match_variables
from tfx_compression.saved_models import saved_model
from tfx_compression.saved_models.saved_model import SavedModel


def load(path: str, custom_objects: Mapping[str, Any] | None = None) -> ModelHandle:
    """Loads the model in a `.keras`, `.h5` or `.hdf5` file, or in a folder that a Trainer wrote.

    In a folder, the layers come from a SavedModel with Keras metadata, or else from a `.keras` file in it. Beside TFX's
    `Format-Serving` a `.keras` file counts, too. The signatures come from the SavedModel. If neither has a graph of
    layers, the kind is `saved_model`, and the notes say why.

    Raises:
      ModelError: There is no model (code `missing-model`), none of a known format (`unknown-format`) or none that can
        be loaded (`unreadable-model`), there are several `.keras` files (`several-keras-files`), or TensorFlow doesn't
        know the file system (`unknown-file-system`).
      ConfigError: `custom_objects` is not a mapping (`not-a-mapping`).
    """
    _require_mapping(custom_objects)
    try:
        exists = tf.io.gfile.exists(path)
    except tf.errors.OpError as error:
        raise ModelError(
            f"{path} can't be read: {str(error).rstrip(' .')}. Remedy: a path on a file system that TensorFlow knows.",
            code="unknown-file-system",
        ) from error
    if not exists:
        raise ModelError(f"No model at {path}. Remedy: check the path.", code="missing-model")
    if not tf.io.gfile.isdir(path):
        model, kind = _load_file(path, custom_objects)
        return ModelHandle(kind, model, None, (f"{path} was written by Keras {kind[-1]}.",))
    file = _keras_file(path)
    if not tf.saved_model.contains_saved_model(path):
        if file is None:
            raise ModelError(
                f"{path} holds neither a saved_model.pb nor a .keras file. Remedy: check Trainer's run_fn.",
                code="missing-model",
            )
        return load(file, custom_objects)
    return _load_folder(path, file, custom_objects)


def wrap(model: Any, custom_objects: Mapping[str, Any] | None = None) -> ModelHandle:
    """Returns the handle of a Keras 2 or Keras 3 model in memory, of a `SavedModel`, or of the model at a path.

    The result of `prune` or `fine_tune` is a model, too.

    Args:
      model: The model.
      custom_objects: The user's classes and functions by name, to load a model from a path.

    Raises:
      ModelError: The model is none of these (code `unknown-format`), or `load` can't load the path. Or it is a result
        whose graph changed, and the signatures are still those of the original (`changed-graph`).
      ConfigError: `custom_objects` is not a mapping (`not-a-mapping`).
    """
    _require_mapping(custom_objects)
    if isinstance(model, ModelHandle):
        return model
    if isinstance(getattr(model, "handle", None), ModelHandle):
        return _wrap_result(model)
    if isinstance(model, str | os.PathLike):
        return load(os.fspath(model), custom_objects)
    if isinstance(model, SavedModel):
        return ModelHandle("saved_model", model, model.path)
    if is_keras3(model):
        return ModelHandle("keras3", model)
    if isinstance(model, tf.Module) and hasattr(model, "get_config") and hasattr(model, "layers"):
        return ModelHandle("keras2", model)
    raise ModelError(
        f"An object of class {type(model).__module__}.{type(model).__name__} is not a model that can be compressed. "
        "Remedy: a tf_keras or keras model, or the path of a SavedModel, .keras, .h5 or .hdf5 file.",
        code="unknown-format",
    )


def _require_mapping(custom_objects: Any) -> None:
    if custom_objects is not None and not isinstance(custom_objects, Mapping):
        raise ConfigError(
            f"custom_objects is a {type(custom_objects).__name__}, {custom_objects!r}, and has to be a mapping. "
            "Remedy: custom_objects={name: class or function}, by the names in the file.",
            field="custom_objects",
            code="not-a-mapping",
        )


def _wrap_result(result: Any) -> ModelHandle:
    """Returns the handle of a `Compressed` with a handle."""
    handle: ModelHandle = result.handle
    if result.model is handle.model:
        return handle
    if handle.path is not None or getattr(handle.model, "signatures", None):
        raise ModelError(
            "The model is a result of prune or fine_tune whose graph changed. It answers its original's signatures "
            "once it is saved. Remedy: result.save(path), and pass the path; or result.model, without the signatures.",
            code="changed-graph",
        )
    return wrap(result.model)


def _load_folder(path: str, file: str | None, custom_objects: Mapping[str, Any] | None) -> ModelHandle:
    notes = []
    if tf.io.gfile.exists(os.path.join(path, METADATA_FILE)):
        model = keras2.load(path, custom_objects)
        if graph.has_inputs_and_outputs(model):
            ignored = (f"{file} was not used, because the SavedModel has layers.",) if file else ()
            return ModelHandle("keras2", model, path, (f"{path} has Keras 2 metadata ({METADATA_FILE}).", *ignored))
        notes.append(f"The Keras 2 model in {path} is subclassed, so its graph of layers is unknown.")
    else:
        notes.append(f"{path} has no Keras metadata ({METADATA_FILE}).")
    saved = saved_model.load(path)
    if file is not None:
        model, kind = _load_file(file, custom_objects)
        if graph.has_inputs_and_outputs(model):
            notes.append(f"The layers come from {file}, written by Keras {kind[-1]}.")
            return ModelHandle(kind, model, path, tuple(notes), match_variables(model.weights, saved))
        notes.append(f"The Keras model in {file} is subclassed, so its graph of layers is unknown.")
    notes.append("The kernels are the variables that the signatures multiply with.")
    if saved.unrecognized:
        variables = ", ".join(saved.unrecognized)
        notes.append(f"Variables that are integers or have an unknown multiplication are left alone: {variables}.")
    return ModelHandle("saved_model", saved, path, tuple(notes))


def _load_file(path: str, custom_objects: Mapping[str, Any] | None) -> tuple[Any, ModelKind]:
    if not path.endswith(KERAS_ENDINGS):
        raise ModelError(
            f"{path} is not a model. Remedy: the path of a SavedModel folder, a .keras, .h5 or .hdf5 file.",
            code="unknown-format",
        )
    if keras3.keras_version(path) == 2:
        return keras2.load(path, custom_objects), "keras2"
    return keras3.load(path, custom_objects), "keras3"


def _keras_file(path: str) -> str | None:
    """Returns the `.keras` file in a folder, or beside it in its Model artifact, if any."""
    files = keras_files(path)
    if len(files) > 1:
        raise ModelError(
            f"Several Keras files, which may differ: {', '.join(files)}. Remedy: keep one of them.",
            code="several-keras-files",
        )
    return files[0] if files else None
