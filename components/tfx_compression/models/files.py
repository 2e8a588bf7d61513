"""Sizes and hashes of models on disk."""

import gzip
import os
from typing import NamedTuple

import tensorflow as tf


class FileSize(NamedTuple):
    """Bytes of a file, or of all files in a folder, as they are and gzipped."""

    raw: int
    gzip: int


def gzipped(content: bytes) -> int:
    """The number of bytes of `content` gzipped at level 6, as HTTP servers do by default."""
    return len(gzip.compress(content, compresslevel=6, mtime=0))


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
