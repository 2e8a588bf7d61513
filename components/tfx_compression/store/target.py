"""Where a model is released to."""

import re

from pydantic import Field, field_validator

from tfx_compression.models.config import Config

NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


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
