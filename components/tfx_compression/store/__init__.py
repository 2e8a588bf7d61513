"""The TFLite store: numbered, immutable model versions, and channels that point at them. Imports no TFX, no TensorFlow.

```
<root>/<name>/versions/<int>/model.tflite        immutable
                             manifest.json
<root>/<name>/channels.json                      {"stable": 42, "canary": 43, "_history": {…}}
```
"""

from tfx_compression.errors import StoreError
from tfx_compression.store.directory import DirectoryStore
from tfx_compression.store.target import StoreTarget, local_path

__all__ = ["DirectoryStore", "StoreError", "StoreTarget", "local_path", "open"]


def open(uri: str) -> DirectoryStore:
    """The store at `uri`, a directory as a path or a file:// URI; it is made by the first `publish`.

    Raises:
      StoreError: for a URI of another scheme.
    """
    path = local_path(uri)
    if path is None:
        scheme = uri.partition("://")[0]
        raise StoreError(f"The store {uri} is of scheme {scheme!r}; this version keeps stores in directories only.")
    return DirectoryStore(path)
