"""Files and folders on any file system that TensorFlow supports, such as local disks, GCS and S3."""

import errno
import json
import os
from typing import Any, NamedTuple

import tensorflow as tf

from tfx_compression.compressed_size import gzipped
from tfx_compression.errors import ModelError


class FileSize(NamedTuple):
    """Size of a file, or of all files in a folder.

    Attributes:
      raw: Bytes.
      gzip: Bytes when each file is gzipped.
    """

    raw: int
    gzip: int


def size(path: str) -> FileSize:
    """Returns the size of the file at `path`, or the total of every file below the folder at `path`."""
    raw = packed = 0
    for name in _files(path):
        with tf.io.gfile.GFile(name, "rb") as file:
            content = file.read()
        raw += len(content)
        packed += gzipped(content)
    return FileSize(raw, packed)


def is_disk_full(error: BaseException) -> bool:
    """Returns whether a failed write says that there is no space left, or that the file got too large."""
    return any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


def unwritable(subject: str, path: str, error: BaseException, remedy: str) -> ModelError:
    """Returns the error of a failed write (code `unwritable-folder`; `disk-full` if no space is left).

    Args:
      subject: What should have been written; starts a sentence.
      path: Where.
      error: The failure.
      remedy: What to pass instead, if there is space.
    """
    full = is_disk_full(error)
    remedy = "free space on the disk, or another disk" if full else remedy
    return ModelError(
        f"{subject} can't be written to {path}: {str(error).rstrip(' .')}. Remedy: {remedy}.",
        code="disk-full" if full else "unwritable-folder",
    )


def write_bytes(path: str, content: bytes) -> None:
    """Writes a file. Makes its folder if there is none."""
    tf.io.gfile.makedirs(os.path.dirname(path) or ".")
    with tf.io.gfile.GFile(path, "wb") as file:
        file.write(content)


def write_text(path: str, text: str) -> None:
    """Writes a text file. Makes its folder if there is none."""
    tf.io.gfile.makedirs(os.path.dirname(path) or ".")
    with tf.io.gfile.GFile(path, "w") as file:
        file.write(text)


def read_json(path: str) -> Any:
    """Returns the value in a JSON file.

    Raises:
      tf.errors.OpError: The file can't be read.
      ValueError: The file is not JSON.
    """
    with tf.io.gfile.GFile(path) as file:
        return json.load(file)


def write_json(path: str, value: Any) -> None:
    """Writes a JSON file in one step: readers see the old file or all of the new one.

    Raises:
      OSError, tf.errors.OpError: The file can't be written.
    """
    partial = f"{path}.part"
    write_text(partial, json.dumps(value, indent=1))
    tf.io.gfile.rename(partial, path, overwrite=True)


def _files(path: str) -> list[str]:
    if not tf.io.gfile.isdir(path):
        return [path]
    return [os.path.join(folder, name) for folder, _, names in tf.io.gfile.walk(path) for name in names]
