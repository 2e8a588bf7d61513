"""The criteria, by hand-computed cases and by brute force, and the registration of the user's own."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tfx_compression.errors import ConfigError
from tfx_compression.pruning import criteria

from tests.support.errors import raises
from tests.support.scoring import FakeStatistics, kernel, random_kernel, scores


def test_norms_of_filters_equal_loops():
    one = random_kernel(3, 3, 4, 5)
    filters = [one.values[..., i].ravel().tolist() for i in range(5)]
    sums = [sum(abs(x) for x in values) for values in filters]
    np.testing.assert_allclose(scores(one, "magnitude"), sums, rtol=1e-5)
    np.testing.assert_allclose(scores(one, "l1"), sums, rtol=1e-5)
    np.testing.assert_allclose(scores(one, "l2"), [math.hypot(*values) for values in filters], rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 99))
def test_geometric_median_equals_brute_force(filters, size, seed):
    one = random_kernel(size, filters, seed=seed, kind="dense")
    columns = one.values.T
    expected = [sum(math.dist(column, other) for other in columns) for column in columns]
    np.testing.assert_allclose(scores(one, "geometric_median"), expected, rtol=1e-4, atol=1e-6)


def test_geometric_median_ranks_equal_filters_lowest():
    actual = scores(kernel([[1, 1, 1, 5], [2, 2, 2, -5]], "dense"), "geometric_median")
    assert actual[0] == actual[1] == actual[2] < actual[3]


def test_random_scores_depend_on_the_seed_and_the_name():
    one, other = random_kernel(8, 4), random_kernel(8, 4, name="other")
    for technique, shape in (("weight", (8, 4)), ("filter", (4,))):
        actual = scores(one, "random", technique, seed=3)
        assert actual.shape == shape
        np.testing.assert_array_equal(actual, scores(one, "random", technique, seed=3))
        assert (actual != scores(one, "random", technique, seed=4)).any()
        assert (actual != scores(other, "random", technique, seed=3)).any()


def test_bn_scale_is_the_magnitude_of_the_scale():
    statistics = FakeStatistics(scale=[-2, 1, 0])
    np.testing.assert_allclose(scores(random_kernel(2, 3), "bn_scale", statistics=statistics), [2, 1, 0])


def test_apoz_and_activation_mean_by_hand():
    # The last batch has one position only.
    statistics = FakeStatistics(activations=[[[0, 1, -1], [0, 0, 3]], [[4, 0, 2]]])
    one = random_kernel(5, 3)
    np.testing.assert_allclose(scores(one, "apoz", statistics=statistics), [1 / 3, 1 / 3, 1])
    np.testing.assert_allclose(scores(one, "activation_mean", statistics=statistics), [4 / 3, 1 / 3, 2])


def test_gates_are_preferred_to_the_gradients_of_weights():
    statistics = FakeStatistics([np.ones((2, 2)), np.ones((2, 2))], gates=[[1, 2], [3, -4]])
    one = kernel([[1, 2], [3, -4]], "dense")
    np.testing.assert_allclose(scores(one, "taylor", statistics=statistics), [5, 10])
    np.testing.assert_allclose(scores(one, "fisher", statistics=statistics), [2.5, 5])


def test_taylor_of_channels_squares_the_joint_change_of_each_batch():
    statistics = FakeStatistics([[[1, 2], [-1, 1]], [[0, 1], [3, 0]]])
    actual = scores(kernel([[1, 2], [3, -4]], "dense"), "taylor", statistics=statistics)
    np.testing.assert_allclose(actual, [((1 - 3) ** 2 + 9**2) / 2, ((4 - 4) ** 2 + 2**2) / 2])


def test_fisher_is_half_the_mean_of_squares():
    statistics = FakeStatistics([[[1, 2], [-1, 1]], [[0, 1], [3, 0]]])
    one = kernel([[1, 2], [3, -4]], "dense")
    np.testing.assert_allclose(scores(one, "fisher", "weight", statistics), [[0.25, 5], [22.5, 4]])
    np.testing.assert_allclose(scores(one, "fisher", statistics=statistics), [(4 + 81) / 4, (0 + 4) / 4])


def test_every_built_in_criterion_scores_channels():
    statistics = FakeStatistics([np.ones((2, 3))], [np.ones((4, 3))], np.ones(3))
    for name in criteria.NAMES:
        if name != "scores":
            assert scores(random_kernel(2, 3), name, statistics=statistics).shape == (3,)


# Criteria of the user


@pytest.fixture
def registry(monkeypatch):
    """Forgets the criteria that a test registers, and hides those of other tests' modules."""
    built_in = {name: criterion for name, criterion in criteria._registry.items() if name in criteria.NAMES}
    monkeypatch.setattr(criteria, "_registry", built_in)


def test_a_registered_function_of_weights_scores_channels_too(registry):
    criteria.register("cubes", weights=lambda inputs: np.abs(inputs.values) ** 3)
    one = random_kernel(3, 3, 2, 4)
    np.testing.assert_allclose(scores(one, "cubes", "weight"), np.abs(one.values) ** 3, rtol=1e-5)
    np.testing.assert_allclose(scores(one, "cubes"), (np.abs(one.values) ** 3).sum(axis=(0, 1, 2)), rtol=1e-5)


def test_a_registered_function_gets_the_inputs_that_it_requires(registry):
    criteria.register("movement", weights=lambda inputs: -inputs.gradients * inputs.values, requires="gradients")
    statistics = FakeStatistics([np.ones((2, 3)), 3 * np.ones((2, 3))])
    one = random_kernel(2, 3)
    np.testing.assert_allclose(scores(one, "movement", "weight", statistics), -2 * one.values, rtol=1e-5)


def test_a_registered_function_of_channels_does_not_score_weights(registry):
    criteria.register("largest", channels=lambda inputs: np.abs(inputs.values).max(axis=0))
    assert scores(random_kernel(2, 3), "largest").shape == (3,)
    with raises(ConfigError, code="criterion-of-channels", match="largest"):
        scores(random_kernel(2, 3), "largest", "weight")


def test_scores_of_a_wrong_shape_are_rejected(registry):
    criteria.register("short", weights=lambda inputs: inputs.values[0])
    with raises(ConfigError, code="shape-of-scores", match=r"'short'.*'k'.*\(3,\).*\(2, 3\)"):
        scores(random_kernel(2, 3), "short", "weight")


def test_scores_that_are_not_finite_are_rejected(registry):
    criteria.register("odd", channels=lambda inputs: np.full(3, np.inf))
    with raises(ConfigError, code="scores-not-finite", match="'odd'.*'k'"):
        scores(random_kernel(2, 3), "odd")


def test_a_built_in_name_can_not_be_registered(registry):
    with raises(ConfigError, code="built-in-criterion", match="taylor"):
        criteria.register("taylor", weights=lambda inputs: inputs.values)


def test_a_criterion_without_a_function_can_not_be_registered(registry):
    with raises(ConfigError, code="criterion-without-function", match="nothing"):
        criteria.register("nothing")


def test_the_error_for_an_unknown_criterion_lists_all_criteria(registry):
    criteria.register("cubes", weights=lambda inputs: inputs.values**3)
    with raises(ConfigError, field="PruningPlan.criterion", code="unknown-criterion") as caught:
        criteria.lookup("magnitud")
    for name in ("magnitud", *criteria.NAMES, "cubes"):
        assert name in str(caught.value)
