"""Fixtures of tests of fine-tuning."""

from collections.abc import Iterator

import pytest

from tests.support import fine_tuning


@pytest.fixture
def eagerly() -> Iterator[None]:
    """Runs all functions eagerly."""
    with fine_tuning.running_eagerly():
        yield
