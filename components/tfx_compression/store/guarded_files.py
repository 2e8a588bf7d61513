"""Files of a store in a directory: reads that trust nothing on disk, and writes that are complete or absent."""

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

_CHUNK = 2**20
_OPEN = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # A FIFO without a writer would block.


class UnexpectedFileError(OSError):
    """A file of a store is a link, a device or the like, or has another size than it should."""


def read(path: Path, limit: int) -> bytes:
    """Returns the content of a regular file of at most `limit` bytes, without following a link to it.

    Raises:
      OSError: The file can't be read, is not a regular file or is larger.
    """
    with _open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise UnexpectedFileError(f"it has {size:,} bytes, more than the {limit:,} that are read")
        return file.read(limit)


def chunks(path: Path, size: int) -> Iterator[bytes]:
    """Yields the content of a regular file of `size` bytes in pieces of a megabyte, without following a link to it.

    Raises:
      OSError: The file can't be read, is not a regular file or has another size.
    """
    with _open_regular(path) as file:
        actual = os.fstat(file.fileno()).st_size
        if actual != size:
            raise UnexpectedFileError(f"it has {actual:,} bytes instead of {size:,}")
        while chunk := file.read(_CHUNK):
            yield chunk


def write(path: Path, content: bytes) -> None:
    """Writes a new read-only file and syncs it to disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _OPEN, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fchmod(descriptor, 0o444)
        os.fsync(descriptor)


def replace(path: Path, content: Iterable[bytes]) -> None:
    """Replaces a file in one step. A killed process leaves `.NAME.partial` beside it, which the next call reuses.

    Args:
      path: Path of the file.
      content: Pieces of its content. If one of them can't be computed, the file stays as it is.
    """
    partial = path.with_name(f".{path.name}.partial")
    descriptor = _locked_partial(partial)
    with os.fdopen(descriptor, "wb") as file:
        try:
            file.truncate()
            file.writelines(content)
            file.flush()
            os.fchmod(descriptor, 0o644)
            os.fsync(descriptor)
            os.replace(partial, path)
        except BaseException:
            os.unlink(partial)
            raise
    sync(path.parent)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on a file, which it makes if there is none."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _OPEN, 0o644)
    try:
        _require_regular(os.fstat(descriptor), path)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Makes a folder and its parents, and syncs them to disk."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync(folder.parent)


def sync(folder: Path) -> None:
    """Syncs the names in a folder to disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _locked_partial(path: Path) -> int:
    """Returns a descriptor of the file at `path`, made if there is none, that no other process writes to."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _OPEN, 0o600)
        try:
            _require_regular(os.fstat(descriptor), path)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False)):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # While this process waited for the lock, another one put the file in its place.


def _open_regular(path: Path) -> BinaryIO:
    descriptor = os.open(path, os.O_RDONLY | _OPEN)
    try:
        _require_regular(os.fstat(descriptor), path)
    except BaseException:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def _require_regular(status: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise UnexpectedFileError(f"it is not a regular file: {path}")
