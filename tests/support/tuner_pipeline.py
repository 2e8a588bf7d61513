"""Executions of SparsityFineTuner after a Pruner, in folders laid out as by TFX's LocalDagRunner."""

import copy
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
import tfx_compression as tfc
from tfx.types import artifact_utils, standard_artifacts
from tfx_compression import model_handle
from tfx_compression.pruner.executor import Executor as PrunerExecutor
from tfx_compression.sparsity_fine_tuner.executor import Executor

from tests.support import helpers, kinds

PLAN = tfc.PruningPlan(sparsity=0.5, protect=())
ROWS = 96
IMAGES = {"image": ("FLOAT", helpers.IMAGE), "label": ("INT", ())}
POINTS = {"x": ("FLOAT", (4,)), "target": ("FLOAT", (2,))}
WEIGHT = {"weight": ("FLOAT", ())}
_kept: list[tempfile.TemporaryDirectory] = []  # until the process ends


class Run:
    """One execution: `<node>/<output>/<execution>` is the folder of each artifact.

    Args:
      folder: Folder of the pipeline.
      write: Function that writes the Trainer's model to the path that it is given. What Pruner makes of it is cached.
      plan: Plan of the Pruner.
      config: Configuration of the fine-tuning.
      features: Features of the schema.
      raw: Whether the examples are not transformed.
      module: Source of the user's module file.
      teachers: Functions that write the teachers, by the input's key.
      execution: Number of the execution.
      properties: Exec properties.
    """

    def __init__(
        self,
        folder: Path,
        write: Callable[[str], None],
        plan: tfc.PruningPlan,
        config: tfc.FineTuning,
        *,
        features: dict[str, Any] = IMAGES,
        raw: bool = False,
        module: str = "",
        teachers: dict[str, Callable[[str], None]] | None = None,
        execution: int = 1,
        **properties: Any,
    ):
        self.folder, self.plan = folder, plan
        self.examples = write_examples(folder, features, raw)
        self.module = {"module_file": str(folder / "module.py")} if module else {}
        (folder / "module.py").write_text(module)
        prepared, pruned = _pruned(write, plan.to_json())
        if not (folder / "Trainer").exists():
            shutil.copytree(prepared, folder, dirs_exist_ok=True)
        self.pruned = copy.deepcopy(pruned)
        self.pruned.uri = str(folder / "Pruner/pruned_model/1")
        self.pruning_plan = tfc.PruningPlanArtifact()
        self.pruning_plan.uri = str(folder / "Pruner/pruning_plan/1")
        self.teachers = {}
        for key, write_teacher in (teachers or {}).items():
            self.teachers[key] = [_artifact(standard_artifacts.Model, folder / f"{key}/model/1")]
            shutil.copytree(_written(write_teacher), folder / f"{key}/model/1", dirs_exist_ok=True)
        self.tuned = _artifact(standard_artifacts.Model, folder / f"SparsityFineTuner/fine_tuned_model/{execution}")
        self.logs = _artifact(standard_artifacts.ModelRun, folder / f"SparsityFineTuner/model_run/{execution}")
        self.properties = {
            "config": config.to_json(),
            "train_split": "train",
            "eval_split": "eval",
            **self.module,
            **properties,
        }

    def do(self) -> "Run":
        """Runs the executor."""
        inputs = {"model": [self.pruned], "pruning_plan": [self.pruning_plan], **self.examples, **self.teachers}
        Executor().Do(inputs, {"fine_tuned_model": [self.tuned], "model_run": [self.logs]}, self.properties)
        return self

    @property
    def path(self) -> str:
        """The path of the fine-tuned SavedModel."""
        return f"{self.tuned.uri}/Format-Serving"

    def read(self, name: str) -> Any:
        """Returns the JSON values of a file beside the model."""
        return json.loads(Path(self.tuned.uri, name).read_text())

    def answers(self, model: Any = None, **arguments: Any) -> np.ndarray:
        """Returns the output of the signature of the fine-tuned model, or of another Model artifact."""
        path = f"{(model or self.tuned).uri}/Format-Serving"
        (answer,) = helpers.answers(path, **arguments).values()
        return answer

    def masks(self) -> dict[str, np.ndarray]:
        """Returns Pruner's masks."""
        stored = np.load(Path(self.pruning_plan.uri, "masks.npz"))
        return {name.removeprefix("mask/"): stored[name] for name in stored.files}

    def kernels(self) -> list[np.ndarray]:
        """Returns the kernels of the fine-tuned model as this package loads it."""
        return [kernel.values for kernel in model_handle.load(self.path).kernels.values()]

    def sparsity_on_disk(self) -> float:
        """Returns the fraction of zeros in variables of rank 2 or more, as TensorFlow loads them."""
        loaded = tf.saved_model.load(self.path)  # it keeps the variables alive
        variables = loaded.signatures["serving_default"].variables
        values = [variable.numpy() for variable in variables if variable.shape.rank >= 2]
        return sum(np.sum(kernel == 0) for kernel in values) / sum(kernel.size for kernel in values)

    def loss(self) -> float:
        """Returns the loss of the signature on the evaluation split, computed by NumPy."""
        images, labels = helpers.images(ROWS, 1)
        answers = self.answers(examples=helpers.serialized({"image": images}))
        return float(np.mean(-np.log(answers[np.arange(ROWS), labels])))

    def require_artifact(self, kind: str) -> None:
        """Asserts that the artifact's properties, the files and the logs agree, and no checkpoint is left."""
        prop = self.tuned.get_custom_property
        size = self.read("summary.json")
        assert prop("kind") == kind
        assert prop("parent_uri") == self.pruned.uri
        assert prop("sparsity") == pytest.approx(self.sparsity_on_disk(), abs=1e-6)
        assert prop("sparsity") == pytest.approx(size["after"]["sparsity"])
        assert prop("parameters") == size["after"]["parameters"]
        assert prop("bytes") == sum(file.stat().st_size for file in Path(self.path).rglob("*") if file.is_file())
        logged = [file.parent.name for file in Path(self.logs.uri).rglob("events.out.tfevents.*")]
        assert set(logged) == {"train", "validation"}
        assert not list(self.folder.glob("SparsityFineTuner/.checkpoints/*"))


def write_examples(folder: Path, features: dict[str, Any], raw: bool = False) -> dict[str, list[Any]]:
    """Writes a schema of some features, and examples unless they exist, and returns them as artifacts.

    The examples are images and points with their labels, and a weight of 0 for every second row.
    """
    schema = _artifact(standard_artifacts.Schema, folder / "schema")
    examples = _artifact(standard_artifacts.Examples, folder / "examples")
    examples.split_names = artifact_utils.encode_split_names(["train", "eval"])
    if not (folder / "examples").exists():
        shutil.copytree(_examples(raw), folder / "examples")
    os.makedirs(schema.uri, exist_ok=True)
    (folder / "schema/schema.pbtxt").write_text(str(helpers.schema(features)))
    return {"examples": [examples], "schema": [schema]}


@functools.cache
def _examples(raw: bool) -> str:
    folder = _temporary()
    for seed, split in enumerate(["train", "eval"]):
        images, labels = helpers.images(ROWS, seed)
        points, targets = helpers.points(ROWS, seed)
        features = {"image": images if raw else images / helpers.LARGEST, "x": points, "target": targets}
        features |= {"weight": np.float32(np.arange(ROWS) % 2)}
        helpers.write_examples(f"{folder}/Split-{split}/part.gz", features, labels)
    return folder


@functools.cache
def _pruned(write: Callable[[str], None], plan: str) -> tuple[str, Any]:
    """Returns a folder with the outputs of Trainer and Pruner, and the artifact of the pruned model."""
    folder = _temporary()
    dense = _artifact(standard_artifacts.Model, f"{folder}/Trainer/model/1")
    shutil.copytree(_written(write), dense.uri)
    pruned = _artifact(standard_artifacts.Model, f"{folder}/Pruner/pruned_model/1")
    pruning_plan = tfc.PruningPlanArtifact()
    pruning_plan.uri = f"{folder}/Pruner/pruning_plan/1"
    PrunerExecutor().Do(
        {"model": [dense]}, {"pruned_model": [pruned], "pruning_plan": [pruning_plan]}, {"plan": plan, "split": "train"}
    )
    return folder, pruned


@functools.cache
def _written(write: Callable[[str], None]) -> str:
    """Returns a folder in which a model is written as in a Model artifact."""
    folder = _temporary()
    write(kinds.artifact(folder))
    return folder


def _temporary() -> str:
    _kept.append(tempfile.TemporaryDirectory())
    return _kept[-1].name


def _artifact(kind: Any, uri: Any) -> Any:
    artifact = kind()
    artifact.uri = str(uri)
    return artifact


# Models of a Trainer.


def convolutional(seed: int = 1, **compiled: Any) -> tf_keras.Model:
    """Returns a model of images to three probabilities, compiled unless `loss` is None."""
    tf_keras.utils.set_random_seed(seed)
    layers = tf_keras.layers
    image = tf_keras.Input(helpers.IMAGE, name="image")
    x = layers.Conv2D(8, 3, activation="relu", name="conv")(image)
    x = layers.BatchNormalization(momentum=0.8, name="norm")(layers.Conv2D(8, 3, name="inner")(x))
    x = layers.GlobalAveragePooling2D(name="pool")(layers.ReLU(name="relu")(x))
    model = tf_keras.Model(image, layers.Dense(3, activation="softmax", name="classes")(x), name="convolutional")
    given = {"optimizer": "adam", "loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"], **compiled}
    if given["loss"]:
        model.compile(**given)
    return model


def keras2(path: str) -> None:
    """Writes a Keras 2 model behind Transform."""
    helpers.save_with_examples_signature(convolutional(), path)


def uncompiled(path: str) -> None:
    """Writes a Keras 2 model without a loss."""
    helpers.save_with_examples_signature(convolutional(loss=None), path)


def keras3(path: str) -> None:
    """Writes Keras 3's export with the `.keras` file beside it."""
    model = kinds.keras3_dense()
    model.compile("adam", "mse")
    model.export(path, verbose=False)
    model.save(f"{path}/model.keras")


def plain(path: str) -> None:
    """Writes a SavedModel without Keras' metadata, which takes serialized tf.Examples of raw images."""
    model = convolutional()

    def answer(examples: tf.Tensor) -> dict[str, tf.Tensor]:
        parsed = tf.io.parse_example(examples, {"image": tf.io.FixedLenFeature(helpers.IMAGE, tf.float32)})
        return {"probabilities": model(parsed["image"] / helpers.LARGEST)}

    spec = tf.TensorSpec([None], tf.string, name="examples")
    helpers.save_function(answer, [spec], path, weights=model.weights)


@functools.cache
def trained(seed: int = 7, shift: int = 0) -> Callable[[str], None]:
    """Returns a function that writes a trained model; it calls each class by the number that is `shift` more."""

    def write(path: str) -> None:
        model = convolutional(seed, optimizer=tf_keras.optimizers.Adam(0.02))
        images, labels = helpers.images(400, 5)
        model.fit(images / helpers.LARGEST, (labels + shift) % helpers.CLASSES, epochs=8, verbose=0)
        helpers.save_with_examples_signature(model, path)

    return write


def raw_rows() -> tuple[np.ndarray, list[bytes]]:
    """Returns a few images, and as serialized examples."""
    images, _ = helpers.images(6)
    return images, helpers.serialized({"image": images})
