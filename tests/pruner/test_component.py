"""Pruner at pipeline construction: exec properties and wiring errors."""

import json

import pytest
import tfx_compression as tfc
from tfx import v1 as tfx
from tfx.types import standard_artifacts
from tfx_compression.errors import ConfigError

from tests.support.artifacts import channel
from tests.support.errors import raises

pytestmark = pytest.mark.slow  # imports TFX


def test_the_plan_is_a_json_property_and_an_override_is_a_scalar():
    pruner = tfc.Pruner(model=channel(standard_artifacts.Model), plan=tfc.PruningPlan(sparsity=0.3), sparsity=0.9)
    assert json.loads(pruner.exec_properties["plan"])["sparsity"] == 0.3
    assert pruner.exec_properties["sparsity"] == 0.9


def test_a_runtime_parameter_reaches_the_exec_properties():
    parameter = tfx.dsl.experimental.RuntimeParameter(name="sparsity", ptype=float, default=0.5)
    pruner = tfc.Pruner(model=channel(standard_artifacts.Model), sparsity=parameter)
    assert pruner.exec_properties["sparsity"] is parameter


@pytest.mark.parametrize(
    "plan",
    [
        tfc.PruningPlan(criterion="taylor"),
        tfc.PruningPlan(technique="filter", criterion="apoz"),
        tfc.PruningPlan(allocation="sensitivity"),
    ],
    ids=["gradients", "activations", "sensitivity"],
)
def test_a_plan_that_requires_data_requires_examples(plan):
    with raises(ConfigError, field="examples", code="plan-without-data"):
        tfc.Pruner(model=channel(standard_artifacts.Model), plan=plan)
    tfc.Pruner(
        model=channel(standard_artifacts.Model),
        plan=plan,
        examples=channel(standard_artifacts.Examples),
        schema=channel(standard_artifacts.Schema),
    )


def test_an_unknown_criterion_requires_a_module_file(tmp_path):
    plan = tfc.PruningPlan(criterion="movement")
    with raises(ConfigError, field="PruningPlan.criterion", code="unknown-criterion", match="'movement'"):
        tfc.Pruner(model=channel(standard_artifacts.Model), plan=plan)
    module = tmp_path / "module.py"
    module.write_text("")
    tfc.Pruner(model=channel(standard_artifacts.Model), plan=plan, module_file=str(module))
