"""Mode dynamic: weights are dropped and grown by RigL at constant sparsity."""

import functools
import math
from collections.abc import Mapping

import numpy as np
import pytest
from tfx_compression.errors import ConfigError
from tfx_compression.pruning.prune import PrunedModel
from tfx_compression.sparsity_fine_tuner.config import FineTuning
from tfx_compression.sparsity_fine_tuner.fine_tune import fine_tune

from tests.support import helpers, nets
from tests.support.errors import raises
from tests.support.fine_tuning import dense_gradients, rigl_update

SGD = {"optimizer": "sgd", "loss": "mse", "learning_rate": 0.05}
CONFIG = FineTuning(mode="dynamic", epochs=4, drop_fraction=0.5, **SGD)


@pytest.mark.parametrize("block", [(1, 1), pytest.param((2, 2), marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", nets.EVERY_KIND[:2])
def test_least_weights_drop_and_largest_gradients_grow(kind, block, eagerly):
    pattern = "unstructured" if block == (1, 1) else "2x2"
    pruned = nets.pruned(nets.dense(kind, None), sparsity=0.5, frequency=3, pattern=pattern, end_step=10)
    model = pruned.handle
    step, unconstrained = nets.unconstrained_steps(model)
    recorder = nets.recorder(model)
    x, y = helpers.points(64)
    updates, masks = [], [pruned.masks]

    def update(number):
        before = masks[-1]
        held = {name: unconstrained[-1][name] * before[name] for name in nets.KERNELS}
        gradients = dense_gradients(held, model.model, x, y)
        fraction = 0.3 * (1 + math.cos(math.pi * number / 10))
        pooled = [{name: _pooled(values[name], block) for name in nets.KERNELS} for values in (held, gradients, before)]
        chosen = {
            name: rigl_update(pooled[0][name], pooled[1][name], pooled[2][name] > 0.5, fraction)
            for name in nets.KERNELS
        }
        updates.append((number, held, before))
        masks.append({name: _mask(chosen[name], pooled[2][name].shape, block) for name in nets.KERNELS})

    recorder.on_prune = lambda number, sparsity: update(number)
    config = FineTuning(mode="dynamic", epochs=4, drop_fraction=0.6, batch_size=16, learning_rate=0.05)
    tuned = fine_tune(pruned, nets.points(), config, train_step=step, callbacks=[recorder])
    assert [number for number, *_ in updates] == [3, 6, 9]
    for (number, held, before), chosen in zip(updates, masks[1:], strict=True):
        for name, mask in chosen.items():
            after = recorder.kernels[number][name]
            stayed = mask & before[name]
            np.testing.assert_array_equal(after[stayed], held[name][stayed])  # also those dropped and grown at once
            assert not after[~stayed].any()  # grown weights start at zero
            following = unconstrained[number][name] * mask
            np.testing.assert_array_equal(recorder.kernels[number + 1][name], following)
    for name, mask in tuned.masks.items():
        np.testing.assert_array_equal(mask, masks[-1][name])
    assert any((mask != pruned.masks[name]).any() for name, mask in tuned.masks.items())


def _mask(elements, shape, block):
    mask = np.zeros(shape, bool)
    mask[tuple(np.array(sorted(elements)).T)] = True
    return mask.repeat(block[0], 0).repeat(block[1], 1)


def _pooled(values, block):
    rows, columns = values.shape
    return np.abs(values).reshape(rows // block[0], block[0], columns // block[1], block[1]).mean((1, 3))


def pruned_dense(kind, folder, pattern) -> PrunedModel:
    return nets.pruned(nets.dense(kind, folder), sparsity=0.75, frequency=3, pattern=pattern)


@functools.cache
def masks_of_keras_2(pattern: str) -> Mapping[str, np.ndarray]:
    return fine_tune(pruned_dense("keras2", None, pattern), nets.points(), CONFIG).masks


@pytest.mark.parametrize("kind", nets.EVERY_KIND)
@pytest.mark.parametrize("pattern", ["unstructured", pytest.param("2x2", marks=pytest.mark.slow)])
def test_kernels_of_every_kind_keep_their_number_of_zeros_and_get_the_same_masks(kind, pattern, tmp_path):
    pruned = pruned_dense(kind, tmp_path, pattern)
    recorder = nets.recorder(pruned.handle)
    tuned = fine_tune(pruned, nets.points(), CONFIG, callbacks=[recorder])
    assert sorted(recorder.updates) == [3, 6, 9]
    for name, mask in tuned.masks.items():
        assert np.count_nonzero(mask) == np.count_nonzero(pruned.masks[name])
        for kernels in recorder.kernels:
            assert np.count_nonzero(kernels[name]) <= np.count_nonzero(mask)
        assert not recorder.kernels[-1][name][~mask].any()
        np.testing.assert_array_equal(mask, masks_of_keras_2(pattern)[name])
    assert any((mask != pruned.masks[name]).any() for name, mask in tuned.masks.items())


def test_n_of_m_patterns_are_refused():
    pruned = nets.pruned(nets.dense("keras2", None), pattern="2:4", sparsity=0.5, frequency=2)
    with raises(ConfigError, field="PruningPlan.pattern", code="pattern-not-dynamic", match="'2:4'"):
        fine_tune(pruned, nets.points(), FineTuning(mode="dynamic"))


def test_training_without_an_update_is_refused():
    pruned = nets.pruned(nets.dense("keras2", None), frequency=100)
    with raises(ConfigError, field="PruningPlan.frequency", code="masks-never-updated", match="100"):
        fine_tune(pruned, nets.points(), FineTuning(mode="dynamic"))
