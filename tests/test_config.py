"""Configurations: which values they refuse, and how they round-trip through JSON."""

import json
from typing import Any

import pydantic
import pytest
import tfx_compression as tfc
from hypothesis import given
from hypothesis import strategies as st
from tfx_compression.config import Config
from tfx_compression.errors import ConfigError

from tests.support.errors import raises

_REQUIRED: dict[type[Config], dict[str, Any]] = {
    tfc.PruningPlan: {},
    tfc.LayerRule: {"layers": "dense.*", "sparsity": 0.8},
    tfc.FineTuning: {},
    tfc.Quantization: {},
    tfc.Calibration: {},
    tfc.AutoPrecision: {},
    tfc.PrecisionRule: {"layers": "conv.*", "precision": "int8"},
    tfc.Budget: {},
    tfc.StoreTarget: {"uri": "/models", "name": "digits"},
}
every_config = pytest.mark.parametrize("config", _REQUIRED, ids=lambda config: config.__name__)


# Invalid values


@every_config
def test_an_unknown_field_is_refused_and_the_known_ones_are_named(config):
    with raises(ConfigError, field=f"{config.__name__}.sparsty", code="extra_forbidden") as caught:
        config(**_REQUIRED[config], sparsty=0.5)
    assert str(caught.value).endswith(", ".join(sorted(config.model_fields)))


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (tfc.PruningPlan, "sparsity", 1.5),
        (tfc.PruningPlan, "sparsity", 1.0),
        (tfc.PruningPlan, "sparsity", -0.1),
        (tfc.PruningPlan, "sparsity", float("nan")),
        (tfc.PruningPlan, "sparsity", "half"),
        (tfc.PruningPlan, "technique", "quantize"),
        (tfc.LayerRule, "sparsity", 1.5),
        (tfc.LayerRule, "layers", "dense["),
        (tfc.FineTuning, "epochs", 0),
        (tfc.FineTuning, "epochs", 1.5),
        (tfc.FineTuning, "learning_rate", 0.0),
        (tfc.FineTuning, "batch_size", -1),
        (tfc.FineTuning, "steps_per_epoch", 0),
        (tfc.Quantization, "mode", "int3"),
        (tfc.Quantization, "io", "uint16"),
        (tfc.Quantization, "batch_size", 0),
        (tfc.Calibration, "rows", 0),
        (tfc.Calibration, "percentile", 101.0),
        (tfc.AutoPrecision, "max_drop", -0.1),
        (tfc.PrecisionRule, "layers", "conv["),
        (tfc.Budget, "max_bytes", 0),
        (tfc.Budget, "max_bytes_gzip", -1),
        (tfc.Budget, "max_latency_ms", 0.0),
        (tfc.Budget, "min_speedup", 0.0),
        (tfc.Budget, "min_sparsity", 1.01),
        (tfc.Budget, "objective", "cheapest"),
        (tfc.StoreTarget, "uri", ""),
        (tfc.StoreTarget, "name", "Digits"),
        (tfc.StoreTarget, "name", "digits\n"),
        (tfc.StoreTarget, "name", "../digits"),
        (tfc.StoreTarget, "channel", "_history"),
    ],
)
def test_an_invalid_value_is_refused_and_named_with_its_field(config, field, value):
    with raises(ConfigError, field=f"{config.__name__}.{field}") as caught:
        config(**{**_REQUIRED[config], field: value})
    assert str(caught.value).startswith(f"{config.__name__}.{field} = {value!r}: ")


@pytest.mark.parametrize("config", [tfc.LayerRule, tfc.StoreTarget])
def test_every_missing_field_is_named(config):
    with raises(ConfigError, field=f"{config.__name__}.{next(iter(_REQUIRED[config]))}", code="missing") as caught:
        config()
    assert all(f"{config.__name__}.{name} = " in str(caught.value) for name in _REQUIRED[config])


def test_every_invalid_field_is_named_on_one_line():
    with raises(ConfigError) as caught:
        tfc.FineTuning(epochs=0, batch_size=0, optimzer="adam")
    for part in ("FineTuning.epochs = 0", "FineTuning.batch_size = 0", "'optimzer'"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_config_error_is_a_value_error_with_a_short_message():
    with pytest.raises(ValueError) as caught:
        tfc.PruningPlan(sparsity=1.5)
    assert str(caught.value) == "PruningPlan.sparsity = 1.5: Input should be less than 1"


@pytest.mark.parametrize(
    ("fields", "field", "code"),
    [
        ({"sparsity": 1.5}, "PruningPlan.sparsity", "less_than"),
        ({"sparcity": 0.5}, "PruningPlan.sparcity", "extra_forbidden"),
        ({"rules": [{"layers": "a", "sparsity": 2}]}, "LayerRule.sparsity", "less_than"),
        ({"rules": [{"layers": "conv(", "sparsity": 0}]}, "LayerRule.layers", "value_error"),
    ],
)
def test_an_error_has_the_first_invalid_field_and_the_type_of_its_problem(fields, field, code):
    with raises(ConfigError, field=field, code=code):
        tfc.PruningPlan(**fields)


def test_the_message_has_the_place_of_an_invalid_rule():
    rule = tfc.LayerRule(layers="conv.*", sparsity=0.5)
    with raises(ConfigError, match=r"PruningPlan\.rules\.1.*LayerRule\.sparsity = 2"):
        tfc.PruningPlan(rules=[rule, {"layers": "dense", "sparsity": 2}])
    with raises(ConfigError, match=r"PruningPlan\.rules\.0.*'layer'"):
        tfc.PruningPlan(rules=[{"layer": "dense", "sparsity": 0.2}])


@pytest.mark.parametrize(("text", "code"), [("{", "json_invalid"), ("[]", "json_type")])
def test_an_error_of_the_json_names_the_configuration(text, code):
    with raises(ConfigError, field="PruningPlan", code=code):
        tfc.PruningPlan.merged(text, {})


@every_config
def test_a_configuration_is_frozen(config):
    instance = config(**_REQUIRED[config])
    before = instance.to_json()
    for field in config.model_fields:
        with pytest.raises(pydantic.ValidationError, match="frozen"):
            setattr(instance, field, getattr(instance, field))
    assert instance.to_json() == before


# JSON

_sparsities = st.floats(0.0, 1.0, exclude_max=True)
_positive = st.floats(0.0, exclude_min=True, allow_infinity=False)
_counts = st.integers(1, 2**40)
_names = st.from_regex(r"[a-z0-9][a-z0-9._-]*", fullmatch=True)
_rules = st.builds(
    tfc.LayerRule,
    layers=st.text().map(lambda text: "".join(rf"\{char}" if char in r".^$*+?{}[]\|()" else char for char in text)),
    sparsity=_sparsities,
)
_configs = st.one_of(
    _rules,
    st.builds(tfc.PruningPlan, sparsity=_sparsities, rules=st.lists(_rules).map(tuple)),
    st.builds(
        tfc.FineTuning,
        epochs=_counts,
        batch_size=_counts,
        steps_per_epoch=st.none() | _counts,
        learning_rate=_positive,
        label_key=st.none() | st.text(),
        seed=st.integers(),
    ),
    st.builds(
        tfc.Quantization,
        mode=st.sampled_from(["float32", "float16", "dynamic", "int8", "int4", "auto"]),
        io=st.sampled_from(["integer", "float32"]),
        calibration=st.builds(tfc.Calibration, rows=_counts, split=st.text(), seed=st.integers()),
        batch_size=st.none() | _counts,
    ),
    st.builds(
        tfc.Budget,
        max_metric_drop=st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False)),
        max_bytes=st.none() | _counts,
        max_bytes_gzip=st.none() | _counts,
        max_latency_ms=st.none() | _positive,
        min_speedup=st.none() | _positive,
        min_sparsity=st.none() | st.floats(0.0, 1.0),
        objective=st.sampled_from(["smallest", "fastest", "most_accurate"]),
    ),
    st.builds(tfc.StoreTarget, uri=st.text(min_size=1), name=_names, channel=_names),
)


@given(_configs)
def test_a_configuration_round_trips_through_json(config):
    text = config.to_json()
    restored = type(config).merged(text, {})
    assert restored == config
    assert restored.to_json() == text


@given(_configs)
def test_the_json_has_every_field(config):
    assert set(json.loads(config.to_json())) == set(type(config).model_fields)


def test_equal_configurations_have_equal_json():
    assert (
        tfc.FineTuning(epochs=3, learning_rate=1, label_key="label").to_json()
        == tfc.FineTuning(label_key="label", learning_rate=1.0, epochs=3).to_json()
    )
    rule = {"layers": "dense", "sparsity": 0.5}
    assert tfc.PruningPlan(rules=[rule]) == tfc.PruningPlan(rules=(tfc.LayerRule(**rule),))
    assert tfc.PruningPlan(rules=[rule]).to_json() == tfc.PruningPlan(rules=(tfc.LayerRule(**rule),)).to_json()


def test_different_configurations_have_different_json():
    assert tfc.PruningPlan(sparsity=0.5).to_json() != tfc.PruningPlan(sparsity=0.51).to_json()


# Overrides


def test_an_override_replaces_one_field():
    plan = tfc.PruningPlan(sparsity=0.5, rules=[tfc.LayerRule(layers="dense", sparsity=0.0)])
    merged = tfc.PruningPlan.merged(plan.to_json(), {"sparsity": 0.9})
    assert merged == tfc.PruningPlan(sparsity=0.9, rules=plan.rules)
    assert plan.sparsity == 0.5


def test_an_override_of_none_replaces_nothing():
    config = tfc.FineTuning(epochs=7, steps_per_epoch=20)
    unset = dict.fromkeys(tfc.FineTuning.model_fields)
    assert tfc.FineTuning.merged(config.to_json(), unset) == config


def test_an_override_of_zero_replaces_the_field():
    assert tfc.PruningPlan.merged(tfc.PruningPlan(sparsity=0.5).to_json(), {"sparsity": 0.0}).sparsity == 0.0


def test_an_invalid_override_is_refused():
    with raises(ConfigError, field="PruningPlan.sparsity", code="less_than"):
        tfc.PruningPlan.merged(tfc.PruningPlan().to_json(), {"sparsity": 1.5})
    with raises(ConfigError, field="PruningPlan.epochs", code="extra_forbidden"):
        tfc.PruningPlan.merged(tfc.PruningPlan().to_json(), {"epochs": 3})


def test_an_invalid_value_in_the_json_is_refused_unless_it_is_overridden():
    with raises(ConfigError, field="Quantization.mode", match="'int3'"):
        tfc.Quantization.merged('{"mode": "int3"}', {})
    assert tfc.Quantization.merged('{"mode": "int3"}', {"mode": "int8"}).mode == "int8"


# Which layers are pruned by how much

_LAYERS = ["conv_1", "conv_2", "dense", "dense_1"]


def plan(*rules: tuple[str, float], sparsity: float = 0.5) -> tfc.PruningPlan:
    return tfc.PruningPlan(
        sparsity=sparsity, rules=[tfc.LayerRule(layers=layers, sparsity=value) for layers, value in rules]
    )


def sparsities(made: tfc.PruningPlan) -> dict[str, float]:
    return {**dict.fromkeys(_LAYERS, made.sparsity), **made.rule_sparsity({name: (name,) for name in _LAYERS})}


def test_without_rules_every_layer_has_the_plans_sparsity():
    assert sparsities(plan(sparsity=0.75)) == dict.fromkeys(_LAYERS, 0.75)


def test_the_last_rule_that_matches_a_layer_wins():
    rules = plan((".*", 0.9), ("conv.*", 0.3), ("conv_2", 0.6))
    assert sparsities(rules) == {"conv_1": 0.3, "conv_2": 0.6, "dense": 0.9, "dense_1": 0.9}
    backwards = plan(("conv_2", 0.6), ("conv.*", 0.3), (".*", 0.9))
    assert sparsities(backwards) == dict.fromkeys(_LAYERS, 0.9)


def test_sparsity_zero_leaves_a_layer_alone():
    assert sparsities(plan(("dense_1", 0.0))) == {"conv_1": 0.5, "conv_2": 0.5, "dense": 0.5, "dense_1": 0.0}


def test_a_pattern_is_for_the_whole_name():
    assert sparsities(plan(("dense", 0.0)))["dense_1"] == 0.5
    with pytest.raises(ConfigError, match="'ense'"):
        sparsities(plan(("ense", 0.0)))


def test_a_pattern_that_matches_nothing_is_refused_with_the_models_layers():
    with raises(ConfigError, code="unmatched-rule", match=r"conv_1, conv_2, dense, dense_1\."):
        sparsities(plan(("conv.*", 0.1), ("dnse.*", 0.9)))


def test_layers_come_in_the_order_that_they_were_given_in():
    layers = dict.fromkeys(reversed(_LAYERS), ())
    assert list(plan((".*", 0.1), ("conv_2", 0.2)).rule_sparsity(layers)) == _LAYERS[::-1]


def test_a_rule_matches_a_group_by_its_name_or_one_of_its_layers():
    groups = {"stem": ("stem", "block/conv", "block/project"), "side": ("side",)}
    assert plan(("block/.*", 0.3)).rule_sparsity(groups) == {"stem": 0.3}
    assert plan((".*", 0.3), ("stem", 0.0)).rule_sparsity(groups) == {"stem": 0.0, "side": 0.3}


# Patterns, schedules and what does not go together


@pytest.mark.parametrize(("pattern", "sparsity"), [("2:4", 0.5), ("1:4", 0.75), ("3:4", 0.25), ("4:8", 0.5)])
def test_n_of_m_sets_the_sparsity(pattern, sparsity):
    made = tfc.PruningPlan(pattern=pattern)
    assert made.sparsity == sparsity
    assert tfc.PruningPlan.merged(made.to_json(), {}) == made


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
