"""Files and folders on any file system that TensorFlow knows."""

import os
from typing import NamedTuple

import tensorflow as tf

from tfx_compression.compressed_size import gzipped


class FileSize(NamedTuple):
    """Bytes of a file, or of all files in a folder, raw and gzipped."""

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


def _files(path: str) -> list[str]:
    if not tf.io.gfile.isdir(path):
        return [path]
    return [os.path.join(folder, name) for folder, _, names in tf.io.gfile.walk(path) for name in names]
