"""Configurations: which values they refuse, and how they round-trip through JSON."""

import json
from typing import Any

import pydantic
import pytest
import tfx_compression as tfc
from hypothesis import given
from hypothesis import strategies as st
from tfx_compression.config import Config, require_config
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
        (tfc.PruningPlan, "criterion", "bn_scale"),
        (tfc.PruningPlan, "seed", -1),
        (tfc.PruningPlan, "label_key", ""),
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
        (tfc.FineTuning, "seed", 2**32),
        (tfc.Calibration, "rows", 0),
        (tfc.Calibration, "split", ""),
        (tfc.Calibration, "percentile", 101.0),
        (tfc.AutoPrecision, "max_drop", -0.1),
        (tfc.PrecisionRule, "layers", "conv["),
        (tfc.Budget, "max_bytes", 0),
        (tfc.Budget, "max_bytes_gzip", -1),
        (tfc.Budget, "max_latency_ms", 0.0),
        (tfc.Budget, "min_speedup", 0.0),
        (tfc.Budget, "min_sparsity", 1.01),
        (tfc.Budget, "objective", "cheapest"),
        (tfc.Budget, "allowed_ops", ()),
        (tfc.StoreTarget, "uri", ""),
        (tfc.StoreTarget, "uri", "ftp://host/store"),
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
    assert all(f"{config.__name__}.{name} is missing" in str(caught.value) for name in _REQUIRED[config])


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
        ({"rules": [{"layers": "a", "sparsity": 2}]}, "PruningPlan.rules.0.sparsity", "less_than"),
        ({"rules": [{"layers": "conv(", "sparsity": 0}]}, "PruningPlan.rules.0.layers", "value_error"),
    ],
)
def test_an_error_has_the_first_invalid_field_and_the_type_of_its_problem(fields, field, code):
    with raises(ConfigError, field=field, code=code):
        tfc.PruningPlan(**fields)


def test_the_message_has_the_place_of_an_invalid_rule():
    rule = tfc.LayerRule(layers="conv.*", sparsity=0.5)
    with raises(ConfigError, match=r"^PruningPlan\.rules\.1: LayerRule\.sparsity = 2: [^:]*$"):
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
_seeds = st.integers(0, 2**32 - 1)
_paths = st.text(min_size=1).filter(lambda path: "://" not in path)
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
        label_key=st.none() | st.text(min_size=1),
        seed=_seeds,
    ),
    st.builds(
        tfc.Quantization,
        mode=st.sampled_from(["float32", "float16", "dynamic", "int8", "int4", "auto"]),
        io=st.sampled_from(["integer", "float32"]),
        calibration=st.builds(tfc.Calibration, rows=_counts, split=st.text(min_size=1), seed=_seeds),
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
    st.builds(tfc.StoreTarget, uri=_paths, name=_names, channel=_names),
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


def test_an_argument_of_another_class_is_refused_with_the_call_that_makes_it():
    with raises(ConfigError, code="not-a-config", field="plan", match=r"tfc.PruningPlan\(sparsity=0.5\)"):
        require_config({"sparsity": 0.5}, tfc.PruningPlan, "plan")
    require_config(tfc.PruningPlan(), tfc.PruningPlan, "plan")
