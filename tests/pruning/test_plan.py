"""Pruning plans: rules by layer, N:M patterns, schedules, and fields that contradict each other."""

import pytest
import tfx_compression as tfc
from tfx_compression.errors import ConfigError

from tests.support.errors import raises

_LAYERS = ["conv_1", "conv_2", "dense", "dense_1"]


def plan(*rules: tuple[str, float], sparsity: float = 0.5) -> tfc.PruningPlan:
    return tfc.PruningPlan(
        sparsity=sparsity, rules=[tfc.LayerRule(layers=layers, sparsity=value) for layers, value in rules]
    )


def sparsities(plan: tfc.PruningPlan) -> dict[str, float]:
    return {**dict.fromkeys(_LAYERS, plan.sparsity), **plan.rule_sparsity({name: (name,) for name in _LAYERS})}


def test_without_rules_every_layer_has_the_sparsity_of_the_plan():
    assert sparsities(plan(sparsity=0.75)) == dict.fromkeys(_LAYERS, 0.75)


def test_the_last_rule_that_matches_a_layer_wins():
    rules = plan((".*", 0.9), ("conv.*", 0.3), ("conv_2", 0.6))
    assert sparsities(rules) == {"conv_1": 0.3, "conv_2": 0.6, "dense": 0.9, "dense_1": 0.9}
    reversed_rules = plan(("conv_2", 0.6), ("conv.*", 0.3), (".*", 0.9))
    assert sparsities(reversed_rules) == dict.fromkeys(_LAYERS, 0.9)


def test_a_rule_of_sparsity_zero_leaves_a_layer_dense():
    assert sparsities(plan(("dense_1", 0.0))) == {"conv_1": 0.5, "conv_2": 0.5, "dense": 0.5, "dense_1": 0.0}


def test_a_rule_matches_whole_names():
    assert sparsities(plan(("dense", 0.0)))["dense_1"] == 0.5
    with raises(ConfigError, code="unmatched-rule", match="'ense'"):
        sparsities(plan(("ense", 0.0)))


def test_a_rule_that_matches_nothing_is_refused_and_the_layers_are_named():
    with raises(ConfigError, code="unmatched-rule", match=r"conv_1, conv_2, dense, dense_1\."):
        sparsities(plan(("conv.*", 0.1), ("dnse.*", 0.9)))


def test_the_result_keeps_the_order_of_the_layers():
    layers = dict.fromkeys(reversed(_LAYERS), ())
    assert list(plan((".*", 0.1), ("conv_2", 0.2)).rule_sparsity(layers)) == _LAYERS[::-1]


def test_a_rule_matches_a_group_by_its_name_or_one_of_its_layers():
    groups = {"stem": ("stem", "block/conv", "block/project"), "side": ("side",)}
    assert plan(("block/.*", 0.3)).rule_sparsity(groups) == {"stem": 0.3}
    assert plan((".*", 0.3), ("stem", 0.0)).rule_sparsity(groups) == {"stem": 0.0, "side": 0.3}


@pytest.mark.parametrize(("pattern", "sparsity"), [("2:4", 0.5), ("1:4", 0.75), ("3:4", 0.25), ("4:8", 0.5)])
def test_n_of_m_sets_the_sparsity(pattern, sparsity):
    plan = tfc.PruningPlan(pattern=pattern)
    assert plan.sparsity == sparsity
    assert tfc.PruningPlan.merged(plan.to_json(), {}) == plan


@pytest.mark.parametrize(
    ("fields", "field", "code"),
    [
        ({"pattern": "2:4", "sparsity": 0.8}, "sparsity", "sparsity-of-pattern"),
        ({"pattern": "4:4"}, "pattern", "unknown-pattern"),
        ({"pattern": "0x4"}, "pattern", "unknown-pattern"),
        ({"pattern": "sparse"}, "pattern", "unknown-pattern"),
        ({"pattern": "2:4", "allocation": "global"}, "pattern", "n-of-m-is-uniform"),
        ({"pattern": "2:4", "rules": [{"layers": "a", "sparsity": 0.9}]}, "rules", "rule-of-pattern"),
        ({"technique": "filter", "pattern": "2:4"}, "pattern", "pattern-of-channels"),
        ({"technique": "filter", "schedule": "cubic"}, "schedule", "schedule-of-channels"),
        ({"allocation": "fair"}, "allocation", "unknown-allocation"),
        ({"round_to": 8}, "round_to", "round-to-of-weights"),
        ({"criterion": "scores"}, "scores", "scores-without-criterion"),
        ({"scores": "scores.npz"}, "scores", "scores-without-criterion"),
        ({"schedule": "cubic", "sparsity": 0.5, "initial_sparsity": 0.6}, "initial_sparsity", "initial-above-sparsity"),
        ({"begin_step": 10, "end_step": 10}, "end_step", "end-before-begin"),
        ({"sensitivity_levels": (0.5, 0.25)}, "sensitivity_levels", "bad-levels"),
        ({"sensitivity_levels": (0.5, 1.0)}, "sensitivity_levels", "bad-levels"),
    ],
)
def test_plan_values_that_do_not_fit_together_are_rejected(fields, field, code):
    with raises(ConfigError, field=f"PruningPlan.{field}", code=code):
        tfc.PruningPlan(**fields)


@pytest.mark.parametrize(
    ("fields", "first"),
    [
        ({}, 0.8),
        ({"schedule": "constant"}, 0.8),
        ({"schedule": "cubic"}, 0.0),
        ({"schedule": "polynomial", "initial_sparsity": 0.3}, 0.3),
        ({"schedule": "iterative", "iterations": 3}, 1 - 0.2 ** (1 / 3)),
    ],
)
def test_the_first_step_of_a_schedule(fields, first):
    assert tfc.PruningPlan(sparsity=0.8, **fields).first_step_sparsity == pytest.approx(first)
