"""Masks of every pattern and kind of kernel, compared with tfmot."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_model_optimization.python.core.sparsity.keras import pruning_utils
from tfx_compression.errors import ConfigError
from tfx_compression.kernels import Kernel, find_kernels
from tfx_compression.pruning import masks
from tfx_compression.pruning.plan import PruningPlan

from tests.support.errors import raises

AXES = {
    "dense": lambda rank: ((0,), (1,)),
    "convolution": lambda rank: (tuple(range(rank - 1)), (rank - 1,)),
    "transposed": lambda rank: ((*range(rank - 2), rank - 1), (rank - 2,)),
    "einsum": lambda rank: ((0,), tuple(range(1, rank))),
    "recurrent": lambda rank: ((0,), (1,)),
    "embedding": lambda rank: ((), (0, 1)),
}
UNSTRUCTURED = PruningPlan()
TWO_OF_FOUR = PruningPlan(pattern="2:4")


def kernel(values, kind="dense"):
    values = np.asarray(values, np.float32)
    inputs, outputs = AXES[kind](values.ndim)
    return Kernel("k", tf.Variable(values), kind, inputs, outputs)


def random_kernel(shape, kind="dense", seed=0):
    return kernel(np.random.default_rng(seed).normal(size=shape), kind)


def masked(kernel, sparsity=0.5, plan=UNSTRUCTURED):
    return masks.mask(kernel, np.abs(kernel.values), sparsity, plan)


def tfmot_mask(values, sparsity, **arguments):
    """Returns the mask that tfmot's wrapper applies to a Dense or Conv2D layer with these weights."""
    layers = tf_keras.layers
    rank = values.ndim
    layer = layers.Dense(values.shape[-1]) if rank == 2 else layers.Conv2D(values.shape[-1], values.shape[:2])
    shape = (None, values.shape[0]) if rank == 2 else (None, *values.shape[:2], values.shape[2])
    schedule = tfmot.sparsity.keras.ConstantSparsity(sparsity, begin_step=0, frequency=1)
    wrapper = tfmot.sparsity.keras.prune_low_magnitude(layer, pruning_schedule=schedule, **arguments)
    wrapper.build(shape)
    layer.kernel.assign(values)
    wrapper.pruning_step.assign(1 if "sparsity_m_by_n" in arguments else 0)
    wrapper.pruning_obj.conditional_mask_update()
    wrapper.pruning_obj.weight_mask_op()
    return layer.kernel.numpy() != 0


@pytest.mark.parametrize("sparsity", [0.01, 0.1, 0.25, 1 / 3, 0.5, 0.61, 0.75, 0.9, 0.95, 0.99, 0.999])
@pytest.mark.parametrize("shape", [(13, 7), (3, 3, 5, 6)])
def test_unstructured_masks_equal_tfmots(shape, sparsity):
    one = random_kernel(shape, "dense" if len(shape) == 2 else "convolution")
    np.testing.assert_array_equal(masked(one, sparsity), tfmot_mask(one.values, sparsity))


def test_weights_that_tie_with_the_last_kept_one_are_kept_as_by_tfmot():
    values = np.array([[1.0, 2.0], [2.0, 2.0], [-2.0, 3.0]])
    np.testing.assert_array_equal(masked(kernel(values), 0.5), tfmot_mask(values, 0.5))
    np.testing.assert_array_equal(masked(kernel(values), 0.5), np.abs(values) >= 2)


@pytest.mark.parametrize("n, m", [(2, 4), (1, 4), (3, 4), (1, 2), (3, 8)])
@pytest.mark.parametrize("shape", [(16, 5), (14, 5), (3, 3, 8, 6), (1, 1, 10, 4), (3, 3, 3, 4)])
def test_n_of_m_masks_equal_tfmots(shape, n, m):
    values = np.round(np.random.default_rng(0).normal(size=shape), 1)  # with ties
    values[values == 0] = 0.1
    one = kernel(values, "dense" if len(shape) == 2 else "convolution")
    if masks.supports_pattern(one, PruningPlan(pattern=f"{n}:{m}")):
        ours = masked(one, 1 - n / m, PruningPlan(pattern=f"{n}:{m}"))
        np.testing.assert_array_equal(ours, tfmot_mask(values, 0.5, sparsity_m_by_n=(m - n, m)))
        assert pruning_utils.is_pruned_m_by_n(tf.constant(ours * values), (m - n, m))


@pytest.mark.parametrize("block", [(4, 1), (1, 4), (2, 2), (8, 1)])
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.8])
def test_masks_of_fitting_blocks_equal_tfmots(block, sparsity):
    one = random_kernel((16, 24))
    plan = PruningPlan(pattern="{}x{}".format(*block))
    np.testing.assert_array_equal(masked(one, sparsity, plan), tfmot_mask(one.values, sparsity, block_size=block))


@pytest.mark.parametrize("shape, block", [((7, 5), (4, 1)), ((5, 7), (1, 4)), ((7, 3), (2, 2))])
def test_masks_of_blocks_with_one_cell_outside_equal_tfmots(shape, block):
    one = random_kernel(shape)
    plan = PruningPlan(pattern="{}x{}".format(*block))
    np.testing.assert_array_equal(masked(one, 0.5, plan), tfmot_mask(one.values, 0.5, block_size=block))


def test_a_ragged_block_is_scored_by_its_own_cells():
    values = np.array([[1, 1, 1, 1, 2, 2]]).T  # the average of the last two is larger
    np.testing.assert_array_equal(masked(kernel(values), 0.5, PruningPlan(pattern="4x1"))[:, 0], values[:, 0] == 2)


def test_blocks_of_a_convolution_run_along_its_inputs():
    values = np.ones((1, 2, 4, 2))
    values[0, 0, :, 0] = [9, 9, 0, 0]  # averages 4.5
    values[0, 1, :, 1] = [4, 4, 4, 4]
    expected = np.zeros(values.shape, bool)
    expected[0, 0, :, 0] = expected[0, 1, :, 1] = True
    plan = PruningPlan(pattern="4x1")
    one = kernel(values, "convolution")
    np.testing.assert_array_equal(masked(one, 0.5, plan), expected)
    assert masks.check_pattern(one, expected, plan)


def test_blocks_of_a_convolution_join_neighboring_filters():
    values = np.ones((1, 1, 2, 4))
    values[0, 0, 1, :2] = 3
    np.testing.assert_array_equal(
        masked(kernel(values, "convolution"), 0.75, PruningPlan(pattern="1x2")), np.where(values == 3, True, False)
    )


def test_groups_of_a_transposed_convolution_run_along_its_last_axis():
    values = np.zeros((1, 1, 2, 4))
    values[0, 0] = [[1, 2, 3, 4], [8, 7, 6, 5]]
    kept = masked(kernel(values, "transposed"), 0.5, TWO_OF_FOUR)
    np.testing.assert_array_equal(kept[0, 0], [[False, False, True, True], [True, True, False, False]])


def test_an_incomplete_group_keeps_at_most_n():
    kept = masked(kernel(np.arange(1, 8)[:, None]), 0.75, PruningPlan(pattern="1:4"))
    np.testing.assert_array_equal(kept[:, 0], [False, False, False, True, False, False, True])


@pytest.mark.parametrize(
    "shape, kind, pattern, expected",
    [
        ((3, 3, 1, 8), "convolution", "2:4", False),
        ((3, 3, 2, 8), "convolution", "2:4", False),
        ((3, 3, 3, 8), "convolution", "2:4", True),
        ((3, 3, 8, 1), "transposed", "2:4", False),
        ((100, 16), "embedding", "2:4", False),
        ((100, 16), "embedding", "1x4", True),
        ((4, 1), "dense", "4x1", False),
        ((2, 1, 2, 3), "convolution", "4x1", True),
    ],
)
def test_which_kernels_support_a_pattern(shape, kind, pattern, expected):
    one, plan = random_kernel(shape, kind), PruningPlan(pattern=pattern)
    assert masks.supports_pattern(one, plan) == expected
    if not expected:
        with raises(ConfigError, field="PruningPlan.pattern", code="kernel-too-small", match="'k'"):
            masked(one, 0.5, plan)
    else:
        assert not masked(one, 0.5, plan).all()


@st.composite
def kernels(draw):
    kind = draw(st.sampled_from(list(AXES)))
    rank = {"convolution": st.integers(3, 5), "transposed": st.integers(3, 5), "einsum": st.just(3)}.get(
        kind, st.just(2)
    )
    shape = draw(rank.flatmap(lambda rank: st.tuples(*[st.integers(1, 6)] * rank)))
    return random_kernel(shape, kind, draw(st.integers(0, 99)))


@settings(max_examples=150, deadline=None)
@given(kernels(), st.sampled_from(["unstructured", "2:4", "1:4", "3:5", "4x1", "1x4", "2x3"]), st.floats(0, 0.999))
def test_any_mask_has_the_kernels_shape_follows_its_pattern_and_keeps_a_weight(one, pattern, sparsity):
    plan = PruningPlan(pattern=pattern)
    if not masks.supports_pattern(one, plan):
        return
    kept = masked(one, sparsity, plan)
    assert kept.shape == one.shape and kept.dtype == bool
    assert kept.any()
    assert sparsity == 0 or masks.check_pattern(one, kept, plan)
    if pattern == "unstructured":
        assert abs(kept.sum() - max(round(kept.size * (1 - sparsity)), 1)) <= 1
        assert kept.all() or np.abs(one.values)[~kept].max() <= np.abs(one.values)[kept].min()


@settings(max_examples=50, deadline=None)
@given(kernels(), st.sampled_from(["unstructured", "4x1", "2x3"]), st.floats(0, 0.9), st.floats(0, 0.9))
def test_masks_are_nested_by_sparsity(one, pattern, first, second):
    plan = PruningPlan(pattern=pattern)
    if masks.supports_pattern(one, plan):
        low, high = masked(one, min(first, second), plan), masked(one, max(first, second), plan)
        assert (low | ~high).all()


def test_a_single_weight_is_kept():
    assert masked(kernel([[1.0]]), 0.9).all()


def test_check_pattern_detects_a_broken_pattern():
    one = random_kernel((8, 4))
    kept = masked(one, 0.5, TWO_OF_FOUR)
    assert masks.check_pattern(one, one.values * kept, TWO_OF_FOUR)
    kept[~kept.all(axis=1)] = True
    assert not masks.check_pattern(one, one.values * kept, TWO_OF_FOUR)
    single = np.ones((8, 4), bool)
    single[0, 0] = False
    assert not masks.check_pattern(one, single, PruningPlan(pattern="4x1"))
    assert masks.check_pattern(one, single, UNSTRUCTURED)


def test_two_of_four_in_every_kind_of_layer():
    layers = tf_keras.layers
    sequence = tf_keras.Input((8, 8))
    attended = layers.MultiHeadAttention(2, 4)(sequence, sequence)
    outputs = layers.GRU(8)(layers.Conv1DTranspose(8, 3)(layers.Conv1D(8, 3)(attended)))
    volume = tf_keras.Input((4, 4, 4, 4))
    actual = find_kernels(tf_keras.Model([sequence, volume], [outputs, layers.Conv3D(8, 2)(volume)]))
    assert {kernel.kind for kernel in actual.values()} == {"einsum", "dense", "recurrent", "convolution", "transposed"}
    for one in actual.values():
        kept = masked(one, 0.5, TWO_OF_FOUR)
        assert kept.mean() == 0.5
        assert masks.check_pattern(one, kept, TWO_OF_FOUR)
