"""Manifests, which describe versions, as JSON objects."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, NoReturn

import pydantic

from tfx_compression.compressed_size import gzipped
from tfx_compression.errors import StoreError

SIZE_LIMIT = 16 * 2**20  # bytes of a file of JSON

VersionNumber = Annotated[int, pydantic.Field(strict=True, ge=1, lt=2**63)]


class StoredFields(pydantic.BaseModel):
    """The fields of a manifest that the store sets. A manifest has others, which the publisher sets.

    Attributes:
      name: Name of the model.
      version: Number of the version.
      sha256: Digest of the flatbuffer, in hexadecimal digits.
      bytes: Size of the flatbuffer.
      bytes_gzip: Its size when it is gzipped.
      recipe: Publisher's digest of how the model was made; the same bytes of the same recipe are the same version.
    """

    model_config = pydantic.ConfigDict(extra="allow", strict=True, frozen=True)

    name: str
    version: VersionNumber
    sha256: Annotated[str, pydantic.StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    bytes: pydantic.NonNegativeInt
    bytes_gzip: pydantic.NonNegativeInt
    recipe: str | None = None


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
        content = (json.dumps(fields, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreError(f"The manifest is not JSON: {error}.", code="invalid-manifest") from error
    if len(content) > SIZE_LIMIT:
        message = f"The manifest has {len(content):,} bytes. Remedy: at most {SIZE_LIMIT:,}."
        raise StoreError(message, code="invalid-manifest")
    return content


def decode(content: bytes) -> dict[str, Any]:
    """Returns the JSON object in bytes.

    Raises:
      ValueError: There is none.
    """
    try:
        fields = json.loads(content, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("its values are nested too deeply") from error
    if not isinstance(fields, dict):
        raise ValueError(f"a {type(fields).__name__} instead of an object")
    return fields


def require_version(manifest: Mapping[str, Any], name: str, version: int) -> StoredFields:
    """Returns the fields that the store set in a manifest.

    Args:
      manifest: A manifest from disk.
      name: Model whose manifest it should be.
      version: Version whose manifest it should be.

    Raises:
      ValueError: A field is missing or has a wrong type, or the manifest is that of another version.
    """
    try:
        fields = StoredFields.model_validate(dict(manifest))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"its field {'.'.join(map(str, first['loc']))!r}: {first['msg']}") from error
    if (fields.name, fields.version) != (name, version):
        raise ValueError(f"it is the manifest of {fields.name!r} {fields.version}")
    return fields


def matching(fields: StoredFields, content: Iterable[bytes], version: str) -> Iterator[bytes]:
    """Yields the pieces of a flatbuffer, and checks them against its manifest at the end.

    Args:
      fields: Fields of the version's manifest.
      content: Pieces of the version's flatbuffer.
      version: Model, number and store of the version, for the error.

    Raises:
      StoreError: The SHA-256 digests differ (code "damaged").
    """
    digest = hashlib.sha256()
    for chunk in content:
        digest.update(chunk)
        yield chunk
    if digest.hexdigest() != fields.sha256:
        raise StoreError(
            f"{version} is damaged: its sha256 is {digest.hexdigest()}, and its manifest has {fields.sha256}. "
            "Remedy: point its channels at another version, and publish the model again.",
            code="damaged",
        )


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
