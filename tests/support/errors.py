"""Assertions on errors."""

import contextlib
import re
from collections.abc import Iterator

import pytest
from tfx_compression.errors import CompressionError


@contextlib.contextmanager
def raises(
    error_class: type[CompressionError],
    *,
    code: str | None = None,
    field: str | None = None,
    match: str | re.Pattern[str] | None = None,
) -> Iterator[pytest.ExceptionInfo]:
    """Asserts that the block raises an error of a class, with the given code and field.

    Args:
      error_class: Class of the error.
      code: Expected `code` of the error; None accepts any.
      field: Expected `field` of the error; None accepts any.
      match: Regular expression of a value or name that the message must contain.

    Yields:
      The caught error, as `pytest.raises` does.
    """
    with pytest.raises(error_class, match=match) as caught:
        yield caught
    if code is not None:
        assert caught.value.code == code, f"code {caught.value.code!r} instead of {code!r}: {caught.value}"
    if field is not None:
        assert caught.value.field == field, f"field {caught.value.field!r} instead of {field!r}: {caught.value}"
