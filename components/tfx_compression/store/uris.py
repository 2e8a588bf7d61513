"""URIs of stores."""

import urllib.parse
import urllib.request


def scheme(uri: str) -> str:
    """Returns the scheme of a URI, empty for a path."""
    before, separator, _ = uri.partition("://")
    return before if separator else ""


def local_path(uri: str) -> str | None:
    """Returns the local path that a path or a file:// URI names, None for a URI of another scheme."""
    if not scheme(uri):
        return uri
    return urllib.request.url2pathname(urllib.parse.urlparse(uri).path) if scheme(uri) == "file" else None
