"""The TFLite store: numbered, immutable versions of models, and channels that point at versions.

Imports neither TFX nor TensorFlow. docs/store.md describes layout and guarantees.
"""

from tfx_compression.store.backends import open
from tfx_compression.store.protocol import StoreBackend
from tfx_compression.store.target import StoreTarget
from tfx_compression.store.uris import local_path

__all__ = ["StoreBackend", "StoreTarget", "local_path", "open"]
