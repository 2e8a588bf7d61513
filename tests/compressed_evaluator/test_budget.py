"""The configuration of the gate: what it accepts, and how its metrics are matched with the evaluation's."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tfx_compression.compressed_evaluator.budget import Budget
from tfx_compression.errors import ConfigError

from tests.support.errors import raises


@pytest.mark.parametrize(
    ("fields", "field", "value"),
    [
        ({"confidence": 0.5}, "Budget.confidence", "0.5"),
        ({"confidence": 1.0}, "Budget.confidence", "1.0"),
        ({"confidence": 95}, "Budget.confidence", "95"),
        ({"weights": {"bytes": -1.0}}, "Budget.weights.bytes", "-1.0"),
        ({"weights": {"latency": -0.5}}, "Budget.weights.latency", "-0.5"),
        ({"weights": {"drop": -100}}, "Budget.weights.drop", "-100"),
        ({"weights": {"size": 1.0}}, "Budget.weights.size", "size"),
        ({"max_size": 1}, "Budget.max_size", "max_size"),
        ({"min_slice_rows": 0}, "Budget.min_slice_rows", "0"),
        ({"max_arena_bytes": 0}, "Budget.max_arena_bytes", "0"),
        ({"min_agreement": 1.5}, "Budget.min_agreement", "1.5"),
        ({"max_divergence": -0.1}, "Budget.max_divergence", "-0.1"),
        ({"max_metric_drop": {"accuracy": math.nan}}, "Budget.max_metric_drop.accuracy", "nan"),
        ({"max_relative_metric_drop": {"accuracy": math.inf}}, "Budget.max_relative_metric_drop.accuracy", "inf"),
        ({"objective": "cheapest"}, "Budget.objective", "cheapest"),
    ],
)
def test_an_invalid_budget_is_refused_with_the_field_and_its_value(fields, field, value):
    with raises(ConfigError, field=field, match=value):
        Budget(**fields)


def test_the_error_on_an_unknown_field_lists_the_known_ones():
    with raises(ConfigError, field="Budget.max_arena", code="extra_forbidden", match="max_arena_bytes.*min_agreement"):
        Budget(max_arena=1)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "max_relative_metric_drop": st.just({"auc": 0.02}),
            "max_slice_metric_drop": st.just({"accuracy": 0.05}),
            "confidence": st.sampled_from([None, 0.9, 0.99]),
            "min_slice_rows": st.integers(1, 99),
            "max_arena_bytes": st.integers(1, 10**9),
            "min_agreement": st.floats(0, 1),
            "max_divergence": st.floats(0, 10),
            "allowed_ops": st.just(("CONV_2D",)),
            "objective": st.sampled_from(["smallest", "weighted"]),
            "weights": st.just({"bytes": 2.0}),
            "allow_first": st.booleans(),
        },
    )
)
def test_a_budget_survives_json(fields):
    budget = Budget(**fields)
    assert Budget.merged(budget.to_json(), {}) == budget


def test_every_field_has_a_description():
    assert [name for name, field in Budget.model_fields.items() if not field.description] == []


def test_the_documentation_has_the_table_of_limits():
    page = Path(__file__).parents[2] / "docs/evaluation.md"
    assert Budget.limits_table() in page.read_text(encoding="utf-8"), "Copy Budget.limits_table() into the page."


# Names of metrics


def test_metrics_are_matched_without_case_and_underscores_and_keep_their_order():
    budget = Budget(max_metric_drop={"SparseCategoricalAccuracy": 0.1, "AUC": 0.2})
    renamed = Budget.merged(budget.to_json(), {}).for_metrics(["auc", "sparse_categorical_accuracy"])
    assert list(renamed.max_metric_drop.items()) == [("sparse_categorical_accuracy", 0.1), ("auc", 0.2)]


@pytest.mark.parametrize("field", ["max_metric_drop", "max_relative_metric_drop", "max_slice_metric_drop"])
def test_every_limit_on_drops_finds_its_metric_or_is_refused(field):
    budget = Budget(**{field: {"TopKAccuracy": 0.1}})
    assert budget.for_metrics(["top_k_accuracy"]).limited_metrics == ["top_k_accuracy"]
    with raises(ConfigError, field=f"Budget.{field}", code="unknown-metric", match="TopKAccuracy"):
        budget.for_metrics(["accuracy"])


def test_one_metric_under_two_names_is_refused():
    budget = Budget(max_metric_drop={"BinaryAccuracy": -0.5, "binary_accuracy": 0.9})
    with raises(ConfigError, field="Budget.max_metric_drop", code="duplicate-metric", match="BinaryAccuracy"):
        budget.for_metrics(["binary_accuracy"])
