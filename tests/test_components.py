"""The components as a pipeline's author meets them: what construction refuses, and what executors say of bad input."""

import json

import numpy as np
import pytest
import tensorflow_model_analysis as tfma
import tfx_compression as tfc
from tfx import types
from tfx import v1 as tfx
from tfx.types import standard_artifacts
from tfx_compression.errors import ConfigError, DataError, ModelError, StoreError
from tfx_compression.tfx_support import declaration

from tests.support.helpers import small_cnn

pytestmark = pytest.mark.slow  # imports TFX

LABELLED = tfma.EvalConfig(
    model_specs=[tfma.ModelSpec(label_key="label")],
    metrics_specs=[tfma.MetricsSpec(metrics=[tfma.MetricConfig(class_name="SparseCategoricalAccuracy")])],
)


def channel(kind: type[types.Artifact]) -> types.Channel:
    return types.Channel(type=kind)


def models(**names: None) -> dict[str, types.Channel]:
    return {name: channel(standard_artifacts.Model) for name in names}


def evaluator(**arguments) -> tfc.CompressedEvaluator:
    given = {
        "candidates": models(int8=None),
        "baseline_model": channel(standard_artifacts.Model),
        "examples": channel(standard_artifacts.Examples),
        "eval_config": LABELLED,
        **arguments,
    }
    return tfc.CompressedEvaluator(**given)


def parameter(name: str, default) -> tfx.dsl.experimental.RuntimeParameter:
    return tfx.dsl.experimental.RuntimeParameter(name=name, ptype=type(default), default=default)


def test_a_configuration_is_one_json_exec_property_and_scalars_override_it():
    pruner = tfc.Pruner(model=channel(standard_artifacts.Model), plan=tfc.PruningPlan(sparsity=0.3), sparsity=0.9)
    assert json.loads(pruner.exec_properties["plan"])["sparsity"] == 0.3
    assert pruner.exec_properties["sparsity"] == 0.9


def test_an_override_takes_its_fields_type():
    tuner = tfc.SparsityFineTuner(
        model=channel(standard_artifacts.Model),
        pruning_plan=channel(tfc.PruningPlanArtifact),
        examples=channel(standard_artifacts.Examples),
        schema=channel(standard_artifacts.Schema),
        learning_rate=1,
    )
    assert tuner.exec_properties["learning_rate"] == 1.0
    assert isinstance(tuner.exec_properties["learning_rate"], float)


@pytest.mark.parametrize("sparsity", [1.5, parameter("sparsity", 1.5)])
def test_a_bad_override_is_refused_when_the_pipeline_is_made(sparsity):
    with pytest.raises(ConfigError, match=r"PruningPlan\.sparsity = 1\.5"):
        tfc.Pruner(model=channel(standard_artifacts.Model), sparsity=sparsity)


@pytest.mark.parametrize(
    "plan",
    [
        tfc.PruningPlan(criterion="taylor"),
        tfc.PruningPlan(technique="filter", criterion="apoz"),
        tfc.PruningPlan(allocation="sensitivity"),
    ],
)
def test_a_plan_that_looks_at_data_needs_examples_when_the_pipeline_is_made(plan):
    with pytest.raises(ConfigError, match=r"looks at data\. Remedy: Pruner\(examples=…, schema=…\)"):
        tfc.Pruner(model=channel(standard_artifacts.Model), plan=plan)
    tfc.Pruner(
        model=channel(standard_artifacts.Model),
        plan=plan,
        examples=channel(standard_artifacts.Examples),
        schema=channel(standard_artifacts.Schema),
    )


def test_an_unknown_criterion_is_refused_unless_a_module_could_register_it(tmp_path):
    plan = tfc.PruningPlan(criterion="movement")
    with pytest.raises(ConfigError, match=r"criterion = 'movement' is unknown\. There are: magnitude, l1"):
        tfc.Pruner(model=channel(standard_artifacts.Model), plan=plan)
    module = tmp_path / "module.py"
    module.write_text("")
    tfc.Pruner(model=channel(standard_artifacts.Model), plan=plan, module_file=str(module))


def test_a_runtime_parameter_reaches_the_exec_properties():
    given = parameter("sparsity", 0.5)
    assert tfc.Pruner(model=channel(standard_artifacts.Model), sparsity=given).exec_properties["sparsity"] is given


def test_the_code_version_is_an_exec_property():
    pruner = tfc.Pruner(model=channel(standard_artifacts.Model))
    assert pruner.exec_properties["code_version"] == declaration.code_version("tfx_compression.pruner.component")


def test_int8_without_examples_is_refused_when_the_pipeline_is_made():
    with pytest.raises(ConfigError, match=r"'int8' is calibrated on data\. Remedy: examples="):
        tfc.TFLiteQuantizer(model=channel(standard_artifacts.Model))
    tfc.TFLiteQuantizer(model=channel(standard_artifacts.Model), config=tfc.Quantization(mode="dynamic"))


def test_each_evaluator_has_an_input_for_each_of_its_candidates():
    edge = evaluator(candidates=models(int8=None, float16=None))
    serving = evaluator(candidates=models(pruned=None))
    assert {name for name in edge.inputs if name.startswith("candidate_")} == {"candidate_int8", "candidate_float16"}
    assert {name for name in serving.inputs if name.startswith("candidate_")} == {"candidate_pruned"}
    assert json.loads(edge.exec_properties["candidates"]) == ["float16", "int8"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eval_config": tfma.EvalConfig(metrics_specs=LABELLED.metrics_specs)}, "needs to know the label. Remedy"),
        ({"eval_config": tfma.EvalConfig(model_specs=LABELLED.model_specs)}, "has no metrics. Remedy"),
        (
            {"budget": tfc.Budget(max_metric_drop={"auc": 0.1})},
            "limits the drop of 'auc', which the evaluation doesn't compute",
        ),
        ({"max_metric_drop": 0.1}, "the budget's drops, and it has none"),
        ({"candidates": {}}, "at least one"),
        ({"candidates": models(**{"int-8": None})}, "letters, digits and '_'"),
    ],
)
def test_an_evaluator_that_could_not_decide_is_refused_when_the_pipeline_is_made(arguments, message):
    with pytest.raises(ConfigError, match=message):
        evaluator(**arguments)


def test_a_store_of_an_unknown_kind_is_refused_when_the_pipeline_is_made():
    with pytest.raises(StoreError, match="ftp"):
        tfc.TFLiteStorePusher(
            model=channel(standard_artifacts.Model), target=tfc.StoreTarget(uri="ftp://host/models", name="digits")
        )


def artifact(kind: type[types.Artifact], path) -> types.Artifact:
    made = kind()
    made.uri = str(path)
    return made


def do(executor, inputs: dict, outputs: dict, **properties) -> None:
    executor.Do({name: [value] for name, value in inputs.items()}, {k: [v] for k, v in outputs.items()}, properties)


def test_pruner_removes_nothing_from_a_model_without_layers_and_leaves_nothing(tmp_path):
    import tensorflow as tf
    from tfx_compression.pruner.executor import Executor

    tf.saved_model.save(small_cnn(), str(tmp_path / "trained/Format-Serving"))
    (tmp_path / "trained/Format-Serving/keras_metadata.pb").unlink(missing_ok=True)
    pruned = artifact(standard_artifacts.Model, tmp_path / "pruned")
    plan = artifact(tfc.PruningPlanArtifact, tmp_path / "plan")
    with pytest.raises(ModelError, match=r"a SavedModel without one\. Remedy: in Trainer's run_fn"):
        do(
            Executor(),
            {"model": artifact(standard_artifacts.Model, tmp_path / "trained")},
            {"pruned_model": pruned, "pruning_plan": plan},
            plan=tfc.PruningPlan(technique="filter").to_json(),
        )
    assert not (tmp_path / "pruned").exists()
    assert not (tmp_path / "plan").exists()


def test_an_executor_validates_what_was_set_at_run_time(tmp_path):
    from tfx_compression.pruner.executor import Executor

    small_cnn().save(tmp_path / "trained/Format-Serving", save_format="tf")
    with pytest.raises(ConfigError, match=r"PruningPlan\.sparsity = 1\.5"):
        do(
            Executor(),
            {"model": artifact(standard_artifacts.Model, tmp_path / "trained")},
            {
                "pruned_model": artifact(standard_artifacts.Model, tmp_path / "pruned"),
                "pruning_plan": artifact(tfc.PruningPlanArtifact, tmp_path / "plan"),
            },
            plan=tfc.PruningPlan().to_json(),
            sparsity=1.5,
        )


@pytest.fixture
def examples(tmp_path):
    """An Examples artifact with a split that has rows, an empty one, and a Schema without a label."""
    from tests.support.helpers import write_examples

    made = artifact(standard_artifacts.Examples, tmp_path / "examples")
    made.split_names = '["train", "eval"]'
    for split in ("train", "eval"):
        (tmp_path / f"examples/Split-{split}").mkdir(parents=True)
    write_examples(tmp_path / "examples/Split-train/rows.tfrecord", {"x": np.zeros([4, 2], np.float32)})
    write_examples(tmp_path / "examples/Split-eval/rows.tfrecord", {"x": np.zeros([0, 2], np.float32)})
    return made


def test_an_unknown_split_is_named_with_those_there_are(examples):
    from tfx_compression.tfx_support import inputs

    with pytest.raises(DataError, match=r"have no split 'test', only: train, eval\. Remedy"):
        inputs.example_files(examples, "test")


def test_an_evaluator_on_an_empty_split_says_which(examples, tmp_path):
    from tfx_compression.compressed_evaluator.executor import Executor

    small_cnn().save(tmp_path / "model/Format-Serving", save_format="tf")
    model = artifact(standard_artifacts.Model, tmp_path / "model")
    outputs = {
        "best_model": standard_artifacts.Model,
        "blessing": standard_artifacts.ModelBlessing,
        "evaluation": standard_artifacts.ModelEvaluation,
        "report": tfc.EvaluationReport,
    }
    with pytest.raises(DataError, match=r"not one tf\.Example in .*Split-eval.*Remedy: check the splits"):
        do(
            Executor(),
            {"candidate_a": model, "baseline_model": model, "examples": examples},
            {name: artifact(kind, tmp_path / name) for name, kind in outputs.items()},
            candidates='["a"]',
            eval_config=evaluator().exec_properties["eval_config"],
            budget=tfc.Budget().to_json(),
            example_split="eval",
        )
    assert not any((tmp_path / name).exists() for name in outputs)


def test_an_evaluator_without_a_baseline_needs_the_budgets_word():
    with pytest.raises(ConfigError, match=r"blesses nothing without a baseline_model.*allow_first=True"):
        evaluator(baseline_model=None)
    first = evaluator(baseline_model=None, budget=tfc.Budget(allow_first=True))
    assert "baseline_model" not in first.inputs


@pytest.mark.slow
def test_a_first_release_is_blessed_as_one(examples, tmp_path):
    """With an input that a Resolver left empty, as before there is any blessed model."""
    from tfx_compression.compressed_evaluator.executor import Executor

    from tests.support.helpers import save_with_examples_signature, small_dense, write_examples

    rows = {"x": np.random.default_rng(0).normal(size=[40, 4]).astype(np.float32), "label": np.zeros([40, 1], np.int64)}
    write_examples(tmp_path / "examples/Split-eval/rows.tfrecord", rows)
    save_with_examples_signature(small_dense(), tmp_path / "model/Format-Serving", "x", [4], 1.0)
    outputs = {
        "best_model": standard_artifacts.Model,
        "blessing": standard_artifacts.ModelBlessing,
        "evaluation": standard_artifacts.ModelEvaluation,
        "report": tfc.EvaluationReport,
    }
    made = {name: [artifact(kind, tmp_path / name)] for name, kind in outputs.items()}
    Executor().Do(
        {
            "candidate_a": [artifact(standard_artifacts.Model, tmp_path / "model")],
            "baseline_model": [],
            "examples": [examples],
        },
        made,
        {
            "candidates": '["a"]',
            "eval_config": evaluator().exec_properties["eval_config"],
            "budget": tfc.Budget(allow_first=True).to_json(),
            "example_split": "eval",
            "reference_kernels": 0,
        },
    )
    (blessing,) = made["blessing"]
    assert blessing.get_int_custom_property("blessed") == 1
    assert blessing.get_int_custom_property("first_release") == 1
    assert "first release" in blessing.get_string_custom_property("reason")
    assert not blessing.has_custom_property("baseline_model_uri")
    assert (tmp_path / "best_model/Format-Serving/saved_model.pb").exists()
