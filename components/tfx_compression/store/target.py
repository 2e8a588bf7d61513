"""The model and channel of a store that a release goes to."""

from pydantic import Field, field_validator

from tfx_compression.config import Config
from tfx_compression.store import backends, names


class StoreTarget(Config):
    """A model and a channel in a TFLite store.

    Attributes:
      uri: Root of the store: path of a directory or file:// URI.
      name: Name of the model: lower case letters, digits, `.`, `_` and `-`.
      channel: Channel that devices follow. A release points it at the new version.
    """

    uri: str = Field(min_length=1)
    name: str
    channel: str = "stable"

    @field_validator("uri")
    @classmethod
    def _has_backend(cls, uri: str) -> str:
        backends.open(uri)
        return uri

    @field_validator("name", "channel")
    @classmethod
    def _is_name(cls, value: str) -> str:
        if not names.is_name(value):
            raise ValueError(names.RULE)
        return value
