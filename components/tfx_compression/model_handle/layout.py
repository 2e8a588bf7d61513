"""The files in a folder that a Trainer writes a model to."""

import os

import tensorflow as tf

from tfx_compression.keras_models import keras3

SERVING_FOLDER = "Format-Serving"  # of TFX, in a Model artifact
KERAS_FILE = "model.keras"  # beside a SavedModel; a Trainer may choose another name
METADATA_FILE = "keras_metadata.pb"  # in a SavedModel of Keras 2
KERAS_ENDINGS = (".keras", *keras3.H5_ENDINGS)


def keras_files(path: str) -> list[str]:
    """Returns the `.keras` files in a folder, and those beside TFX's `Format-Serving` if that is the folder."""
    folders = [path]
    if os.path.basename(os.path.normpath(path)) == SERVING_FOLDER:
        folders.append(os.path.dirname(os.path.normpath(path)))
    return [name for folder in folders for name in sorted(tf.io.gfile.glob(os.path.join(folder, "*.keras")))]
