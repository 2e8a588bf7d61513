"""Checkpoints: incomplete ones, those of another model or configuration, and a full disk."""

import contextlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tfx_compression.errors import ConfigError, ModelError
from tfx_compression.sparsity_fine_tuner.checkpoints import Checkpoints, WeightSnapshot
from tfx_compression.sparsity_fine_tuner.config import FineTuning
from tfx_compression.sparsity_fine_tuner.fine_tune import fine_tune

from tests.support import disk, helpers, killed
from tests.support.errors import raises


def variable(value: float, size: int = 1000) -> tf.Variable:
    return tf.Variable(tf.fill([size], value))


def two_checkpoints(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tf.Variable:
    """Writes a checkpoint of step 1 and value 1 and one of step 2 and value 2, without deleting the older one."""
    values = variable(1.0)
    checkpoints = Checkpoints(str(folder), [values])
    with monkeypatch.context() as patch:
        patch.setattr(tf.io.gfile, "rmtree", lambda path: None)
        checkpoints.save(1, 0, {"step": 1})
        values.assign(tf.fill([1000], 2.0))
        checkpoints.save(2, 0, {"step": 2})
    return values


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [Path.unlink, truncate], ids=["missing", "half"])
@pytest.mark.parametrize("file", ["state.json", "values.index", "values.data-00000-of-00001"])
def test_incomplete_checkpoints_are_ignored(tmp_path, monkeypatch, file, damage):
    values = two_checkpoints(tmp_path, monkeypatch)
    damage(tmp_path / "step-000000002-000000" / file)
    assert Checkpoints(str(tmp_path), [values]).restore() == {"step": 1}
    np.testing.assert_array_equal(values, np.ones(1000))
    damage(tmp_path / "step-000000001-000000" / file)
    values.assign(tf.fill([1000], 7.0))
    assert Checkpoints(str(tmp_path), [values]).restore() is None
    np.testing.assert_array_equal(values, np.full(1000, 7.0))


def test_newest_checkpoint_is_restored_and_older_ones_are_deleted(tmp_path, monkeypatch):
    values = two_checkpoints(tmp_path, monkeypatch)
    checkpoints = Checkpoints(str(tmp_path), [values])
    assert checkpoints.restore() == {"step": 2}
    checkpoints.save(2, 1, {"step": 2, "validated": True})
    assert checkpoints.restore() == {"step": 2, "validated": True}
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000002-000001"]


def test_checkpoint_of_another_model_is_refused(tmp_path):
    Checkpoints(str(tmp_path), [variable(1.0)]).save(1, 0, {})
    for others in ([variable(1.0, 3)], [variable(1.0), variable(1.0)]):
        with raises(ModelError, code="checkpoint-mismatch", match="step-000000001-000000"):
            Checkpoints(str(tmp_path), others).restore()


def test_snapshots_of_other_names_are_removed(tmp_path):
    snapshot = WeightSnapshot(str(tmp_path / "best"), [variable(1.0)])
    snapshot.save("1")
    (tmp_path / "best-0_temp").mkdir()  # what a killed process leaves
    (tmp_path / "best-0_temp/part-00000-of-00001.data").touch()
    snapshot.remove_others("1")
    snapshot.restore("1")
    assert {path.name.partition(".")[0] for path in tmp_path.iterdir()} == {"best-1"}
    snapshot.remove_others("2")
    with raises(ModelError, code="checkpoint-mismatch", match="best-1"):
        snapshot.restore("1")


def wide() -> tf_keras.Model:
    """Returns a model whose checkpoints have more than a MB."""
    tf_keras.utils.set_random_seed(1)
    x = tf_keras.Input((4,))
    model = tf_keras.Model(x, tf_keras.layers.Dense(2)(tf_keras.layers.Dense(20_000, activation="relu")(x)))
    model.compile("adam", "mse")
    return model


class EnterAt(tf_keras.callbacks.Callback):
    """Enters a context after a number of steps."""

    def __init__(self, stack: contextlib.ExitStack, step: int, context: Any):
        super().__init__()
        self._stack, self._step, self._context, self._steps = stack, step, context, 0

    def on_train_batch_end(self, batch, logs=None):
        self._steps += 1
        if self._steps == self._step:
            self._stack.enter_context(self._context)


@pytest.mark.slow
def test_training_resumes_after_a_full_disk(tmp_path, eagerly):
    def tuned(folder: str, *callbacks: Any) -> Any:
        data = helpers.batches(*helpers.points(64))
        config = FineTuning(epochs=2, checkpoint_steps=2)
        return fine_tune(wide(), data, config, checkpoints=str(tmp_path / folder), callbacks=callbacks)

    expected = tuned("uninterrupted")
    with (
        contextlib.ExitStack() as stack,
        raises(ModelError, code="checkpoint-not-written", match="full/training/step-000000004-000000"),
    ):
        tuned("full", EnterAt(stack, 3, disk.largest_file(1 << 18)))
    assert (tmp_path / "full/training/step-000000002-000000/state.json").exists()
    killed.require_same(killed.described(expected), killed.described(tuned("full")))


def test_checkpoints_of_another_configuration_are_refused(tmp_path, eagerly):
    data = helpers.batches(*helpers.points(32))
    fine_tune(wide(), data, FineTuning(epochs=1), checkpoints=str(tmp_path))
    with raises(ConfigError, field="checkpoints", code="checkpoints-of-another-configuration"):
        fine_tune(wide(), data, FineTuning(epochs=2), checkpoints=str(tmp_path))
