"""How many bytes a download takes."""

import gzip


def gzipped(content: bytes) -> int:
    """The number of bytes of `content` gzipped at level 6, as HTTP servers do by default."""
    return len(gzip.compress(content, compresslevel=6, mtime=0))


def zstd(content: bytes) -> int:
    """The number of bytes of `content` under Zstandard (RFC 8878) at level 3, the default of its library and tool."""
    import zstandard

    return len(zstandard.ZstdCompressor(level=3).compress(content))
