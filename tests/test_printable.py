"""Text that can be shown."""

import pytest
from tfx_compression.printable import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("conv_1/kernel: größer, 卷积 ✓", "conv_1/kernel: größer, 卷积 ✓"),
        ("two\nlines\tand a\u00a0space", "two\nlines\tand a\u00a0space"),
        ("\x1b]0;title\x07\x1b[2J", r"\x1b]0;title\x07\x1b[2J"),
        ("a\r\x08b\x7f\x9b", r"a\r\x08b\x7f\x9b"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("a\u2028b\u2029c\u200bd\ufeff", r"a\u2028b\u2029c\u200bd\ufeff"),
        ("\ud800", r"\ud800"),
        ("\U000e0041", r"\U000e0041"),
    ],
    ids=ascii,
)
def test_characters_that_steer_are_shown_as_escapes(text, shown):
    assert printable(text) == shown
