"""Settings that all tests share."""

import os

# tfmot and tf.Transform's layers are Keras 2, and a process has one `tf.keras`. Subprocesses inherit the setting.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
