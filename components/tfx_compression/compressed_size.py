"""The number of bytes that a download takes."""

import gzip


def gzipped(content: bytes) -> int:
    """Returns the number of bytes of `content` gzipped at level 6, the default of HTTP servers."""
    return len(gzip.compress(content, compresslevel=6, mtime=0))


def zstd(content: bytes) -> int:
    """Returns the number of bytes of `content` under Zstandard (RFC 8878) at level 3, the library's default."""
    import zstandard

    return len(zstandard.ZstdCompressor(level=3).compress(content))
