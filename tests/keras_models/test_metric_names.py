"""What a metric's name says."""

import pytest
from tfx_compression.keras_models.metric_names import is_example_count, metric_drop, plain_name, smaller_is_better


@pytest.mark.parametrize(
    "metric",
    [
        "loss",
        "mse",
        "MeanSquaredError",
        "mean_squared_error",
        "mean_absolute_error",
        "mean_absolute_percentage_error",
        "binary_crossentropy",
        "kullback_leibler_divergence",
        "hinge",
        "poisson",
        "logcosh",
        "fnr",
        "false_positives",
        "false_negatives",
        "fall_out",
        "miss_rate",
        "output/loss",
        "loss@k:2",
    ],
)
def test_a_rise_of_a_metric_that_is_better_when_smaller_is_a_drop(metric):
    assert smaller_is_better(metric)
    assert metric_drop(metric, 0.5, 0.75) == 0.25
    assert metric_drop(metric, 0.75, 0.5) == -0.25


@pytest.mark.parametrize(
    "metric",
    [
        "accuracy",
        "sparse_categorical_accuracy",
        "auc",
        "precision",
        "recall",
        "recall_at_false_positive_rate",
        "f1_score",
        "true_positives",
        "loss/accuracy",
    ],
)
def test_a_fall_of_a_metric_that_is_better_when_larger_is_a_drop(metric):
    assert not smaller_is_better(metric)
    assert metric_drop(metric, 0.75, 0.5) == 0.25
    assert metric_drop(metric, 0.5, 0.75) == -0.25


@pytest.mark.parametrize(
    ("metric", "counts"),
    [
        ("example_count", True),
        ("weighted_example_count", True),
        ("binary/example_count", True),
        ("example_count@unweighted", True),
        ("accuracy", False),
        ("example_count/accuracy", False),
    ],
)
def test_the_number_of_examples_is_told_from_a_metric(metric, counts):
    assert is_example_count(metric) == counts


def test_keras_classes_and_functions_have_one_plain_name():
    assert plain_name("SparseCategoricalAccuracy") == plain_name("sparse_categorical_accuracy")
