"""How the program reports errors of the user, wrong command lines, and bugs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tfx_compression.cli import evaluate_command, store_commands
from tfx_compression.errors import ConfigError

from tests.support.errors import raises


def test_the_installed_command_prints_an_error_without_a_traceback(root):
    command = Path(sys.executable).with_name("tfx-compression")
    shown = subprocess.run([command, "store", "show", root, "digits", "9"], check=False, capture_output=True, text=True)
    assert (shown.returncode, shown.stdout) == (1, "")
    assert shown.stderr.startswith("error: ")
    assert shown.stderr.count("\n") == 1


def test_an_error_of_several_lines_is_printed_as_one_paragraph(run, root, monkeypatch):
    def fail(uri):
        raise ConfigError("First line.\nSecond [bold] line.")

    monkeypatch.setattr(store_commands.stores, "open", fail)
    assert run("store", "list", root) == (1, "", "error: First line. Second [bold] line.\n")


def test_a_file_error_is_an_error_of_the_user(run, root, monkeypatch):
    def fail(uri):
        raise PermissionError(13, "Permission denied", uri)

    monkeypatch.setattr(store_commands.stores, "open", fail)
    status, out, err = run("store", "list", root)
    assert (status, out) == (1, "")
    assert str(root) in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("bug", [KeyError("missing"), ValueError("first\nsecond"), RuntimeError()], ids=repr)
def test_a_bug_is_one_line_that_names_a_log_with_the_traceback(run, root, monkeypatch, bug):
    def fail(uri):
        raise bug

    monkeypatch.setattr(store_commands.stores, "open", fail)
    status, out, err = run("store", "list", root)
    assert (status, out) == (70, "")
    assert err.startswith(f"bug: {type(bug).__name__}")
    assert err.count("\n") == 1
    log = Path(re.search(r"/\S+\.log", err)[0])
    text = log.read_text()
    log.unlink()
    assert "Traceback (most recent call last)" in text
    assert "raise bug" in text
    assert str(root) in text


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["store", "promote", "here"], "NAME"),
        (["store", "show", "here", "digits", "two"], "VERSION"),
        (["store", "drop", "here"], "drop"),
        (["evaluate", "model.tflite", "--examples", "rows", "--schema", "missing.pbtxt"], "missing.pbtxt"),
    ],
)
def test_a_wrong_command_line_has_exit_status_2(run, arguments, named):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert named in err


@pytest.mark.parametrize("name", ["missing", "missing.tflite", "missing.keras"])
def test_inspecting_a_missing_model_is_an_error_of_one_line(run, tmp_path, name):
    status, out, err = run("inspect", tmp_path / name)
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert str(tmp_path / name) in err
    assert err.count("\n") == 1


def test_inspecting_another_file_is_an_error_of_one_line(run, tmp_path):
    (tmp_path / "letter.tflite").write_bytes(b"Dear all")
    status, out, err = run("inspect", tmp_path / "letter.tflite")
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@pytest.mark.slow
def test_the_installed_command_hides_the_output_of_tensorflow(tmp_path):
    command = Path(sys.executable).with_name("tfx-compression")
    done = subprocess.run([command, "inspect", tmp_path / "missing"], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


# Arguments of `evaluate`


def test_candidates_are_named_by_the_user_or_by_their_files(tmp_path):
    odd = tmp_path / "a=b.tflite"
    odd.write_bytes(b"")
    paths = evaluate_command._paths_by_name(["small=/models/int8.tflite", "/models/float.tflite", str(odd)])
    assert paths == {"small": "/models/int8.tflite", "float": "/models/float.tflite", "a=b": str(odd)}


def test_two_candidates_of_one_name_are_refused(run):
    with raises(ConfigError, field="candidates", code="duplicate-name", match="int8"):
        evaluate_command._paths_by_name(["a/int8.tflite", "int8=b.tflite"])


def test_a_budget_is_json_or_a_file(tmp_path):
    (tmp_path / "budget.json").write_text(json.dumps({"max_bytes": 10}))
    assert evaluate_command._budget('{"max_bytes": 10}').max_bytes == 10
    assert evaluate_command._budget(str(tmp_path / "budget.json")).max_bytes == 10
    assert evaluate_command._budget(None).max_bytes is None
    (tmp_path / "budget.json").write_bytes(b"\xff\xff")
    with raises(ConfigError, field="budget", code="json_invalid"):
        evaluate_command._budget(str(tmp_path / "budget.json"))
