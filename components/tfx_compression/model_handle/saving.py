"""Writing a Keras network together with its signatures."""

import os
from typing import Any

import tensorflow as tf

from tfx_compression.keras_models import keras2, keras3
from tfx_compression.keras_models.library import is_keras3
from tfx_compression.model_handle.layout import KERAS_FILE
from tfx_compression.saved_models.rebuilt_signatures import RebuiltSignatures

_RESOURCES = (tf.lookup.StaticHashTable, tf.lookup.StaticVocabularyTable, tf.lookup.experimental.MutableHashTable)


def copy_compilation(source: Any, target: Any) -> None:
    """Compiles `target`, unless it is compiled, with what `source` was compiled with, and a new optimizer."""
    if is_keras3(source):
        if getattr(source, "compiled", False) and not target.compiled:
            keras3.copy_compilation(source, target)
    elif getattr(target, "optimizer", None) is None and (compiled := keras2.compile_arguments(source)):
        target.compile(**compiled)


def write_network(network: Any, rebuilt: RebuiltSignatures, path: str) -> None:
    """Writes a SavedModel: with Keras' metadata for Keras 2, with a `.keras` file inside for Keras 3."""
    if not is_keras3(network):
        for name, value in rebuilt.tracked.items():
            setattr(network, name, value)
        keras2.resolve_metrics(network)
        network.save(path, save_format="tf", signatures=rebuilt.signatures)
        return
    module = tf.Module()
    module.weights = [weight._value for weight in network.variables]
    module.resources = [  # the tables of lookup layers
        value for layer in network._flatten_layers() for value in vars(layer).values() if isinstance(value, _RESOURCES)
    ]
    for name, value in rebuilt.tracked.items():
        setattr(module, name, value)
    tf.saved_model.save(module, path, signatures=rebuilt.signatures)
    keras3.save(network, os.path.join(path, KERAS_FILE))
