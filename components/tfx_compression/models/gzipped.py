"""How many bytes a download takes."""

import gzip


def gzipped(content: bytes) -> int:
    """The number of bytes of `content` gzipped at level 6, as HTTP servers do by default."""
    return len(gzip.compress(content, compresslevel=6, mtime=0))
