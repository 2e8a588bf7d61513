"""A store in a temporary directory."""

from pathlib import Path

import pytest
import tfx_compression.store as stores
from tfx_compression.store import StoreBackend


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> StoreBackend:
    return stores.open(str(root))
