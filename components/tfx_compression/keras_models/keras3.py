"""Loading and saving Keras 3 models.

Keras 3 (`keras`) can live beside Keras 2 (`tf_keras`) in one process. It is imported only for models that need it.
"""

import json
import os
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


def keras_version(path: str) -> int:
    """Returns the major version of Keras, 2 or 3, that wrote a `.keras` or `.h5` file.

    Raises:
      ModelError: The file doesn't tell (code `unreadable-model`).
    """
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            version = _h5_version(file) if path.endswith(".h5") else _zip_version(file)
        major = int(version.split(".")[0])
    except LOADING_FAILURES as error:
        raise ModelError(
            f"{path} is not a Keras model: {str(error).rstrip(' .')}. "
            "Remedy: write it with model.save(path); otherwise it is damaged.",
            code="unreadable-model",
        ) from error
    return 2 if major < 3 else 3


def load(path: str, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """Loads the Keras 3 model in a `.keras` or `.h5` file, without running code inside the file (safe mode).

    Raises:
      ModelError: The model can't be loaded (code `unreadable-model`).
    """
    keras = import_keras3()
    try:
        with tempfile.TemporaryDirectory(prefix="tfx-compression-") as folder:
            local = os.path.join(folder, os.path.basename(path))
            tf.io.gfile.copy(path, local)
            return keras.saving.load_model(local, custom_objects=dict(custom_objects or {}), safe_mode=True)
    except LOADING_FAILURES as error:
        raise ModelError(
            f"The Keras 3 model in {path} can't be loaded: {str(error).rstrip(' .')}. "
            "Remedy: for classes and functions of your own, a custom_objects() in the module file; "
            "otherwise the file is damaged.",
            code="unreadable-model",
        ) from error


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


def _h5_version(file: Any) -> str:
    import h5py

    with h5py.File(file, "r") as stored:
        version = stored.attrs["keras_version"]
    return version.decode() if isinstance(version, bytes) else str(version)
