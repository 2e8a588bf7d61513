"""Allocations, by hand-computed cases, the published algorithms and properties."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tfx_compression.errors import ConfigError
from tfx_compression.pruning.allocation import Allocator
from tfx_compression.pruning.pruning_group import PruningGroup

from tests.support.errors import raises


def allocate(groups, allocation, sparsity, rules=None, achieved=None, target="sparsity"):
    return Allocator(groups, allocation, list(rules or {}), achieved, target).allocate(sparsity, rules)


def group(name, scores, erdos_renyi=1.0, multiple=1):
    return PruningGroup(name, np.asarray(scores, np.float32), erdos_renyi, multiple)


def random_groups(sizes, seed=0, multiple=1):
    generator = np.random.default_rng(seed)
    return [group(f"p{i}", generator.random(size), 1 / size, multiple) for i, size in enumerate(sizes)]


def kept(groups, sparsities):
    return {one.name: one.kept(sparsities[one.name]) for one in groups}


def test_uniform_is_the_same_everywhere_and_not_searched():
    assert allocate(random_groups([10, 100, 7]), "uniform", 0.37) == {"p0": 0.37, "p1": 0.37, "p2": 0.37}


def test_rules_fix_the_sparsity_of_their_groups():
    for allocation in ("uniform", "global", "erdos_renyi", "lamp"):
        actual = allocate(random_groups([10, 100, 7]), allocation, 0.5, {"p1": 0.2})
        assert actual["p1"] == 0.2
        assert list(actual) == ["p0", "p1", "p2"]


def test_uniform_reaches_a_target_that_is_not_a_count():
    def macs(sparsities):  # of two consecutive layers
        return 1 - (1 - sparsities["a"]) * (1 - sparsities["b"])

    actual = allocate([group("a", np.ones(64)), group("b", np.ones(64))], "uniform", 0.5, achieved=macs)
    assert actual["a"] == actual["b"] == pytest.approx(1 - 0.5**0.5)
    assert macs(actual) >= 0.5 - 1e-9


sizes = st.lists(st.integers(3, 40), min_size=1, max_size=5)


@settings(max_examples=100, deadline=None)
@given(sizes, st.integers(0, 99), st.integers(0, 600).map(lambda thousandths: thousandths / 1000))
def test_global_prunes_the_least_important_elements(lengths, seed, sparsity):
    groups = random_groups(lengths, seed)
    actual = allocate(groups, "global", sparsity)
    scores = np.concatenate([one.scores for one in groups])
    owners = np.repeat(np.arange(len(groups)), lengths)
    removed = next(  # the fewest that are enough, where each group keeps one
        counts
        for number in range(len(scores) + 1)
        for counts in [
            np.minimum(np.bincount(owners[np.argsort(scores)[:number]], minlength=len(groups)), np.array(lengths) - 1)
        ]
        if counts.sum() >= sparsity * len(scores) - 1e-6
    )
    assert [one.scores.size - one.kept(actual[one.name]) for one in groups] == list(removed)


def test_global_counts_are_exact_among_equal_scores():
    groups = [group("a", np.ones(10)), group("b", np.ones(10))]
    assert sum(kept(groups, allocate(groups, "global", 0.35)).values()) == 13


def erdos_renyi_by_hand(raw, sizes, density):
    """The published loop: groups whose density would exceed 1 are dense, and the others share the rest."""
    dense = set()
    while True:
        left = density * sum(sizes) - sum(sizes[i] for i in dense)
        scale = left / sum(raw[i] * sizes[i] for i in range(len(raw)) if i not in dense)
        above = {i for i in range(len(raw)) if i not in dense and scale * raw[i] > 1}
        if not above:
            return [1.0 if i in dense else scale * raw[i] for i in range(len(raw))]
        dense |= above


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(3, 64), st.integers(3, 64), st.sampled_from([1, 3])), min_size=2, max_size=6),
    st.floats(0.05, 0.9),
)
def test_erdos_renyi_densities_equal_the_published_loop(shapes, sparsity):
    sizes = [inputs * outputs * k * k for inputs, outputs, k in shapes]
    raw = [(inputs + outputs + 2 * k) / size for (inputs, outputs, k), size in zip(shapes, sizes, strict=True)]
    groups = [group(str(i), np.ones(size), raw[i]) for i, size in enumerate(sizes)]
    exact = lambda sparsities: sum(sparsities[str(i)] * size for i, size in enumerate(sizes)) / sum(sizes)  # noqa: E731
    expected = erdos_renyi_by_hand(raw, sizes, 1 - sparsity)
    if min(density * size for density, size in zip(expected, sizes, strict=True)) < 1:
        return  # one weight is kept
    actual = allocate(groups, "erdos_renyi", sparsity, achieved=exact)
    np.testing.assert_allclose([1 - actual[str(i)] for i in range(len(sizes))], expected, atol=1e-6)


def test_erdos_renyi_of_two_layers_by_hand():
    # Densities e*0.5 and e*0.1 of 10 and 90 weights: e * (5 + 9) = 28 weights, so e = 2.
    groups = [group("small", np.ones(10), 0.5), group("large", np.ones(90), 0.1)]
    assert kept(groups, allocate(groups, "erdos_renyi", 0.72)) == {"small": 10, "large": 18}


def lamp_by_hand(weights):
    order = sorted(range(len(weights)), key=lambda i: weights[i])
    scores = [0.0] * len(weights)
    for place, i in enumerate(order):
        scores[i] = weights[i] ** 2 / sum(weights[j] ** 2 for j in order[place:])
    return scores


@settings(max_examples=100, deadline=None)
@given(sizes, st.integers(0, 99), st.floats(0.0, 0.6))
def test_lamp_prunes_the_least_lamp_scores(lengths, seed, sparsity):
    groups = random_groups(lengths, seed)
    scores = np.concatenate([lamp_by_hand(one.scores.astype(float).tolist()) for one in groups]).astype(np.float32)
    expected = allocate(
        [
            group(one.name, values)
            for one, values in zip(groups, np.split(scores, np.cumsum(lengths)[:-1]), strict=True)
        ],
        "global",
        sparsity,
    )
    assert kept(groups, allocate(groups, "lamp", sparsity)) == kept(groups, expected)


def test_lamp_by_hand():
    # Squares 1, 4, 9 give 1/14, 4/13, 1; squares 4, 4, 1 give 4/8, 1, 1/9. The least three are 1/14, 1/9, 4/13.
    groups = [group("a", [1, 2, 3]), group("b", [2, 2, 1])]
    assert kept(groups, allocate(groups, "lamp", 0.5)) == {"a": 1, "b": 2}


def test_lamp_does_not_depend_on_a_layers_scale():
    first, second = random_groups([50, 50])
    scaled = group("p1", second.scores * 1000)
    assert kept([first, second], allocate([first, second], "lamp", 0.6)) == kept(
        [first, scaled], allocate([first, scaled], "lamp", 0.6)
    )


def test_lamp_prunes_zeros_first():
    groups = [group("zeros", np.zeros(10)), group("rest", np.arange(1, 11))]
    assert kept(groups, allocate(groups, "lamp", 0.4)) == {"zeros": 2, "rest": 10}


@pytest.mark.parametrize("allocation", ["global", "erdos_renyi", "lamp"])
def test_every_group_keeps_one_multiple(allocation):
    groups = [group("weak", np.full(32, 0.001), 0.001, 8), group("strong", np.arange(1, 65), 1.0, 8)]
    left = kept(groups, allocate(groups, allocation, 0.8))
    assert left["weak"] >= 8 and left["strong"] >= 8
    assert sum(left.values()) <= 0.2 * 96


@pytest.mark.parametrize("allocation", ["uniform", "global", "erdos_renyi", "lamp"])
def test_an_unreachable_sparsity_is_rejected_with_the_highest(allocation):
    groups = random_groups([16, 16], multiple=4)
    macs = lambda sparsities: 0.5 * sum(1 - one.kept(sparsities[one.name]) / 16 for one in groups)  # noqa: E731
    with raises(ConfigError, field="PruningPlan.sparsity", code="unreachable-sparsity", match=r"0\.9 .*macs.* 0\.75\."):
        allocate(groups, allocation, 0.9, achieved=macs, target="macs")
    actual = allocate(groups, allocation, 0.75, achieved=macs, target="macs")
    assert macs(actual) == 0.75


def test_rules_for_all_groups_are_rejected_if_they_prune_too_little():
    with raises(ConfigError, code="unreachable-sparsity"):
        allocate(random_groups([10]), "global", 0.5, {"p0": 0.0})


def test_free_groups_are_left_dense_if_the_rules_suffice():
    groups = random_groups([10, 10])
    whole = lambda sparsities: sum(sparsities.values()) / 2  # noqa: E731
    assert allocate(groups, "global", 0.4, {"p0": 0.8}, whole) == {"p0": 0.8, "p1": 0.0}


@settings(max_examples=60, deadline=None)
@given(sizes, st.integers(0, 9), st.floats(0, 0.6), st.sampled_from(["uniform", "global", "erdos_renyi", "lamp"]))
def test_the_sparsity_is_hardly_exceeded(lengths, seed, sparsity, allocation):
    groups = random_groups(lengths, seed)
    total = sum(lengths)
    count = lambda sparsities: 1 - sum(kept(groups, sparsities).values()) / total  # noqa: E731
    if sparsity * total > total - len(lengths):
        return
    actual = count(allocate(groups, allocation, sparsity, achieved=count))
    assert actual >= sparsity - 1e-6
    if allocation in ("global", "lamp"):
        assert actual < sparsity + 1 / total
    else:
        assert actual <= sparsity + len(lengths) / total


@pytest.mark.slow
def test_25_million_weights_take_seconds():
    groups = random_groups([2_500_000] * 10)
    started = time.monotonic()
    for allocation in ("global", "lamp"):
        actual = allocate(groups, allocation, 0.8)
        assert sum(kept(groups, actual).values()) == pytest.approx(5_000_000, abs=10)
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("allocation", ["uniform", "global", "erdos_renyi", "lamp"])
def test_one_allocator_allocates_several_sparsities(allocation):
    groups = random_groups([30, 20, 10])
    allocator = Allocator(groups, allocation, ["p1"])
    for sparsity in (0.3, 0.6):
        rules = {"p1": sparsity / 2}
        assert allocator.allocate(sparsity, rules) == allocate(groups, allocation, sparsity, rules)
