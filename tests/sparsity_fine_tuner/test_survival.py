"""A training that is stopped at any moment and started again ends as if it had not been."""

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
import tfx_compression
from tfx_compression.errors import ConfigError, ModelError
from tfx_compression.sparsity_fine_tuner.config import FineTuning
from tfx_compression.sparsity_fine_tuner.state import Checkpoints, Kept
from tfx_compression.sparsity_fine_tuner.training import fine_tune

from tests.support import helpers, killed

pytestmark = pytest.mark.slow  # fast ones too: together they take long

REPOSITORY = Path(__file__).parents[2]
COMPONENTS = Path(tfx_compression.__file__).parents[1]


def require_same(one: Any, other: Any) -> None:
    """Bit for bit: how it went, weights and masks."""
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    for name, values in one[1].items():
        np.testing.assert_array_equal(other[1][name], values, err_msg=name)


# In this process


@contextlib.contextmanager
def eagerly() -> Iterator[None]:
    """Without graphs: tracing takes longer than so little training."""
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


def carried_out(name: str, folder: Path, last: int | None = None) -> tuple[Any, list[str]]:
    """What a scenario comes to, and the moments that it passed."""
    moments = killed.Moments(last)
    with eagerly():
        return killed.described(getattr(killed.Scenario(str(folder), moments), name)()), moments.names


def stopped(name: str, folder: Path, moment: int) -> None:
    with pytest.raises(killed.Killed):
        carried_out(name, folder, moment)


@pytest.mark.parametrize(
    "hook",
    ["on_test_batch_end", *(pytest.param(hook, marks=pytest.mark.slow) for hook in ("on_epoch_end", "before rename"))],
)
def test_history_and_model_are_those_of_a_training_that_was_not_stopped(tmp_path, hook):
    """Also where it stops between the checkpoint of an epoch's last step and the one after validation."""
    whole, moments = carried_out("distilled", tmp_path / "whole")
    places = [place for place, name in enumerate(moments) if name == hook]
    stopped("distilled", tmp_path / "stopped", places[len(places) // 2])
    require_same(whole, carried_out("distilled", tmp_path / "stopped")[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "fixed",
        "gradual",
        "dynamic",
        "cluster",
        "half_precision",
        "guarded",
        "rewound",
        "filters",
        "quantization_aware",
        "keras3",
        "keras3_filters",
        "signature",
    ],
)
def test_stopped_again_and_again_it_still_arrives(tmp_path, name):
    whole, moments = carried_out(name, tmp_path / "whole")
    if name == "signature":
        shutil.copytree(tmp_path / "whole-model", tmp_path / "stopped-model")
    draw = random.Random(name)
    stopped(name, tmp_path / "stopped", draw.randrange(len(moments)))
    for _ in range(2):  # or it arrives before
        with contextlib.suppress(killed.Killed):
            carried_out(name, tmp_path / "stopped", draw.randrange(len(moments) // 3))
    require_same(whole, carried_out(name, tmp_path / "stopped")[0])


# By SIGKILL


def process(folder: Path, moment: int | str, *scenarios: str) -> subprocess.CompletedProcess:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tests.support.killed", str(folder), str(moment), *scenarios]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": f"{COMPONENTS}:{REPOSITORY}"}
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)


def result(folder: Path, name: str) -> tuple[Any, dict[str, np.ndarray]]:
    with np.load(folder / f"{name}.npz") as stored:
        arrays = {key: stored[key] for key in stored.files}
    return json.loads(str(arrays.pop("went"))), arrays


@pytest.mark.slow
@pytest.mark.parametrize(
    "scenarios",
    [("fixed", "gradual"), ("guarded", "filters"), ("keras3", "quantization_aware", "signature"), ("mirrored",)],
    ids=" ".join,
)
def test_killed_several_times_the_processes_together_come_to_what_one_does(tmp_path, scenarios):
    whole, killed_often = tmp_path / "whole", tmp_path / "killed"
    finished = process(whole, "never", *scenarios)
    assert finished.returncode == 0, finished.stderr[-2000:]
    moments = len(json.loads((whole / "moments.json").read_text()))
    draw = random.Random(" ".join(scenarios))
    for _ in range(2):
        ended = process(killed_often, draw.randrange(moments // 8, moments // 3), *scenarios)
        assert ended.returncode == -signal.SIGKILL, ended.stderr[-2000:]
    finished = process(killed_often, "never", *scenarios)
    assert finished.returncode == 0, finished.stderr[-2000:]
    for name in scenarios:
        require_same(result(whole, name), result(killed_often, name))


# Checkpoints that are not whole


def variable(value: float, size: int = 1000) -> tf.Variable:
    return tf.Variable(tf.fill([size], value))


def two_checkpoints(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tf.Variable:
    """One of step 1 and value 1, one of step 2 and value 2, as where the older one's deletion was not to be."""
    kept = variable(1.0)
    checkpoints = Checkpoints(str(folder), [kept])
    with monkeypatch.context() as patch:
        patch.setattr(tf.io.gfile, "rmtree", lambda path: None)
        checkpoints.save(1, 0, {"step": 1})
        kept.assign(tf.fill([1000], 2.0))
        checkpoints.save(2, 0, {"step": 2})
    return kept


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [Path.unlink, truncate], ids=["missing", "half"])
@pytest.mark.parametrize("file", ["state.json", "values.index", "values.data-00000-of-00001"])
def test_of_checkpoints_that_are_not_whole_the_one_before_is_used(tmp_path, monkeypatch, file, damage):
    kept = two_checkpoints(tmp_path, monkeypatch)
    damage(tmp_path / "step-000000002-000000" / file)
    assert Checkpoints(str(tmp_path), [kept]).restore() == {"step": 1}
    np.testing.assert_array_equal(kept, np.ones(1000))
    damage(tmp_path / "step-000000001-000000" / file)
    kept.assign(tf.fill([1000], 7.0))
    assert Checkpoints(str(tmp_path), [kept]).restore() is None
    np.testing.assert_array_equal(kept, np.full(1000, 7.0))


def test_the_newest_whole_checkpoint_is_used_and_the_next_one_deletes_the_others(tmp_path, monkeypatch):
    kept = two_checkpoints(tmp_path, monkeypatch)
    checkpoints = Checkpoints(str(tmp_path), [kept])
    assert checkpoints.restore() == {"step": 2}
    checkpoints.save(2, 1, {"step": 2, "validated": True})
    assert checkpoints.restore() == {"step": 2, "validated": True}
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000002-000001"]


def test_a_checkpoint_of_another_model_is_an_error_that_names_its_place(tmp_path):
    Checkpoints(str(tmp_path), [variable(1.0)]).save(1, 0, {})
    for others in ([variable(1.0, 3)], [variable(1.0), variable(1.0)]):
        with pytest.raises(ModelError, match=r"step-000000001-000000.*Remedy: delete its folder"):
            Checkpoints(str(tmp_path), others).restore()


def test_what_a_kill_left_of_the_best_epochs_weights_is_cleared_away(tmp_path):
    kept = Kept(str(tmp_path / "best"), [variable(1.0)])
    kept.write("1")
    (tmp_path / "best-0_temp").mkdir()
    (tmp_path / "best-0_temp/part-00000-of-00001.data").touch()
    kept.remove_others("1")
    kept.read("1")
    assert {path.name.partition(".")[0] for path in tmp_path.iterdir()} == {"best-1"}
    kept.remove_others("2")
    with pytest.raises(ModelError, match=r"best-1.*Remedy"):
        kept.read("1")


# A full disk


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file can be written beyond a size; Python ignores the signal, so that writing fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def wide() -> tf_keras.Model:
    """Its checkpoints have more than a MB."""
    tf_keras.utils.set_random_seed(1)
    x = tf_keras.Input((4,))
    model = tf_keras.Model(x, tf_keras.layers.Dense(2)(tf_keras.layers.Dense(20_000, activation="relu")(x)))
    model.compile("adam", "mse")
    return model


class From(tf_keras.callbacks.Callback):
    """Enters a context at a step."""

    def __init__(self, stack: contextlib.ExitStack, step: int, context: Any):
        super().__init__()
        self._stack, self._step, self._context, self._steps = stack, step, context, 0

    def on_train_batch_end(self, batch, logs=None):
        self._steps += 1
        if self._steps == self._step:
            self._stack.enter_context(self._context)


def test_on_a_full_disk_an_error_names_the_place_and_with_room_it_goes_on(tmp_path):
    def tuned(folder: str, *callbacks: Any) -> Any:
        data = helpers.batches(*helpers.points(64))
        how = FineTuning(epochs=2, checkpoint_steps=2)
        return fine_tune(wide(), data, how, checkpoints=str(tmp_path / folder), callbacks=callbacks)

    with eagerly():
        whole = tuned("whole")
        with (
            contextlib.ExitStack() as stack,
            pytest.raises(ModelError, match=r"full/training/step-000000004-000000.*can't be written.*Remedy: room"),
        ):
            tuned("full", From(stack, 3, largest_file(1 << 18)))
        assert (tmp_path / "full/training/step-000000002-000000/state.json").exists()
        went_on = tuned("full")
    require_same(killed.described(whole), killed.described(went_on))


def test_a_folder_of_another_configurations_checkpoints_is_refused(tmp_path):
    data = helpers.batches(*helpers.points(32))
    with eagerly():
        fine_tune(wide(), data, FineTuning(epochs=1), checkpoints=str(tmp_path))
        with pytest.raises(ConfigError, match=r"another configuration or plan.*Remedy: another folder"):
            fine_tune(wide(), data, FineTuning(epochs=2), checkpoints=str(tmp_path))


# What is not a number


@pytest.mark.slow
def test_a_loss_that_is_not_a_number_ends_a_resumed_training_as_it_does_another(tmp_path):
    """Also where the checkpoint is of a step whose weights are not numbers already."""

    def data(number: int) -> tf.data.Dataset:
        x, y = helpers.points(64)
        if number == 1:
            y[20] = np.nan
        return helpers.batches(x, y)

    def tuned(folder: str, *callbacks: Any) -> Any:
        model = killed.net()
        how = FineTuning(epochs=3, learning_rate=0.01, checkpoint_steps=1)
        return killed.described(fine_tune(model, data, how, checkpoints=str(tmp_path / folder), callbacks=callbacks))

    class Stop(tf_keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise killed.Killed

    with eagerly():
        whole = tuned("whole")
        (note,) = whole[0]["notes"]
        assert "not a number at step 6 (epoch 2)" in note
        assert "the model is that of epoch 1" in note
        assert all(np.isfinite(values).all() for values in whole[1].values())
        require_same(whole, tuned("whole"))
        with pytest.raises(killed.Killed):
            tuned("stopped", Stop())
        require_same(whole, tuned("stopped"))
        with pytest.raises(ModelError, match="not a number at step 2"):
            fine_tune(killed.net(), lambda number: data(1), FineTuning(epochs=1))


# The executor


@pytest.mark.slow
class TestExecutor:
    """Attempts of a pipeline."""

    CONFIG = FineTuning(epochs=2, learning_rate=0.01, checkpoint_steps=1, batch_size=48)

    def attempt(self, folder: Path, execution: int, config: FineTuning = CONFIG, module: str = "") -> Any:
        from tests.sparsity_fine_tuner import test_executor

        test_executor.set_schema(folder, test_executor.IMAGES)
        plan, model = test_executor.PLAN, test_executor.keras2
        return test_executor.Run(folder, model, plan, config, module=module, execution=execution)

    def test_only_the_same_inputs_configuration_and_module_go_on(self, tmp_path, monkeypatch):
        from tfx_compression.sparsity_fine_tuner import loop

        begun, save = [], loop.Checkpoints.save
        restore = loop.Checkpoints.restore

        def killed_after(self: Any, step: int, *rest: Any) -> None:
            save(self, step, *rest)
            raise killed.Killed

        monkeypatch.setattr(loop.Checkpoints, "save", killed_after)
        monkeypatch.setattr(loop.Checkpoints, "restore", lambda self: (begun.append(restore(self)), begun[-1])[1])
        module = "def custom_objects():\n    return {}\n"
        other = self.CONFIG.model_copy(update={"seed": 1})
        attempts = [
            (1, {}, 0),
            (2, {"config": other}, 0),
            (3, {"module": module}, 0),
            (4, {"module": module + "# changed\n"}, 0),
            (5, {"module": module}, 1),
            (6, {}, 1),
            (7, {"config": other}, 1),
        ]
        for execution, settings, step in attempts:
            with pytest.raises(killed.Killed):
                self.attempt(tmp_path, execution, **settings).do()
            assert (begun[-1]["step"] if begun[-1] else 0) == step, execution

    def test_a_model_with_other_weights_has_other_checkpoints(self, tmp_path):
        from tfx_compression.tfx_support import checkpoints

        run = self.attempt(tmp_path, 1)
        inputs = {"model": [run.pruned]}
        before = checkpoints.fingerprint(inputs, run.properties)
        assert checkpoints.fingerprint(inputs, self.attempt(tmp_path, 2).properties) == before
        (weights,) = (tmp_path / "Pruner/pruned_model/1/Format-Serving/variables").glob("variables.data*")
        content = weights.read_bytes()
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert checkpoints.fingerprint(inputs, run.properties) != before

    def test_where_the_result_can_not_be_written_nothing_is_left_of_it_but_the_checkpoints(self, tmp_path, monkeypatch):
        from tfx_compression.sparsity_fine_tuner.training import Tuned

        save = Tuned.save

        def on_a_full_disk(self: Any, *arguments: Any) -> None:
            with largest_file(4096):
                save(self, *arguments)

        run = self.attempt(tmp_path, 1)
        with monkeypatch.context() as patch:
            patch.setattr(Tuned, "save", on_a_full_disk)
            with pytest.raises(ModelError, match=r"can't be written to .*fine_tuned_model/1.*Remedy"):
                run.do()
        assert not os.path.exists(run.tuned.uri)
        store = tmp_path / "SparsityFineTuner/.checkpoints"
        assert list(store.rglob("state.json"))
        again = self.attempt(tmp_path, 2).do()
        assert len(again.read("tuning.json")["history"]) == 2
        assert not list(store.iterdir())
