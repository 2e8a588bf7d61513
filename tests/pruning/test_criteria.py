import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tfx_compression.errors import ConfigError, ModelError
from tfx_compression.kernels import Kernel
from tfx_compression.pruning import criteria
from tfx_compression.pruning.plan import PruningPlan


def kernel(values, kind="convolution", name="k", outputs=None):
    values = np.asarray(values, np.float32)
    outputs = (values.ndim - 1,) if outputs is None else outputs
    inputs = tuple(axis for axis in range(values.ndim) if axis not in outputs)
    return Kernel(name, tf.Variable(values), kind, inputs, outputs)


def random_kernel(*shape, seed=0, **arguments):
    return kernel(np.random.default_rng(seed).normal(size=shape), **arguments)


def scored(one, criterion, technique="filter", statistics=None, axes=None, **plan):
    plan = PruningPlan(criterion=criterion, technique=technique, **plan)
    return criteria.score({one.name: one}, [one.name], plan, statistics, axes)[one.name]


class Told:
    """Statistics made by hand: one entry for each batch, the same for rows."""

    def __init__(self, gradients=(), activations=(), scale=None, gates=()):
        self._gradients, self._activations, self._scale, self._gates = gradients, activations, scale, gates

    def batches(self):
        return range(len(self._gradients or self._activations))

    rows = batches

    def gradients(self, batch, names):
        return dict.fromkeys(names, np.asarray(self._gradients[batch], np.float32))

    def gates(self, batch, names):
        return dict.fromkeys(names, np.asarray(self._gates[batch], np.float32)) if self._gates else {}

    def activations(self, batch, names):
        return dict.fromkeys(names, np.asarray(self._activations[batch], np.float32))

    def scales(self):
        return {} if self._scale is None else {"k": np.asarray(self._scale, np.float32)}


def test_norms_of_filters_against_loops():
    one = random_kernel(3, 3, 4, 5)
    filters = [one.values[..., i].ravel().tolist() for i in range(5)]
    sums = [sum(abs(x) for x in values) for values in filters]
    np.testing.assert_allclose(scored(one, "magnitude"), sums, rtol=1e-5)
    np.testing.assert_allclose(scored(one, "l1"), sums, rtol=1e-5)
    np.testing.assert_allclose(scored(one, "l2"), [math.hypot(*values) for values in filters], rtol=1e-5)


def test_scores_of_weights_have_the_kernels_shape():
    one = random_kernel(3, 2, 5, 4, kind="transposed", outputs=(2,))
    np.testing.assert_array_equal(scored(one, "magnitude", "weight"), np.abs(one.values))
    np.testing.assert_array_equal(scored(one, "l2", "weight"), one.values**2)
    gradients = np.random.default_rng(1).normal(size=(2, 3, 2, 5, 4)).astype(np.float32)
    expected = np.abs(gradients * one.values).mean(axis=0)
    np.testing.assert_allclose(scored(one, "taylor", "weight", Told(list(gradients))), expected, rtol=1e-5)


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
    found = scored(one, "l1", axes={"k": axes} if axes else None)
    assert found.shape == (channels,)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 99))
def test_geometric_median_against_brute_force(filters, size, seed):
    one = random_kernel(size, filters, seed=seed, kind="dense")
    columns = one.values.T
    expected = [sum(math.dist(column, other) for other in columns) for column in columns]
    np.testing.assert_allclose(scored(one, "geometric_median"), expected, rtol=1e-4, atol=1e-6)


def test_equal_filters_are_the_least_important_to_the_geometric_median():
    found = scored(kernel([[1, 1, 1, 5], [2, 2, 2, -5]], "dense"), "geometric_median")
    assert found[0] == found[1] == found[2] < found[3]


def test_random_scores_follow_the_seed_and_the_name():
    one, other = random_kernel(8, 4), random_kernel(8, 4, name="other")
    for technique, shape in (("weight", (8, 4)), ("filter", (4,))):
        found = scored(one, "random", technique, seed=3)
        assert found.shape == shape
        np.testing.assert_array_equal(found, scored(one, "random", technique, seed=3))
        assert (found != scored(one, "random", technique, seed=4)).any()
        assert (found != scored(other, "random", technique, seed=3)).any()


def test_a_scale_counts_by_its_size():
    np.testing.assert_allclose(scored(random_kernel(2, 3), "bn_scale", statistics=Told(scale=[-2, 1, 0])), [2, 1, 0])


def test_kernels_without_evidence_are_left_out_and_told():
    plan = PruningPlan(criterion="bn_scale", technique="filter")
    assert criteria.score({"k": random_kernel(2, 3)}, ["k"], plan, Told()) == {}
    assert "knows nothing of 'k': no normalisation with a scale follows it. Remedy" in str(criteria.unscored(plan, "k"))


def test_apoz_and_activation_mean_by_hand():
    told = Told(activations=[[[0, 1, -1], [0, 0, 3]], [[4, 0, 2]]])  # the last batch has one position only
    one = random_kernel(5, 3)
    np.testing.assert_allclose(scored(one, "apoz", statistics=told), [1 / 3, 1 / 3, 1])
    np.testing.assert_allclose(scored(one, "activation_mean", statistics=told), [4 / 3, 1 / 3, 2])


def test_what_a_channel_is_made_of_last_counts_before_its_weights():
    told = Told([np.ones((2, 2)), np.ones((2, 2))], gates=[[1, 2], [3, -4]])
    one = kernel([[1, 2], [3, -4]], "dense")
    np.testing.assert_allclose(scored(one, "taylor", statistics=told), [5, 10])
    np.testing.assert_allclose(scored(one, "fisher", statistics=told), [2.5, 5])


def test_taylor_of_channels_squares_the_joint_change_of_each_batch():
    told = Told([[[1, 2], [-1, 1]], [[0, 1], [3, 0]]])
    found = scored(kernel([[1, 2], [3, -4]], "dense"), "taylor", statistics=told)
    np.testing.assert_allclose(found, [((1 - 3) ** 2 + 9**2) / 2, ((4 - 4) ** 2 + 2**2) / 2])


def test_fisher_is_half_the_mean_of_squares():
    told = Told([[[1, 2], [-1, 1]], [[0, 1], [3, 0]]])
    one = kernel([[1, 2], [3, -4]], "dense")
    np.testing.assert_allclose(scored(one, "fisher", "weight", told), [[0.25, 5], [22.5, 4]])
    np.testing.assert_allclose(scored(one, "fisher", statistics=told), [(4 + 81) / 4, (0 + 4) / 4])


@pytest.mark.parametrize("criterion", ["bn_scale", "geometric_median", "activation_mean", "apoz"])
def test_what_tells_channels_apart_does_not_score_weights(criterion):
    with pytest.raises(ConfigError, match=f"{criterion}' tells channels apart, no single weights.*Remedy"):
        scored(random_kernel(2, 3), criterion, "weight")


@pytest.mark.parametrize("criterion", ["taylor", "fisher", "apoz", "activation_mean", "bn_scale"])
def test_a_criterion_of_the_data_without_data_is_refused(criterion):
    with pytest.raises(ConfigError, match=f"{criterion}' looks at .*there is no data.*Remedy"):
        scored(random_kernel(2, 3), criterion)


def test_gradients_that_are_not_finite_are_told():
    with pytest.raises(ModelError, match="gradients of 'k' are not finite.*Remedy"):
        scored(random_kernel(2, 3), "taylor", statistics=Told([np.full((2, 3), np.nan)]))


@pytest.fixture
def registered(monkeypatch):
    """Names that a test registers are forgotten after it; those of other tests' modules are not known in it."""
    own = {name: made for name, made in criteria._registry.items() if name in criteria.NAMES}
    monkeypatch.setattr(criteria, "_registry", own)


def test_a_users_function_of_weights_scores_channels_too(registered):
    criteria.register("cubes", weights=lambda view: np.abs(view.values) ** 3)
    one = random_kernel(3, 3, 2, 4)
    np.testing.assert_allclose(scored(one, "cubes", "weight"), np.abs(one.values) ** 3, rtol=1e-5)
    np.testing.assert_allclose(scored(one, "cubes"), (np.abs(one.values) ** 3).sum(axis=(0, 1, 2)), rtol=1e-5)


def test_a_users_function_of_gradients(registered):
    criteria.register("movement", weights=lambda view: -view.gradients * view.values, needs="gradients")
    told = Told([np.ones((2, 3)), 3 * np.ones((2, 3))])
    one = random_kernel(2, 3)
    np.testing.assert_allclose(scored(one, "movement", "weight", told), -2 * one.values, rtol=1e-5)


def test_a_users_function_of_channels_alone_is_refused_for_weights(registered):
    criteria.register("largest", channels=lambda view: np.abs(view.values).max(axis=0))
    assert scored(random_kernel(2, 3), "largest").shape == (3,)
    with pytest.raises(ConfigError, match="'largest' tells channels apart"):
        scored(random_kernel(2, 3), "largest", "weight")


def test_a_users_mistakes_are_told(registered):
    criteria.register("short", weights=lambda view: view.values[0])
    criteria.register("odd", channels=lambda view: np.full(3, np.inf))
    with pytest.raises(ConfigError, match=r"'short', kernel 'k': scores of shape \(3,\). Remedy: .* \(2, 3\)"):
        scored(random_kernel(2, 3), "short", "weight")
    with pytest.raises(ConfigError, match="'odd', kernel 'k': a score is not finite"):
        scored(random_kernel(2, 3), "odd")
    with pytest.raises(ConfigError, match="'taylor' is built in"):
        criteria.register("taylor", weights=lambda view: view.values)
    with pytest.raises(ConfigError, match="'nothing' has no function"):
        criteria.register("nothing")


def test_an_unknown_name_lists_the_others(registered):
    criteria.register("cubes", weights=lambda view: view.values**3)
    with pytest.raises(ConfigError, match="'magnitud' is unknown. There are: magnitude, l1.*apoz, cubes. Remedy"):
        criteria.get("magnitud")


def stored(tmp_path, technique, kernels, names=None, **arrays):
    np.savez(tmp_path / "scores.npz", **arrays)
    plan = PruningPlan(criterion="scores", technique=technique, scores=str(tmp_path / "scores.npz"))
    return criteria.score(kernels, list(kernels) if names is None else names, plan)


def test_given_scores_are_used_as_they_are(tmp_path):
    kernels = {"a": random_kernel(2, 3, name="a"), "b": random_kernel(4, 2, name="b")}
    a, b = np.arange(6.0).reshape(2, 3), -np.ones((4, 2))
    found = stored(tmp_path, "weight", kernels, a=a, b=b)
    np.testing.assert_array_equal(found["a"], a)
    np.testing.assert_array_equal(found["b"], b)
    found = stored(tmp_path, "filter", kernels, a=a, b=np.array([3.0, 4.0]))
    np.testing.assert_array_equal(found["a"], [3, 5, 7])
    np.testing.assert_array_equal(found["b"], [3, 4])


def test_given_scores_of_what_is_left_alone_do_no_harm(tmp_path):
    kernels = {"a": random_kernel(2, 3, name="a"), "b": random_kernel(4, 2, name="b")}
    assert list(stored(tmp_path, "weight", kernels, ["a"], a=np.ones((2, 3)), b=np.ones(99))) == ["a"]


def test_given_scores_may_be_named_by_the_layer(tmp_path):
    names = ["dense/kernel:0", "cell/kernel", "cell/recurrent_kernel"]
    kernels = {name: random_kernel(2, 3, name=name) for name in names}
    arrays = {"dense": np.ones((2, 3)), "cell/kernel": np.ones((2, 3)), "cell/recurrent_kernel": np.ones((2, 3))}
    assert list(stored(tmp_path, "weight", kernels, **arrays)) == names
    with pytest.raises(ConfigError, match="'cell' is no kernel"):
        stored(tmp_path, "weight", kernels, cell=np.ones((2, 3)))


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({}, "has no scores of 'a', 'b'"),
        ({"a": np.ones((2, 3)), "b": np.ones((4, 2)), "c": np.ones(3)}, "'c' is no kernel of the model.*are a, b"),
        ({"a": np.ones((3, 2)), "b": np.ones((4, 2))}, r"kernel 'a': scores of shape \(3, 2\).*\(2, 3\)"),
        ({"a": np.full((2, 3), np.nan), "b": np.ones((4, 2))}, "kernel 'a': a score is not finite"),
        ({"a": np.array(["x"])}, "can't be read"),
    ],
)
def test_given_scores_that_do_not_fit_are_told(tmp_path, arrays, message):
    kernels = {"a": random_kernel(2, 3, name="a"), "b": random_kernel(4, 2, name="b")}
    with pytest.raises(ConfigError, match=message):
        stored(tmp_path, "weight", kernels, **arrays)


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 and no more", b"text"])
def test_a_file_of_scores_that_can_not_be_read_is_told(tmp_path, content):
    if content is not None:
        (tmp_path / "scores.npz").write_bytes(content)
    plan = PruningPlan(criterion="scores", scores=str(tmp_path / "scores.npz"))
    with pytest.raises(ConfigError, match=r"scores.npz' can't be read.*Remedy"):
        criteria.score({"k": random_kernel(2, 3)}, ["k"], plan)


def test_normalised_scores_have_mean_one_and_the_same_order():
    scores = np.random.default_rng(0).random(100).astype(np.float32) * 1e-6
    found = criteria.normalize(scores)
    assert found.mean() == pytest.approx(1)
    assert (np.argsort(found) == np.argsort(scores)).all()
    np.testing.assert_array_equal(criteria.normalize(np.zeros(3, np.float32)), 0)
    np.testing.assert_allclose(criteria.normalize(np.array([-1, 3], np.float32)), [-0.5, 1.5])


def test_every_built_in_name_is_known():
    told = Told([np.ones((2, 3))], [np.ones((4, 3))], np.ones(3))
    for name in criteria.NAMES:
        if name != "scores":
            assert scored(random_kernel(2, 3), name, statistics=told).shape == (3,)
