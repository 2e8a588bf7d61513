"""CompressedEvaluator's executor: an empty split, and the first release of a model."""

import hashlib

import numpy as np
import pytest
import tensorflow_model_analysis as tfma
import tfx_compression as tfc
from google.protobuf import json_format
from tfx import types
from tfx.types import standard_artifacts
from tfx_compression.compressed_evaluator.executor import Executor
from tfx_compression.errors import DataError
from tfx_compression.tfx_support import blessings

from tests.support import helpers
from tests.support.artifacts import artifact, examples_artifact, run_executor
from tests.support.errors import raises

pytestmark = pytest.mark.slow  # imports TFX

OUTPUTS = {
    "best_model": standard_artifacts.Model,
    "blessing": standard_artifacts.ModelBlessing,
    "evaluation": standard_artifacts.ModelEvaluation,
    "report": tfc.EvaluationReport,
}
EVAL_CONFIG = json_format.MessageToJson(
    tfma.EvalConfig(
        model_specs=[tfma.ModelSpec(label_key="label")],
        metrics_specs=[tfma.MetricsSpec(metrics=[tfma.MetricConfig(class_name="SparseCategoricalAccuracy")])],
    )
)
PROPERTIES = {"candidates": '["a"]', "eval_config": EVAL_CONFIG, "example_split": "eval", "reference_kernels": 0}


@pytest.fixture
def outputs(tmp_path) -> dict[str, types.Artifact]:
    return {name: artifact(kind, tmp_path / name) for name, kind in OUTPUTS.items()}


def test_an_empty_split_is_refused_and_nothing_is_written(tmp_path, outputs):
    helpers.small_cnn().save(tmp_path / "model/Format-Serving", save_format="tf")
    model = artifact(standard_artifacts.Model, tmp_path / "model")
    examples = examples_artifact(tmp_path / "examples", {"eval": {"x": np.zeros([0, 2], np.float32)}})
    inputs = {"candidate_a": model, "baseline_model": model, "examples": examples}
    with raises(DataError, code="no-examples", match="Split-eval"):
        run_executor(Executor(), inputs, outputs, **PROPERTIES, budget=tfc.Budget().to_json())
    assert not any((tmp_path / name).exists() for name in outputs)


def test_a_first_release_is_blessed_as_one(tmp_path, outputs):
    """Before there is a blessed model, a Resolver leaves the input `baseline_model` empty."""
    rows = {"x": np.random.default_rng(0).normal(size=[40, 4]).astype(np.float32), "label": np.zeros([40, 1], np.int64)}
    helpers.save_with_examples_signature(helpers.small_dense(), tmp_path / "model/Format-Serving", "x", [4], 1.0)
    Executor().Do(
        {
            "candidate_a": [artifact(standard_artifacts.Model, tmp_path / "model")],
            "baseline_model": [],
            "examples": [examples_artifact(tmp_path / "examples", {"eval": rows})],
        },
        {name: [output] for name, output in outputs.items()},
        {**PROPERTIES, "budget": tfc.Budget(allow_first=True).to_json()},
    )
    blessing = outputs["blessing"]
    assert blessing.get_int_custom_property("blessed") == 1
    assert blessing.get_int_custom_property("first_release") == 1
    assert "first release" in blessing.get_string_custom_property("reason")
    assert not blessing.has_custom_property("baseline_model_uri")
    blessings.require_match(blessing, outputs["best_model"])
    digest = hashlib.sha256(tfc.Budget(allow_first=True).to_json().encode()).hexdigest()
    assert blessing.get_string_custom_property("budget_sha256") == digest
    assert (tmp_path / "best_model/Format-Serving/saved_model.pb").exists()
