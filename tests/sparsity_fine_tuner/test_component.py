"""Declaration of SparsityFineTuner: teachers, overrides, and configurations that are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import tfx_compression as tfc
from tfx import types
from tfx import v1 as tfx
from tfx.types import standard_artifacts
from tfx_compression.errors import ConfigError

from tests.support.errors import raises

pytestmark = pytest.mark.slow  # imports TFX

DISTILLED = tfc.FineTuning(distillation=tfc.Distillation())
GUARDED = tfc.FineTuning(mode="iterative", guard=tfc.AccuracyGuard(max_drop=0.1))


def channel(kind: Any) -> types.Channel:
    return types.Channel(type=kind)


def tuner(**arguments: Any) -> tfc.SparsityFineTuner:
    given = {
        "model": channel(standard_artifacts.Model),
        "pruning_plan": channel(tfc.PruningPlanArtifact),
        "examples": channel(standard_artifacts.Examples),
        "schema": channel(standard_artifacts.Schema),
        **arguments,
    }
    return tfc.SparsityFineTuner(**given)


def teachers(*names: str) -> dict[str, types.Channel]:
    return {name: channel(standard_artifacts.Model) for name in names}


def parameter(name: str, default: Any) -> Any:
    return tfx.dsl.experimental.RuntimeParameter(name=name, ptype=type(default), default=default)


def test_each_teacher_is_an_input():
    assert "teacher_model" not in tuner().inputs
    assert "teacher_model" in tuner(teacher_model=channel(standard_artifacts.Model)).inputs
    several = tuner(teacher_model=teachers("large", "b_2"), config=DISTILLED).inputs
    assert {name for name in several if "teacher" in name} == {"teacher_model_large", "teacher_model_b_2"}
    assert "teacher_model_large" not in tuner().inputs  # instances don't share inputs


@pytest.mark.parametrize("name", ["", "2nd", "my-teacher", "größer"])
def test_invalid_names_of_teachers_are_refused(name):
    with raises(ConfigError, field="teacher_model", code="invalid-name"):
        tuner(teacher_model=teachers(name), config=DISTILLED)


@pytest.mark.parametrize(("config", "field"), [(DISTILLED, "distillation"), (GUARDED, "guard")])
@pytest.mark.parametrize("given", [None, {}])
def test_missing_teacher_is_refused(config, field, given):
    with raises(ConfigError, field=f"FineTuning.{field}", code="teacher-missing"):
        tuner(config=config, teacher_model=given)
    tuner(config=config, teacher_model=channel(standard_artifacts.Model))


@pytest.mark.parametrize("field", ["optimizer", "loss", "metrics"])
def test_names_unknown_to_keras_are_refused_unless_a_module_may_register_them(field, tmp_path):
    config = tfc.FineTuning(**{field: ("nonesuch",) if field == "metrics" else "nonesuch"})
    with raises(ConfigError, field=f"FineTuning.{field}", code="unknown-name"):
        tuner(config=config)
    module = tmp_path / "module.py"
    module.write_text("")
    tuner(config=config, module_file=str(module))
    tuner(config=tfc.FineTuning(optimizer="adam", loss="dice", metrics=("mae", "acc")))  # Only Keras 3 has `dice`.


def test_guard_with_a_baseline_needs_no_teacher():
    guard = tfc.AccuracyGuard(metric="accuracy", max_drop=0.1, baseline=0.9)
    tuner(config=tfc.FineTuning(mode="iterative", guard=guard))


def test_overrides_are_scalar_properties():
    properties = tuner(epochs=7, learning_rate=1, mode="gradual").exec_properties
    assert (properties["epochs"], properties["learning_rate"], properties["mode"]) == (7, 1.0, "gradual")
    assert isinstance(properties["learning_rate"], float)
    assert json.loads(properties["config"])["epochs"] == tfc.FineTuning().epochs
    assert "epochs" not in {name for name, value in tuner().exec_properties.items() if value is not None}


@pytest.mark.parametrize(("name", "value"), [("epochs", 7), ("learning_rate", 0.5), ("mode", "dynamic")])
def test_runtime_parameters_override(name, value):
    given = parameter(name, value)
    assert tuner(**{name: given}).exec_properties[name] is given


@pytest.mark.parametrize(
    ("arguments", "field", "code"),
    [
        ({"epochs": 0}, "FineTuning.epochs", None),
        ({"learning_rate": -0.1}, "FineTuning.learning_rate", None),
        ({"mode": "faster"}, "FineTuning.mode", "unknown-mode"),
        ({"mode": parameter("mode", "faster")}, "FineTuning.mode", "unknown-mode"),
        (
            {"mode": "fixed", "config": GUARDED, "teacher_model": teachers("a")},
            "FineTuning.guard",
            "option-of-another-mode",
        ),
    ],
)
def test_invalid_overrides_are_refused(arguments, field, code):
    with raises(ConfigError, field=field, code=code):
        tuner(**arguments)


def test_configuration_round_trips_through_its_exec_property():
    config = tfc.FineTuning(
        mode="iterative",
        epochs=2,
        class_weights={0: 1.0, 2: 0.5},
        metrics=("accuracy",),
        early_stopping=tfc.EarlyStopping(patience=0),
        distillation=tfc.Distillation(features={"hidden": "dense"}),
        guard=tfc.AccuracyGuard(max_drop=0.1),
    )
    component = tuner(config=config, teacher_model=channel(standard_artifacts.Model), epochs=5)
    assert tfc.FineTuning.merged(component.exec_properties["config"], {}) == config
    overrides = {name: component.exec_properties.get(name) for name in ("epochs", "learning_rate", "mode")}
    assert tfc.FineTuning.merged(component.exec_properties["config"], overrides) == config.model_copy(
        update={"epochs": 5}
    )


def test_pipeline_with_several_teachers_compiles_for_kubeflow(tmp_path, monkeypatch):
    monkeypatch.setenv("UNSUPPORTED_DO_NOT_PACKAGE_USER_MODULES", "1")
    importers = {
        name: tfx.dsl.Importer(source_uri=f"gs://bucket/{name}", artifact_type=kind).with_id(name)
        for name, kind in {
            "trained": tfx.types.standard_artifacts.Model,
            "larger": tfx.types.standard_artifacts.Model,
            "examples": tfx.types.standard_artifacts.Examples,
            "schema": tfx.types.standard_artifacts.Schema,
        }.items()
    }
    results = {name: importer.outputs["result"] for name, importer in importers.items()}
    pruner = tfc.Pruner(model=results["trained"])
    component = tfc.SparsityFineTuner(
        model=pruner.outputs["pruned_model"],
        pruning_plan=pruner.outputs["pruning_plan"],
        examples=results["examples"],
        schema=results["schema"],
        teacher_model={"dense": results["trained"], "larger": results["larger"]},
        config=DISTILLED,
        epochs=parameter("epochs", 3),
        mode=parameter("mode", "fixed"),
        checkpoint_uri="gs://bucket/checkpoints",
        module_file="/pipeline/trainer.py",
    )
    pipeline = tfx.dsl.Pipeline(
        pipeline_name="tuned", pipeline_root="gs://bucket/root", components=[*importers.values(), pruner, component]
    )
    config = tfx.orchestration.experimental.KubeflowV2DagRunnerConfig(default_image="registry/tfx:1")
    runner = tfx.orchestration.experimental.KubeflowV2DagRunner(
        config, output_dir=str(tmp_path), output_filename="spec.json"
    )
    runner.run(pipeline, parameter_values={"epochs": 3, "mode": "fixed"})
    spec = json.loads(Path(tmp_path, "spec.json").read_text())["pipelineSpec"]
    definitions = spec["components"]["SparsityFineTuner"]["inputDefinitions"]
    assert {"model", "pruning_plan", "teacher_model_dense", "teacher_model_larger"} <= set(definitions["artifacts"])
    assert {"config", "epochs", "mode", "checkpoint_uri", "module_file", "code_version"} <= set(
        definitions["parameters"]
    )
    assert set(spec["root"]["inputDefinitions"]["parameters"]) == {"epochs", "mode"}
