"""Trainings that are stopped at any of their moments, in this process or by SIGKILL, and their results.

As a program, it runs trainings, writes the result of each to a file, and kills itself at a moment:

    python -m tests.support.killed FOLDER MOMENT SCENARIO [SCENARIO …]
"""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import keras
import numpy as np
import tensorflow as tf
import tf_keras
from tensorflow.python.ops import gen_io_ops
from tfx_compression.pruning.plan import PruningPlan
from tfx_compression.pruning.prune import prune
from tfx_compression.sparsity_fine_tuner import accepted_models
from tfx_compression.sparsity_fine_tuner.config import AccuracyGuard, Distillation, EarlyStopping, FineTuning
from tfx_compression.sparsity_fine_tuner.fine_tune import fine_tune

from tests.support import helpers  # first: sets which Keras tf.keras is

ROWS = 42  # of batches of 16, the last is not whole


class Killed(BaseException):
    """Stops a training in this process: nothing catches it."""


# Moments.


class Moments:
    """Counts the moments of a training and stops it at one of them.

    Moments are the ends of steps and of validation batches, both ends of epochs, and those before, within and after
    everything that is written or deleted.

    Args:
      last: Number of the moment, counted from 0, at which the training stops; None never stops it.
      stop: Function that stops it.
    """

    def __init__(self, last: int | None = None, stop: Callable[[], Any] = lambda: _raise(Killed())):
        self.names: list[str] = []
        self._last, self._stop = last, stop

    def pass_by(self, name: str) -> None:
        self.names.append(name)
        if self._last is not None and len(self.names) == self._last + 1:
            self._stop()

    def callback(self, library: Any) -> Any:
        hooks = ("on_epoch_begin", "on_train_batch_end", "on_test_batch_end", "on_epoch_end")
        callback = library.callbacks.Callback()
        for hook in hooks:
            setattr(callback, hook, lambda number, logs=None, hook=hook: self.pass_by(hook))
        return callback

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for owner, name in (
                (tf.train.Checkpoint, "write"),
                (gen_io_ops, "merge_v2_checkpoints"),
                (tf.io.gfile, "rename"),
                (accepted_models.keras3, "save"),
                (accepted_models, "write_masks"),
            ):
                stack.enter_context(mock.patch.object(owner, name, self._around(name, getattr(owner, name))))
            stack.enter_context(mock.patch.object(tf.io.gfile, "rmtree", self._rmtree(tf.io.gfile.rmtree)))
            yield

    def _around(self, name: str, real: Callable) -> Callable:
        def call(*arguments: Any, **named: Any) -> Any:
            self.pass_by(f"before {name}")
            result = real(*arguments, **named)
            self.pass_by(f"after {name}")
            return result

        return call

    def _rmtree(self, real: Callable) -> Callable:
        def call(path: str) -> None:
            self.pass_by("before rmtree")
            for name in sorted(tf.io.gfile.listdir(path), reverse=True):
                tf.io.gfile.remove(os.path.join(path, name))
                self.pass_by("within rmtree")
            real(path)

        return call


def _raise(error: BaseException) -> None:
    raise error


# Trainings.


def net(library: Any = tf_keras, dropout: float = 0.3, seed: int = 1) -> Any:
    """Returns a model of four numbers to two, with normalization, dropout, an optimizer with moments, and metrics."""
    library.utils.set_random_seed(seed)
    x = library.Input((4,), name="x")
    hidden = library.layers.Dense(16, name="hidden")(x)
    hidden = library.layers.BatchNormalization(momentum=0.9, name="normalization")(hidden)
    hidden = library.layers.Dropout(dropout, name="dropout")(library.layers.ReLU(name="relu")(hidden))
    model = library.Model(x, library.layers.Dense(2, name="y")(hidden), name="net")
    model.compile("adam", "mse", metrics=["mae"])
    return model


def convolutions() -> tf_keras.Model:
    """Returns a model of images to three probabilities."""
    tf_keras.utils.set_random_seed(1)
    image = tf_keras.Input(helpers.IMAGE, name="image")
    hidden = tf_keras.layers.Conv2D(6, 3, name="first")(image)
    hidden = tf_keras.layers.BatchNormalization(momentum=0.9, name="normalization")(hidden)
    hidden = tf_keras.layers.Conv2D(6, 3, strides=2, activation="relu", name="second")(hidden)
    hidden = tf_keras.layers.GlobalAveragePooling2D(name="pool")(hidden)
    outputs = tf_keras.layers.Dense(helpers.CLASSES, activation="softmax", name="probabilities")(hidden)
    model = tf_keras.Model(image, outputs, name="convolutions")
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def shuffled(features: np.ndarray, labels: np.ndarray) -> Callable[[int], tf.data.Dataset]:
    """Returns a function from the number of a pass to its batches, in another order for each pass."""
    rows = tf.data.Dataset.from_tensor_slices((features, labels))
    return lambda number: rows.shuffle(len(features), seed=number, reshuffle_each_iteration=False).batch(16)


def points(number: int) -> tf.data.Dataset:
    return shuffled(*helpers.points(ROWS))(number)


def images(number: int) -> tf.data.Dataset:
    pixels, labels = helpers.images(ROWS)
    return shuffled(pixels / helpers.LARGEST, labels)(number)


def config(mode: str = "fixed", **more: Any) -> FineTuning:
    settings = {"epochs": 3, "learning_rate": 0.01, "checkpoint_steps": 2, "batch_size": 16, "seed": 5}
    return FineTuning(mode=mode, **settings | more)


class Scenario:
    """Trainings, each from a new model to its result.

    Args:
      folder: Folder of the checkpoints.
      moments: Moments of the training.
      deterministic: See FineTuning.
    """

    def __init__(self, folder: str, moments: Moments, deterministic: bool = False):
        self.folder, self.moments, self.deterministic = folder, moments, deterministic

    def tune(self, model: Any, data: Any, tuning: FineTuning, *rest: Any, library: Any = tf_keras, **more: Any) -> Any:
        tuning = tuning.model_copy(update={"deterministic": self.deterministic})
        with self.moments.watched():
            return fine_tune(
                model,
                data,
                tuning,
                *rest,
                validation_data=data(100),
                callbacks=[self.moments.callback(library)],
                checkpoints=self.folder,
                **more,
            )

    def fixed(self) -> Any:
        """Trains with steps that don't divide the data, a learning rate that rises and falls, and early stopping."""
        model = prune(net(), PruningPlan(sparsity=0.5, protect=())).model
        tuning = config(
            epochs=4,
            steps_per_epoch=4,
            learning_rate_schedule="cosine",
            warmup_steps=3,
            early_stopping=EarlyStopping(patience=1, monitor="mae"),
        )
        return self.tune(model, points, tuning)

    def gradual(self) -> Any:
        plan = PruningPlan(sparsity=0.7, protect=(), schedule="cubic", frequency=2)
        return self.tune(prune(net(), plan).model, points, config("gradual"), plan=plan)

    def dynamic(self) -> Any:
        plan = PruningPlan(sparsity=0.5, protect=(), frequency=2)
        return self.tune(prune(net(), plan).model, points, config("dynamic"), plan=plan)

    def cluster(self) -> Any:
        model = prune(net(), PruningPlan(sparsity=0.5, protect=())).model
        return self.tune(model, points, config("cluster", clusters=4))

    def distilled(self) -> Any:
        model = prune(net(), PruningPlan(sparsity=0.5, protect=())).model
        tuning = config(distillation=Distillation(features={"hidden": "hidden"}))
        return self.tune(model, points, tuning, net(seed=2))

    def half_precision(self) -> Any:
        """Trains with a scale of the loss, which is a state too."""
        model = prune(net(), PruningPlan(sparsity=0.5, protect=())).model
        optimizer = tf_keras.mixed_precision.LossScaleOptimizer(tf_keras.optimizers.Adam(), initial_scale=2.0**30)
        model.compile(optimizer, "mse", ["mae"])
        return self.tune(model, points, config(mixed_precision="mixed_float16"))

    def guarded(self) -> Any:
        """Runs rounds, some of which are rejected."""
        plan = PruningPlan(sparsity=0.9, protect=(), schedule="iterative", iterations=3)
        guard = AccuracyGuard(max_drop=0.25, step=0.3, minimum_step=0.1)
        dense = net()
        dense.fit(points(0), epochs=5, verbose=0)
        return self.tune(prune(dense, plan).model, points, config("iterative", epochs=2, guard=guard), dense, plan=plan)

    def rewound(self) -> Any:
        plan = PruningPlan(sparsity=0.7, protect=(), schedule="iterative", iterations=3)
        tuning = config("iterative", epochs=1, rewind="start")
        return self.tune(prune(net(), plan).model, points, tuning, plan=plan)

    def filters(self) -> Any:
        """Runs rounds that remove channels."""
        plan = PruningPlan(technique="filter", sparsity=0.6, schedule="iterative", iterations=3)
        model = prune(convolutions(), plan).model
        return self.tune(model, images, config("iterative", epochs=1), plan=plan)

    def quantization_aware(self) -> Any:
        model = prune(convolutions(), PruningPlan(sparsity=0.5, protect=())).model
        return self.tune(model, images, config("quantization_aware", epochs=2))

    def keras3(self) -> Any:
        model = prune(net(keras), PruningPlan(sparsity=0.5, protect=())).model
        return self.tune(model, points, config(epochs=2), library=keras)

    def keras3_filters(self) -> Any:
        plan = PruningPlan(technique="neuron", protect=(), sparsity=0.6, schedule="iterative", iterations=3)
        model = prune(net(keras), plan).model
        return self.tune(model, points, config("iterative", epochs=1), plan=plan, library=keras)

    def signature(self) -> Any:
        """Trains a SavedModel without layers."""
        model = net(dropout=0.0)
        path = f"{self.folder}-model"
        if not os.path.exists(path):
            spec = tf.TensorSpec([None, 4], tf.float32, name="x")
            helpers.save_function(lambda x: {"y": model(x)}, [spec], path, weights=model.weights)
        loaded = prune(path, PruningPlan(sparsity=0.5, protect=())).model
        return self.tune(loaded, points, config(loss="mse", metrics=("mae",), optimizer="adam"))

    def mirrored(self) -> Any:
        """Trains on two replicas."""
        with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
            model = prune(net(), PruningPlan(sparsity=0.5, protect=())).model
            return self.tune(model, points, config())


def described(tuned: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns the result of a training in values that can be compared: history, rounds and notes; weights and masks."""
    model = tuned.model
    weights = list(model.variables.values()) if not hasattr(model, "get_weights") else model.weights
    arrays = {f"weight {place}": np.asarray(weight) for place, weight in enumerate(weights)}
    arrays |= {f"mask {name}": mask for name, mask in tuned.masks.items()}
    went = {
        "history": list(tuned.history),
        "rounds": [each.model_dump() for each in tuned.rounds],
        "notes": list(tuned.notes),
    }
    return json.loads(json.dumps(went)), arrays


def require_same(one: Any, other: Any) -> None:
    """Asserts that two results are equal bit by bit."""
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    for name, values in one[1].items():
        np.testing.assert_array_equal(other[1][name], values, err_msg=name)


def main(folder: str, moment: str, *scenarios: str) -> None:
    """Runs the scenarios that have no result yet. The process dies at a moment, counted over all of them."""
    if "mirrored" in scenarios:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    moments = Moments(int(moment) if moment != "never" else None, lambda: os.kill(os.getpid(), signal.SIGKILL))
    for name in scenarios:
        result = Path(folder, f"{name}.npz")
        if result.exists():
            continue
        scenario = Scenario(str(Path(folder, name)), moments, deterministic=True)
        history, arrays = described(getattr(scenario, name)())
        with open(f"{result}.part", "wb") as file:
            np.savez(file, went=json.dumps(history), **arrays)
        os.replace(f"{result}.part", result)
    Path(folder, "moments.json").write_text(json.dumps(moments.names))


if __name__ == "__main__":
    main(*sys.argv[1:])
