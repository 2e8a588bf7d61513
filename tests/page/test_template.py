"""What may run and what is shown in a report, whatever the names in it."""

import base64
import hashlib
import re

import pytest
from tfx_compression.compressed_evaluator import report
from tfx_compression.compressed_evaluator.budget import Budget

from tests.support.evaluations import decide, model
from tests.support.report_page import Page


@pytest.fixture(scope="module")
def source() -> str:
    candidates = {"line\u2028\x1b[2J": model(), "</script><script>alert(1)</script>": model(), "\u202ednuorg": model()}
    return report.render({"": decide(Budget(max_bytes=10**6), candidates)})


def test_only_the_scripts_of_the_page_may_run(source):
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', source)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.replace("&#39;", "'").split(";"))
    assert rules["default-src"] == "'none'"
    scripts = [script for script in Page(source).scripts if not script.startswith("{")]
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert rules["script-src"].split() == [f"'sha256-{each}'" for each in hashes]
    assert len(scripts) == 2


def test_nothing_runs_by_an_attribute(source):
    assert not [name for name in Page(source).attributes if name.startswith("on")]


def test_characters_that_steer_are_shown_as_escapes(source):
    page = Page(source)
    shown = page.text + str(page.specs())
    assert not {"\u2028", "\x1b", "\u202e"} & set(shown)
    assert r"\u202ednuorg" in page.text
    assert r"line\u2028\x1b[2J" in page.text
    assert r"\\u202ednuorg" in str(page.specs())  # twice escaped by `str`: the characters of the escape, not the mark
