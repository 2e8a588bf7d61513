"""Masks on disk, and the check of the zeros that they prune."""

import numpy as np
import pytest
from tfx_compression.errors import ModelError
from tfx_compression.model_handle.compressed import read_masks, require_masked_zeros, write_masks

from tests.support import helpers
from tests.support.errors import raises


def test_masks_survive_writing_and_reading(tmp_path):
    masks = {"encoder/dense": np.array([[1.0, 0.0], [0.0, 1.0]]), "y": np.ones([3], bool)}
    path = str(tmp_path / "folder" / "masks.npz")
    write_masks(path, masks)
    stored = read_masks(path)
    assert list(stored) == list(masks)
    for name, mask in masks.items():
        np.testing.assert_array_equal(stored[name], mask.astype(bool), strict=True)


@pytest.fixture(scope="module")
def model():
    return helpers.small_dense()


def test_zeros_behind_a_mask_are_accepted_and_other_values_refused(model):
    mask = helpers.zero_smallest(model, "hidden", 0.5)
    require_masked_zeros(model, {"hidden": mask}, "the model")
    wrong = mask.copy()
    wrong[tuple(np.argwhere(mask)[0])] = False
    with raises(ModelError, code="revived-weights", match="the model: 1 .*'hidden'"):
        require_masked_zeros(model, {"hidden": wrong}, "the model")


@pytest.mark.parametrize(
    ("masks", "place"), [({"other": np.ones([4, 16])}, "'other'"), ({"y": np.ones([4, 16])}, r"'y'.*\(16, 2\)")]
)
def test_masks_of_another_model_are_refused(model, masks, place):
    with raises(ModelError, code="mask-mismatch", match=place):
        require_masked_zeros(model, masks, "the model")
