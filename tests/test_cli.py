"""The command line: what it prints, and how it fails."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tfx_compression.store as stores
from tfx_compression import cli


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store with three versions of `digits` and one of `letters`."""
    store = stores.open(str(tmp_path / "store"))
    for number in (1, 2, 3):
        store.publish("digits", bytes(1_000 * number), {"mode": "int8"})
    store.publish("letters", b"letters", {})
    store.promote("digits", 1, "stable")
    store.promote("digits", 2, "stable")
    store.promote("digits", 3, "canary")
    return store.root


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command line in this process; returns exit status, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tfx-compression", *map(str, arguments)])
        monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")  # the command sets it; what it sets, this takes back
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return run


def test_list_shows_every_version_with_its_size_and_channels(run, root):
    status, out, err = run("store", "list", root)
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    assert (status, err) == (0, "")
    assert rows == [
        ["digits", "1", "1,000", ""],
        ["digits", "2", "2,000", "stable"],
        ["digits", "3", "3,000", "canary"],
        ["letters", "1", "7", ""],
    ]


def test_list_as_json_has_the_same(run, root):
    status, out, err = run("store", "list", root, "--json")
    assert (status, err) == (0, "")
    assert json.loads(out) == [
        {"name": "digits", "version": 1, "bytes": 1000, "channels": []},
        {"name": "digits", "version": 2, "bytes": 2000, "channels": ["stable"]},
        {"name": "digits", "version": 3, "bytes": 3000, "channels": ["canary"]},
        {"name": "letters", "version": 1, "bytes": 7, "channels": []},
    ]


def test_list_of_an_empty_store_says_so(run, tmp_path):
    assert run("store", "list", tmp_path) == (0, f"No models in {tmp_path}.\n", "")
    assert run("store", "list", tmp_path, "--json") == (0, "[]\n", "")


def test_show_prints_the_manifest_as_json(run, root):
    status, out, err = run("store", "show", root, "digits", 2)
    assert (status, err) == (0, "")
    assert json.loads(out) == stores.open(str(root)).manifest("digits", 2)


def test_pull_writes_the_channels_version(run, root, tmp_path):
    target = tmp_path / "device" / "model.tflite"
    assert run("store", "pull", root, "digits", target) == (0, f"digits 2 in {target}\n", "")
    assert target.read_bytes() == bytes(2_000)
    assert run("store", "pull", root, "digits", target, "--channel", "canary")[0] == 0
    assert target.read_bytes() == bytes(3_000)
    assert run("store", "pull", root, "digits", target, "--version", 1)[0] == 0
    assert target.read_bytes() == bytes(1_000)


def test_promote_and_rollback_move_a_channel(run, root):
    store = stores.open(str(root))
    assert run("store", "promote", root, "digits", 3, "stable") == (0, "stable of digits is version 3\n", "")
    assert store.channels("digits")["stable"] == 3
    assert run("store", "rollback", root, "digits", "stable") == (0, "stable of digits is version 2 again\n", "")
    assert store.channels("digits")["stable"] == 2


def test_verify_says_that_a_model_is_whole(run, root):
    assert run("store", "verify", root, "digits", 1) == (0, "digits 1 is what its manifest says\n", "")


def test_a_path_is_printed_as_it_is(run, tmp_path):
    odd = tmp_path / "a [bold] name"
    assert run("store", "list", odd) == (0, f"No models in {odd}.\n", "")


def test_a_damaged_model_fails_verify_and_pull(run, root, tmp_path):
    damaged = root / "digits" / "versions" / "2" / "model.tflite"
    damaged.chmod(0o644)
    damaged.write_bytes(b"\0")
    for arguments in (("verify", root, "digits", 2), ("pull", root, "digits", tmp_path / "pulled")):
        status, out, err = run("store", *arguments)
        assert (status, out) == (1, "")
        assert err.startswith(f"error: digits 2 in {root} is damaged: sha256 ")
        assert err.count("\n") == 1
    assert not (tmp_path / "pulled").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "ROOT", "digits", "9"], "There is no version 9 of 'digits' in ROOT, only: 1, 2, 3."),
        (["verify", "ROOT", "faces", "1"], "There is no model 'faces' in ROOT, only: digits, letters."),
        (["promote", "ROOT", "digits", "9", "stable"], "There is no version 9 of 'digits' in ROOT, only: 1, 2, 3."),
        (["promote", "ROOT", "digits", "1", "Stable"], "'Stable' is no name: use lower case letters"),
        (["rollback", "ROOT", "digits", "canary"], "Channel 'canary' of digits in ROOT has no version to go back to"),
        (["rollback", "ROOT", "faces", "stable"], "There is no model 'faces' in ROOT, only: digits, letters."),
        (["pull", "ROOT", "letters", "ROOT/x"], "letters in ROOT has no channel 'stable', only: none."),
        (["pull", "ROOT", "digits", "ROOT/x", "--version", "9"], "There is no version 9 of 'digits' in ROOT"),
        (["list", "s3://bucket/store"], "The store s3://bucket/store is of scheme 's3'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_a_user_can_mend_is_one_line_and_exit_status_1(run, root, arguments, said):
    before = stores.open(str(root)).channels("digits")
    status, out, err = run("store", *(argument.replace("ROOT", str(root)) for argument in arguments))
    assert (status, out) == (1, "")
    assert err.startswith(f"error: {said.replace('ROOT', str(root))}")
    assert err.count("\n") == 1
    assert stores.open(str(root)).channels("digits") == before
    assert not (root / "x").exists()


def test_the_installed_command_fails_with_one_line_and_no_traceback(root):
    command = Path(sys.executable).with_name("tfx-compression")
    done = subprocess.run([command, "store", "show", root, "digits", "9"], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: There is no version 9 of 'digits' in {root}, only: 1, 2, 3.\n"


def test_store_commands_load_no_tensorflow(root):
    script = (
        "import atexit, sys; from tfx_compression import cli;"
        "atexit.register(lambda: print(sorted({'tensorflow', 'tfx', 'numpy'} & set(sys.modules)), file=sys.stderr));"
        "sys.argv[1:] = ['store', 'list', sys.argv[1]]; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", script, root], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "[]\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["promote", "here"], "Missing argument 'NAME'"),
        (["show", "here", "digits", "two"], "Invalid value for 'VERSION'"),
        (["drop", "here"], "No such command 'drop'"),
    ],
)
def test_a_command_that_is_not_understood_has_exit_status_2(run, arguments, said):
    status, out, err = run("store", *arguments)
    assert (status, out) == (2, "")
    assert said in err


@pytest.mark.parametrize("name", ["missing", "missing.tflite", "missing.keras"])
def test_inspecting_what_is_not_there_is_one_line(run, tmp_path, name):
    status, out, err = run("inspect", tmp_path / name)
    assert (status, out) == (1, "")
    assert err == f"error: {tmp_path / name} is neither a SavedModel nor a model file.\n"


@pytest.mark.slow
def test_the_installed_command_inspects_without_a_word_from_tensorflow(tmp_path):
    command = Path(sys.executable).with_name("tfx-compression")
    done = subprocess.run([command, "inspect", tmp_path / "missing"], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: {tmp_path}/missing is neither a SavedModel nor a model file.\n"


def test_inspecting_a_file_that_is_no_model_is_one_line(run, tmp_path):
    (tmp_path / "letter.tflite").write_bytes(b"Dear all")
    status, out, err = run("inspect", tmp_path / "letter.tflite")
    assert (status, out) == (1, "")
    assert err == "error: Not a TFLite model: 8 bytes without the file identifier TFL3.\n"
