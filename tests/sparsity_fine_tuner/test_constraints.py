"""Constraints of weights: masks and clusters."""

import numpy as np
from tfx_compression.sparsity_fine_tuner.constraints import ClusterConstraint, MaskConstraint

from tests.support import nets


def test_replaced_masks_apply_at_once():
    model = nets.dense("keras2", None)
    constraint = MaskConstraint(model.kernels, {"y": np.ones((16, 2), bool)})
    mask = np.zeros((16, 2), bool)
    mask[3] = True
    constraint.enabled.assign(False)
    constraint.replace({"y": mask})
    assert np.count_nonzero(model.kernels["y"].values) == 2
    assert bool(constraint.enabled)
    np.testing.assert_array_equal(constraint.masks["y"], mask)


def test_disabled_masks_do_not_apply():
    model = nets.dense("keras2", None)
    constraint = MaskConstraint(model.kernels, {"y": np.zeros((16, 2), bool)})
    before = model.kernels["y"].values
    constraint.enabled.assign(False)
    constraint.apply()
    np.testing.assert_array_equal(model.kernels["y"].values, before)


def test_each_weight_becomes_the_mean_of_its_cluster():
    model = nets.dense("keras2", None)
    index = np.arange(32).reshape(16, 2) % 3
    before = model.kernels["y"].values
    ClusterConstraint(model.kernels, {"y": index}).apply()
    for number in range(3):
        mean = before[index == number].mean()
        np.testing.assert_allclose(model.kernels["y"].values[index == number], mean, rtol=1e-6)
