"""Where a model is released to."""

import re
import urllib.parse
import urllib.request

from pydantic import Field, field_validator

from tfx_compression.config import Config

NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


def local_path(uri: str) -> str | None:
    """The path that a path or a file:// URI names; None for a URI of another scheme."""
    scheme, separator, _ = uri.partition("://")
    if not separator:
        return uri
    return urllib.request.url2pathname(urllib.parse.urlparse(uri).path) if scheme == "file" else None


class StoreTarget(Config):
    """A place in a TFLite store.

    Attributes:
      uri: the store's root.
      name: the model's, in lower case letters, digits, `.`, `_` and `-`.
      channel: what devices follow; it is moved to the new version.
    """

    uri: str = Field(min_length=1)
    name: str
    channel: str = "stable"

    @field_validator("name", "channel")
    @classmethod
    def _plain(cls, value: str) -> str:
        if not NAME.fullmatch(value):
            raise ValueError("use lower case letters, digits, '.', '_' and '-', starting with a letter or digit")
        return value
