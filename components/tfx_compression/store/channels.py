"""The channels of one model: the version that each points at, and the versions that it pointed at before."""

from collections.abc import Iterable, Mapping
from typing import Any

from tfx_compression.errors import StoreError

_HISTORY = "_history"  # Not a valid name of a channel.


class Channels:
    """The channels of a model.

    Args:
      stored: Content of the model's `channels.json`: version by channel and, under `_history`, the list of versions of
        each channel, the current one last.
      place: Path of the file, for the error.

    Raises:
      StoreError: The content has another form (code "damaged").
    """

    def __init__(self, stored: Mapping[str, Any]):
        versions = {channel: version for channel, version in stored.items() if channel != _HISTORY}
        history = stored.get(_HISTORY, {})
        if not _is_versions(versions.values()) or not _is_history(history):
            raise ValueError(f"its channels are not versions with a history of versions: {dict(stored)!r}")
        self._versions: dict[str, int] = versions
        self._history: dict[str, list[int]] = {channel: list(former) for channel, former in history.items()}

    @property
    def versions(self) -> dict[str, int]:
        """Version by channel."""
        return dict(self._versions)

    def stored(self) -> dict[str, Any]:
        """Returns the content of `channels.json`."""
        return {**self._versions, _HISTORY: self._history}

    def promote(self, channel: str, version: int) -> None:
        """Points a channel at a version."""
        if self._versions.get(channel) != version:
            self._history.setdefault(channel, []).append(version)
        self._versions[channel] = version

    def rollback(self, channel: str, model: str) -> int:
        """Points a channel back at its previous version and returns that version.

        Args:
          channel: Name of the channel.
          model: Model and store, for the error.

        Raises:
          StoreError: The channel has no previous version (code "no-previous-version").
        """
        history = self._history.get(channel, [])
        if len(history) < 2:
            raise StoreError(
                f"Channel {channel!r} of {model} has no previous version. It has pointed at: "
                f"{', '.join(map(str, history)) or 'none'}. Channels: {', '.join(self._versions) or 'none'}.",
                code="no-previous-version",
            )
        history.pop()
        self._versions[channel] = history[-1]
        return history[-1]


def _is_versions(values: Iterable[Any]) -> bool:
    return all(isinstance(value, int) for value in values)


def _is_history(history: Any) -> bool:
    return isinstance(history, Mapping) and all(
        isinstance(former, list) and _is_versions(former) for former in history.values()
    )
