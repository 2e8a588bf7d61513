"""A store in a directory.

```
<root>/<name>/versions/<version>/model.tflite     read-only
                                 manifest.json    read-only
<root>/<name>/channels.json                       {"stable": 42, "canary": 43, "_history": {…}}
<root>/<name>/last_version                        43, the largest number so far, also if its version was deleted
<root>/<name>/.lock                               held by whoever publishes or moves a channel
```

A version appears by renaming a complete folder, and `channels.json` is replaced in one step, so a reader needs no lock
and never sees half of either.
"""

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tfx_compression.errors import StoreError
from tfx_compression.store import guarded_files, manifests
from tfx_compression.store.channels import Channels
from tfx_compression.store.names import is_name, require_name

_MODEL = "model.tflite"
_MANIFEST = "manifest.json"
_CHANNELS = "channels.json"
_LAST_VERSION = "last_version"
_PARTIAL = ".partial"
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")


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
        """Adds a version, unless the last attempt did, and returns its number."""
        require_name(name)
        content = model if isinstance(model, bytes) else Path(model).read_bytes()
        fields = manifests.complete(manifest, name, content)
        manifests.encode(fields)
        self._require_folders(name)
        try:
            guarded_files.make_folder(self._versions_folder(name))
            with self._locked(name):
                version = self._same_release(name, fields)
                if version is None:
                    version = self._add(name, content, fields)
                self._remember_number(name)
                return version
        except OSError as error:
            raise self._not_writable(error) from error

    def _same_release(self, name: str, fields: Mapping[str, Any]) -> int | None:
        """Returns the intact version of the same bytes and recipe, if there is one."""
        for version in reversed(self.versions(name)):
            with contextlib.suppress(StoreError):  # A damaged version is not the same.
                stored = self._stored(name, version)
                if (stored.sha256, stored.recipe) == (fields["sha256"], fields.get("recipe")):
                    self.verify(name, version)
                    return version
        return None

    def _add(self, name: str, content: bytes, fields: Mapping[str, Any]) -> int:
        """Writes a version under the next free number. Removes what a killed publisher left."""
        version = max([self._last_version(name), *self.versions(name)]) + 1
        partial = self._versions_folder(name) / _PARTIAL
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir()
        try:
            guarded_files.write(partial / _MODEL, content)
            guarded_files.write(partial / _MANIFEST, manifests.encode({**fields, "version": version}))
            guarded_files.sync(partial)
            partial.rename(partial.parent / str(version))
        finally:
            shutil.rmtree(partial, ignore_errors=True)  # After success the folder has its new name.
        guarded_files.sync(partial.parent)
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
        with os.scandir(self.root) as entries:
            folders = [entry.name for entry in entries if is_name(entry.name) and entry.is_dir(follow_symlinks=False)]
        return sorted(name for name in folders if self._versions_folder(name).is_symlink() or self.versions(name))

    def versions(self, name: str) -> list[int]:
        """Returns the versions of a model, ascending."""
        require_name(name)
        self._require_folders(name)
        folder = self._versions_folder(name)
        if not folder.is_dir():
            return []
        with os.scandir(folder) as entries:
            return sorted(
                int(entry.name)
                for entry in entries
                if _NUMBER.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
            )

    def manifest(self, name: str, version: int) -> dict[str, Any]:
        """Returns the manifest of a version."""
        return self._stored(name, version).model_dump(exclude_unset=True)

    def channels(self, name: str) -> dict[str, int]:
        """Returns the version that each channel points at."""
        return self._channels(name).versions

    def promote(self, name: str, version: int, channel: str) -> None:
        """Points a channel at a version, after checking its model against its manifest."""
        require_name(channel)
        self.verify(name, version)
        with self._changed_channels(name) as channels:
            channels.promote(channel, version)

    def rollback(self, name: str, channel: str) -> int:
        """Points a channel back at its previous version, after the same check, and returns that version."""
        with self._changed_channels(name) as channels:
            version = channels.rollback(channel, f"{name} in {self.uri}")
            self.verify(name, version)
            return version

    def pull(
        self, name: str, to: str | os.PathLike[str], *, channel: str = "stable", version: int | None = None
    ) -> int:
        """Writes the model of a version to a file and returns the version."""
        if version is None:
            version = self._promoted(name, channel)
        self.verify(name, version)
        target = Path(to)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            guarded_files.replace(target, self._content(name, version))
        except OSError as error:
            raise StoreError(f"{target} can't be written: {error.strerror or error}.", code="not-writable") from error
        return version

    def verify(self, name: str, version: int) -> None:
        """Checks the model of a version against its manifest."""
        for _ in self._content(name, version):
            pass

    def _content(self, name: str, version: int) -> Iterator[bytes]:
        """Yields the pieces of a version's flatbuffer, checked against the manifest."""
        stored = self._stored(name, version)
        path = self._folder(name, version) / _MODEL
        try:
            yield from manifests.matching(
                stored, guarded_files.chunks(path, stored.bytes), f"{name} {version} in {self.uri}"
            )
        except OSError as error:
            raise StoreError(f"{name} {version} in {self.uri} is damaged: {error}.", code="damaged") from error

    def _stored(self, name: str, version: int) -> manifests.StoredFields:
        path = self._folder(name, version) / _MANIFEST
        try:
            fields = manifests.decode(guarded_files.read(path, manifests.SIZE_LIMIT))
            return manifests.require_version(fields, name, version)
        except (OSError, ValueError) as error:
            raise _damaged(path, error) from error

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

    def _versions_folder(self, name: str) -> Path:
        return self.root / name / "versions"

    def _require_folders(self, name: str) -> None:
        """Raises StoreError if the folders of a model are links, which could lead anywhere."""
        for folder in (self.root / name, self._versions_folder(name)):
            if folder.is_symlink():
                raise StoreError(f"{folder} is a link, and a store has none. Remedy: remove it.", code="damaged")

    def _folder(self, name: str, version: int) -> Path:
        """Returns the folder of a version."""
        known = self.versions(name)
        if version not in known:
            if not known:
                raise self._unknown_model(name)
            raise StoreError(
                f"There is no version {version} of {name!r} in {self.uri}. Versions: {', '.join(map(str, known))}.",
                code="unknown-version",
            )
        return self._versions_folder(name) / str(version)

    def _last_version(self, name: str) -> int:
        """Returns the largest number that was remembered, 0 before the first."""
        path = self.root / name / _LAST_VERSION
        try:
            text = guarded_files.read(path, 32).decode("ascii").strip()
        except FileNotFoundError:
            return 0
        except (OSError, ValueError) as error:
            raise _damaged(path, error) from error
        if not _NUMBER.fullmatch(text):
            raise _damaged(path, f"{text!r} is no number of a version")
        return int(text)

    def _remember_number(self, name: str) -> None:
        """Remembers the largest number, so that it isn't given again if its version is deleted."""
        largest = max(self.versions(name))
        if largest > self._last_version(name):
            guarded_files.replace(self.root / name / _LAST_VERSION, [f"{largest}\n".encode()])

    def _channels(self, name: str) -> Channels:
        require_name(name)
        self._require_folders(name)
        path = self.root / name / _CHANNELS
        try:
            return Channels(manifests.decode(guarded_files.read(path, manifests.SIZE_LIMIT)))
        except (FileNotFoundError, NotADirectoryError):
            return Channels({})
        except (OSError, ValueError) as error:
            raise _damaged(path, error) from error

    @contextlib.contextmanager
    def _changed_channels(self, name: str) -> Iterator[Channels]:
        """Yields the channels of a model to one writer at a time and writes them unless an error is raised."""
        require_name(name)
        self._require_folders(name)
        if not (self.root / name).is_dir():
            raise self._unknown_model(name)
        try:
            with self._locked(name):
                channels = self._channels(name)
                yield channels
                guarded_files.replace(self.root / name / _CHANNELS, [manifests.encode(channels.stored())])
        except OSError as error:
            raise self._not_writable(error) from error

    def _locked(self, name: str) -> contextlib.AbstractContextManager[None]:
        return guarded_files.locked(self.root / name / ".lock")

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


def _damaged(path: Path, error: Exception | str) -> StoreError:
    return StoreError(f"{path} is damaged: {error}.", code="damaged")
