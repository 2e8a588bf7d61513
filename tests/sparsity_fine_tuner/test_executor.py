"""The SparsityFineTuner on what Pruner writes: of each kind of model, mode and user code, measured on the files."""

import json
import os
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
import tfx_compression as tfc
from tfx.types import artifact_utils, standard_artifacts
from tfx_compression import model_handle
from tfx_compression.errors import ModelError
from tfx_compression.pruner.executor import Executor as Pruner
from tfx_compression.sparsity_fine_tuner import promises, training
from tfx_compression.sparsity_fine_tuner.executor import Executor

from tests.support import helpers, kinds

pytestmark = pytest.mark.slow  # imports TFX

PLAN = tfc.PruningPlan(sparsity=0.5, protect=())
FILTERS = tfc.PruningPlan(technique="filter", sparsity=0.5, protect=())
ROWS = 96


class Run:
    """One execution behind a Pruner, in a folder laid out as LocalDagRunner's: `<node>/<output>/<execution>`.

    Args:
      folder: of the pipeline.
      model: writes what the Trainer does to the path that it is given.
      plan: of the Pruner.
      config: of the fine-tuning.
      raw: the examples are not transformed.
      module: the user's module file.
      teachers: how each writes its model, by the input's key.
      properties: exec properties.
    """

    def __init__(
        self,
        folder: Path,
        model: Any,
        plan: tfc.PruningPlan,
        config: tfc.FineTuning,
        *,
        raw: bool = False,
        module: str = "",
        teachers: dict[str, Any] | None = None,
        execution: int = 1,
        **properties: Any,
    ):
        self.folder, self.plan = folder, plan
        self.examples = written_examples(folder, raw)
        self.module = {"module_file": str(folder / "module.py")} if module else {}
        (folder / "module.py").write_text(module)
        self.dense, self.pruned = self._model("Trainer/model/1"), self._model("Pruner/pruned_model/1")
        self.pruning_plan = tfc.PruningPlanArtifact()
        self.pruning_plan.uri = str(folder / "Pruner/pruning_plan/1")
        if not os.path.exists(self.dense.uri):
            model(kinds.artifact(self.dense.uri))
            Pruner().Do(
                {"model": [self.dense]},
                {"pruned_model": [self.pruned], "pruning_plan": [self.pruning_plan]},
                {"plan": plan.to_json(), "split": "train"},
            )
        self.teachers = {}
        for key, write in (teachers or {}).items():
            self.teachers[key] = [self._model(f"{key}/model/1")]
            write(kinds.artifact(self.teachers[key][0].uri))
        self.tuned = self._model(f"SparsityFineTuner/fine_tuned_model/{execution}")
        self.logs = standard_artifacts.ModelRun()
        self.logs.uri = str(folder / f"SparsityFineTuner/model_run/{execution}")
        self.properties = {
            "config": config.to_json(),
            "train_split": "train",
            "eval_split": "eval",
            **self.module,
            **properties,
        }

    def _model(self, place: str) -> Any:
        made = standard_artifacts.Model()
        made.uri = str(self.folder / place)
        return made

    def do(self) -> "Run":
        inputs = {"model": [self.pruned], "pruning_plan": [self.pruning_plan], **self.examples, **self.teachers}
        Executor().Do(inputs, {"fine_tuned_model": [self.tuned], "model_run": [self.logs]}, self.properties)
        return self

    @property
    def path(self) -> str:
        return f"{self.tuned.uri}/Format-Serving"

    def read(self, name: str) -> Any:
        return json.loads(Path(self.tuned.uri, name).read_text())

    def answers(self, **arguments: Any) -> np.ndarray:
        (answer,) = helpers.answers(self.path, **arguments).values()
        return answer

    def masks(self) -> dict[str, np.ndarray]:
        stored = np.load(Path(self.pruning_plan.uri, "masks.npz"))
        return {name.removeprefix("mask/"): stored[name] for name in stored.files}


def written_examples(folder: Path, raw: bool = False) -> dict[str, list[Any]]:
    """Images and points with their labels, and a weight that leaves half of the rows out, as artifacts."""
    schema = standard_artifacts.Schema()
    schema.uri = str(folder / "schema")
    examples = standard_artifacts.Examples()
    examples.uri = str(folder / "examples")
    examples.split_names = artifact_utils.encode_split_names(["train", "eval"])
    if not os.path.exists(schema.uri):
        for seed, split in enumerate(["train", "eval"]):
            images, labels = helpers.images(ROWS, seed)
            points, targets = helpers.points(ROWS, seed)
            features = {"image": images if raw else images / helpers.LARGEST, "x": points, "target": targets}
            features |= {"weight": np.float32(np.arange(ROWS) % 2)}
            helpers.write_examples(folder / f"examples/Split-{split}/part.gz", features, labels)
        os.makedirs(schema.uri)
    return {"examples": [examples], "schema": [schema]}


def describe(folder: Path, **features: Any) -> None:
    Path(folder, "schema/schema.pbtxt").write_text(str(helpers.schema(features)))


IMAGES = {"image": ("FLOAT", helpers.IMAGE), "label": ("INT", ())}
POINTS = {"x": ("FLOAT", (4,)), "target": ("FLOAT", (2,))}


def convolutional(seed: int = 1, **compiled: Any) -> tf_keras.Model:
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


def keras2(path: str, **compiled: Any) -> None:
    """A Keras 2 model behind Transform."""
    helpers.save_with_examples_signature(convolutional(**compiled), path)


def uncompiled(path: str) -> None:
    keras2(path, loss=None)


def keras3(path: str) -> None:
    """Keras 3's export, with the `.keras` file beside it."""
    model = kinds.keras3_dense()
    model.compile("adam", "mse")
    model.export(path, verbose=False)
    model.save(f"{path}/model.keras")


def plain(path: str) -> None:
    """A SavedModel without Keras' metadata, that takes serialized tf.Examples of raw images."""
    model = convolutional()

    def answer(examples):
        parsed = tf.io.parse_example(examples, {"image": tf.io.FixedLenFeature(helpers.IMAGE, tf.float32)})
        return {"probabilities": model(parsed["image"] / helpers.LARGEST)}

    spec = tf.TensorSpec([None], tf.string, name="examples")
    helpers.save_function(answer, [spec], path, weights=model.weights)


def raw_rows() -> tuple[np.ndarray, list[bytes]]:
    images, _ = helpers.images(6)
    return images, helpers.serialized({"image": images})


def kernels_on_disk(path: str) -> list[np.ndarray]:
    """Those of rank 2 or more in a SavedModel, as TensorFlow alone loads it."""
    loaded = tf.saved_model.load(path)
    variables = loaded.signatures["serving_default"].variables
    return [variable.numpy() for variable in variables if variable.shape.rank >= 2]


def sparsity_on_disk(path: str) -> float:
    found = kernels_on_disk(path)
    return sum(np.sum(kernel == 0) for kernel in found) / sum(kernel.size for kernel in found)


def set_schema(folder: Path, features: dict[str, Any]) -> None:
    written_examples(folder)
    describe(folder, **features)


def require_artifact(run: Run, kind: str) -> None:
    """What is on the artifact is what is in the files."""
    found = run.tuned.get_custom_property
    size = run.read("summary.json")
    assert found("kind") == kind
    assert found("parent_uri") == run.pruned.uri
    assert found("sparsity") == pytest.approx(sparsity_on_disk(run.path), abs=1e-6)
    assert found("sparsity") == pytest.approx(size["after"]["sparsity"])
    assert found("parameters") == size["after"]["parameters"]
    assert found("bytes") == sum(file.stat().st_size for file in Path(run.path).rglob("*") if file.is_file())
    logged = [file.parent.name for file in Path(run.logs.uri).rglob("events.out.tfevents.*")]
    assert set(logged) == {"train", "validation"}
    assert not list(run.folder.glob("SparsityFineTuner/.checkpoints/*"))


# Kinds, without a user's module


def test_a_keras_2_model_behind_transform_answers_serialized_examples_as_its_network_does(tmp_path):
    set_schema(tmp_path, IMAGES)
    config = tfc.FineTuning(epochs=2, learning_rate=0.01, log_steps=1)
    run = Run(tmp_path, keras2, PLAN, config).do()
    images, rows = raw_rows()
    network = tf_keras.models.load_model(run.path)
    np.testing.assert_allclose(run.answers(examples=rows), network(images / helpers.LARGEST), atol=1e-6)
    (before,) = helpers.answers(f"{run.pruned.uri}/Format-Serving", examples=rows).values()
    assert np.abs(run.answers(examples=rows) - before).max() > 1e-3  # it learned
    for name, mask in run.masks().items():
        kernel = network.get_layer(name).kernel.numpy()
        assert not kernel[~mask.astype(bool)].any()
    require_artifact(run, "keras2")
    assert sparsity_on_disk(run.path) == pytest.approx(0.5, abs=0.01)
    tuning = run.read("tuning.json")
    assert tuning["config"]["learning_rate"] == 0.01
    assert len(tuning["history"]) == run.tuned.get_custom_property("epochs") == 2
    assert tuning["rounds"] == tuning["notes"] == []
    assert set(tuning["history"][1]) == {"loss", "accuracy", "val_loss", "val_accuracy", "sparsity"}
    assert run.tuned.get_custom_property("val_loss") == tuning["history"][1]["val_loss"]
    assert tuning["history"][1]["val_loss"] == pytest.approx(_loss(run), rel=1e-4)


def _loss(run: Run) -> float:
    """The loss on the evaluation split of what the signature answers, by hand."""
    images, labels = helpers.images(ROWS, 1)
    (found,) = helpers.answers(run.path, examples=helpers.serialized({"image": images})).values()
    return float(np.mean(-np.log(found[np.arange(ROWS), labels])))


def test_a_keras_3_model_beside_its_export_is_trained_in_both(tmp_path):
    set_schema(tmp_path, POINTS)
    run = Run(tmp_path, keras3, PLAN, tfc.FineTuning(epochs=1, learning_rate=0.01)).do()
    x, _ = helpers.points(5)
    network = keras.models.load_model(f"{run.path}/model.keras")
    np.testing.assert_allclose(run.answers(x=x), network(x), atol=1e-6)
    before = keras.models.load_model(f"{run.pruned.uri}/Format-Serving/model.keras")
    assert np.abs(network(x) - before(x)).max() > 1e-3
    for name, mask in run.masks().items():
        np.testing.assert_array_equal(network.get_layer(name).kernel.numpy() != 0, mask)
    require_artifact(run, "keras3")


def test_a_plain_saved_model_trains_through_the_signature_that_parses_raw_examples(tmp_path):
    describe_raw = {**IMAGES, "weight": ("FLOAT", ())}
    written_examples(tmp_path, raw=True)
    describe(tmp_path, **describe_raw)
    config = tfc.FineTuning(
        epochs=3,
        learning_rate=0.01,
        loss="sparse_categorical_crossentropy",
        metrics=("sparse_categorical_accuracy",),
        sample_weight_key="weight",
    )
    run = Run(tmp_path, plain, PLAN, config, raw=True).do()
    require_artifact(run, "saved_model")
    assert set(run.masks()) <= set(model_handle.load(run.path).kernels)
    history = run.read("tuning.json")["history"]
    assert history[-1]["loss"] < history[0]["loss"]
    assert "val_sparse_categorical_accuracy" in history[-1]


def test_without_the_name_of_the_label_a_schema_with_other_features_is_refused(tmp_path):
    set_schema(tmp_path, {**IMAGES, "weight": ("FLOAT", ())})
    with pytest.raises(ValueError, match=r"label.*weight.*label_key"):
        Run(tmp_path, keras2, PLAN, tfc.FineTuning(epochs=1)).do()
    assert not (tmp_path / "SparsityFineTuner/fine_tuned_model").exists()


@pytest.mark.parametrize("write", [keras2, plain], ids=["keras2", "saved_model"])
def test_rows_of_weight_zero_teach_nothing(tmp_path, write):
    """Every second row has weight 0: what is in it makes no difference."""
    losses = []
    for name, label_key in (("one", None), ("other", "label")):
        folder = tmp_path / name
        written_examples(folder, raw=write is plain)
        describe(folder, **IMAGES, weight=("FLOAT", ()))
        config = tfc.FineTuning(
            epochs=1, steps_per_epoch=3, sample_weight_key="weight", label_key=label_key, loss=_CROSSENTROPY
        )
        if name == "other":
            spoil_rows_of_weight_zero(folder)
        run = Run(folder, write, PLAN, config, raw=write is plain).do()
        losses.append(run.read("tuning.json")["history"][0]["loss"])
        losses.append(run.answers(examples=raw_rows()[1]))
    # Batch normalisation sees all rows, in layers; a signature normalises by what it remembers.
    np.testing.assert_allclose(losses[0], losses[2], rtol=1e-5)
    np.testing.assert_allclose(losses[1], losses[3], atol=1e-5)


_CROSSENTROPY = "sparse_categorical_crossentropy"


def spoil_rows_of_weight_zero(folder: Path) -> None:
    """Gives them another label."""
    for split in ("train", "eval"):
        path = str(folder / f"examples/Split-{split}/part.gz")
        rows = [
            tf.train.Example.FromString(row.numpy()) for row in tf.data.TFRecordDataset(path, compression_type="GZIP")
        ]
        with tf.io.TFRecordWriter(path, "GZIP") as writer:
            for row in rows:
                feature = row.features.feature
                if feature["weight"].float_list.value[0] == 0:
                    feature["label"].int64_list.value[0] = (feature["label"].int64_list.value[0] + 1) % 3
                writer.write(row.SerializeToString())


# The user's module

MODULE = """
import json, os
import tensorflow as tf
import tf_keras

FOLDER = os.path.dirname(__file__)

def told(what):
    with open(os.path.join(FOLDER, "told.txt"), "a") as file:
        file.write(what + "\\n")

def input_fn(files, data_accessor, described, batch_size):
    told(f"input_fn {type(described).__name__}")
    from tfx_bsl.public import tfxio
    options = tfxio.TensorFlowDatasetOptions(batch_size=batch_size, label_key="label", num_epochs=1, shuffle=False)
    return data_accessor.tf_dataset_factory(files, options, described).map(
        lambda features, label: ({"image": features["image"]}, label)
    )

def compile_fn(model):
    told("compile_fn")
    model.compile(tf_keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy")

def train_step(model, batch):
    told("train_step")
    return {**model.train_step(batch), "mine": tf.constant(1.0)}

class Told(tf_keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        told(f"epoch {epoch} {logs['mine']:g}")

def callbacks_fn():
    return [Told()]

def strategy_fn():
    return tf.distribute.MirroredStrategy(["CPU:0"])
"""


def test_the_users_functions_are_used(tmp_path):
    set_schema(tmp_path, IMAGES)
    run = Run(tmp_path, uncompiled, PLAN, tfc.FineTuning(epochs=2), module=MODULE).do()
    told = (tmp_path / "told.txt").read_text().splitlines()
    assert {"input_fn Schema", "compile_fn", "train_step", "epoch 0 1", "epoch 1 1"} <= set(told)
    assert "mine" in run.read("tuning.json")["history"][0]
    require_artifact(run, "keras2")


def test_an_input_fn_gets_the_transform_graph_where_there_is_one(tmp_path):
    from tensorflow_transform import beam as tft_beam
    from tensorflow_transform.tf_metadata import dataset_metadata, schema_utils

    set_schema(tmp_path, IMAGES)
    spec = {
        "image": tf.io.FixedLenFeature(helpers.IMAGE, tf.float32),
        "label": tf.io.FixedLenFeature([], tf.int64),
    }
    metadata = dataset_metadata.DatasetMetadata(schema_utils.schema_from_feature_spec(spec))
    row = {"image": np.zeros(helpers.IMAGE, np.float32), "label": 0}
    with tft_beam.Context(temp_dir=str(tmp_path / "temporary")):
        analyzed = ([row], metadata) | tft_beam.AnalyzeDataset(lambda features: features)
        _ = analyzed | tft_beam.WriteTransformFn(str(tmp_path / "transform"))
    module = MODULE.replace("options, described)", "options, described.transformed_metadata.schema)")
    run = Run(tmp_path, keras2, PLAN, tfc.FineTuning(epochs=1), module=module)
    graph = standard_artifacts.TransformGraph()
    graph.uri = str(tmp_path / "transform")
    run.examples["transform_graph"] = [graph]
    run.do()
    assert "input_fn TFTransformOutput" in (tmp_path / "told.txt").read_text()


LOSS = """
import tensorflow as tf

def loss_fn(labels, outputs):
    return tf.keras.losses.sparse_categorical_crossentropy(labels, outputs["probabilities"])
"""


def test_a_plain_saved_model_learns_by_the_modules_loss(tmp_path):
    written_examples(tmp_path, raw=True)
    describe(tmp_path, **IMAGES)
    config = tfc.FineTuning(epochs=2, learning_rate=0.01)
    run = Run(tmp_path, plain, PLAN, config, raw=True, module=LOSS).do()
    history = run.read("tuning.json")["history"]
    assert history[1]["loss"] < history[0]["loss"]
    assert history[1]["val_loss"] == pytest.approx(_loss(run), rel=1e-4)
    with pytest.raises(ModelError, match=r"doesn't say what its loss is\. Remedy"):
        Run(tmp_path, plain, PLAN, config, raw=True, execution=2).do()
    assert not (tmp_path / "SparsityFineTuner/fine_tuned_model/2").exists()


# Teachers


def test_the_model_learns_from_its_teacher(tmp_path):
    set_schema(tmp_path, IMAGES)
    distillation = tfc.Distillation(alpha=1.0, temperature=1.0)
    config = tfc.FineTuning(epochs=8, learning_rate=0.02, batch_size=16, distillation=distillation)
    teacher = {"teacher_model": lambda path: _teacher(path, shift=1)}  # what no label says
    run = Run(tmp_path, keras2, PLAN, config, teachers=teacher).do()
    assert _far(run, ["teacher_model"]) < 0.2 * _far(run, ["teacher_model"], run.pruned)


def _teacher(path: str, seed: int = 7, shift: int = 0) -> None:
    """A network of other weights, that tells the classes apart; it calls each by the number that is `shift` more."""
    model = convolutional(seed, optimizer=tf_keras.optimizers.Adam(0.02))
    images, labels = helpers.images(400, 5)
    model.fit(images / helpers.LARGEST, (labels + shift) % helpers.CLASSES, epochs=8, verbose=0)
    helpers.save_with_examples_signature(model, path)


def _far(run: Run, teachers: list[str], of: Any = None) -> float:
    """How far the answers are from the teachers' average, on the training split."""
    images, _ = helpers.images(ROWS)
    rows = helpers.serialized({"image": images})
    wanted = [
        helpers.answers(f"{run.teachers[key][0].uri}/Format-Serving", examples=rows)["probabilities"]
        for key in teachers
    ]
    found = helpers.answers(f"{(of or run.tuned).uri}/Format-Serving", examples=rows)["probabilities"]
    return float(np.mean((found - np.mean(wanted, axis=0)) ** 2))


def test_several_teachers_are_an_ensemble(tmp_path):
    set_schema(tmp_path, IMAGES)
    config = tfc.FineTuning(
        epochs=8, learning_rate=0.02, batch_size=16, distillation=tfc.Distillation(alpha=1.0, temperature=1.0)
    )
    keys = ["teacher_model_a", "teacher_model_b"]
    teachers = {key: lambda path, seed=seed: _teacher(path, seed, 1) for seed, key in enumerate(keys, 7)}
    run = Run(tmp_path, keras2, PLAN, config, teachers=teachers).do()
    assert _far(run, keys) < 0.2 * _far(run, keys, run.pruned)


ITERATIVE = tfc.PruningPlan(sparsity=0.75, protect=(), schedule="iterative", iterations=2)


def test_a_guard_ends_where_too_much_is_lost_and_the_artifact_tells_of_the_accepted_model(tmp_path):
    set_schema(tmp_path, IMAGES)
    guard = tfc.AccuracyGuard(metric="loss", max_drop=0.3, step=0.4, minimum_step=0.3)
    config = tfc.FineTuning(mode="iterative", epochs=2, learning_rate=0.003, batch_size=16, guard=guard)
    plan = tfc.PruningPlan(sparsity=0.99, protect=(), schedule="iterative", iterations=6)
    run = Run(tmp_path, _teacher, plan, config, teachers={"teacher_model": _teacher}).do()
    rounds = run.read("tuning.json")["rounds"]
    accepted = [each for each in rounds if each["accepted"]]
    assert len(accepted) < len(rounds) == run.tuned.get_custom_property("rounds")
    require_artifact(run, "keras2")
    assert sparsity_on_disk(run.path) == pytest.approx(accepted[-1]["reached"], abs=0.01)
    assert run.tuned.get_custom_property("val_loss") == pytest.approx(accepted[-1]["metrics"]["loss"])
    assert accepted[-1]["metrics"]["loss"] == pytest.approx(_loss(run), rel=1e-3)


def test_early_stopping_writes_no_other_epochs_metrics_on_the_artifact(tmp_path):
    set_schema(tmp_path, IMAGES)
    stopping = tfc.EarlyStopping(patience=0, min_delta=10.0)  # so that the first epoch is the best
    config = tfc.FineTuning(epochs=8, learning_rate=0.01, early_stopping=stopping)
    run = Run(tmp_path, keras2, PLAN, config).do()
    first, second = (epoch["val_loss"] for epoch in run.read("tuning.json")["history"])
    assert _loss(run) == pytest.approx(first, rel=1e-3)
    assert second != pytest.approx(first, rel=1e-2)
    if run.tuned.has_custom_property("val_loss"):
        assert run.tuned.get_custom_property("val_loss") == pytest.approx(first)


# Modes


@pytest.mark.parametrize(
    ("plan", "mode"),
    [
        (tfc.PruningPlan(sparsity=0.75, protect=(), schedule="cubic", frequency=1), "gradual"),
        (ITERATIVE, "iterative"),
        (tfc.PruningPlan(sparsity=0.75, protect=(), frequency=4), "dynamic"),
        (tfc.PruningPlan(sparsity=0.75, protect=()), "cluster"),
        (tfc.PruningPlan(sparsity=0.75, protect=()), "quantization_aware"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_mode_ends_at_the_plans_sparsity_on_disk(tmp_path, plan, mode):
    set_schema(tmp_path, IMAGES)
    config = tfc.FineTuning(mode=mode, epochs=2, batch_size=8, learning_rate=1e-3, clusters=8)
    run = Run(tmp_path, keras2, plan, config).do()
    require_artifact(run, "keras2")
    assert run.tuned.get_custom_property("mode") == mode
    for kernel in kernels_of(run):
        assert np.mean(kernel == 0) >= 0.75 - 1 / kernel.size - 1e-3
        if mode == "cluster":
            assert len(np.unique(kernel)) <= 8
    images, rows = raw_rows()
    network = tf_keras.models.load_model(run.path) if mode != "quantization_aware" else None
    if network is not None:
        np.testing.assert_allclose(run.answers(examples=rows), network(images / helpers.LARGEST), atol=1e-6)
    else:
        np.testing.assert_allclose(run.answers(examples=rows).sum(1), 1.0, atol=1e-5)


def kernels_of(run: Run) -> list[np.ndarray]:
    return [kernel.values for kernel in model_handle.load(run.path).kernels.values()]


@pytest.mark.parametrize("mode", ["fixed", "iterative", "quantization_aware"])
def test_channels_that_were_removed_stay_removed(tmp_path, mode):
    set_schema(tmp_path, IMAGES)
    plan = FILTERS
    if mode == "iterative":
        plan = FILTERS.model_copy(update={"schedule": "iterative", "iterations": 2, "sparsity": 0.75})
    config = tfc.FineTuning(mode=mode, epochs=1, batch_size=16, learning_rate=0.01)
    run = Run(tmp_path, keras2, plan, config).do()
    found = run.read("summary.json")
    kernels = {name: kernel.shape for name, kernel in model_handle.load(run.path).kernels.items()}
    widths = [shape[-1] for name, shape in kernels.items() if "classes" not in name]
    assert widths == ([2, 2] if mode == "iterative" else [4, 4])
    assert run.tuned.get_custom_property("macs") == found["after"]["macs"]
    before = run.pruned.get_custom_property("macs")
    if mode == "iterative":
        assert found["after"]["macs"] < before
    else:
        assert found["after"]["macs"] == before
    _, rows = raw_rows()
    np.testing.assert_allclose(run.answers(examples=rows).sum(1), 1.0, atol=1e-5)
    assert [np.shape(kernel)[-1] for kernel in kernels_of(run)][:2] == widths


@pytest.mark.parametrize("pattern", ["2:4", "4x1"])
def test_a_pattern_stays_whole(tmp_path, pattern):
    set_schema(tmp_path, IMAGES)
    plan = tfc.PruningPlan(pattern=pattern, sparsity=0.5, protect=("first",))
    run = Run(tmp_path, keras2, plan, tfc.FineTuning(epochs=1, learning_rate=0.01)).do()
    inner = tf_keras.models.load_model(run.path).get_layer("inner").kernel.numpy()  # [3, 3, 8, 8]
    groups = (inner.transpose(0, 1, 3, 2).reshape(-1, 4) != 0).sum(1)
    assert set(groups) <= ({0, 1, 2} if pattern == "2:4" else {0, 4})


# What is refused, and what stays after it


@pytest.mark.parametrize("where", ["training", "saving", "checking"])
def test_an_attempt_that_fails_leaves_no_model_behind(tmp_path, monkeypatch, where):
    set_schema(tmp_path, IMAGES)
    run = Run(tmp_path, keras2, PLAN, tfc.FineTuning(epochs=1))

    def fail(*arguments: Any, **named: Any) -> None:
        raise OSError("No space left on device") if where == "saving" else ModelError("broken")

    if where == "checking":
        monkeypatch.setattr(promises, "check", fail)
    elif where == "saving":
        real = training.Tuned.save

        def half(self: Any, path: str, *more: Any) -> None:
            real(self, path, *more)
            fail()

        monkeypatch.setattr(training.Tuned, "save", half)
    else:
        monkeypatch.setattr(training, "require_masked_zeros", fail)
    message = r"can't be written .*No space left.*goes on" if where == "saving" else "broken"
    with pytest.raises(ModelError, match=message):
        run.do()
    assert not os.path.exists(run.tuned.uri)


def test_a_killed_attempt_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    set_schema(tmp_path, IMAGES)
    config = tfc.FineTuning(epochs=3, learning_rate=0.01)
    whole = Run(tmp_path, keras2, PLAN, config, execution=1, checkpoint_uri=str(tmp_path / "kept")).do()
    real = promises.check

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(promises, "check", killed)
    again = Run(tmp_path, keras2, PLAN, config, execution=2, checkpoint_uri=str(tmp_path / "kept"))
    with pytest.raises(KeyboardInterrupt):
        again.do()
    assert not os.path.exists(again.tuned.uri)
    assert list((tmp_path / "kept").glob("*/training/step-*/state.json"))
    monkeypatch.setattr(promises, "check", real)
    third = Run(tmp_path, keras2, PLAN, config, execution=3, checkpoint_uri=str(tmp_path / "kept")).do()
    rows = raw_rows()[1]
    np.testing.assert_allclose(third.answers(examples=rows), whole.answers(examples=rows), atol=1e-6)
    assert third.read("tuning.json")["history"] == whole.read("tuning.json")["history"]
    assert not list((tmp_path / "kept").iterdir())


def test_outputs_on_another_file_system_are_told_of_a_place_for_checkpoints(tmp_path, caplog):
    """As on Kubeflow, where each run has its own outputs."""
    set_schema(tmp_path, IMAGES)
    run = Run(tmp_path, keras2, PLAN, tfc.FineTuning(epochs=1))
    run.tuned.uri = f"file://{run.tuned.uri}"
    run.do()
    assert "Remedy: checkpoint_uri" in caplog.text
    caplog.clear()
    other = Run(tmp_path, keras2, PLAN, tfc.FineTuning(epochs=1), execution=2, checkpoint_uri=str(tmp_path / "kept"))
    other.tuned.uri = f"file://{other.tuned.uri}"
    other.do()
    assert "checkpoint_uri" not in caplog.text
