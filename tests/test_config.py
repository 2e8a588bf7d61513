"""The configurations, and what importing the package costs."""

import json
import subprocess
import sys
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


# What is refused


@every_config
def test_an_unknown_field_is_refused_with_the_fields_there_are(config):
    with pytest.raises(ConfigError, match=f"{config.__name__} has no field 'sparsty'; its fields are: ") as refused:
        config(**_REQUIRED[config], sparsty=0.5)
    named = str(refused.value).partition("its fields are: ")[2].split(", ")
    assert named == sorted(config.model_fields)


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
def test_a_value_out_of_range_is_refused_by_field_and_value(config, field, value):
    with pytest.raises(ConfigError) as refused:
        config(**{**_REQUIRED[config], field: value})
    assert str(refused.value).startswith(f"{config.__name__}.{field} = {value!r}: ")


@pytest.mark.parametrize("config", [tfc.LayerRule, tfc.StoreTarget])
def test_a_missing_field_is_named(config):
    with pytest.raises(ConfigError) as refused:
        config()
    assert [name for name in _REQUIRED[config] if f"{config.__name__}.{name} = " in str(refused.value)] == list(
        _REQUIRED[config]
    )


def test_every_bad_field_is_named_at_once():
    with pytest.raises(ConfigError) as refused:
        tfc.FineTuning(epochs=0, batch_size=0, optimiser="adam")
    for part in ("FineTuning.epochs = 0", "FineTuning.batch_size = 0", "no field 'optimiser'"):
        assert part in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_bad_pattern_is_refused_with_what_is_wrong_with_it():
    with pytest.raises(ConfigError, match=r"LayerRule\.layers = 'conv\(': .*not a regular expression: missing \)"):
        tfc.LayerRule(layers="conv(", sparsity=0.5)


def test_a_bad_rule_inside_a_plan_is_named_with_its_place():
    good = tfc.LayerRule(layers="conv.*", sparsity=0.5)
    with pytest.raises(ConfigError, match=r"PruningPlan\.rules\.1 = .*LayerRule\.sparsity = 2"):
        tfc.PruningPlan(rules=[good, {"layers": "dense", "sparsity": 2}])
    with pytest.raises(ConfigError, match=r"PruningPlan\.rules\.0 = .*LayerRule has no field 'layer'"):
        tfc.PruningPlan(rules=[{"layer": "dense", "sparsity": 0.2}])


def test_a_config_error_is_a_value_error_without_a_pydantic_traceback_in_its_message():
    with pytest.raises(ValueError) as refused:
        tfc.PruningPlan(sparsity=1.5)
    assert str(refused.value) == "PruningPlan.sparsity = 1.5: Input should be less than 1"


@every_config
def test_a_configuration_is_frozen(config):
    made = config(**_REQUIRED[config])
    before = made.to_json()
    for field in config.model_fields:
        with pytest.raises(pydantic.ValidationError, match="frozen"):
            setattr(made, field, getattr(made, field))
    assert made.to_json() == before


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
def test_a_configuration_comes_back_from_its_json(config):
    text = config.to_json()
    back = type(config).merged(text, {})
    assert back == config
    assert back.to_json() == text


@given(_configs)
def test_the_json_is_a_plain_object_of_every_field(config):
    assert set(json.loads(config.to_json())) == set(type(config).model_fields)


def test_equal_configurations_have_equal_json_however_they_were_written():
    assert (
        tfc.FineTuning(epochs=3, learning_rate=1, label_key="label").to_json()
        == tfc.FineTuning(label_key="label", learning_rate=1.0, epochs=3).to_json()
    )
    rule = {"layers": "dense", "sparsity": 0.5}
    assert tfc.PruningPlan(rules=[rule]) == tfc.PruningPlan(rules=(tfc.LayerRule(**rule),))
    assert tfc.PruningPlan(rules=[rule]).to_json() == tfc.PruningPlan(rules=(tfc.LayerRule(**rule),)).to_json()


def test_a_different_value_gives_a_different_json():
    assert tfc.PruningPlan(sparsity=0.5).to_json() != tfc.PruningPlan(sparsity=0.51).to_json()


# Overrides


def test_an_override_is_put_over_the_json_and_the_rest_is_kept():
    plan = tfc.PruningPlan(sparsity=0.5, rules=[tfc.LayerRule(layers="dense", sparsity=0.0)])
    merged = tfc.PruningPlan.merged(plan.to_json(), {"sparsity": 0.9})
    assert merged == tfc.PruningPlan(sparsity=0.9, rules=plan.rules)
    assert plan.sparsity == 0.5


def test_an_override_of_none_is_no_override():
    config = tfc.FineTuning(epochs=7, steps_per_epoch=20)
    unset = dict.fromkeys(tfc.FineTuning.model_fields)
    assert tfc.FineTuning.merged(config.to_json(), unset) == config


def test_an_override_of_zero_is_one():
    assert tfc.PruningPlan.merged(tfc.PruningPlan(sparsity=0.5).to_json(), {"sparsity": 0.0}).sparsity == 0.0


def test_a_bad_override_is_refused_by_field_and_value():
    with pytest.raises(ConfigError, match=r"PruningPlan\.sparsity = 1\.5: "):
        tfc.PruningPlan.merged(tfc.PruningPlan().to_json(), {"sparsity": 1.5})
    with pytest.raises(ConfigError, match="PruningPlan has no field 'epochs'"):
        tfc.PruningPlan.merged(tfc.PruningPlan().to_json(), {"epochs": 3})


def test_a_bad_value_in_the_json_is_refused_unless_it_is_overridden():
    with pytest.raises(ConfigError, match=r"Quantization\.mode = 'int3'"):
        tfc.Quantization.merged('{"mode": "int3"}', {})
    assert tfc.Quantization.merged('{"mode": "int3"}', {"mode": "int8"}).mode == "int8"


# Which layers are pruned by how much

_LAYERS = ["conv_1", "conv_2", "dense", "dense_1"]


def plan(*rules: tuple[str, float], sparsity: float = 0.5) -> tfc.PruningPlan:
    return tfc.PruningPlan(
        sparsity=sparsity, rules=[tfc.LayerRule(layers=layers, sparsity=value) for layers, value in rules]
    )


def sparsities(made: tfc.PruningPlan) -> dict[str, float]:
    return {**dict.fromkeys(_LAYERS, made.sparsity), **made.exceptions({name: (name,) for name in _LAYERS})}


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
    with pytest.raises(ConfigError, match=r"pattern 'dnse\.\*' matches no layer.*: conv_1, conv_2, dense, dense_1\."):
        sparsities(plan(("conv.*", 0.1), ("dnse.*", 0.9)))


def test_layers_come_in_the_order_that_they_were_given_in():
    layers = dict.fromkeys(reversed(_LAYERS), ())
    assert list(plan((".*", 0.1), ("conv_2", 0.2)).exceptions(layers)) == _LAYERS[::-1]


def test_a_rule_matches_a_group_by_its_name_or_one_of_its_layers():
    groups = {"stem": ("stem", "block/conv", "block/project"), "side": ("side",)}
    assert plan(("block/.*", 0.3)).exceptions(groups) == {"stem": 0.3}
    assert plan((".*", 0.3), ("stem", 0.0)).exceptions(groups) == {"stem": 0.0, "side": 0.3}


# Patterns, schedules and what does not go together


@pytest.mark.parametrize(("pattern", "sparsity"), [("2:4", 0.5), ("1:4", 0.75), ("3:4", 0.25), ("4:8", 0.5)])
def test_n_of_m_sets_the_sparsity(pattern, sparsity):
    made = tfc.PruningPlan(pattern=pattern)
    assert made.sparsity == sparsity
    assert tfc.PruningPlan.merged(made.to_json(), {}) == made


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pattern": "2:4", "sparsity": 0.8}, "sparsity=0.8 with pattern '2:4', which makes it 0.5"),
        ({"pattern": "4:4"}, "PruningPlan.pattern = '4:4'.*RxC"),
        ({"pattern": "0x4"}, "PruningPlan.pattern = '0x4'"),
        ({"pattern": "sparse"}, "PruningPlan.pattern = 'sparse'"),
        ({"pattern": "2:4", "allocation": "global"}, "prunes every layer alike"),
        ({"pattern": "2:4", "rules": [{"layers": "a", "sparsity": 0.9}]}, "rule's sparsity must be 0"),
        ({"technique": "filter", "pattern": "2:4"}, "pattern '2:4' is of technique 'weight'"),
        ({"technique": "filter", "schedule": "cubic"}, "filters are removed for good"),
        ({"round_to": 8}, "round_to=8 is for the techniques"),
        ({"criterion": "scores"}, "criterion 'scores' and the path"),
        ({"scores": "scores.npz"}, "criterion 'scores' and the path"),
        ({"schedule": "cubic", "sparsity": 0.5, "initial_sparsity": 0.6}, "initial_sparsity=0.6 is above"),
        ({"begin_step": 10, "end_step": 10}, "end_step=10 is not after"),
        ({"sensitivity_levels": (0.5, 0.25)}, "ascending fractions"),
        ({"sensitivity_levels": (0.5, 1.0)}, "ascending fractions"),
    ],
)
def test_what_does_not_go_together_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
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
    assert tfc.PruningPlan(sparsity=0.8, **fields).first_step() == pytest.approx(first)


# Errors


@pytest.mark.parametrize(
    ("fields", "field", "code"),
    [
        ({"sparsity": 1.5}, "PruningPlan.sparsity", "less_than"),
        ({"sparcity": 0.5}, "PruningPlan.sparcity", "extra_forbidden"),
        ({"rules": [{"layers": "a", "sparsity": 2}]}, "LayerRule.sparsity", "less_than"),
        ({"rules": [{"layers": "(", "sparsity": 0}]}, "LayerRule.layers", "value_error"),
    ],
)
def test_an_error_names_the_first_bad_field_and_its_problem(fields, field, code):
    with raises(ConfigError, field=field, code=code):
        tfc.PruningPlan(**fields)


@pytest.mark.parametrize(("text", "code"), [("{", "json_invalid"), ("[]", "json_type")])
def test_an_error_of_the_json_names_the_configuration(text, code):
    with raises(ConfigError, field="PruningPlan", code=code):
        tfc.PruningPlan.merged(text, {})


# Importing


def modules_after(statement: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after `statement`, which must print nothing."""
    script = f"{statement}\nimport sys\nprint(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
    return set(done.stdout.split())


def test_importing_the_package_loads_nothing_and_prints_nothing():
    loaded = modules_after("import tfx_compression as tfc; dir(tfc)")
    assert {name for name in loaded if name.startswith("tfx_compression")} == {
        "tfx_compression",
        "tfx_compression.version",
    }
    assert not loaded & {"tensorflow", "tf_keras", "tfx", "apache_beam", "numpy", "pydantic"}


def test_the_configurations_load_without_tensorflow():
    names = ", ".join(config.__name__ for config in _REQUIRED)
    loaded = modules_after(f"from tfx_compression import {names}")
    assert "pydantic" in loaded
    assert not loaded & {"tensorflow", "tf_keras", "tfx", "apache_beam", "numpy"}


def test_a_name_that_the_package_has_not_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'tfx_compression' has no attribute 'Prunner'"):
        tfc.Prunner  # noqa: B018


def test_every_public_name_is_listed_by_dir():
    assert set(tfc.__all__) <= set(dir(tfc))


@pytest.mark.slow
def test_every_public_name_is_there():
    found = {name: getattr(tfc, name) for name in tfc.__all__}
    assert found.pop("__version__")
    assert {name: value.__name__ for name, value in found.items()} == {name: name for name in found}
    assert {value.__module__.partition(".")[0] for value in found.values()} == {"tfx_compression"}
