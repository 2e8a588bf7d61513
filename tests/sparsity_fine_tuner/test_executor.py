"""The executor on what Pruner writes: kinds of models, modes, the user's module and failures, by the written files."""

import os
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
import tfx_compression as tfc
from tfx.types import standard_artifacts
from tfx_compression import model_handle
from tfx_compression.errors import CompressionError, ModelError
from tfx_compression.sparsity_fine_tuner import checkpoints, fine_tune, results, training_loop, verification
from tfx_compression.tfx_support.checkpoints import fingerprint

from tests.support import disk, helpers, killed, tuner_pipeline
from tests.support.errors import raises
from tests.support.tuner_pipeline import IMAGES, PLAN, POINTS, WEIGHT, Run, keras2, plain, raw_rows

pytestmark = pytest.mark.slow  # imports TFX

FILTERS = tfc.PruningPlan(technique="filter", sparsity=0.5, protect=())
CROSSENTROPY = "sparse_categorical_crossentropy"


# Kinds, without a user's module.


def test_keras_2_model_answers_serialized_examples_as_its_network_does(tmp_path):
    config = tfc.FineTuning(epochs=2, learning_rate=0.01, log_steps=1)
    run = Run(tmp_path, keras2, PLAN, config).do()
    images, rows = raw_rows()
    network = tf_keras.models.load_model(run.path)
    np.testing.assert_allclose(run.answers(examples=rows), network(images / helpers.LARGEST), atol=1e-6)
    assert np.abs(run.answers(examples=rows) - run.answers(run.pruned, examples=rows)).max() > 1e-3  # it learned
    for name, mask in run.masks().items():
        kernel = network.get_layer(name).kernel.numpy()
        assert not kernel[~mask.astype(bool)].any()
    run.require_artifact("keras2")
    assert run.sparsity_on_disk() == pytest.approx(0.5, abs=0.01)
    tuning = run.read("tuning.json")
    assert tuning["config"]["learning_rate"] == 0.01
    assert len(tuning["history"]) == run.tuned.get_custom_property("epochs") == 2
    assert tuning["rounds"] == tuning["notes"] == []
    assert set(tuning["history"][1]) == {"loss", "accuracy", "val_loss", "val_accuracy", "sparsity"}
    assert run.tuned.get_custom_property("val_loss") == tuning["history"][1]["val_loss"]
    assert tuning["history"][1]["val_loss"] == pytest.approx(run.loss(), rel=1e-4)


def test_keras_3_model_and_its_export_have_the_same_weights(tmp_path):
    config = tfc.FineTuning(epochs=1, learning_rate=0.01)
    run = Run(tmp_path, tuner_pipeline.keras3, PLAN, config, features=POINTS).do()
    x, _ = helpers.points(5)
    network = keras.models.load_model(f"{run.path}/model.keras")
    np.testing.assert_allclose(run.answers(x=x), network(x), atol=1e-6)
    before = keras.models.load_model(f"{run.pruned.uri}/Format-Serving/model.keras")
    assert np.abs(network(x) - before(x)).max() > 1e-3
    for name, mask in run.masks().items():
        np.testing.assert_array_equal(network.get_layer(name).kernel.numpy() != 0, mask)
    run.require_artifact("keras3")


def test_plain_saved_model_trains_through_its_signature(tmp_path):
    config = tfc.FineTuning(
        epochs=2,
        learning_rate=0.01,
        loss=CROSSENTROPY,
        metrics=("sparse_categorical_accuracy",),
        sample_weight_key="weight",
    )
    run = Run(tmp_path, plain, PLAN, config, features=IMAGES | WEIGHT, raw=True).do()
    run.require_artifact("saved_model")
    assert set(run.masks()) <= set(model_handle.load(run.path).kernels)
    history = run.read("tuning.json")["history"]
    assert history[-1]["loss"] < history[0]["loss"]
    assert "val_sparse_categorical_accuracy" in history[-1]


def test_schema_with_several_candidates_for_the_label_is_refused(tmp_path):
    with raises(CompressionError, match="label.*weight"):
        Run(tmp_path, keras2, PLAN, tfc.FineTuning(epochs=1), features=IMAGES | WEIGHT).do()
    assert not (tmp_path / "SparsityFineTuner/fine_tuned_model").exists()


@pytest.mark.parametrize("write", [keras2, plain], ids=["keras2", "saved_model"])
def test_rows_of_weight_zero_have_no_effect(tmp_path, write):
    """Every second row has weight 0. Another label in it makes no difference."""
    runs = []
    for name, label_key in (("one", None), ("other", "label")):
        config = tfc.FineTuning(
            epochs=1, steps_per_epoch=3, sample_weight_key="weight", label_key=label_key, loss=CROSSENTROPY
        )
        (tmp_path / name).mkdir()
        run = Run(tmp_path / name, write, PLAN, config, features=IMAGES | WEIGHT, raw=write is plain)
        if name == "other":
            change_labels_of_weight_zero(run)
        runs.append(run.do())
    losses = [run.read("tuning.json")["history"][0]["loss"] for run in runs]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    np.testing.assert_allclose(*(run.answers(examples=raw_rows()[1]) for run in runs), atol=1e-5)


def change_labels_of_weight_zero(run: Run) -> None:
    for split in ("train", "eval"):
        path = str(run.folder / f"examples/Split-{split}/part.gz")
        rows = [
            tf.train.Example.FromString(row.numpy()) for row in tf.data.TFRecordDataset(path, compression_type="GZIP")
        ]
        with tf.io.TFRecordWriter(path, "GZIP") as writer:
            for row in rows:
                feature = row.features.feature
                if feature["weight"].float_list.value[0] == 0:
                    feature["label"].int64_list.value[0] = (feature["label"].int64_list.value[0] + 1) % 3
                writer.write(row.SerializeToString())


# The user's module.

MODULE = """
import json, os
import tensorflow as tf
import tf_keras

FOLDER = os.path.dirname(__file__)

def record(event):
    with open(os.path.join(FOLDER, "events.txt"), "a") as file:
        file.write(event + "\\n")

def input_fn(files, data_accessor, description, batch_size):
    record(f"input_fn {type(description).__name__}")
    from tfx_bsl.public import tfxio
    options = tfxio.TensorFlowDatasetOptions(batch_size=batch_size, label_key="label", num_epochs=1, shuffle=False)
    return data_accessor.tf_dataset_factory(files, options, description).map(
        lambda features, label: ({"image": features["image"]}, label)
    )

def compile_fn(model):
    record("compile_fn")
    model.compile(tf_keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy")

def train_step(model, batch):
    record("train_step")
    return {**model.train_step(batch), "mine": tf.constant(1.0)}

class Recorder(tf_keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        record(f"epoch {epoch} {logs['mine']:g}")

def callbacks_fn():
    return [Recorder()]

def strategy_fn():
    return tf.distribute.MirroredStrategy(["CPU:0"])
"""


def test_functions_of_the_module_are_used(tmp_path):
    run = Run(tmp_path, tuner_pipeline.uncompiled, PLAN, tfc.FineTuning(epochs=2), module=MODULE).do()
    events = (tmp_path / "events.txt").read_text().splitlines()
    assert {"input_fn Schema", "compile_fn", "train_step", "epoch 0 1", "epoch 1 1"} <= set(events)
    assert "mine" in run.read("tuning.json")["history"][0]
    run.require_artifact("keras2")


def test_input_fn_gets_the_transform_graph(tmp_path):
    from tensorflow_transform import beam as tft_beam
    from tensorflow_transform.tf_metadata import dataset_metadata, schema_utils

    spec = {
        "image": tf.io.FixedLenFeature(helpers.IMAGE, tf.float32),
        "label": tf.io.FixedLenFeature([], tf.int64),
    }
    metadata = dataset_metadata.DatasetMetadata(schema_utils.schema_from_feature_spec(spec))
    row = {"image": np.zeros(helpers.IMAGE, np.float32), "label": 0}
    with tft_beam.Context(temp_dir=str(tmp_path / "temporary")):
        analyzed = ([row], metadata) | tft_beam.AnalyzeDataset(lambda features: features)
        _ = analyzed | tft_beam.WriteTransformFn(str(tmp_path / "transform"))
    module = MODULE.replace("options, description)", "options, description.transformed_metadata.schema)")
    run = Run(tmp_path, keras2, PLAN, tfc.FineTuning(epochs=1), module=module)
    graph = standard_artifacts.TransformGraph()
    graph.uri = str(tmp_path / "transform")
    run.examples["transform_graph"] = [graph]
    run.do()
    assert "input_fn TFTransformOutput" in (tmp_path / "events.txt").read_text()


LOSS = """
import tensorflow as tf

def loss_fn(labels, outputs):
    return tf.keras.losses.sparse_categorical_crossentropy(labels, outputs["probabilities"])
"""


def test_plain_saved_model_learns_by_the_modules_loss(tmp_path):
    config = tfc.FineTuning(epochs=2, learning_rate=0.01)
    run = Run(tmp_path, plain, PLAN, config, raw=True, module=LOSS).do()
    history = run.read("tuning.json")["history"]
    assert history[1]["loss"] < history[0]["loss"]
    assert history[1]["val_loss"] == pytest.approx(run.loss(), rel=1e-4)
    with raises(ModelError, field="FineTuning.loss", code="loss-missing"):
        Run(tmp_path, plain, PLAN, config, raw=True, execution=2).do()
    assert not (tmp_path / "SparsityFineTuner/fine_tuned_model/2").exists()


# Teachers.


@pytest.mark.parametrize("keys", [["teacher_model"], ["teacher_model_a", "teacher_model_b"]], ids=["one", "several"])
def test_model_learns_from_the_average_of_its_teachers(tmp_path, keys):
    distillation = tfc.Distillation(alpha=1.0, temperature=1.0)
    config = tfc.FineTuning(epochs=8, learning_rate=0.02, batch_size=16, distillation=distillation)
    teachers = {key: tuner_pipeline.trained(seed, shift=1) for seed, key in enumerate(keys, 7)}  # other than the labels
    run = Run(tmp_path, keras2, PLAN, config, teachers=teachers).do()
    images, _ = helpers.images(tuner_pipeline.ROWS)
    rows = helpers.serialized({"image": images})
    target = np.mean([run.answers(artifacts[0], examples=rows) for artifacts in run.teachers.values()], axis=0)
    before, after = (np.mean((run.answers(model, examples=rows) - target) ** 2) for model in (run.pruned, run.tuned))
    assert after < 0.2 * before


def test_artifact_describes_the_last_accepted_round(tmp_path):
    guard = tfc.AccuracyGuard(metric="loss", max_drop=0.3, step=0.4, minimum_step=0.3)
    config = tfc.FineTuning(mode="iterative", epochs=2, learning_rate=0.003, batch_size=16, guard=guard)
    plan = tfc.PruningPlan(sparsity=0.99, protect=(), schedule="iterative", iterations=6)
    teacher = tuner_pipeline.trained()
    run = Run(tmp_path, teacher, plan, config, teachers={"teacher_model": teacher}).do()
    rounds = run.read("tuning.json")["rounds"]
    accepted = [each for each in rounds if each["accepted"]]
    assert len(accepted) < len(rounds) == run.tuned.get_custom_property("rounds")
    run.require_artifact("keras2")
    assert run.sparsity_on_disk() == pytest.approx(accepted[-1]["achieved_sparsity"], abs=0.01)
    assert run.tuned.get_custom_property("val_loss") == pytest.approx(accepted[-1]["metrics"]["loss"])
    assert accepted[-1]["metrics"]["loss"] == pytest.approx(run.loss(), rel=1e-3)


def test_artifact_has_the_metrics_of_the_best_epoch(tmp_path):
    stopping = tfc.EarlyStopping(patience=0, min_delta=10.0)  # so that the first epoch is the best
    config = tfc.FineTuning(epochs=8, learning_rate=0.01, early_stopping=stopping)
    run = Run(tmp_path, keras2, PLAN, config).do()
    first, second = (epoch["val_loss"] for epoch in run.read("tuning.json")["history"])
    assert run.loss() == pytest.approx(first, rel=1e-3)
    assert second != pytest.approx(first, rel=1e-2)
    assert run.tuned.get_custom_property("val_loss") == pytest.approx(first)


# Modes.


@pytest.mark.parametrize(
    ("mode", "plan"),
    [
        ("gradual", {"schedule": "cubic", "frequency": 1}),
        ("iterative", {"schedule": "iterative", "iterations": 2}),
        ("dynamic", {"frequency": 4}),
        ("cluster", {}),
        ("quantization_aware", {}),
    ],
)
def test_each_mode_reaches_the_plans_sparsity_on_disk(tmp_path, mode, plan):
    config = tfc.FineTuning(mode=mode, epochs=1, batch_size=8, learning_rate=1e-3, clusters=8)
    run = Run(tmp_path, keras2, tfc.PruningPlan(sparsity=0.75, protect=(), **plan), config).do()
    run.require_artifact("keras2")
    assert run.tuned.get_custom_property("mode") == mode
    for kernel in run.kernels():
        assert np.mean(kernel == 0) >= 0.75 - 1 / kernel.size - 1e-3
        if mode == "cluster":
            assert len(np.unique(kernel)) <= 8
    images, rows = raw_rows()
    if mode == "quantization_aware":
        np.testing.assert_allclose(run.answers(examples=rows).sum(1), 1.0, atol=1e-5)
    else:
        network = tf_keras.models.load_model(run.path)
        np.testing.assert_allclose(run.answers(examples=rows), network(images / helpers.LARGEST), atol=1e-6)


@pytest.mark.parametrize("mode", ["fixed", "iterative", "quantization_aware"])
def test_removed_channels_stay_removed(tmp_path, mode):
    plan = FILTERS
    if mode == "iterative":
        plan = FILTERS.model_copy(update={"schedule": "iterative", "iterations": 2, "sparsity": 0.75})
    config = tfc.FineTuning(mode=mode, epochs=1, batch_size=16, learning_rate=0.01)
    run = Run(tmp_path, keras2, plan, config).do()
    kernels = {name: kernel.shape for name, kernel in model_handle.load(run.path).kernels.items()}
    widths = [shape[-1] for name, shape in kernels.items() if "classes" not in name]
    assert widths == ([2, 2] if mode == "iterative" else [4, 4])
    macs, before = run.read("summary.json")["after"]["macs"], run.pruned.get_custom_property("macs")
    assert run.tuned.get_custom_property("macs") == macs
    assert macs < before if mode == "iterative" else macs == before
    np.testing.assert_allclose(run.answers(examples=raw_rows()[1]).sum(1), 1.0, atol=1e-5)


@pytest.mark.parametrize("pattern", ["2:4", "4x1"])
def test_patterns_stay_complete(tmp_path, pattern):
    plan = tfc.PruningPlan(pattern=pattern, sparsity=0.5, protect=("first",))
    run = Run(tmp_path, keras2, plan, tfc.FineTuning(epochs=1, learning_rate=0.01)).do()
    inner = tf_keras.models.load_model(run.path).get_layer("inner").kernel.numpy()  # [3, 3, 8, 8]
    groups = (inner.transpose(0, 1, 3, 2).reshape(-1, 4) != 0).sum(1)
    assert set(groups) <= ({0, 1, 2} if pattern == "2:4" else {0, 4})


# Failures and second attempts.


@pytest.mark.parametrize("stage", ["training", "saving", "verifying"])
def test_failed_attempt_leaves_no_model(tmp_path, monkeypatch, stage):
    run = Run(tmp_path, keras2, PLAN, tfc.FineTuning(epochs=1))

    def fail(*arguments: Any, **named: Any) -> None:
        raise OSError("No space left on device") if stage == "saving" else ModelError("broken")

    if stage == "verifying":
        monkeypatch.setattr(verification, "verify", fail)
    elif stage == "saving":
        save = results.FineTunedModel.save

        def save_and_fail(self: Any, path: str, *more: Any) -> None:
            save(self, path, *more)
            fail()

        monkeypatch.setattr(results.FineTunedModel, "save", save_and_fail)
    else:
        monkeypatch.setattr(fine_tune, "require_masked_zeros", fail)
    saving = stage == "saving"
    with raises(
        ModelError, code="model-not-written" if saving else None, match="No space left" if saving else "broken"
    ):
        run.do()
    assert not os.path.exists(run.tuned.uri)


def test_full_disk_leaves_no_model_and_the_next_attempt_resumes(tmp_path, monkeypatch):
    config = tfc.FineTuning(epochs=2, learning_rate=0.01, checkpoint_steps=1, batch_size=48)
    save = results.FineTunedModel.save

    def save_on_a_full_disk(self: Any, *arguments: Any) -> None:
        with disk.largest_file(4096):
            save(self, *arguments)

    run = Run(tmp_path, keras2, PLAN, config)
    with monkeypatch.context() as patch:
        patch.setattr(results.FineTunedModel, "save", save_on_a_full_disk)
        with raises(ModelError, match="fine_tuned_model/1"):
            run.do()
    assert not os.path.exists(run.tuned.uri)
    store = tmp_path / "SparsityFineTuner/.checkpoints"
    assert list(store.rglob("state.json"))
    again = Run(tmp_path, keras2, PLAN, config, execution=2).do()
    assert len(again.read("tuning.json")["history"]) == 2
    assert not list(store.iterdir())


def test_interrupted_attempt_resumes_from_its_checkpoint(tmp_path, monkeypatch):
    config = tfc.FineTuning(epochs=3, learning_rate=0.01)
    kept = {"checkpoint_uri": str(tmp_path / "kept")}
    uninterrupted = Run(tmp_path, keras2, PLAN, config, execution=1, **kept).do()

    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    interrupted = Run(tmp_path, keras2, PLAN, config, execution=2, **kept)
    with monkeypatch.context() as patch:
        patch.setattr(verification, "verify", interrupt)
        with pytest.raises(KeyboardInterrupt):
            interrupted.do()
    assert not os.path.exists(interrupted.tuned.uri)
    assert list((tmp_path / "kept").glob("*/training/step-*/state.json"))
    resumed = Run(tmp_path, keras2, PLAN, config, execution=3, **kept).do()
    rows = raw_rows()[1]
    np.testing.assert_allclose(resumed.answers(examples=rows), uninterrupted.answers(examples=rows), atol=1e-6)
    assert resumed.read("tuning.json")["history"] == uninterrupted.read("tuning.json")["history"]
    assert not list((tmp_path / "kept").iterdir())


def test_only_the_same_inputs_configuration_and_module_resume(tmp_path, monkeypatch):
    config = tfc.FineTuning(epochs=2, learning_rate=0.01, checkpoint_steps=1, batch_size=48)
    states, save, restore = [], checkpoints.Checkpoints.save, checkpoints.Checkpoints.restore

    def save_and_stop(self: Any, step: int, *rest: Any) -> None:
        save(self, step, *rest)
        raise killed.Killed

    def recorded(self: Any) -> Any:
        states.append(restore(self))
        return states[-1]

    monkeypatch.setattr(training_loop.Checkpoints, "save", save_and_stop)
    monkeypatch.setattr(training_loop.Checkpoints, "restore", recorded)
    module = "def custom_objects():\n    return {}\n"
    other = config.model_copy(update={"seed": 1})
    attempts = [
        (1, config, "", 0),
        (2, other, "", 0),
        (3, config, module, 0),
        (4, config, module + "# changed\n", 0),
        (5, config, module, 1),
        (6, config, "", 1),
        (7, other, "", 1),
    ]
    for execution, settings, source, step in attempts:
        with pytest.raises(killed.Killed):
            Run(tmp_path, keras2, PLAN, settings, module=source, execution=execution).do()
        assert (states[-1]["step"] if states[-1] else 0) == step, execution


def test_model_with_other_weights_has_other_checkpoints(tmp_path):
    run, again = (Run(tmp_path, keras2, PLAN, tfc.FineTuning(), execution=number) for number in (1, 2))
    inputs = {"model": [run.pruned]}
    before = fingerprint(inputs, run.properties)
    assert fingerprint(inputs, again.properties) == before
    (weights,) = (tmp_path / "Pruner/pruned_model/1/Format-Serving/variables").glob("variables.data*")
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert fingerprint(inputs, run.properties) != before


def test_outputs_on_another_file_system_require_a_checkpoint_uri(tmp_path, caplog):
    """On Kubeflow, each run has its own outputs."""
    run = Run(tmp_path, keras2, PLAN, tfc.FineTuning(epochs=1))
    run.tuned.uri = f"file://{run.tuned.uri}"
    run.do()
    assert "Remedy: checkpoint_uri" in caplog.text
    caplog.clear()
    other = Run(tmp_path, keras2, PLAN, tfc.FineTuning(epochs=1), execution=2, checkpoint_uri=str(tmp_path / "kept"))
    other.tuned.uri = f"file://{other.tuned.uri}"
    other.do()
    assert "checkpoint_uri" not in caplog.text
