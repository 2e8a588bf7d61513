"""A store in a directory with several processes at work, some of which are killed."""

import itertools
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tfx_compression.store as stores
from tfx_compression.store import StoreBackend

from tests.support.stores import content, files_below, model_file, publish, require_consistent

# A server that has loaded nothing but the store forks the writers, whatever this process has loaded.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["tests.store.test_directory_processes"])


def _publish_many(root: Path, start: "multiprocessing.synchronize.Barrier", writer: int, results) -> None:
    store = stores.open(str(root))
    start.wait()
    for number in range(12):
        model = f"writer {writer}, model {number}".encode() * 50
        results.put((store.publish("digits", model, {"writer": writer}), model))


@pytest.mark.slow
def test_concurrent_writers_get_different_numbers_and_readers_see_whole_versions(root):
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
    publish(store, 2)
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


def _publish(store: StoreBackend) -> None:
    store.publish("digits", content(3), {})


def _promote(store: StoreBackend) -> None:
    store.promote("digits", 3 - store.channels("digits")["stable"], "stable")


def _roll_back(store: StoreBackend) -> None:
    store.rollback("digits", "stable")


def _pull(store: StoreBackend) -> None:
    store.pull("digits", Path(store.uri).parent / "pulled", version=2)


def _die_at(step: int, root: Path, action: Callable[[StoreBackend], None]) -> None:
    """Runs `action` on the store, and kills this process just before its call number `step` of the file system."""
    left = itertools.count(step, -1)

    def kill(event: str, _: object) -> None:
        if event.startswith(("open", "os.", "shutil.", "tempfile.")) and next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(kill)
    action(stores.open(str(root)))


@pytest.mark.parametrize("action", [_publish, _promote, _roll_back, _pull])
def test_a_crash_at_any_step_leaves_the_store_whole(store, root, tmp_path, action: Callable[[StoreBackend], None]):
    publish(store, 2)
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
    # The remains of the dead processes are in nobody's way.
    versions = store.versions("digits")
    assert versions == ([1, 2, 3] if action is _publish else [1, 2])  # The same bytes are one version.
    assert store.publish("digits", content(4), {}) == versions[-1] + 1
    assert not list(root.rglob("*.partial"))
    store.promote("digits", 1, "stable")
    store.promote("digits", 2, "stable")
    assert store.rollback("digits", "stable") == 1


def _release_forever(root: Path, started: "multiprocessing.synchronize.Event") -> None:
    store = stores.open(str(root))
    started.set()
    while True:
        model = os.urandom(1_000_000)
        store.promote("digits", store.publish("digits", model, {}), "stable")


@pytest.mark.slow
def test_a_writer_killed_at_any_moment_leaves_whole_versions_only(root):
    moments = random.Random(0)
    count = kills = 0
    while kills < 15 or (count == 0 and kills < 100):  # A busy machine may publish nothing within 15 short lives.
        started = _processes.Event()
        process = _processes.Process(target=_release_forever, args=(root, started))
        process.start()
        assert started.wait(timeout=60)
        kills += 1
        time.sleep(moments.uniform(0.02, 0.15))
        process.kill()
        process.join()
        versions = require_consistent(root)
        assert len(versions) >= count
        count = len(versions)
    assert count > 0
    assert stores.open(str(root)).publish("digits", content(0), {}) == count + 1
