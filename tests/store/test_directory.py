"""A store in a directory: what it keeps, and what it refuses."""

import hashlib
import itertools
import json
import random
import shutil
import zlib
from collections.abc import Callable

import pytest
import tfx_compression.store as stores
from tfx_compression.errors import StoreError

from tests.support.errors import raises
from tests.support.stores import content, files_below, model_file, overwrite, publish

_MODEL = bytes(random.Random(0).choices(range(3), k=10_000))  # Its size differs between gzip's levels.


# Publishing


def test_versions_are_numbered_from_one_in_the_order_of_publishing(store):
    assert store.versions("digits") == []
    assert [store.publish("digits", content(number), {}) for number in range(12)] == list(range(1, 13))
    assert store.versions("digits") == list(range(1, 13))


def test_each_model_has_its_own_numbers(store):
    publish(store, 2, "digits")
    publish(store, 1, "letters")
    assert store.versions("digits") == [1, 2]
    assert store.versions("letters") == [1]
    assert store.names() == ["digits", "letters"]


def test_a_store_without_releases_has_no_names_versions_or_channels(store, root):
    with raises(StoreError, code="no-store", match=str(root)):
        store.names()
    assert (store.versions("digits"), store.channels("digits")) == ([], {})
    assert not root.exists()
    root.mkdir()
    assert store.names() == []


def test_the_manifest_has_the_digest_and_sizes_of_the_model(store):
    version = store.publish("digits", _MODEL, {"mode": "int8"})
    deflate = zlib.compressobj(6, zlib.DEFLATED, wbits=31)  # 31: with gzip's header and trailer.
    assert store.manifest("digits", version) == {
        "mode": "int8",
        "name": "digits",
        "version": 1,
        "sha256": hashlib.sha256(_MODEL).hexdigest(),
        "bytes": len(_MODEL),
        "bytes_gzip": len(deflate.compress(_MODEL) + deflate.flush()),
    }


def test_the_manifest_keeps_the_fields_of_the_publisher(store):
    fields = {"metrics": {"accuracy": 0.97}, "inputs": [{"name": "image", "shape": [-1, 64]}], "parent": None, "é": "ü"}
    manifest = store.manifest("digits", store.publish("digits", _MODEL, fields))
    assert {key: manifest[key] for key in fields} == fields


def test_a_publisher_cannot_set_digest_size_number_or_name(store):
    lies = {"sha256": "0" * 64, "bytes": 1, "bytes_gzip": 1, "version": 7, "name": "letters"}
    version = store.publish("digits", _MODEL, lies)
    manifest = store.manifest("digits", version)
    assert not lies.items() & manifest.items()
    store.verify("digits", version)


def test_a_model_is_published_from_bytes_or_a_path(store, tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(_MODEL)
    for version, model in enumerate((_MODEL, path, str(path)), 1):
        assert store.publish("digits", model, {"recipe": str(version)}) == version
    assert len({store.manifest("digits", version)["sha256"] for version in store.versions("digits")}) == 1


def test_published_files_are_read_only(store, root):
    store.publish("digits", _MODEL, {})
    files = list((root / "digits" / "versions" / "1").iterdir())
    assert sorted(path.name for path in files) == ["manifest.json", "model.tflite"]
    assert all(path.stat().st_mode & 0o777 == 0o444 for path in files)


def test_published_versions_never_change(store, root):
    publish(store, 2)
    before = files_below(root / "digits" / "versions")
    store.promote("digits", 1, "stable")
    store.promote("digits", 2, "stable")
    store.rollback("digits", "stable")
    store.publish("digits", content(3), {})
    after = files_below(root / "digits" / "versions")
    assert before.items() <= after.items()
    assert set(after) - set(before) == {"3/manifest.json", "3/model.tflite"}


def test_publishing_moves_no_channel(store):
    publish(store, 1)
    store.promote("digits", 1, "stable")
    store.publish("digits", content(2), {})
    assert store.channels("digits") == {"stable": 1}


@pytest.mark.parametrize("name", ["", "Digits", "../digits", "a/b", ".hidden", "_history", "a b", "ä", "digits\n"])
def test_an_invalid_name_is_refused_and_nothing_is_written(store, tmp_path, name):
    with raises(StoreError, code="invalid-name"):
        store.publish(name, _MODEL, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["..", "../other/digits", "/etc", ""])
def test_every_method_refuses_a_name_that_leads_out_of_the_store(store, name, tmp_path):
    publish(store, 1)
    for call in (
        lambda: store.publish(name, b"model", {}),
        lambda: store.versions(name),
        lambda: store.manifest(name, 1),
        lambda: store.channels(name),
        lambda: store.promote(name, 1, "stable"),
        lambda: store.rollback(name, "stable"),
        lambda: store.pull(name, tmp_path / "x"),
        lambda: store.verify(name, 1),
    ):
        with raises(StoreError, code="invalid-name"):
            call()


@pytest.mark.parametrize("value", [object(), float("nan")], ids=["object", "nan"])
def test_a_manifest_that_is_not_json_leaves_no_version(store, root, value):
    publish(store, 1)
    before = files_below(root)
    with raises(StoreError, code="invalid-manifest"):
        store.publish("digits", content(2), {"model": value})
    assert store.versions("digits") == [1]
    assert files_below(root) == before


def test_the_remains_of_a_killed_publisher_are_removed(store, root):
    publish(store, 1)
    remains = root / "digits" / "versions" / ".partial"
    remains.mkdir()
    (remains / "model.tflite").write_bytes(b"half")
    store.publish("digits", content(2), {})
    assert not remains.exists()
    assert store.versions("digits") == [1, 2]


def test_the_same_bytes_and_recipe_are_one_version(store):
    assert store.publish("digits", _MODEL, {"recipe": "a", "attempt": 1}) == 1
    assert store.publish("digits", _MODEL, {"recipe": "a", "attempt": 2}) == 1
    assert store.publish("digits", _MODEL, {"recipe": "b"}) == 2
    assert store.publish("digits", content(1), {"recipe": "a"}) == 3
    assert store.publish("letters", _MODEL, {"recipe": "a"}) == 1
    assert store.manifest("digits", 1)["attempt"] == 1


def test_a_damaged_version_is_published_anew(store, root):
    publish(store, 2)
    overwrite(model_file(root, 1), b"damaged")
    assert store.publish("digits", content(1), {}) == 3


def test_the_number_of_a_deleted_version_is_never_given_again(store, root):
    publish(store, 3)
    for version in (3, 2):
        shutil.rmtree(root / "digits" / "versions" / str(version))
    assert store.versions("digits") == [1]
    assert store.publish("digits", content(4), {}) == 4


def test_a_damaged_memory_of_numbers_is_an_error_that_names_its_file(store, root):
    publish(store, 1)
    overwrite(root / "digits" / "last_version", b"many")
    with raises(StoreError, code="damaged", match="last_version"):
        store.publish("digits", content(2), {})


# Pulling and verifying


def test_pull_writes_the_model_of_the_channel(store, tmp_path):
    publish(store, 2)
    store.promote("digits", 1, "stable")
    store.promote("digits", 2, "canary")
    target = tmp_path / "device" / "models" / "digits.tflite"
    assert store.pull("digits", target) == 1
    assert target.read_bytes() == content(1)
    assert store.pull("digits", str(target), channel="canary") == 2
    assert target.read_bytes() == content(2)
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_pull_writes_a_version_without_a_channel(store, tmp_path):
    publish(store, 2)
    assert store.pull("digits", tmp_path / "pulled", version=2) == 2
    assert (tmp_path / "pulled").read_bytes() == content(2)


def test_a_failed_pull_leaves_nothing_next_to_its_target(store, tmp_path):
    publish(store, 1)
    target = tmp_path / "device" / "a-folder"
    target.mkdir(parents=True)
    with raises(StoreError, code="not-writable"):
        store.pull("digits", target, version=1)
    assert list(tmp_path.joinpath("device").rglob("*")) == [target]


def test_a_pull_into_a_file_that_is_no_folder_is_refused(store, tmp_path):
    publish(store, 1)
    (tmp_path / "file").write_text("")
    with raises(StoreError, code="not-writable", match=str(tmp_path / "file" / "x")):
        store.pull("digits", tmp_path / "file" / "x", version=1)


def _flipped(model: bytes) -> bytes:
    return model[:100] + bytes([model[100] ^ 1]) + model[101:]


_DAMAGE = {
    "one bit flipped": _flipped,
    "cut short": lambda model: model[:-1],
    "empty": lambda model: b"",
    "longer": lambda model: model + b"\0",
    "another version": lambda model: content(1),
}


@pytest.mark.parametrize(
    "stored", [{"stable": 1, "_history": 3}, {"stable": 1, "_history": {"stable": 1}}, {"stable": "x"}, []]
)
def test_damaged_channels_are_an_error_that_names_their_file(store, root, tmp_path, stored):
    publish(store, 1)
    store.promote("digits", 1, "stable")
    (root / "digits" / "channels.json").write_text(json.dumps(stored))
    for operation in (
        lambda: store.pull("digits", tmp_path / "digits.tflite"),
        lambda: store.rollback("digits", "stable"),
        lambda: store.promote("digits", 1, "canary"),
    ):
        with raises(StoreError, code="damaged", match="channels.json"):
            operation()


@pytest.mark.parametrize("damage", _DAMAGE.values(), ids=_DAMAGE.keys())
def test_a_damaged_model_fails_verify_and_is_never_pulled(store, root, tmp_path, damage: Callable[[bytes], bytes]):
    publish(store, 2)
    store.promote("digits", 2, "stable")
    target = tmp_path / "device" / "digits.tflite"
    store.pull("digits", target, version=1)
    store.verify("digits", 2)
    overwrite(model_file(root, 2), damage(content(2)))
    with raises(StoreError, code="damaged", match="digits 2"):
        store.verify("digits", 2)
    with raises(StoreError, code="damaged"):
        store.pull("digits", target)
    with raises(StoreError, code="damaged"):
        store.pull("digits", tmp_path / "new" / "digits.tflite", version=2)
    assert files_below(target.parent) == {"digits.tflite": content(1)}
    assert not (tmp_path / "new").exists()
    store.verify("digits", 1)


def test_a_missing_model_file_is_damage(store, root):
    publish(store, 1)
    model_file(root, 1).unlink()
    with raises(StoreError, code="damaged", match="digits 1"):
        store.verify("digits", 1)


def test_a_damaged_manifest_is_named(store, root, tmp_path):
    publish(store, 1)
    manifest = root / "digits" / "versions" / "1" / "manifest.json"
    overwrite(manifest, manifest.read_bytes()[:-20])
    for call in (store.manifest, store.verify, lambda name, version: store.pull(name, tmp_path / "x", version=version)):
        with raises(StoreError, code="damaged", match=str(manifest)):
            call("digits", 1)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("operation", ["promote", "rollback"])
def test_a_channel_never_moves_to_a_damaged_version(store, root, operation):
    publish(store, 2)
    store.promote("digits", 1, "stable")
    store.promote("digits", 2, "stable")
    overwrite(model_file(root, 1), content(9))
    with raises(StoreError, code="damaged", match="digits 1"):
        store.promote("digits", 1, "stable") if operation == "promote" else store.rollback("digits", "stable")
    assert store.channels("digits") == {"stable": 2}


def test_a_damaged_channels_file_is_named(store, root):
    publish(store, 1)
    store.promote("digits", 1, "stable")
    (root / "digits" / "channels.json").write_text("[]")
    with raises(StoreError, code="damaged", match=r"channels\.json"):
        store.channels("digits")


# Channels


def test_a_channel_points_at_the_promoted_version(store):
    publish(store, 2)
    store.promote("digits", 1, "stable")
    store.promote("digits", 2, "canary")
    assert store.channels("digits") == {"stable": 1, "canary": 2}
    store.promote("digits", 2, "stable")
    assert store.channels("digits") == {"stable": 2, "canary": 2}


def test_the_channels_file_is_json_by_channel(store, root):
    publish(store, 1)
    store.promote("digits", 1, "stable")
    assert json.loads((root / "digits" / "channels.json").read_text()) == {"stable": 1, "_history": {"stable": [1]}}


def test_rollbacks_walk_back_through_all_promotions(store):
    publish(store, 3)
    for version in (1, 3, 2, 1):
        store.promote("digits", version, "stable")
    assert [store.rollback("digits", "stable") for _ in range(3)] == [2, 3, 1]
    assert store.channels("digits") == {"stable": 1}


def test_a_promotion_after_a_rollback_rolls_back_to_the_same_version(store):
    publish(store, 3)
    store.promote("digits", 1, "stable")
    store.promote("digits", 2, "stable")
    assert store.rollback("digits", "stable") == 1
    store.promote("digits", 3, "stable")
    assert store.rollback("digits", "stable") == 1


def test_repeating_a_promotion_adds_nothing_to_the_history(store):
    publish(store, 2)
    for version in (1, 2, 2, 2):
        store.promote("digits", version, "stable")
    assert store.rollback("digits", "stable") == 1


def test_a_rollback_moves_one_channel(store):
    publish(store, 2)
    for channel, version in itertools.product(("stable", "canary"), (1, 2)):
        store.promote("digits", version, channel)
    store.rollback("digits", "canary")
    assert store.channels("digits") == {"stable": 2, "canary": 1}


def test_a_rollback_without_a_previous_version_is_refused(store):
    publish(store, 2)
    store.promote("digits", 2, "stable")
    with raises(StoreError, code="no-previous-version", match="'stable'"):
        store.rollback("digits", "stable")
    assert store.channels("digits") == {"stable": 2}
    store.promote("digits", 1, "stable")
    store.rollback("digits", "stable")
    with raises(StoreError, code="no-previous-version"):
        store.rollback("digits", "stable")
    assert store.channels("digits") == {"stable": 2}


def test_a_channel_cannot_have_the_name_of_the_history(store):
    publish(store, 1)
    with raises(StoreError, code="invalid-name"):
        store.promote("digits", 1, "_history")
    assert store.channels("digits") == {}


# Unknown models, versions and channels


def test_an_unknown_version_is_refused_and_the_known_ones_are_named(store, tmp_path):
    publish(store, 3)
    store.promote("digits", 1, "stable")
    for call in (
        lambda: store.manifest("digits", 7),
        lambda: store.verify("digits", 7),
        lambda: store.promote("digits", 7, "stable"),
        lambda: store.pull("digits", tmp_path / "pulled", version=7),
    ):
        with raises(StoreError, code="unknown-version", match="7.*1, 2, 3"):
            call()
    assert store.channels("digits") == {"stable": 1}
    assert not (tmp_path / "pulled").exists()


def test_an_unknown_model_is_refused_and_the_known_ones_are_named(store, tmp_path):
    publish(store, 1, "digits")
    publish(store, 1, "letters")
    for call in (
        lambda: store.manifest("faces", 1),
        lambda: store.verify("faces", 1),
        lambda: store.promote("faces", 1, "stable"),
        lambda: store.rollback("faces", "stable"),
        lambda: store.pull("faces", tmp_path / "pulled"),
        lambda: store.pull("faces", tmp_path / "pulled", version=1),
    ):
        with raises(StoreError, code="unknown-model", match="faces.*digits, letters"):
            call()
    assert store.names() == ["digits", "letters"]
    assert not (tmp_path / "pulled").exists()


def test_an_unknown_channel_is_refused_and_the_known_ones_are_named(store, tmp_path):
    publish(store, 1)
    with raises(StoreError, code="unknown-channel"):
        store.pull("digits", tmp_path / "pulled")
    store.promote("digits", 1, "stable")
    store.promote("digits", 1, "canary")
    with raises(StoreError, code="unknown-channel", match="beta.*(canary, stable|stable, canary)"):
        store.pull("digits", tmp_path / "pulled", channel="beta")
    assert not (tmp_path / "pulled").exists()


# Places


def test_a_place_that_cannot_be_written_is_named_and_unchanged(tmp_path):
    file = tmp_path / "a-file"
    file.write_bytes(b"unchanged")
    store = stores.open(str(file / "store"))
    for call in (lambda: store.publish("digits", _MODEL, {}), store.require_writable):
        with raises(StoreError, code="not-writable", match=f"{file}/store"):
            call()
    assert files_below(tmp_path) == {"a-file": b"unchanged"}


def test_a_root_that_is_a_file_is_refused(tmp_path):
    file = tmp_path / "a-file"
    file.write_bytes(b"")
    with raises(StoreError, code="not-a-directory", match=str(file)):
        stores.open(str(file)).names()


def test_require_writable_leaves_nothing_behind(store, root, tmp_path):
    store.require_writable()
    assert list(tmp_path.iterdir()) == []
    publish(store, 1)
    before = files_below(root)
    store.require_writable()
    assert files_below(root) == before
