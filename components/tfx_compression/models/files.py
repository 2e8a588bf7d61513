"""Sizes of models on disk."""

import os
from typing import NamedTuple

import tensorflow as tf

from tfx_compression.models.gzipped import gzipped


class FileSize(NamedTuple):
    """Bytes of a file, or of all files in a folder, as they are and gzipped."""

    raw: int
    gzip: int


def size(path: str) -> FileSize:
    """The size of the file at `path`, or of every file below the folder at `path`, each gzipped."""
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
