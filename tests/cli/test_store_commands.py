"""`tfx-compression store`: what each command prints and changes, and how it fails."""

import json
import subprocess
import sys

import pytest
import tfx_compression.store as stores


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


def test_list_prints_the_same_as_json(run, root):
    status, out, err = run("store", "list", root, "--json")
    assert (status, err) == (0, "")
    assert json.loads(out) == [
        {"name": "digits", "version": 1, "bytes": 1000, "channels": []},
        {"name": "digits", "version": 2, "bytes": 2000, "channels": ["stable"]},
        {"name": "digits", "version": 3, "bytes": 3000, "channels": ["canary"]},
        {"name": "letters", "version": 1, "bytes": 7, "channels": []},
    ]


def test_list_reports_an_empty_store(run, tmp_path):
    assert run("store", "list", tmp_path) == (0, f"No models in {tmp_path}.\n", "")
    assert run("store", "list", tmp_path, "--json") == (0, "[]\n", "")


def test_show_prints_the_manifest_as_json(run, root):
    status, out, err = run("store", "show", root, "digits", 2)
    assert (status, err) == (0, "")
    assert json.loads(out) == stores.open(str(root)).manifest("digits", 2)


def test_pull_writes_the_version_of_the_channel(run, root, tmp_path):
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


def test_verify_confirms_an_intact_model(run, root):
    assert run("store", "verify", root, "digits", 1) == (0, "digits 1 matches its manifest\n", "")


def test_what_is_damaged_does_not_hide_the_rest_of_a_list(run, root):
    manifest = root / "digits" / "versions" / "2" / "manifest.json"
    manifest.chmod(0o644)
    manifest.write_text("{")
    (root / "letters" / "channels.json").write_text("[]")
    status, out, err = run("store", "list", root, "--json")
    assert (status, err) == (0, "")
    rows = {(row["name"], row["version"]): row for row in json.loads(out)}
    assert set(rows) == {("digits", 1), ("digits", 2), ("digits", 3), ("letters", 1), ("letters", None)}
    assert str(manifest) in rows["digits", 2]["problem"]
    assert "channels.json" in rows["letters", None]["problem"]
    assert rows["digits", 3]["bytes"] == 3000
    assert out.count("problem") == 2
    assert "damaged" in run("store", "list", root)[1]


def test_brackets_in_a_path_are_printed_unchanged(run, tmp_path):
    odd = tmp_path / "a [bold] name"
    odd.mkdir()
    assert run("store", "list", odd) == (0, f"No models in {odd}.\n", "")


def test_a_damaged_model_fails_verify_and_pull(run, root, tmp_path):
    damaged = root / "digits" / "versions" / "2" / "model.tflite"
    damaged.chmod(0o644)
    damaged.write_bytes(b"\0")
    for arguments in (("verify", root, "digits", 2), ("pull", root, "digits", tmp_path / "pulled")):
        status, out, err = run("store", *arguments)
        assert (status, out) == (1, "")
        assert err.startswith(f"error: digits 2 in {root} is damaged")
        assert err.count("\n") == 1
    assert not (tmp_path / "pulled").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["show", "ROOT", "digits", "9"], ["version 9 of 'digits'", "ROOT", "1, 2, 3"]),
        (["verify", "ROOT", "faces", "1"], ["'faces'", "ROOT", "digits, letters"]),
        (["promote", "ROOT", "digits", "9", "stable"], ["version 9 of 'digits'", "ROOT", "1, 2, 3"]),
        (["promote", "ROOT", "digits", "1", "Stable"], ["'Stable'"]),
        (["rollback", "ROOT", "digits", "canary"], ["'canary'", "digits", "ROOT"]),
        (["rollback", "ROOT", "faces", "stable"], ["'faces'", "ROOT", "digits, letters"]),
        (["pull", "ROOT", "letters", "ROOT/x"], ["letters", "ROOT", "'stable'"]),
        (["pull", "ROOT", "digits", "ROOT/x", "--version", "9"], ["version 9 of 'digits'", "ROOT"]),
        (["list", "ROOT/nope"], ["There is no store", "ROOT/nope"]),
        (["list", "s3://bucket/store"], ["s3://bucket/store", "'s3'"]),
    ],
    ids=lambda value: " ".join(value) if " " not in "".join(value) else "",
)
def test_an_error_is_one_line_with_exit_status_1_and_changes_nothing(run, root, arguments, named):
    before = stores.open(str(root)).channels("digits")
    status, out, err = run("store", *(argument.replace("ROOT", str(root)) for argument in arguments))
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert all(name.replace("ROOT", str(root)) in err for name in named)
    assert stores.open(str(root)).channels("digits") == before
    assert not (root / "x").exists()


def test_store_commands_load_no_tensorflow(root):
    script = (
        "import atexit, sys; from tfx_compression import cli;"
        "atexit.register(lambda: print(sorted({'tensorflow', 'tfx', 'numpy'} & set(sys.modules)), file=sys.stderr));"
        "sys.argv[1:] = ['store', 'list', sys.argv[1]]; cli.main()"
    )
    listed = subprocess.run([sys.executable, "-c", script, root], check=False, capture_output=True, text=True)
    assert (listed.returncode, listed.stderr) == (0, "[]\n")
