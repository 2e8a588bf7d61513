"""The channels of one model: the version that each points at, and the versions that it pointed at before."""

from collections.abc import Mapping
from typing import Annotated, Any

import pydantic

from tfx_compression.errors import StoreError
from tfx_compression.store.manifests import VersionNumber
from tfx_compression.store.names import require_name

_HISTORY = "_history"  # Not a valid name of a channel.


def _channel_name(text: str) -> str:
    require_name(text)
    return text


_ChannelName = Annotated[str, pydantic.AfterValidator(_channel_name)]
_VERSIONS = pydantic.TypeAdapter(dict[_ChannelName, VersionNumber])
_FORMER = pydantic.TypeAdapter(dict[_ChannelName, list[VersionNumber]])


class Channels:
    """The channels of a model.

    Args:
      stored: Content of the model's `channels.json`: version by channel and, under `_history`, the list of versions of
        each channel, the current one last.

    Raises:
      ValueError: The content has another form.
    """

    def __init__(self, stored: Mapping[str, Any]):
        versions = {channel: version for channel, version in stored.items() if channel != _HISTORY}
        try:
            self._versions = _VERSIONS.validate_python(versions)
            self._history = _FORMER.validate_python(stored.get(_HISTORY, {}))
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or _HISTORY
            raise ValueError(f"{place!r}: {first['msg']}") from error

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
