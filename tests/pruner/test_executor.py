"""Pruner on models of every kind that a Trainer writes: its outputs, and the signatures of the pruned model."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
import tfx_compression as tfc
from tfx.types import standard_artifacts
from tfx_compression.errors import ConfigError, ModelError
from tfx_compression.pruner.executor import Executor
from tfx_compression.pruning import criteria
from tfx_compression.pruning.keras_statistics import KerasStatistics
from tfx_compression.pruning.plan import PruningPlan
from tfx_compression.pruning.prune import prune
from tfx_compression.pruning.record import PruningRecord

from tests.support import helpers, kinds
from tests.support.errors import raises
from tests.support.residual import data, residual_net, widths

pytestmark = pytest.mark.slow  # imports TFX


class Run:
    """One execution, in a folder laid out as by LocalDagRunner: `<node>/<output>/<execution>`."""

    def __init__(self, folder: Path, plan: PruningPlan, execution: int = 1, examples: bool = False, **properties: Any):
        self.model = standard_artifacts.Model()
        self.model.uri = str(folder / "Trainer/model/1")
        self.pruned = standard_artifacts.Model()
        self.pruned.uri = str(folder / f"Pruner/pruned_model/{execution}")
        self.plan = tfc.PruningPlanArtifact()
        self.plan.uri = str(folder / f"Pruner/pruning_plan/{execution}")
        self.inputs: dict[str, Any] = {"model": [self.model]}
        if examples:
            self.inputs |= written_examples(folder)
        self.properties = {"plan": plan.to_json(), "split": "train", **properties}

    def do(self) -> "Run":
        Executor().Do(self.inputs, {"pruned_model": [self.pruned], "pruning_plan": [self.plan]}, self.properties)
        return self

    @property
    def path(self) -> str:
        return f"{self.pruned.uri}/Format-Serving"

    @property
    def record(self) -> PruningRecord:
        return PruningRecord.model_validate_json(Path(self.plan.uri, "pruning.json").read_text())

    def answers(self, **arguments: Any) -> np.ndarray:
        (answer,) = helpers.answers(self.path, **arguments).values()
        return answer


def serving(folder: Path) -> str:
    return str(folder / "Trainer/model/1/Format-Serving")


def written_examples(folder: Path) -> dict[str, list[Any]]:
    """Returns artifacts of transformed examples for `residual_net`, and of their schema."""
    images, labels = helpers.images(64)
    helpers.write_examples(folder / "examples/Split-train/part.gz", {"image": images / helpers.LARGEST}, labels)
    examples = standard_artifacts.Examples()
    examples.uri = str(folder / "examples")
    examples.split_names = '["train"]'
    schema = standard_artifacts.Schema()
    schema.uri = str(folder / "schema")
    os.makedirs(schema.uri, exist_ok=True)
    features = {"image": ("FLOAT", helpers.IMAGE), "label": ("INT", ())}
    Path(schema.uri, "schema.pbtxt").write_text(str(helpers.schema(features)))
    return {"examples": [examples], "schema": [schema]}


def raw_rows() -> tuple[np.ndarray, list[bytes]]:
    images, _ = helpers.images(6)
    return images, helpers.serialized({"image": images})


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> str:
    """Path of `residual_net` as a Trainer saves it."""
    return helpers.save_with_examples_signature(residual_net(), tmp_path_factory.mktemp("trained") / "model")


# Kinds


@pytest.mark.parametrize("technique", ["weight", "filter", "neuron"])
def test_a_pruned_keras_2_model_answers_serialized_examples(trained, tmp_path, technique):
    shutil.copytree(trained, serving(tmp_path))
    run = Run(tmp_path, PruningPlan(technique=technique, sparsity=0.5)).do()
    images, rows = raw_rows()
    network = tf_keras.models.load_model(run.path)
    np.testing.assert_allclose(run.answers(examples=rows), network(images / helpers.LARGEST), atol=1e-6)
    assert (
        np.abs(run.answers(examples=rows) - helpers.answers(serving(tmp_path), examples=rows)["probabilities"]).max()
        > 1e-4
    )
    assert run.record.kind == run.pruned.get_custom_property("kind") == "keras2"
    if technique == "filter":
        assert widths(network)["wide"] == 12
        assert run.pruned.get_custom_property("parameters") < run.pruned.get_custom_property("parameters_before")
        assert run.pruned.get_custom_property("macs") < run.pruned.get_custom_property("macs_before")


def test_examples_recalibrate_normalizations_though_the_criterion_needs_none(trained, tmp_path):
    shutil.copytree(trained, serving(tmp_path))
    run = Run(tmp_path, PruningPlan(technique="filter", sparsity=0.5), examples=True).do()
    assert any("batch normalizations" in note for note in run.record.notes)


@pytest.mark.parametrize("technique", ["weight", "neuron"])
def test_a_keras_3_model_and_its_export_are_both_pruned(tmp_path, technique):
    model = kinds.keras3_dense()
    model.export(serving(tmp_path), verbose=False)
    model.save(f"{serving(tmp_path)}/model.keras")
    run = Run(tmp_path, PruningPlan(technique=technique, sparsity=0.5, protect=())).do()
    x, _ = helpers.points(5)
    network = keras.models.load_model(f"{run.path}/model.keras")
    np.testing.assert_allclose(run.answers(x=x), network(x), atol=1e-6)
    hidden = network.get_layer("hidden").kernel.numpy()
    assert run.record.kind == "keras3"
    assert hidden.shape == ((4, 16) if technique == "weight" else (4, 8))
    assert np.mean(hidden == 0) == (0.5 if technique == "weight" else 0)


def test_a_keras_3_file_without_a_saved_model_gets_one(tmp_path):
    os.makedirs(serving(tmp_path))
    kinds.keras3_dense().save(f"{serving(tmp_path)}/model.keras")
    run = Run(tmp_path, PruningPlan(technique="neuron", sparsity=0.5, protect=())).do()
    x, _ = helpers.points(5)
    np.testing.assert_allclose(run.answers(x=x), keras.models.load_model(f"{run.path}/model.keras")(x), atol=1e-6)


@pytest.mark.parametrize("library", [tf_keras, keras])
def test_a_plain_saved_model_keeps_its_signatures(tmp_path, library):
    model, transform = kinds.two_features(library), kinds.transform_graph(tmp_path / "transform")
    kinds.penguin(serving(tmp_path), model, transform)
    metadata = Path(serving(tmp_path), "keras_metadata.pb")
    if metadata.exists():
        metadata.unlink()
    run = Run(tmp_path, PruningPlan(sparsity=0.5, protect=())).do()
    assert run.record.kind == "saved_model"
    rows = helpers.serialized({"a": np.ones((3, 1), np.float32), "word": np.array([["one"]] * 3)})
    before, after = (helpers.answers(path, examples=rows)["outputs"] for path in (serving(tmp_path), run.path))
    assert np.abs(before - after).max() > 1e-4
    name, mask = next(iter(np.load(Path(run.plan.uri, "masks.npz")).items()))
    assert np.mean(mask == 0) == 0.5, name
    one, other = (helpers.answers(path, "transform_features", examples=rows) for path in (serving(tmp_path), run.path))
    assert set(one) == set(other) == {"a", "b", "word"}
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


def test_channels_of_a_plain_saved_model_are_not_removed_and_nothing_is_written(tmp_path):
    module = tf.Module()
    module.w = tf.Variable(tf.ones([4, 3]))
    helpers.save_function(lambda x: {"y": x @ module.w}, [tf.TensorSpec([None, 4])], serving(tmp_path), w=module.w)
    run = Run(tmp_path, PruningPlan(technique="filter"))
    with raises(ModelError, code="no-layer-graph"):
        run.do()
    assert not (tmp_path / "Pruner").exists()


LOSS = """
import tensorflow as tf

def loss_fn(labels, outputs):
    return tf.keras.losses.sparse_categorical_crossentropy(labels, outputs["p"])
"""


@pytest.mark.parametrize("parses", [True, False])
def test_taylor_and_sensitivity_of_a_plain_saved_model_go_through_its_signature(tmp_path, parses):
    model = residual_net()
    if parses:
        spec = {"image": tf.io.FixedLenFeature(helpers.IMAGE, tf.float32)}

        def answer(examples):
            return {"p": model(tf.io.parse_example(examples, spec)["image"])}

        arguments = tf.TensorSpec([None], tf.string, name="examples")
    else:

        def answer(image):
            return {"p": model(image)}

        arguments = tf.TensorSpec([None, *helpers.IMAGE], tf.float32, name="image")
    helpers.save_function(answer, [arguments], serving(tmp_path), weights=model.weights)
    (tmp_path / "module.py").write_text(LOSS)
    plan = PruningPlan(
        criterion="taylor", allocation="sensitivity", sensitivity_levels=(0.5,), sparsity=0.3, batch_size=64
    )
    run = Run(tmp_path, plan, examples=True, module_file=str(tmp_path / "module.py")).do()
    assert run.record.kind == "saved_model"
    by_layers = prune(model, plan, data())
    for ours, expected in zip(run.record.sensitivity, by_layers.record.sensitivity, strict=True):
        np.testing.assert_allclose(ours.values, expected.values, rtol=1e-4)
    with raises(ModelError, code="model-without-loss"):
        Run(tmp_path, plan, 2, examples=True).do()


# User code and data


MODULE = """
import tf_keras
from tfx_compression.pruning import criteria

class Doubled(tf_keras.layers.Layer):
    def call(self, x):
        return x * 2

def custom_objects():
    return {"Doubled": Doubled}

def compile_fn(model):
    model.compile("sgd", "sparse_categorical_crossentropy")

criteria.register("widest", weights=lambda inputs: inputs.values.max(axis=1, keepdims=True) + 0 * inputs.values)
"""


def test_the_module_file_defines_custom_layers_a_loss_and_a_criterion(tmp_path):
    module = tmp_path / "module.py"
    module.write_text(MODULE)
    scope: dict[str, Any] = {}
    exec(MODULE.partition("criteria.register")[0], scope)  # the class, without registering twice
    image = tf_keras.Input(helpers.IMAGE, name="image")
    x = tf_keras.layers.Conv2D(8, 3, name="a")(image)
    x = scope["Doubled"](name="mine")(x)
    x = tf_keras.layers.GlobalAveragePooling2D()(tf_keras.layers.Conv2D(8, 3, activation="relu", name="b")(x))
    model = tf_keras.Model(image, tf_keras.layers.Dense(3, activation="softmax", name="c")(x))
    model.save(serving(tmp_path), save_format="tf")
    try:
        plan = PruningPlan(criterion="widest", sparsity=0.5, protect=("first", "last"))
        run = Run(tmp_path, plan, module_file=str(module)).do()
        assert {group.name for group in run.record.groups if group.kept < group.elements} == {"b"}
    finally:
        criteria._registry.pop("widest", None)
    plan = PruningPlan(technique="filter", criterion="taylor", sparsity=0.5, protect=())
    run = Run(tmp_path, plan, 2, examples=True, module_file=str(module)).do()
    assert any("'mine'" in note for note in run.record.notes)
    assert {group.name for group in run.record.groups if group.kept < group.elements} == {"b"}


def test_sensitivity_resumes_after_a_killed_attempt(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, serving(tmp_path))
    plan = PruningPlan(allocation="sensitivity", sparsity=0.4, sensitivity_levels=(0.5, 0.9))
    measured, real = [], KerasStatistics.metrics

    def until_the_fourth(self):
        if len(measured) == 4:
            raise KeyboardInterrupt
        measured.append(None)
        return real(self)

    monkeypatch.setattr(KerasStatistics, "metrics", until_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        Run(tmp_path, plan, 1, examples=True).do()
    (store,) = tmp_path.glob("Pruner/.checkpoints/*/sensitivity.json")
    assert sum(len(values) for values in json.loads(store.read_text())["values"].values()) == 4
    measured.clear()
    monkeypatch.setattr(KerasStatistics, "metrics", lambda self: (measured.append(None), real(self))[1])
    resumed = Run(tmp_path, plan, 2, examples=True).do()
    assert len(measured) == 1 + 4 * 2 - 4
    assert not store.exists()
    complete = prune(residual_net(), plan, data())
    for curve, expected in zip(resumed.record.sensitivity, complete.record.sensitivity, strict=True):
        np.testing.assert_allclose(curve.values, expected.values, rtol=1e-4)


def test_the_files_beside_the_model(trained, tmp_path):
    shutil.copytree(trained, serving(tmp_path))
    run = Run(tmp_path, PruningPlan(technique="filter"), sparsity=0.25, technique="neuron").do()
    assert {path.name for path in Path(run.plan.uri).iterdir()} == {"masks.npz", "pruning.json", "report.html"}
    assert run.record.plan.technique == "neuron"
    assert run.record.plan.sparsity == 0.25
    assert run.record.channels == {"hidden": tuple(run.record.channels["hidden"])}
    assert len(run.record.channels["hidden"]) == 9
    assert "hidden" in Path(run.plan.uri, "report.html").read_text()
    assert json.loads(Path(run.pruned.uri, "summary.json").read_text())["after"]["parameters"] > 0


def test_a_runtime_parameter_is_validated(tmp_path):
    helpers.small_dense().save(serving(tmp_path), save_format="tf")
    with raises(ConfigError, field="PruningPlan.sparsity"):
        Run(tmp_path, PruningPlan(), sparsity=1.5).do()
