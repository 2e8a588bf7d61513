"""A store in a directory.

```
<root>/<name>/versions/<version>/model.tflite     read-only
                                 manifest.json    read-only
<root>/<name>/channels.json                       {"stable": 42, "canary": 43, "_history": {…}}
```

A version appears by renaming a complete folder, which fails if the number is taken. So a reader never sees half a
version, and two writers never get the same number. `channels.json` is replaced in one step, under a lock.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tfx_compression.errors import StoreError
from tfx_compression.store import manifests
from tfx_compression.store.channels import Channels
from tfx_compression.store.names import is_name, require_name

_MODEL = "model.tflite"
_MANIFEST = "manifest.json"
_CHANNELS = "channels.json"
_PARTIAL = ".partial-"
_ABANDONED_SECONDS = 24 * 3600


class DirectoryStore:
    """A TFLite store below a directory. See `StoreBackend` for the methods.

    Args:
      root: Path of the directory.
    """

    def __init__(self, root: str | os.PathLike[str]):
        self.root = Path(root)

    @property
    def uri(self) -> str:
        """Path of the root."""
        return str(self.root)

    def require_writable(self) -> None:
        """Raises StoreError if this user can't write below the root. Leaves nothing behind."""
        existing = next(folder for folder in [self.root.absolute(), *self.root.absolute().parents] if folder.exists())
        try:
            with tempfile.TemporaryFile(dir=existing):
                pass
        except OSError as error:
            raise self._not_writable(error) from error

    def publish(self, name: str, model: bytes | str | os.PathLike[str], manifest: Mapping[str, Any]) -> int:
        """Adds a version and returns its number."""
        require_name(name)
        content = model if isinstance(model, bytes) else Path(model).read_bytes()
        versions = self._versions_folder(name)
        try:
            _make_folder(versions)
            _remove_abandoned(versions)
            partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=versions))
            try:
                _write(partial / _MODEL, content)
                return self._publish_folder(name, partial, manifests.complete(manifest, name, content))
            finally:
                shutil.rmtree(partial, ignore_errors=True)  # After success the folder has its new name.
        except OSError as error:
            raise self._not_writable(error) from error

    def _publish_folder(self, name: str, partial: Path, manifest: Mapping[str, Any]) -> int:
        """Completes the manifest and renames the folder to the next free number."""
        while True:
            version = max(self.versions(name), default=0) + 1
            _write(partial / _MANIFEST, manifests.encode({**manifest, "version": version}))
            partial.chmod(0o755)
            _sync(partial)
            try:
                partial.rename(partial.parent / str(version))
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                continue  # Another writer took the number.
            _sync(partial.parent)
            return version

    def names(self) -> list[str]:
        """Returns the names of the models.

        Raises:
          StoreError: The root does not exist (code "no-store") or is not a directory (code "not-a-directory").
        """
        if not self.root.exists():
            raise StoreError(f"There is no store in {self.uri}. The first release makes one.", code="no-store")
        if not self.root.is_dir():
            raise StoreError(f"The store {self.uri} is not a directory.", code="not-a-directory")
        candidates = (path.parent.name for path in self.root.glob("*/versions"))
        return sorted(name for name in candidates if is_name(name) and self.versions(name))

    def versions(self, name: str) -> list[int]:
        """Returns the versions of a model, ascending."""
        require_name(name)
        folder = self._versions_folder(name)
        numbers = [path.name for path in folder.glob("*")] if folder.is_dir() else []
        return sorted(int(number) for number in numbers if number.isascii() and number.isdecimal())

    def manifest(self, name: str, version: int) -> dict[str, Any]:
        """Returns the manifest of a version."""
        return _read_object(self._folder(name, version) / _MANIFEST)

    def channels(self, name: str) -> dict[str, int]:
        """Returns the version that each channel points at."""
        return self._channels(name).versions

    def promote(self, name: str, version: int, channel: str) -> None:
        """Points a channel at a version."""
        require_name(channel)
        self._folder(name, version)
        with self._locked_channels(name) as channels:
            channels.promote(channel, version)

    def rollback(self, name: str, channel: str) -> int:
        """Points a channel back at its previous version and returns that version."""
        with self._locked_channels(name) as channels:
            return channels.rollback(channel, f"{name} in {self.uri}")

    def pull(
        self, name: str, to: str | os.PathLike[str], *, channel: str = "stable", version: int | None = None
    ) -> int:
        """Writes the model of a version to a file and returns the version."""
        if version is None:
            version = self._promoted(name, channel)
        content = self._verified(name, version)
        target = Path(to)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _replace(target, content)
        except OSError as error:
            raise StoreError(f"{target} can't be written: {error.strerror or error}.", code="not-writable") from error
        return version

    def verify(self, name: str, version: int) -> None:
        """Checks the model of a version against its manifest."""
        self._verified(name, version)

    def _promoted(self, name: str, channel: str) -> int:
        """Returns the version that a channel points at."""
        versions = self.channels(name)
        if not versions and not self.versions(name):
            raise self._unknown_model(name)
        if channel not in versions:
            raise StoreError(
                f"{name} in {self.uri} has no channel {channel!r}. Channels: {', '.join(versions) or 'none'}.",
                code="unknown-channel",
            )
        return versions[channel]

    def _verified(self, name: str, version: int) -> bytes:
        """Returns the flatbuffer of a version after checking it against the manifest."""
        manifest = self.manifest(name, version)
        try:
            content = (self._folder(name, version) / _MODEL).read_bytes()
        except OSError as error:
            raise StoreError(f"{name} {version} in {self.uri} can't be read: {error}.", code="damaged") from error
        manifests.require_match(manifest, content, f"{name} {version} in {self.uri}")
        return content

    def _versions_folder(self, name: str) -> Path:
        return self.root / name / "versions"

    def _folder(self, name: str, version: int) -> Path:
        """Returns the folder of a version."""
        require_name(name)
        folder = self._versions_folder(name) / str(version)
        if not folder.is_dir():
            known = ", ".join(map(str, self.versions(name)))
            if not known:
                raise self._unknown_model(name)
            raise StoreError(
                f"There is no version {version} of {name!r} in {self.uri}. Versions: {known}.", code="unknown-version"
            )
        return folder

    def _channels(self, name: str) -> Channels:
        require_name(name)
        path = self.root / name / _CHANNELS
        stored = _read_object(path) if path.exists() else {}
        try:
            return Channels(stored)
        except ValueError as error:
            raise StoreError(f"{path} is damaged: {error}.", code="damaged") from error

    @contextlib.contextmanager
    def _locked_channels(self, name: str) -> Iterator[Channels]:
        """Yields the channels of a model to one writer at a time and writes them unless an error is raised."""
        require_name(name)
        folder = self.root / name
        if not folder.is_dir():
            raise self._unknown_model(name)
        try:
            with (folder / ".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                channels = self._channels(name)
                yield channels
                _replace(folder / _CHANNELS, manifests.encode(channels.stored()))
        except OSError as error:
            raise self._not_writable(error) from error

    def _unknown_model(self, name: str) -> StoreError:
        return StoreError(
            f"There is no model {name!r} in {self.uri}. Models: {', '.join(self.names()) or 'none'}.",
            code="unknown-model",
        )

    def _not_writable(self, error: OSError) -> StoreError:
        return StoreError(
            f"The store {self.uri} can't be written: {error.strerror or error} ({error.filename or self.uri}). "
            "Remedy: a directory that this user can write to.",
            code="not-writable",
        )


def _remove_abandoned(versions: Path) -> None:
    """Removes what killed publishers left behind, once it is too old to belong to a running one."""
    for partial in versions.glob(f"{_PARTIAL}*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - partial.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(partial, ignore_errors=True)


def _read_object(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file.

    Raises:
      StoreError: The file can't be read or holds no JSON object (code "damaged").
    """
    try:
        return manifests.decode(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} is damaged: {error}.", code="damaged") from error


def _make_folder(path: Path) -> None:
    """Makes a folder and its parents, and syncs them to disk."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        _sync(folder.parent)


def _write(path: Path, content: bytes) -> None:
    """Writes a read-only file and syncs it to disk."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    path.chmod(0o444)


def _replace(path: Path, content: bytes) -> None:
    """Writes a file next to `path`, syncs it to disk and renames it to `path`."""
    descriptor, partial = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise
    _sync(path.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
