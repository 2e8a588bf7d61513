"""Sizes of compressed downloads."""

import gzip


def gzipped(content: bytes) -> int:
    """Returns the bytes of `content` compressed with gzip at level 6, the default of HTTP servers."""
    return len(gzip.compress(content, compresslevel=6, mtime=0))


def zstd(content: bytes) -> int:
    """Returns the bytes of `content` compressed with Zstandard (RFC 8878) at level 3, the library's default."""
    import zstandard

    return len(zstandard.ZstdCompressor(level=3).compress(content))
