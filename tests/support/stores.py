"""Models in a store, and the store's files."""

import hashlib
from pathlib import Path

import tfx_compression.store as stores
from tfx_compression.store import StoreBackend


def content(number: int) -> bytes:
    """Returns a model that differs for each number."""
    return f"model {number} ".encode() * 200


def publish(store: StoreBackend, versions: int, name: str = "digits") -> None:
    """Publishes versions 1, 2, … of a model, with the content of their numbers."""
    for number in range(1, versions + 1):
        assert store.publish(name, content(number), {}) == number


def model_file(root: Path, version: int, name: str = "digits") -> Path:
    """Returns the file of a version's model."""
    return root / name / "versions" / str(version) / "model.tflite"


def overwrite(path: Path, replacement: bytes) -> None:
    """Replaces the content of a read-only file."""
    path.chmod(0o644)
    path.write_bytes(replacement)


def files_below(folder: Path) -> dict[str, bytes]:
    """Returns the content of every file below a folder by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def require_consistent(root: Path) -> list[int]:
    """Checks everything that a reader can see of `digits`, without the store's own checks; returns the versions."""
    store = stores.open(str(root))
    versions = store.versions("digits")
    assert versions == list(range(1, len(versions) + 1))
    for version in versions:
        manifest = store.manifest("digits", version)
        model = model_file(root, version).read_bytes()
        assert manifest["version"] == version
        assert manifest["sha256"] == hashlib.sha256(model).hexdigest()
        assert manifest["bytes"] == len(model)
    assert set(store.channels("digits").values()) <= set(versions)
    return versions
