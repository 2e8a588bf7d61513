"""Scores of kernels of every kind: their channels, their averages over data, and what can't be scored."""

import numpy as np
import pytest
from tfx_compression.errors import ConfigError, ModelError
from tfx_compression.pruning import criteria, importance
from tfx_compression.pruning.plan import PruningPlan

from tests.support.errors import raises
from tests.support.scoring import FakeStatistics, random_kernel, scores


def test_scores_of_weights_have_the_kernels_shape():
    one = random_kernel(3, 2, 5, 4, kind="transposed", outputs=(2,))
    np.testing.assert_array_equal(scores(one, "magnitude", "weight"), np.abs(one.values))
    np.testing.assert_array_equal(scores(one, "l2", "weight"), one.values**2)
    gradients = np.random.default_rng(1).normal(size=(2, 3, 2, 5, 4)).astype(np.float32)
    expected = np.abs(gradients * one.values).mean(axis=0)
    np.testing.assert_allclose(scores(one, "taylor", "weight", FakeStatistics(list(gradients))), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "shape, kind, outputs, axes, channels",
    [
        ((3, 3, 5, 4), "transposed", (2,), None, 5),
        ((3, 3, 5, 4), "depthwise", (2, 3), None, 20),
        ((6, 2, 3), "einsum", (1, 2), None, 6),
        ((6, 2, 3), "einsum", (1, 2), (1,), 2),
        ((6, 12), "recurrent", (1,), None, 12),
        ((50, 6), "embedding", (0, 1), None, 6),
    ],
)
def test_channels_of_each_kind_of_kernel(shape, kind, outputs, axes, channels):
    one = random_kernel(*shape, kind=kind, outputs=outputs)
    chosen = axes or (outputs if kind != "embedding" else (1,))
    expected = np.abs(one.values).sum(axis=tuple(i for i in range(len(shape)) if i not in chosen)).ravel()
    actual = scores(one, "l1", axes={"k": axes} if axes else None)
    assert actual.shape == (channels,)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_kernels_without_statistics_are_left_out():
    criterion = criteria.lookup("bn_scale")
    plan = PruningPlan(criterion="bn_scale", technique="filter")
    assert importance.score({"k": random_kernel(2, 3)}, ["k"], plan, criterion, FakeStatistics()) == {}
    error = importance.unscored(criterion, "k")
    assert error.code == "unscored-layer" and "'k'" in str(error)


@pytest.mark.parametrize("criterion", ["bn_scale", "geometric_median", "activation_mean", "apoz"])
def test_criteria_of_channels_do_not_score_weights(criterion):
    with raises(ConfigError, field="PruningPlan.criterion", code="criterion-of-channels", match=criterion):
        scores(random_kernel(2, 3), criterion, "weight")


@pytest.mark.parametrize("criterion", ["taylor", "fisher", "apoz", "activation_mean", "bn_scale"])
def test_a_criterion_of_the_data_requires_data(criterion):
    with raises(ConfigError, field="PruningPlan.criterion", code="criterion-without-data", match=criterion):
        scores(random_kernel(2, 3), criterion)


def test_gradients_that_are_not_finite_are_rejected():
    with raises(ModelError, code="not-finite", match="gradients of 'k'"):
        scores(random_kernel(2, 3), "taylor", statistics=FakeStatistics([np.full((2, 3), np.nan)]))


def test_normalized_scores_have_mean_one_and_the_same_order():
    values = np.random.default_rng(0).random(100).astype(np.float32) * 1e-6
    actual = importance.normalize(values)
    assert actual.mean() == pytest.approx(1)
    assert (np.argsort(actual) == np.argsort(values)).all()
    np.testing.assert_array_equal(importance.normalize(np.zeros(3, np.float32)), 0)
    np.testing.assert_allclose(importance.normalize(np.array([-1, 3], np.float32)), [-0.5, 1.5])
