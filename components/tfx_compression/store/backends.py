"""The backends by URI scheme. To add one, write its file and add its row to `_BACKENDS`."""

from collections.abc import Callable

from tfx_compression.errors import StoreError
from tfx_compression.store import uris
from tfx_compression.store.directory import DirectoryStore
from tfx_compression.store.protocol import StoreBackend

# The scheme of a URI, empty for a path, and what makes the store of such a URI.
_BACKENDS: dict[str, Callable[[str], StoreBackend]] = {
    "": DirectoryStore,
    "file": lambda uri: DirectoryStore(uris.local_path(uri) or ""),
}


def open(uri: str) -> StoreBackend:
    """Returns the store at `uri`. The first `publish` makes it.

    Args:
      uri: Path of a directory or file:// URI.

    Raises:
      StoreError: No backend has the URI's scheme (code "unknown-scheme").
    """
    scheme = uris.scheme(uri)
    if scheme not in _BACKENDS:
        known = ", ".join(f"{known}://" if known else "a path" for known in _BACKENDS)
        raise StoreError(
            f"The store {uri} has the scheme {scheme!r}, which this version doesn't support. Remedy: one of {known}.",
            field="uri",
            code="unknown-scheme",
        )
    return _BACKENDS[scheme](uri)
