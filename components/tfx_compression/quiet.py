"""Calls of libraries without the warnings that say nothing to the user of this package."""

import contextlib
import logging
import re
from collections.abc import Iterator

# What TensorFlow, Keras, TFMA and Beam warn of when this package calls them as it must.
_NOISE = re.compile(
    r"No training configuration found"  # every load of a model that is not compiled
    r"|Compiled the loaded model, but the compiled metrics have yet to be built"
    r"|Skipping variable loading for optimizer"  # its state isn't used
    r"|Error in loading the saved optimizer state"  # likewise
    r"|Found untraced functions such as"
    r"|Skipping full serialization of Keras layer"
    r"|From \S+: .* is deprecated and will be removed"
    r"|This output type hint will be ignored"
    r"|Failed to extract number of input bytes"
)
_LOGGERS = ("", "absl", "tensorflow")


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Holds back known messages of libraries. All other messages, levels and handlers stay as the user set them.

    Use it as a context manager or as a decorator.
    """
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    for logger in loggers:
        logger.addFilter(_is_news)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return record.levelno > logging.WARNING or not _NOISE.search(record.getMessage())
