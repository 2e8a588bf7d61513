"""Names of models and channels."""

import re

from tfx_compression.errors import StoreError

RULE = "use lower case letters, digits, '.', '_' and '-', starting with a letter or digit"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


def is_name(text: str) -> bool:
    """Returns whether a text can be the name of a model or channel; such a name never leads out of its folder."""
    return _NAME.fullmatch(text) is not None


def require_name(text: str) -> None:
    """Raises StoreError (code "invalid-name") for a text that can't be a name."""
    if not is_name(text):
        raise StoreError(f"{text!r} is not a valid name: {RULE}.", code="invalid-name")
