"""Batches of TFMA's extracts, TFMA's computations on them, and comparison of what they return."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import tensorflow_model_analysis as tfma
from google.protobuf import text_format
from tensorflow_model_analysis.evaluators import metrics_plots_and_validations_evaluator as stock
from tensorflow_model_analysis.metrics import metric_specs, metric_types
from tensorflow_model_analysis.proto import config_pb2

ONE_MODEL = 'model_specs { label_key: "label" } '
WEIGHTED_MODEL = 'model_specs { label_key: "label" example_weight_key: "weight" } '
TWO_MODELS = """
    model_specs { name: "a" label_key: "label" example_weight_key: "weight" }
    model_specs { name: "b" label_key: "label" example_weight_key: "weight" is_baseline: true }
"""


def eval_config(text: str) -> config_pb2.EvalConfig:
    """An EvalConfig with its defaults filled in."""
    config = text_format.Parse(text, config_pb2.EvalConfig())
    has_baseline = any(spec.is_baseline for spec in config.model_specs)
    return tfma.utils.update_eval_config_with_defaults(config, has_baseline=has_baseline, rubber_stamp=True)


def metric(name: str, config: str = "", module: str = "") -> str:
    """A MetricConfig as text."""
    settings = f" config: '{config}'" if config else ""
    return f'metrics {{ class_name: "{name}"{settings}{f" module: {module!r}" if module else ""} }}'


def metrics(*names: str, extra: str = "") -> str:
    """A MetricsSpec as text, of names or of what `metric` returns."""
    return f"metrics_specs {{ {' '.join(name if '{' in name else metric(name) for name in names)} {extra} }}"


@functools.cache
def computations(text: str) -> list[metric_types.MetricComputation]:
    """What TFMA computes from rows for an EvalConfig."""
    config = eval_config(text)
    every = metric_specs.to_computations(list(config.metrics_specs), eval_config=config)
    from_rows = stock._filter_and_separate_computations(every).non_derived_computations
    for each in from_rows:
        each.combiner.setup()
    return from_rows


def extracts(predictions: Any, labels: Any, weights: Any = None, features: Any = None, name: str = "row") -> Any:
    """A batch of extracts. `name` distinguishes its serialized rows from those of other batches."""
    first = labels
    while isinstance(first, Mapping):
        first = next(iter(first.values()))
    return {
        tfma.INPUT_KEY: np.array([f"{name} {row}".encode() for row in range(len(first))], object),
        tfma.FEATURES_KEY: features or {},
        tfma.PREDICTIONS_KEY: predictions,
        tfma.LABELS_KEY: labels,
        **({} if weights is None else {tfma.EXAMPLE_WEIGHTS_KEY: weights}),
    }


@dataclasses.dataclass(frozen=True)
class RandomColumns:
    """Random columns of some rows."""

    generator: np.random.Generator
    rows: int

    def tenths(self, *shape: int, low: int = 0, high: int = 10) -> np.ndarray:
        """Multiples of 0.1, so that some equal a threshold, or nearly do in float32."""
        return (self.generator.integers(low, high + 1, (self.rows, *shape)) / 10).astype(np.float32)

    def uniform(self, *shape: int) -> np.ndarray:
        return self.generator.uniform(0, 1, (self.rows, *shape)).astype(np.float32)

    def classes(self, count: int, *shape: int) -> np.ndarray:
        return self.generator.integers(0, count, (self.rows, *shape))

    def softmax(self, count: int) -> np.ndarray:
        raw = self.generator.uniform(0.1, 1, (self.rows, count))
        return (raw / raw.sum(axis=1, keepdims=True)).astype(np.float32)

    def one_hot(self, count: int) -> np.ndarray:
        return np.eye(count, dtype=np.float32)[self.classes(count)]


def plain(value: Any) -> Any:
    """A metric's value as dicts, lists and numbers."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if dataclasses.is_dataclass(value):
        return plain(vars(value))
    if hasattr(value, "bucket_id"):
        return [value.bucket_id, value.weighted_labels, value.weighted_predictions, value.weighted_examples]
    if hasattr(value, "__slots__"):
        return {name: plain(getattr(value, name)) for name in value.__slots__}
    return value


def require_equal(actual: Any, expected: Any, place: str = "") -> None:
    """Asserts that two values of dicts, lists and numbers are equal to 1e-6. NaN equals NaN."""
    if isinstance(expected, dict):
        assert set(actual) == set(expected), place
        for key in expected:
            require_equal(actual[key], expected[key], f"{place} {key}")
    elif isinstance(expected, list):
        assert len(actual) == len(expected), place
        for number, pair in enumerate(zip(actual, expected, strict=True)):
            require_equal(*pair, f"{place} [{number}]")
    elif isinstance(expected, float | int) and not isinstance(expected, bool):
        assert actual == pytest.approx(expected, rel=1e-6, abs=1e-6, nan_ok=True), place
    else:
        assert actual == expected, place
