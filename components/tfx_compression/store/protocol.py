"""The interface of a store, whatever it keeps its files in."""

import os
from collections.abc import Mapping
from typing import Any, Protocol


class StoreBackend(Protocol):
    """A TFLite store in one kind of place, such as a directory.

    Every method raises a StoreError for a name that is invalid (code "invalid-name"), a model, version or channel that
    doesn't exist ("unknown-model", "unknown-version", "unknown-channel"), and a place that can't be written
    ("not-writable").
    """

    @property
    def uri(self) -> str:
        """Root of the store."""

    def require_writable(self) -> None:
        """Raises StoreError if this user can't write to the store. Changes nothing."""

    def publish(self, name: str, model: bytes | str | os.PathLike[str], manifest: Mapping[str, Any]) -> int:
        """Adds a version of a model, unless there is an intact one of the same bytes and recipe. Moves no channel.

        Args:
          name: Name of the model.
          model: The flatbuffer, or the path of a file that holds it.
          manifest: Description of the version, which must be JSON. The store sets `name`, `version`, `sha256`, `bytes`
            and `bytes_gzip` itself. `recipe`, a text, says how the model was made.

        Returns:
          The number of the version: one more than the largest so far, deleted versions included, or that of the same
          release. An attempt that was killed can therefore be repeated.
        """

    def names(self) -> list[str]:
        """Returns the names of the models, sorted.

        Raises:
          StoreError: There is no store (code "no-store").
        """

    def versions(self, name: str) -> list[int]:
        """Returns the versions of a model in ascending order, an empty list if there is no such model."""

    def manifest(self, name: str, version: int) -> dict[str, Any]:
        """Returns the manifest of a version."""

    def channels(self, name: str) -> dict[str, int]:
        """Returns the version that each channel of a model points at."""

    def promote(self, name: str, version: int, channel: str) -> None:
        """Points a channel at a version, after `verify`. Makes the channel if there is none."""

    def rollback(self, name: str, channel: str) -> int:
        """Points a channel back at its previous version, after `verify`, and returns that version.

        Raises:
          StoreError: The channel has no previous version (code "no-previous-version"), or that version is damaged.
        """

    def pull(
        self, name: str, to: str | os.PathLike[str], *, channel: str = "stable", version: int | None = None
    ) -> int:
        """Writes the model of a version to a file, in one step, and returns the version.

        Args:
          name: Name of the model.
          to: Path of the file. An existing file is replaced.
          channel: Channel whose version to write.
          version: Version to write instead of the channel's.

        Raises:
          StoreError: The model doesn't match its manifest (code "damaged").
        """

    def verify(self, name: str, version: int) -> None:
        """Checks the model of a version against its manifest.

        Raises:
          StoreError: The model doesn't match (code "damaged").
        """
