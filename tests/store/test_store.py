"""The TFLite store: what it keeps, what it refuses, and what is left of it when a writer dies."""

import hashlib
import itertools
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import tfx_compression.store as stores
from tfx_compression.store import DirectoryStore, StoreError

# Writers are forked from a server that has loaded the store and nothing else, whatever this process has loaded.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["tests.store.test_store"])

_MODEL = bytes(random.Random(0).choices(range(3), k=10_000))  # gzip's levels differ on it


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> DirectoryStore:
    return stores.open(str(root))


def content(number: int) -> bytes:
    """A model of its own for each number."""
    return f"model {number} ".encode() * 200


def published(store: DirectoryStore, versions: int, name: str = "digits") -> None:
    for number in range(1, versions + 1):
        assert store.publish(name, content(number), {}) == number


def model_file(root: Path, version: int, name: str = "digits") -> Path:
    return root / name / "versions" / str(version) / "model.tflite"


def overwrite(path: Path, replacement: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(replacement)


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def require_consistent(root: Path) -> list[int]:
    """Checks all that a reader can see of `digits`, without the store's own checks; returns the versions."""
    store = stores.open(str(root))
    versions = store.versions("digits")
    assert versions == list(range(1, len(versions) + 1))
    for version in versions:
        manifest = store.manifest("digits", version)
        model = model_file(root, version).read_bytes()
        assert manifest["version"] == version
        assert manifest["sha256"] == hashlib.sha256(model).hexdigest()
        assert manifest["bytes"] == len(model)
    assert set(store.channels("digits").values()) <= set(versions)
    return versions


# Publishing


def test_versions_are_numbered_from_one_in_the_order_of_publishing(store):
    assert store.versions("digits") == []
    assert [store.publish("digits", content(number), {}) for number in range(12)] == list(range(1, 13))
    assert store.versions("digits") == list(range(1, 13))


def test_each_model_has_its_own_numbers(store):
    published(store, 2, "digits")
    published(store, 1, "letters")
    assert store.versions("digits") == [1, 2]
    assert store.versions("letters") == [1]
    assert store.names() == ["digits", "letters"]


def test_an_empty_store_has_no_names_versions_or_channels(store, root):
    assert (store.names(), store.versions("digits"), store.channels("digits")) == ([], [], {})
    assert not root.exists()


def test_the_manifest_has_the_digest_and_sizes_of_the_model(store):
    version = store.publish("digits", _MODEL, {"mode": "int8"})
    deflate = zlib.compressobj(6, zlib.DEFLATED, wbits=31)  # 31: with gzip's header and trailer
    assert store.manifest("digits", version) == {
        "mode": "int8",
        "name": "digits",
        "version": 1,
        "sha256": hashlib.sha256(_MODEL).hexdigest(),
        "bytes": len(_MODEL),
        "bytes_gzip": len(deflate.compress(_MODEL) + deflate.flush()),
    }


def test_the_manifest_keeps_what_the_publisher_says(store):
    said = {"metrics": {"accuracy": 0.97}, "inputs": [{"name": "image", "shape": [-1, 64]}], "parent": None, "é": "ü"}
    manifest = store.manifest("digits", store.publish("digits", _MODEL, said))
    assert {key: manifest[key] for key in said} == said


def test_a_publisher_cannot_say_another_digest_size_or_number(store):
    lies = {"sha256": "0" * 64, "bytes": 1, "bytes_gzip": 1, "version": 7, "name": "letters"}
    version = store.publish("digits", _MODEL, lies)
    manifest = store.manifest("digits", version)
    assert not lies.items() & manifest.items()
    store.verify("digits", version)


def test_a_model_is_published_from_a_path_as_from_bytes(store, tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(_MODEL)
    versions = [store.publish("digits", model, {}) for model in (_MODEL, path, str(path))]
    assert len({store.manifest("digits", version)["sha256"] for version in versions}) == 1


def test_published_files_are_read_only(store, root):
    store.publish("digits", _MODEL, {})
    files = list((root / "digits" / "versions" / "1").iterdir())
    assert sorted(path.name for path in files) == ["manifest.json", "model.tflite"]
    assert all(path.stat().st_mode & 0o777 == 0o444 for path in files)


def test_what_is_published_stays_as_it_is(store, root):
    published(store, 2)
    before = files_below(root / "digits" / "versions")
    store.promote("digits", 1, "stable")
    store.promote("digits", 2, "stable")
    store.rollback("digits", "stable")
    store.publish("digits", content(3), {})
    after = files_below(root / "digits" / "versions")
    assert before.items() <= after.items()
    assert set(after) - set(before) == {"3/manifest.json", "3/model.tflite"}


def test_publishing_moves_no_channel(store):
    published(store, 1)
    store.promote("digits", 1, "stable")
    store.publish("digits", content(2), {})
    assert store.channels("digits") == {"stable": 1}


@pytest.mark.parametrize("name", ["", "Digits", "../digits", "a/b", ".hidden", "_history", "a b", "ä", "digits\n"])
def test_a_name_that_is_none_is_refused_and_nothing_is_written(store, tmp_path, name):
    with pytest.raises(StoreError, match="is no name: use lower case"):
        store.publish(name, _MODEL, {})
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_that_is_no_json_leaves_no_version(store, root):
    published(store, 1)
    before = files_below(root)
    for unknown in (object(), float("nan")):
        with pytest.raises(StoreError, match="The manifest is not JSON"):
            store.publish("digits", content(2), {"model": unknown})
    assert store.versions("digits") == [1]
    assert files_below(root) == before


# Pulling and verifying


def test_pull_writes_the_model_that_the_channel_points_at(store, tmp_path):
    published(store, 2)
    store.promote("digits", 1, "stable")
    store.promote("digits", 2, "canary")
    target = tmp_path / "device" / "models" / "digits.tflite"
    assert store.pull("digits", target) == 1
    assert target.read_bytes() == content(1)
    assert store.pull("digits", str(target), channel="canary") == 2
    assert target.read_bytes() == content(2)
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_pull_takes_a_version_that_no_channel_points_at(store, tmp_path):
    published(store, 2)
    assert store.pull("digits", tmp_path / "pulled", version=2) == 2
    assert (tmp_path / "pulled").read_bytes() == content(2)


def test_a_pull_that_cannot_be_finished_leaves_nothing_beside_its_target(store, tmp_path):
    published(store, 1)
    target = tmp_path / "device" / "a-folder"
    target.mkdir(parents=True)
    with pytest.raises((StoreError, OSError)):
        store.pull("digits", target, version=1)
    assert list(tmp_path.joinpath("device").rglob("*")) == [target]


def _flipped(model: bytes) -> bytes:
    return model[:100] + bytes([model[100] ^ 1]) + model[101:]


_DAMAGE = {
    "one bit flipped": _flipped,
    "cut short": lambda model: model[:-1],
    "empty": lambda model: b"",
    "longer": lambda model: model + b"\0",
    "another version's": lambda model: content(1),
}


@pytest.mark.parametrize("damage", _DAMAGE.values(), ids=_DAMAGE.keys())
def test_a_damaged_model_is_found_by_verify_and_never_pulled(store, root, tmp_path, damage: Callable[[bytes], bytes]):
    published(store, 2)
    store.promote("digits", 2, "stable")
    target = tmp_path / "device" / "digits.tflite"
    store.pull("digits", target, version=1)
    store.verify("digits", 2)
    overwrite(model_file(root, 2), damage(content(2)))
    with pytest.raises(StoreError, match=r"digits 2 in .* is damaged: sha256 \w+.*Remedy: publish"):
        store.verify("digits", 2)
    with pytest.raises(StoreError, match="is damaged"):
        store.pull("digits", target)
    with pytest.raises(StoreError, match="is damaged"):
        store.pull("digits", tmp_path / "new" / "digits.tflite", version=2)
    assert files_below(target.parent) == {"digits.tflite": content(1)}
    assert not (tmp_path / "new").exists()
    store.verify("digits", 1)


def test_a_damaged_manifest_is_named(store, root, tmp_path):
    published(store, 1)
    manifest = root / "digits" / "versions" / "1" / "manifest.json"
    overwrite(manifest, manifest.read_bytes()[:-20])
    for ask in (store.manifest, store.verify, lambda name, version: store.pull(name, tmp_path / "x", version=version)):
        with pytest.raises(StoreError, match=rf"{manifest} is damaged"):
            ask("digits", 1)
    assert not (tmp_path / "x").exists()


# Channels


def test_a_channel_points_where_it_was_promoted_to(store):
    published(store, 2)
    store.promote("digits", 1, "stable")
    store.promote("digits", 2, "canary")
    assert store.channels("digits") == {"stable": 1, "canary": 2}
    store.promote("digits", 2, "stable")
    assert store.channels("digits") == {"stable": 2, "canary": 2}


def test_the_channels_file_is_json_by_channel(store, root):
    published(store, 1)
    store.promote("digits", 1, "stable")
    assert json.loads((root / "digits" / "channels.json").read_text())["stable"] == 1


def test_rollbacks_walk_back_through_all_promotions(store):
    published(store, 3)
    for version in (1, 3, 2, 1):
        store.promote("digits", version, "stable")
    assert [store.rollback("digits", "stable") for _ in range(3)] == [2, 3, 1]
    assert store.channels("digits") == {"stable": 1}


def test_a_promotion_after_a_rollback_is_rolled_back_to_what_was_rolled_back_to(store):
    published(store, 3)
    store.promote("digits", 1, "stable")
    store.promote("digits", 2, "stable")
    assert store.rollback("digits", "stable") == 1
    store.promote("digits", 3, "stable")
    assert store.rollback("digits", "stable") == 1


def test_promoting_the_same_version_again_changes_nothing_to_go_back_to(store):
    published(store, 2)
    for version in (1, 2, 2, 2):
        store.promote("digits", version, "stable")
    assert store.rollback("digits", "stable") == 1


def test_a_rollback_moves_its_own_channel_only(store):
    published(store, 2)
    for channel, version in itertools.product(("stable", "canary"), (1, 2)):
        store.promote("digits", version, channel)
    store.rollback("digits", "canary")
    assert store.channels("digits") == {"stable": 2, "canary": 1}


def test_a_rollback_with_nothing_to_go_back_to_says_so_and_moves_nothing(store):
    published(store, 2)
    store.promote("digits", 2, "stable")
    with pytest.raises(StoreError, match=r"'stable' of digits in .* has no version to go back to; .* pointed at: 2"):
        store.rollback("digits", "stable")
    assert store.channels("digits") == {"stable": 2}
    store.promote("digits", 1, "stable")
    store.rollback("digits", "stable")
    with pytest.raises(StoreError, match="no version to go back to"):
        store.rollback("digits", "stable")
    assert store.channels("digits") == {"stable": 2}


def test_a_channel_may_not_be_called_like_the_history(store):
    published(store, 1)
    with pytest.raises(StoreError, match="'_history' is no name"):
        store.promote("digits", 1, "_history")
    assert store.channels("digits") == {}


# What there is none of


def test_an_unknown_version_is_refused_with_those_there_are(store, tmp_path):
    published(store, 3)
    store.promote("digits", 1, "stable")
    for ask in (
        lambda: store.manifest("digits", 7),
        lambda: store.verify("digits", 7),
        lambda: store.promote("digits", 7, "stable"),
        lambda: store.pull("digits", tmp_path / "pulled", version=7),
    ):
        with pytest.raises(StoreError, match=r"no version 7 of 'digits' in .*, only: 1, 2, 3\."):
            ask()
    assert store.channels("digits") == {"stable": 1}
    assert not (tmp_path / "pulled").exists()


def test_an_unknown_model_is_refused_with_those_there_are(store, tmp_path):
    published(store, 1, "digits")
    published(store, 1, "letters")
    for ask in (
        lambda: store.manifest("faces", 1),
        lambda: store.verify("faces", 1),
        lambda: store.promote("faces", 1, "stable"),
        lambda: store.rollback("faces", "stable"),
        lambda: store.pull("faces", tmp_path / "pulled", version=1),
    ):
        with pytest.raises(StoreError, match=r"'faces' in .*, only: .*digits, letters\."):
            ask()
    assert store.names() == ["digits", "letters"]
    assert not (tmp_path / "pulled").exists()


def test_an_unknown_channel_is_refused_with_those_there_are(store, tmp_path):
    published(store, 1)
    with pytest.raises(StoreError, match=r"no channel 'stable', only: none\."):
        store.pull("digits", tmp_path / "pulled")
    store.promote("digits", 1, "stable")
    store.promote("digits", 1, "canary")
    with pytest.raises(StoreError, match=r"no channel 'beta', only: (canary, stable|stable, canary)\."):
        store.pull("digits", tmp_path / "pulled", channel="beta")
    assert not (tmp_path / "pulled").exists()


# Places


def test_a_file_uri_is_the_same_store_as_its_path(store, root):
    published(store, 1)
    assert stores.open(f"file://{root}").versions("digits") == [1]


@pytest.mark.parametrize("scheme", ["s3", "gs", "https", "oci"])
def test_a_scheme_that_is_not_kept_is_refused_by_name(scheme):
    with pytest.raises(StoreError, match=f"{scheme}://bucket/store is of scheme '{scheme}'.*directories only"):
        stores.open(f"{scheme}://bucket/store")


def test_a_place_that_cannot_be_written_is_named_with_a_remedy_and_left_as_it_was(tmp_path):
    file = tmp_path / "a-file"
    file.write_bytes(b"as it was")
    store = stores.open(str(file / "store"))
    for attempt in (lambda: store.publish("digits", _MODEL, {}), store.require_writable):
        with pytest.raises(StoreError, match=rf"The store {file}/store can't be written: .*Remedy: give a directory"):
            attempt()
    assert files_below(tmp_path) == {"a-file": b"as it was"}


def test_asking_whether_a_place_can_be_written_leaves_nothing_there(store, root, tmp_path):
    store.require_writable()
    assert list(tmp_path.iterdir()) == []
    published(store, 1)
    before = files_below(root)
    store.require_writable()
    assert files_below(root) == before


def test_the_store_loads_neither_tensorflow_nor_tfx():
    heavy = ["tensorflow", "tf_keras", "keras", "tfx", "tensorflow_model_analysis", "apache_beam", "numpy"]
    script = f"import sys, tfx_compression.store; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


# Several at once


def _publish_many(root: Path, start: "multiprocessing.synchronize.Barrier", writer: int, results) -> None:
    store = stores.open(str(root))
    start.wait()
    for number in range(12):
        model = f"writer {writer}, model {number}".encode() * 50
        results.put((store.publish("digits", model, {"writer": writer}), model))


def test_concurrent_writers_get_numbers_of_their_own_and_readers_see_whole_versions(root):
    start, results = _processes.Barrier(4), _processes.Queue()
    writers = [_processes.Process(target=_publish_many, args=(root, start, writer, results)) for writer in range(4)]
    for writer in writers:
        writer.start()
    store, seen = stores.open(str(root)), 0
    while any(writer.is_alive() for writer in writers) and seen < 48:
        versions = store.versions("digits")
        for version in versions[seen:]:
            store.verify("digits", version)
        seen = len(versions)
    models = dict(results.get(timeout=30) for _ in range(48))
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert require_consistent(root) == sorted(models) == list(range(1, 49))
    assert {version: model_file(root, version).read_bytes() for version in models} == models
    assert [path.name for path in (root / "digits" / "versions").glob(".*")] == []


def _promote_many(root: Path, start: "multiprocessing.synchronize.Barrier", writer: int) -> None:
    store = stores.open(str(root))
    start.wait()
    for number in range(10):
        store.promote("digits", 1 + number % 2, f"writer-{writer}")
        store.promote("digits", 1 + writer % 2, "shared")


def test_concurrent_promotions_lose_no_pointer_and_keep_the_channels_readable(store, root):
    published(store, 2)
    start = _processes.Barrier(5)
    writers = [_processes.Process(target=_promote_many, args=(root, start, writer)) for writer in range(4)]
    for writer in writers:
        writer.start()
    start.wait()
    reads = 0
    while any(writer.is_alive() for writer in writers):
        assert set(store.channels("digits").values()) <= {1, 2}
        reads += 1
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert reads
    channels = store.channels("digits")
    assert channels.pop("shared") in (1, 2)
    assert channels == {f"writer-{writer}": 2 for writer in range(4)}
    for channel in channels:
        assert [store.rollback("digits", channel) for _ in range(9)] == [1, 2] * 4 + [1]


# Crashes


def _publish(store: DirectoryStore) -> None:
    store.publish("digits", _MODEL, {})


def _promote(store: DirectoryStore) -> None:
    store.promote("digits", 3 - store.channels("digits")["stable"], "stable")


def _roll_back(store: DirectoryStore) -> None:
    store.rollback("digits", "stable")


def _pull(store: DirectoryStore) -> None:
    store.pull("digits", store.root.parent / "pulled", version=2)


def _die_at(step: int, root: Path, action: Callable[[DirectoryStore], None]) -> None:
    """Does `action` on the store, and is killed as by `kill -9` just before its `step`th call on the file system."""
    left = itertools.count(step, -1)

    def kill(event: str, _: object) -> None:
        if event.startswith(("open", "os.", "shutil.", "tempfile.")) and next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(kill)
    action(stores.open(str(root)))


@pytest.mark.parametrize("action", [_publish, _promote, _roll_back, _pull])
def test_a_crash_at_any_step_leaves_the_store_whole(store, root, tmp_path, action: Callable[[DirectoryStore], None]):
    published(store, 2)
    for version in (1, 2) * 20:
        store.promote("digits", version, "stable")
    (tmp_path / "pulled").write_bytes(content(1))
    before = files_below(root / "digits" / "versions")
    for step in itertools.count():
        process = _processes.Process(target=_die_at, args=(step, root, action))
        process.start()
        process.join()
        after = files_below(root / "digits" / "versions")
        assert before.items() <= after.items()
        require_consistent(root)
        assert (tmp_path / "pulled").read_bytes() in (content(1), content(2))
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert step >= 3
    # What the dead left lying about is in nobody's way.
    versions = store.versions("digits")
    assert store.publish("digits", content(3), {}) == versions[-1] + 1
    store.promote("digits", 1, "stable")
    store.promote("digits", 2, "stable")
    assert store.rollback("digits", "stable") == 1


def _release_for_ever(root: Path) -> None:
    store = stores.open(str(root))
    while True:
        model = os.urandom(1_000_000)
        store.promote("digits", store.publish("digits", model, {}), "stable")


def test_a_writer_killed_at_any_moment_leaves_whole_versions_only(root):
    moments = random.Random(0)
    found = 0
    for _ in range(15):
        process = _processes.Process(target=_release_for_ever, args=(root,))
        process.start()
        time.sleep(moments.uniform(0.02, 0.15))
        process.kill()
        process.join()
        versions = require_consistent(root)
        assert len(versions) >= found
        found = len(versions)
    assert found > 0
    assert stores.open(str(root)).publish("digits", _MODEL, {}) == found + 1


# Names and places


@pytest.mark.parametrize("name", ["..", "../other/digits", "/etc", ""])
def test_a_name_that_leads_out_of_the_store_is_refused_everywhere(store, name, tmp_path):
    published(store, 1)
    for ask in (
        lambda: store.publish(name, b"model", {}),
        lambda: store.versions(name),
        lambda: store.manifest(name, 1),
        lambda: store.channels(name),
        lambda: store.promote(name, 1, "stable"),
        lambda: store.rollback(name, "stable"),
        lambda: store.pull(name, tmp_path / "x"),
        lambda: store.verify(name, 1),
    ):
        with pytest.raises(StoreError, match="is no name"):
            ask()


def test_a_file_uri_names_the_path_it_quotes(tmp_path):
    place = tmp_path / "a b"
    stores.open(place.as_uri()).publish("digits", b"model", {})
    assert stores.open(str(place)).versions("digits") == [1]


def test_what_a_killed_publisher_left_is_removed_a_day_later(store, root):
    published(store, 1)
    old, new = (root / "digits" / "versions" / f".partial-{age}" for age in ("old", "new"))
    for left in (old, new):
        left.mkdir()
    os.utime(old, (0, 0))
    store.publish("digits", content(2), {})
    assert not old.exists()
    assert new.exists()


def test_damaged_channels_and_unwritable_targets_are_named(store, root, tmp_path):
    published(store, 1)
    store.promote("digits", 1, "stable")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=f"{tmp_path / 'file' / 'x'} can't be written"):
        store.pull("digits", tmp_path / "file" / "x")
    (root / "digits" / "channels.json").write_text("[]")
    with pytest.raises(StoreError, match=r"channels\.json is damaged"):
        store.channels("digits")
