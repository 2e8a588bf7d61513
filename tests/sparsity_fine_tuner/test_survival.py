"""A training that is stopped at any moment and started again ends as if it had not been stopped."""

import contextlib
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
import tfx_compression
from tfx_compression.sparsity_fine_tuner.config import FineTuning
from tfx_compression.sparsity_fine_tuner.fine_tune import fine_tune
from tfx_compression.sparsity_fine_tuner.training_loop import DivergedError

from tests.support import helpers, killed
from tests.support.errors import raises
from tests.support.fine_tuning import running_eagerly
from tests.support.killed import require_same

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
COMPONENTS = Path(tfx_compression.__file__).parents[1]


# In this process.


def run(name: str, folder: Path, last: int | None = None) -> tuple[Any, list[str]]:
    """Returns the result of a scenario and the moments that it passes; it is stopped at moment `last`."""
    moments = killed.Moments(last)
    with running_eagerly():
        return killed.described(getattr(killed.Scenario(str(folder), moments), name)()), moments.names


def stop(name: str, folder: Path, moment: int) -> None:
    with pytest.raises(killed.Killed):
        run(name, folder, moment)


@functools.cache
def uninterrupted_distillation(folder: Path) -> tuple[Any, list[str]]:
    return run("distilled", folder)


@pytest.mark.parametrize("hook", ["on_test_batch_end", "on_epoch_end", "before rename"])
def test_stopped_training_has_the_same_history_and_weights(tmp_path, tmp_path_factory, hook):
    """One of the moments is between the checkpoint of an epoch's last step and the one after validation."""
    expected, moments = uninterrupted_distillation(tmp_path_factory.getbasetemp() / "distilled")
    places = [place for place, name in enumerate(moments) if name == hook]
    stop("distilled", tmp_path, places[len(places) // 2])
    require_same(expected, run("distilled", tmp_path)[0])


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
def test_training_stopped_repeatedly_has_the_same_result(tmp_path, name):
    expected, moments = run(name, tmp_path / "uninterrupted")
    if name == "signature":
        shutil.copytree(tmp_path / "uninterrupted-model", tmp_path / "stopped-model")
    draw = random.Random(name)
    stop(name, tmp_path / "stopped", draw.randrange(len(moments)))
    with contextlib.suppress(killed.Killed):  # it may end before
        run(name, tmp_path / "stopped", draw.randrange(len(moments) // 3))
    require_same(expected, run(name, tmp_path / "stopped")[0])


# By SIGKILL.


def process(folder: Path, moment: int | str, *scenarios: str) -> subprocess.CompletedProcess:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tests.support.killed", str(folder), str(moment), *scenarios]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": f"{COMPONENTS}:{REPOSITORY}"}
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)


def result(folder: Path, name: str) -> tuple[Any, dict[str, np.ndarray]]:
    with np.load(folder / f"{name}.npz") as stored:
        arrays = {key: stored[key] for key in stored.files}
    return json.loads(str(arrays.pop("went"))), arrays


@pytest.mark.parametrize(
    "scenarios",
    [("fixed", "gradual", "guarded", "filters"), ("keras3", "quantization_aware", "signature", "mirrored")],
    ids=" ".join,
)
def test_killed_processes_resume_to_the_same_result(tmp_path, scenarios):
    uninterrupted, resumed = tmp_path / "uninterrupted", tmp_path / "resumed"
    finished = process(uninterrupted, "never", *scenarios)
    assert finished.returncode == 0, finished.stderr[-2000:]
    moments = len(json.loads((uninterrupted / "moments.json").read_text()))
    draw = random.Random(" ".join(scenarios))
    for _ in range(2):
        ended = process(resumed, draw.randrange(moments // 8, moments // 3), *scenarios)
        assert ended.returncode == -signal.SIGKILL, ended.stderr[-2000:]
    finished = process(resumed, "never", *scenarios)
    assert finished.returncode == 0, finished.stderr[-2000:]
    for name in scenarios:
        require_same(result(uninterrupted, name), result(resumed, name))


# Divergence.


def test_resumed_training_diverges_like_an_uninterrupted_one(tmp_path):
    """The checkpoint may even be of a step whose weights are not finite."""

    def data(number: int) -> tf.data.Dataset:
        x, y = helpers.points(64)
        if number == 1:
            y[20] = np.nan
        return helpers.batches(x, y)

    def tuned(folder: str, *callbacks: Any) -> Any:
        model = killed.net()
        config = FineTuning(epochs=3, learning_rate=0.01, checkpoint_steps=1)
        return killed.described(fine_tune(model, data, config, checkpoints=str(tmp_path / folder), callbacks=callbacks))

    class Stop(tf_keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise killed.Killed

    with running_eagerly():
        expected = tuned("uninterrupted")
        (note,) = expected[0]["notes"]
        assert "at step 6 (epoch 2)" in note
        assert "that of epoch 1" in note
        assert all(np.isfinite(values).all() for values in expected[1].values())
        require_same(expected, tuned("uninterrupted"))
        with pytest.raises(killed.Killed):
            tuned("stopped", Stop())
        require_same(expected, tuned("stopped"))
        with raises(DivergedError, code="diverged", match="step 2"):
            fine_tune(killed.net(), lambda number: data(1), FineTuning(epochs=1))
