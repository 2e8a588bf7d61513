"""Keras 3 models as a Trainer writes them: load them, save them beside a SavedModel.

Keras 3 (`keras`) lives beside Keras 2 (`tf_keras`) in one process; it is imported where there is such a model only.
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

# What libraries raise for a damaged file, or for a class that they don't know.
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
    """The Keras, 2 or 3, that wrote a `.keras` or `.h5` file.

    Raises:
      ModelError: where the file doesn't say.
    """
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            version = _h5_version(file) if path.endswith(".h5") else _zip_version(file)
        major = int(version.split(".")[0])
    except LOADING_FAILURES as error:
        raise ModelError(
            f"{path} is no model of Keras: {str(error).rstrip(' .')}. "
            "Remedy: write it with model.save(path); otherwise it is damaged."
        ) from error
    return 2 if major < 3 else 3


def load(path: str, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """The Keras 3 model in a `.keras` or `.h5` file; code inside the file is not run (safe mode).

    Raises:
      ModelError: where it can't be loaded.
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
            "otherwise the file is damaged."
        ) from error


def copy_compilation(model: Any, network: Any) -> None:
    """Compiles a network as a model is, with the same loss and metrics, and a new optimizer without state.

    The objects themselves are passed on: one of the user's own has no registered name to make it from again.
    """
    loss, metrics = getattr(model, "_compile_loss", None), getattr(model, "_compile_metrics", None)
    network.compile(
        optimizer=type(model.optimizer).from_config(model.optimizer.get_config()),
        loss=getattr(loss, "_user_loss", None),
        loss_weights=getattr(loss, "_user_loss_weights", None),
        metrics=getattr(metrics, "_user_metrics", None),
        weighted_metrics=getattr(metrics, "_user_weighted_metrics", None),
        run_eagerly=model.run_eagerly,
        steps_per_execution=model.steps_per_execution,
        jit_compile=model.jit_compile,
        auto_scale_loss=False,  # the optimizer does where the model's did
    )
    network.optimizer.build(network.trainable_variables)


def save(model: Any, path: str) -> None:
    """Writes a `.keras` file, here or on any file system that TensorFlow knows."""
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
