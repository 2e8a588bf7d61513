"""Files of a store that are not what they should be: links, FIFOs, holes, and JSON that no reader survives."""

import json
import os

import pytest
from tfx_compression.errors import StoreError

from tests.support.errors import raises
from tests.support.stores import content, files_below, model_file, overwrite, publish


def _replaced(path, make) -> None:
    path.unlink(missing_ok=True)
    make(path)


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret"
    path.write_bytes(content(1))
    return path


@pytest.mark.parametrize("name", ["model.tflite", "manifest.json", "channels.json", "last_version", ".lock"])
@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_only_regular_files_are_read(store, root, secret, tmp_path, name, kind):
    publish(store, 1)
    store.promote("digits", 1, "stable")
    version = root / "digits" / "versions" / "1"
    path = (version if name in ("model.tflite", "manifest.json") else root / "digits") / name
    makers = {"link": lambda path: path.symlink_to(secret), "fifo": os.mkfifo, "folder": os.mkdir}
    _replaced(path, makers[kind])

    def use():
        store.pull("digits", tmp_path / "pulled")
        store.publish("digits", content(2), {})

    with raises(StoreError):
        use()
    assert secret.read_bytes() == content(1)
    assert not (tmp_path / "pulled").exists() or name in ("last_version", ".lock")


@pytest.mark.parametrize("folder", ["digits", "digits/versions", "digits/versions/1"])
def test_folders_that_are_links_are_not_followed(store, root, tmp_path, folder):
    publish(store, 1)
    outside = tmp_path / "outside"
    (root / folder).rename(outside)
    (root / folder).symlink_to(outside)
    before = files_below(outside)
    for use in (
        lambda: store.publish("digits", content(2), {}) if folder != "digits/versions/1" else store.verify("digits", 1),
        lambda: store.pull("digits", tmp_path / "pulled", version=1),
        lambda: store.promote("digits", 1, "stable"),
    ):
        with raises(StoreError):
            use()
    assert store.names() == (["digits"] if folder == "digits/versions" else [])
    assert files_below(outside) == before


@pytest.mark.parametrize(
    "version", ["../../../ext", 1.5, True, None, -1, 0, 10**30, [1]], ids=lambda version: str(version)[:8]
)
def test_a_channel_points_at_a_number_or_the_file_is_damaged(store, root, tmp_path, version):
    publish(store, 1)
    (root / "digits" / "channels.json").write_text(json.dumps({"stable": version}))
    with raises(StoreError, code="damaged", match=r"channels\.json"):
        store.pull("digits", tmp_path / "pulled")


_JSON = {
    "deep": b"[" * 100_000,
    "deep object": b'{"a":' * 100_000,
    "long number": b'{"stable": ' + b"1" * 10_000 + b"}",
    "not a number": b'{"stable": NaN}',
    "not text": b"\xff\xfe",
    "name": b'{"../x": 1}',
    "history": b'{"_history": {"stable": ["1"]}}',
}


@pytest.mark.parametrize("stored", _JSON.values(), ids=_JSON.keys())
def test_json_of_another_form_is_damage(store, root, stored):
    publish(store, 1)
    (root / "digits" / "channels.json").write_bytes(stored)
    with raises(StoreError, code="damaged", match=r"channels\.json"):
        store.channels("digits")


@pytest.mark.parametrize(
    "change",
    [{"version": 2}, {"name": "letters"}, {"sha256": "x"}, {"bytes": -1}, {"bytes": "12"}, {"version": True}],
    ids=str,
)
def test_a_manifest_of_another_form_or_version_is_damage(store, root, change):
    publish(store, 1)
    path = root / "digits" / "versions" / "1" / "manifest.json"
    overwrite(path, json.dumps({**json.loads(path.read_text()), **change}).encode())
    with raises(StoreError, code="damaged", match=r"manifest\.json"):
        store.manifest("digits", 1)


def test_sizes_are_compared_before_anything_is_read(store, root, tmp_path):
    publish(store, 1)
    for path in (model_file(root, 1), root / "digits" / "versions" / "1" / "manifest.json"):
        path.chmod(0o644)
        os.truncate(path, 2**40)  # A hole: a terabyte that takes no space.
        with raises(StoreError, code="damaged", match="1,099,511,627,776"):
            store.pull("digits", tmp_path / "pulled", version=1)
    assert not (tmp_path / "pulled").exists()


def test_folders_with_other_names_are_not_versions(store, root):
    publish(store, 2)
    for name in ("01", "+3", "3 ", "٣", "1e3", "9" * 30, "-1"):
        (root / "digits" / "versions" / name).mkdir()
    assert store.versions("digits") == [1, 2]
    assert store.publish("digits", content(3), {}) == 3


def test_what_a_killed_pull_left_is_reused(store, tmp_path):
    publish(store, 1)
    (tmp_path / ".pulled.partial").write_bytes(b"x" * 100_000)
    store.pull("digits", tmp_path / "pulled", version=1)
    assert (tmp_path / "pulled").read_bytes() == content(1)
    assert not (tmp_path / ".pulled.partial").exists()
