"""Manifests, which describe versions, as JSON objects."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from tfx_compression.compressed_size import gzipped
from tfx_compression.errors import StoreError


def complete(manifest: Mapping[str, Any], name: str, content: bytes) -> dict[str, Any]:
    """Returns a manifest with the name of its model and the digest and sizes of the flatbuffer."""
    return {
        **manifest,
        "name": name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "bytes_gzip": gzipped(content),
    }


def encode(fields: Mapping[str, Any]) -> bytes:
    """Returns a JSON object as bytes.

    Raises:
      StoreError: A value is not JSON (code "invalid-manifest").
    """
    try:
        return (json.dumps(fields, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise StoreError(f"The manifest is not JSON: {error}.", code="invalid-manifest") from error


def decode(content: bytes) -> dict[str, Any]:
    """Returns the JSON object in bytes.

    Raises:
      ValueError: There is none.
    """
    fields = json.loads(content)
    if not isinstance(fields, dict):
        raise ValueError(f"a {type(fields).__name__} instead of an object")
    return fields


def require_match(manifest: Mapping[str, Any], content: bytes, version: str) -> None:
    """Checks a flatbuffer against its manifest.

    Args:
      manifest: The version's manifest.
      content: The version's flatbuffer.
      version: Model, number and store of the version, for the error.

    Raises:
      StoreError: The SHA-256 digests differ (code "damaged").
    """
    digest, expected = hashlib.sha256(content).hexdigest(), manifest.get("sha256")
    if digest != expected:
        raise StoreError(
            f"{version} is damaged: its sha256 is {digest}, and its manifest has {expected}. "
            "Remedy: roll the channel back, then publish the model again.",
            code="damaged",
        )
