"""Errors of user code that TensorFlow traces, without AutoGraph's wrapping.

TensorFlow traces loss functions, layers and functions given to `tf.data.Dataset.map`. If one of them raises, AutoGraph
raises a new error at each level of tracing. The new error's message buries the original one below a stack trace, and
its class is often another. AutoGraph doesn't wrap a CompressionError (see `errors.py`).
"""

import contextlib
import re
from collections.abc import Iterator

# How AutoGraph, and Keras 2 around AutoGraph, begin their messages; a KeyError's is quoted.
_WRAPPED = re.compile(r"['\"]?(in user code:|Exception encountered when calling )")


@contextlib.contextmanager
def unwrapped_errors() -> Iterator[None]:
    """Raises an error from traced code as the code raised it, with its class and message.

    Use it as a context manager around a call that traces user code, or as a decorator.
    """
    try:
        yield
    except Exception as error:
        original = original_error(error)
        if original is error:
            raise
        context = original.__context__
        try:
            raise original
        finally:
            original.__context__ = context  # Not AutoGraph's error, which Python has just set.


def original_error(error: BaseException) -> BaseException:
    """Returns the error that AutoGraph wrapped in `error`, or `error` where it wrapped none."""
    while _WRAPPED.match(str(error)) and hasattr(error.__context__, "ag_error_metadata"):
        assert error.__context__ is not None
        error = error.__context__
    return error
