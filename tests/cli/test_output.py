"""What the commands print of names that others chose."""

import io

import pytest
from rich.console import Console
from tfx_compression.cli.output import shown


@pytest.mark.parametrize("name", ["conv [red]1[/red]", "[/]", "a\\[b]", "layer:smile:", "größer"])
def test_markup_in_a_name_is_printed_as_it_is(name):
    output = io.StringIO()
    Console(file=output, emoji=False, highlight=False).print(f"[bold]{shown(name)}[/]")
    assert output.getvalue() == f"{name}\n"


def test_escape_sequences_do_not_reach_the_terminal():
    assert shown("\x1b]0;owned\x07\x1b[2J\u202e") == r"\x1b]0;owned\x07\x1b[2J\u202e"


def test_an_error_with_escape_sequences_is_printed_without_them(run, tmp_path):
    status, out, err = run("store", "pull", tmp_path, "a\x1b[2Jb", tmp_path / "x")
    assert (status, out) == (1, "")
    assert r"\x1b[2J" in err and "\x1b[2J" not in err
