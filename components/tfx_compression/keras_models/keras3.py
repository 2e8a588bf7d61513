"""Loading and saving Keras 3 models.

Keras 3 (`keras`) can live beside Keras 2 (`tf_keras`) in one process. It is imported only for models that need it.
"""

import json
import os
import re
import tempfile
import zipfile
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
from google.protobuf import message

from tfx_compression.errors import ModelError
from tfx_compression.keras_models.library import import_keras3

# Errors that libraries raise for a damaged file or an unknown class.
LOADING_FAILURES = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RuntimeError,
    EOFError,
    zipfile.BadZipFile,
    message.DecodeError,
    tf.errors.OpError,
)


H5_ENDINGS = (".h5", ".hdf5")

# How either Keras names a class or function that it doesn't know.
_UNKNOWN = re.compile(
    r"Unknown (?:\w+ ?)+: '(?P<a>\w+)'|deserialize object of type `(?P<b>\w+)`"
    r"|Could not locate (?:class|function) '(?P<c>\w+)'|Received: layer=(?P<d>\w+) of type <class 'str'>"
)


def keras_version(path: str) -> int:
    """Returns the major version of Keras, 2 or 3, that wrote a `.keras`, `.h5` or `.hdf5` file.

    Raises:
      ModelError: The file doesn't tell (code `unreadable-model`) or has weights only (`weights-only`).
    """
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            version = _h5_version(file) if path.endswith(H5_ENDINGS) else _zip_version(file)
        if version is None:
            raise ModelError(
                f"{path} holds weights without a model (save_weights), so its layers are unknown. Remedy: build the "
                "model, call model.load_weights on this file, and pass the model, or the path that model.save writes.",
                code="weights-only",
            )
        major = int(version.split(".")[0])
    except ModelError:
        raise
    except LOADING_FAILURES as error:
        raise ModelError(
            f"{path} is not a Keras model: {str(error).rstrip(' .')}. "
            "Remedy: write it with model.save(path); otherwise it is damaged.",
            code="unreadable-model",
        ) from error
    return 2 if major < 3 else 3


def load(path: str, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """Loads the Keras 3 model in a `.keras`, `.h5` or `.hdf5` file, without running code inside it (safe mode).

    Raises:
      ModelError: The model can't be loaded (code `unreadable-model`), or has an unknown class or function
        (`unknown-class`).
    """
    keras = import_keras3()
    try:
        with tempfile.TemporaryDirectory(prefix="tfx-compression-") as folder:
            local = os.path.join(folder, os.path.basename(path))
            tf.io.gfile.copy(path, local)
            return keras.saving.load_model(local, custom_objects=dict(custom_objects or {}), safe_mode=True)
    except LOADING_FAILURES as error:
        raise loading_error(f"The Keras 3 model in {path}", error) from error


def loading_error(model: str, error: BaseException) -> ModelError:
    """Returns the error to raise for a model that Keras can't load.

    Args:
      model: Description of the model; the message starts with it.
      error: Keras' error.
    """
    if match := _UNKNOWN.search(str(error)):
        name = match[match.lastgroup or 0]
        return ModelError(
            f"{model} can't be loaded: it has a {name!r}, which Keras doesn't know. Remedy: "
            f"custom_objects={{{name!r}: {name}}}, with your class or function (in a pipeline, returned by a "
            "custom_objects() in the module file).",
            field="custom_objects",
            code="unknown-class",
        )
    return ModelError(
        f"{model} can't be loaded: {str(error).rstrip(' .')}. Remedy: for classes and functions of your own, "
        "custom_objects={name: class} (in a pipeline, a custom_objects() in the module file); otherwise the file is "
        "damaged.",
        code="unreadable-model",
    )


def copy_compilation(source: Any, target: Any) -> None:
    """Compiles a model with the loss, metrics and settings of another, and a new optimizer without state.

    Losses and metrics are passed as objects, because the user's own have no registered name to build them from.
    """
    loss, metrics = getattr(source, "_compile_loss", None), getattr(source, "_compile_metrics", None)
    target.compile(
        optimizer=type(source.optimizer).from_config(source.optimizer.get_config()),
        loss=getattr(loss, "_user_loss", None),
        loss_weights=getattr(loss, "_user_loss_weights", None),
        metrics=getattr(metrics, "_user_metrics", None),
        weighted_metrics=getattr(metrics, "_user_weighted_metrics", None),
        run_eagerly=source.run_eagerly,
        steps_per_execution=source.steps_per_execution,
        jit_compile=source.jit_compile,
        auto_scale_loss=False,  # The optimizer scales the loss if the source's did.
    )
    target.optimizer.build(target.trainable_variables)


def save(model: Any, path: str) -> None:
    """Writes a `.keras` file to any file system that TensorFlow knows."""
    with tempfile.TemporaryDirectory(prefix="tfx-compression-") as folder:
        local = os.path.join(folder, "model.keras")
        model.save(local)
        tf.io.gfile.makedirs(os.path.dirname(path))
        tf.io.gfile.copy(local, path, overwrite=True)


def _zip_version(file: Any) -> str:
    with zipfile.ZipFile(file) as archive:
        return str(json.loads(archive.read("metadata.json"))["keras_version"])


def _h5_version(file: Any) -> str | None:
    """Returns the version of Keras in an HDF5 file; None if the file holds weights only."""
    import h5py

    with h5py.File(file, "r") as stored:
        if "model_config" not in stored.attrs and ("layers" in stored or "layer_names" in stored.attrs):
            return None
        version = stored.attrs["keras_version"]
    return version.decode() if isinstance(version, bytes) else str(version)
