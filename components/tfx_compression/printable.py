"""Text from models and files that can be shown: without characters that steer a terminal or reorder what is read."""

import unicodedata

_SPACES = "Zs"  # Unicode's category of spaces, such as the one that doesn't break


def printable(text: str) -> str:
    r"""Returns a text with control and format characters as escapes, such as `\x1b` and `\u202e`; lines stay.

    Unicode's categories of other characters and of line and paragraph separators are escaped. Among them are the escape
    sequences of terminals and the marks that reverse the direction of text (Boucher & Anderson 2021, arXiv:2111.00169).
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in "\n\t" or unicodedata.category(char) == _SPACES else _escaped(char)
        for char in text
    )


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
