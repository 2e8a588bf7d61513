"""Scores that the user stored in an NPZ file."""

import numpy as np
import pytest
from tfx_compression.errors import ConfigError
from tfx_compression.pruning import criteria, importance
from tfx_compression.pruning.plan import PruningPlan

from tests.support.errors import raises
from tests.support.scoring import random_kernel

KERNELS = {"a": random_kernel(2, 3, name="a"), "b": random_kernel(4, 2, name="b")}


def stored(tmp_path, technique, kernels, names=None, **arrays):
    if arrays:
        np.savez(tmp_path / "scores.npz", **arrays)
    plan = PruningPlan(criterion="scores", technique=technique, scores=str(tmp_path / "scores.npz"))
    return importance.score(kernels, list(kernels) if names is None else names, plan, criteria.lookup("scores"))


def test_stored_scores_are_used_unchanged(tmp_path):
    a, b = np.arange(6.0).reshape(2, 3), -np.ones((4, 2))
    actual = stored(tmp_path, "weight", KERNELS, a=a, b=b)
    np.testing.assert_array_equal(actual["a"], a)
    np.testing.assert_array_equal(actual["b"], b)
    actual = stored(tmp_path, "filter", KERNELS, a=a, b=np.array([3.0, 4.0]))
    np.testing.assert_array_equal(actual["a"], [3, 5, 7])
    np.testing.assert_array_equal(actual["b"], [3, 4])


def test_stored_scores_of_protected_kernels_are_ignored(tmp_path):
    assert list(stored(tmp_path, "weight", KERNELS, ["a"], a=np.ones((2, 3)), b=np.ones(99))) == ["a"]


def test_arrays_may_be_named_after_the_layer(tmp_path):
    names = ["dense/kernel:0", "cell/kernel", "cell/recurrent_kernel"]
    kernels = {name: random_kernel(2, 3, name=name) for name in names}
    arrays = {"dense": np.ones((2, 3)), "cell/kernel": np.ones((2, 3)), "cell/recurrent_kernel": np.ones((2, 3))}
    assert list(stored(tmp_path, "weight", kernels, **arrays)) == names
    with raises(ConfigError, code="unknown-kernel", match="'cell'"):
        stored(tmp_path, "weight", kernels, cell=np.ones((2, 3)))


@pytest.mark.parametrize(
    "arrays, code, names",
    [
        ({"a": np.ones((2, 3))}, "missing-scores", "'b'"),
        ({"a": np.ones((2, 3)), "b": np.ones((4, 2)), "c": np.ones(3)}, "unknown-kernel", "'c'.* a, b"),
        ({"a": np.ones((3, 2)), "b": np.ones((4, 2))}, "shape-of-scores", r"'a'.*\(3, 2\).*\(2, 3\)"),
        ({"a": np.full((2, 3), np.nan), "b": np.ones((4, 2))}, "scores-not-finite", "'a'"),
        ({"a": np.array(["x"])}, "unreadable-scores", r"scores\.npz"),
    ],
)
def test_stored_scores_that_do_not_fit_are_rejected(tmp_path, arrays, code, names):
    with raises(ConfigError, code=code, match=names):
        stored(tmp_path, "weight", KERNELS, **arrays)


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 and no more", b"text"])
def test_a_file_that_can_not_be_read_is_rejected(tmp_path, content):
    if content is not None:
        (tmp_path / "scores.npz").write_bytes(content)
    with raises(ConfigError, field="PruningPlan.scores", code="unreadable-scores", match=r"scores\.npz"):
        stored(tmp_path, "weight", KERNELS)
