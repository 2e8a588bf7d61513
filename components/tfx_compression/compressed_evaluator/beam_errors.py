"""Carries errors out of Beam, whose runners hand on only their message, with text around it."""

import base64
import contextlib
import json
import re
from collections.abc import Iterator

from tfx_compression.errors import CompressionError, DataError, ModelError

_CLASSES = (DataError, ModelError, CompressionError)


@contextlib.contextmanager
def carried_errors() -> Iterator[None]:
    """Encodes a CompressionError of the block in the message of a RuntimeError, for `original_error`."""
    try:
        yield
    except CompressionError as error:
        name = next(each.__name__ for each in _CLASSES if isinstance(error, each))
        content = json.dumps({"class": name, "message": str(error), "field": error.field, "code": error.code})
        raise RuntimeError(f"{error} <<tfx_compression:{base64.b64encode(content.encode()).decode()}>>") from error


def original_error(error: RuntimeError) -> CompressionError | None:
    """Returns the error that `carried_errors` encoded, or None if there is none."""
    encoded = re.search(r"<<tfx_compression:([A-Za-z0-9+/=]+)>>", str(error))
    if encoded is None:
        return None
    content = json.loads(base64.b64decode(encoded[1]))
    classes = {each.__name__: each for each in _CLASSES}
    return classes[content["class"]](content["message"], field=content["field"], code=content["code"])
