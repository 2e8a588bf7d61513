"""A store in a local directory.

A version appears by one rename of a complete folder, which fails where that number is taken: a reader never sees half a
version, and two writers never get the same number. `channels.json` is replaced whole, under a lock.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tfx_compression.compressed_size import gzipped
from tfx_compression.errors import StoreError
from tfx_compression.store.target import NAME

_MODEL = "model.tflite"
_MANIFEST = "manifest.json"
_PARTIAL = ".partial-"
_ABANDONED_SECONDS = 24 * 3600
_HISTORY = "_history"  # no channel's name: they start with a letter or digit


class DirectoryStore:
    """A TFLite store below the directory `root`."""

    def __init__(self, root: str | os.PathLike[str]):
        self.root = Path(root)

    @property
    def uri(self) -> str:
        """The root, as it was given."""
        return str(self.root)

    def require_writable(self) -> None:
        """Raises StoreError where nothing can be written below the root; leaves nothing behind."""
        existing = next(folder for folder in [self.root.absolute(), *self.root.absolute().parents] if folder.exists())
        try:
            with tempfile.TemporaryFile(dir=existing):
                pass
        except OSError as error:
            raise StoreError(self._not_writable(error)) from error

    def publish(self, name: str, model: bytes | str | os.PathLike[str], manifest: Mapping[str, Any]) -> int:
        """Adds a version; no channel is moved.

        Args:
          name: the model's.
          model: the flatbuffer, or the path of a file that holds it.
          manifest: what to say of it; completed with `name`, `version`, `sha256`, `bytes` and `bytes_gzip`.

        Returns:
          The version's number: one more than the largest there is.

        Raises:
          StoreError: for a name that is none, or a place that can't be written.
        """
        _require_name(name)
        content = model if isinstance(model, bytes) else Path(model).read_bytes()
        versions = self.root / name / "versions"
        try:
            _make_folder(versions)
            self._sweep(versions)
            partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=versions))
            try:
                _write(partial / _MODEL, content)
                return self._number(name, partial, content, manifest)
            finally:
                shutil.rmtree(partial, ignore_errors=True)  # gone already, by its new name, where all went well
        except OSError as error:
            raise StoreError(self._not_writable(error)) from error

    def _number(self, name: str, partial: Path, content: bytes, manifest: Mapping[str, Any]) -> int:
        """Completes the manifest and renames the folder to the next free number."""
        complete = {
            **manifest,
            "name": name,
            "sha256": hashlib.sha256(content).hexdigest(),
            "bytes": len(content),
            "bytes_gzip": gzipped(content),
        }
        while True:
            version = max(self.versions(name), default=0) + 1
            _write(partial / _MANIFEST, _json({**complete, "version": version}))
            partial.chmod(0o755)
            _sync(partial)
            try:
                partial.rename(partial.parent / str(version))
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                continue  # another writer took the number
            _sync(partial.parent)
            return version

    def _sweep(self, versions: Path) -> None:
        """Removes what publishers that were killed left behind, once it is too old to be at work."""
        for partial in versions.glob(f"{_PARTIAL}*"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - partial.stat().st_mtime > _ABANDONED_SECONDS:
                    shutil.rmtree(partial, ignore_errors=True)

    def names(self) -> list[str]:
        """The models in the store.

        Raises:
          StoreError: where the root is no directory.
        """
        if self.root.exists() and not self.root.is_dir():
            raise StoreError(f"The store {self.uri} is not a directory.")
        found = (path.parent.name for path in self.root.glob("*/versions"))
        return sorted(name for name in found if NAME.fullmatch(name) and self.versions(name))

    def versions(self, name: str) -> list[int]:
        """The numbers of the versions of `name`, ascending; none where there is no such model."""
        _require_name(name)
        folder = self.root / name / "versions"
        found = [path.name for path in folder.glob("*")] if folder.is_dir() else []
        return sorted(int(number) for number in found if number.isascii() and number.isdecimal())

    def manifest(self, name: str, version: int) -> dict[str, Any]:
        """What is said of a version.

        Raises:
          StoreError: where there is no such version; names those there are.
        """
        return _read_object(self._folder(name, version) / _MANIFEST)

    def channels(self, name: str) -> dict[str, int]:
        """The version that each channel points at."""
        return {channel: version for channel, version in self._pointers(name).items() if channel != _HISTORY}

    def promote(self, name: str, version: int, channel: str) -> None:
        """Points `channel` at `version`.

        Raises:
          StoreError: where there is no such version.
        """
        _require_name(channel)
        self._folder(name, version)
        with self._locked(name) as pointers:
            history = pointers[_HISTORY].setdefault(channel, [])
            if pointers.get(channel) != version:
                history.append(version)
            pointers[channel] = version

    def rollback(self, name: str, channel: str) -> int:
        """Points `channel` back at the version that it pointed at before; returns that.

        Raises:
          StoreError: where there was none.
        """
        with self._locked(name) as pointers:
            history = pointers[_HISTORY].get(channel, [])
            if len(history) < 2:
                channels = ", ".join(key for key in pointers if key != _HISTORY) or "none"
                raise StoreError(
                    f"Channel {channel!r} of {name} in {self.uri} has no version to go back to; it has pointed at: "
                    f"{', '.join(map(str, history)) or 'none'}. Channels: {channels}."
                )
            history.pop()
            pointers[channel] = history[-1]
            return int(history[-1])

    def pull(
        self, name: str, to: str | os.PathLike[str], *, channel: str = "stable", version: int | None = None
    ) -> int:
        """Writes a version's model to the file `to`, whole or not at all; returns the version.

        Args:
          name: the model's.
          to: a file, replaced by rename.
          channel: whose version.
          version: that version instead.

        Raises:
          StoreError: where there is no such channel or version, or the model is not what its manifest says.
        """
        if version is None:
            pointers = self.channels(name)
            if not pointers and not self.versions(name):
                raise StoreError(self._no_model(name))
            if channel not in pointers:
                raise StoreError(
                    f"{name} in {self.uri} has no channel {channel!r}, only: {', '.join(pointers) or 'none'}."
                )
            version = pointers[channel]
        content = self._verified(name, version)
        target = Path(to)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _replace(target, content)
        except OSError as error:
            raise StoreError(f"{target} can't be written: {error.strerror or error}.") from error
        return version

    def verify(self, name: str, version: int) -> None:
        """Raises StoreError where the version's model is not what its manifest says."""
        self._verified(name, version)

    def _verified(self, name: str, version: int) -> bytes:
        expected = self.manifest(name, version).get("sha256")
        try:
            content = (self._folder(name, version) / _MODEL).read_bytes()
        except OSError as error:
            raise StoreError(f"{name} {version} in {self.uri} can't be read: {error}.") from error
        found = hashlib.sha256(content).hexdigest()
        if found != expected:
            raise StoreError(
                f"{name} {version} in {self.uri} is damaged: sha256 {found}, the manifest says {expected}. "
                "Remedy: publish the model again and roll the channel back meanwhile."
            )
        return content

    def _folder(self, name: str, version: int) -> Path:
        _require_name(name)
        folder = self.root / name / "versions" / str(version)
        if not folder.is_dir():
            known = ", ".join(map(str, self.versions(name)))
            if not known:
                raise StoreError(self._no_model(name))
            raise StoreError(f"There is no version {version} of {name!r} in {self.uri}, only: {known}.")
        return folder

    def _no_model(self, name: str) -> str:
        return f"There is no model {name!r} in {self.uri}, only: {', '.join(self.names()) or 'none'}."

    def _pointers(self, name: str) -> dict[str, Any]:
        _require_name(name)
        path = self.root / name / "channels.json"
        return {_HISTORY: {}, **(_read_object(path) if path.exists() else {})}

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[dict[str, Any]]:
        """The channels of `name`, written back at the end if nothing was raised; one writer at a time."""
        _require_name(name)
        folder = self.root / name
        if not folder.is_dir():
            raise StoreError(self._no_model(name))
        try:
            with (folder / ".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                pointers = self._pointers(name)
                yield pointers
                _replace(folder / "channels.json", _json(pointers))
        except OSError as error:
            raise StoreError(self._not_writable(error)) from error

    def _not_writable(self, error: OSError) -> str:
        return (
            f"The store {self.uri} can't be written: {error.strerror or error} ({error.filename or self.uri}). "
            "Remedy: give a directory that this user may write to."
        )


def _require_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise StoreError(f"{name!r} is no name: use lower case letters, digits, '.', '_' and '-'.")


def _json(content: Mapping[str, Any]) -> bytes:
    try:
        return (json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise StoreError(f"The manifest is not JSON: {error}.") from error


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise TypeError(f"a {type(content).__name__} instead of an object")
    except (OSError, ValueError, TypeError) as error:
        raise StoreError(f"{path} is damaged: {error}.") from error
    return content


def _make_folder(path: Path) -> None:
    """Makes a folder and those above it, and has them on disk."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        _sync(folder.parent)


def _write(path: Path, content: bytes) -> None:
    """Writes and syncs a read-only file."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    path.chmod(0o444)


def _replace(path: Path, content: bytes) -> None:
    """Writes a file beside `path` and renames it over it."""
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
