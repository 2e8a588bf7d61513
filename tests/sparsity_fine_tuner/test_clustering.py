"""Clusters of weights: small squared error, no empty cluster, and zeros in a cluster of their own."""

import itertools

import numpy as np
import pytest
import tensorflow_model_optimization as tfmot
import tf_keras
from scipy.cluster.vq import kmeans2
from tfx_compression.sparsity_fine_tuner.clustering import cluster, existing_clusters


def _error(values: np.ndarray, indices: np.ndarray) -> float:
    return sum(
        float(np.sum((values[indices == one] - values[indices == one].mean()) ** 2)) for one in np.unique(indices)
    )


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_clusters_of_few_weights_are_optimal(count):
    values = np.random.default_rng(count).normal(size=9)
    line = np.sort(values)
    best = min(
        sum(float(np.sum((part - part.mean()) ** 2)) for part in np.split(line, cuts))
        for cuts in itertools.combinations(range(1, 9), count - 1)
    )
    assert np.isclose(_error(values, cluster(values, None, count)), best)


@pytest.mark.parametrize("count", [2, 8, 16])
@pytest.mark.parametrize("heavy_tails", [False, True])
def test_clusters_are_as_good_as_scipys(count, heavy_tails):
    generator = np.random.default_rng(1)
    values = generator.standard_t(2, (30, 40)) if heavy_tails else generator.normal(size=(30, 40))
    reference = [kmeans2(values.reshape(-1, 1), count, minit="++", seed=seed)[1] for seed in range(5)]
    indices = cluster(values, None, count)
    assert _error(values, indices) <= 1.01 * min(_error(values.ravel(), labels) for labels in reference)


def test_clusters_are_as_good_as_tfmots_initial_ones():
    values = np.random.default_rng(2).normal(size=(40, 30)).astype(np.float32)
    layer = tf_keras.layers.Dense(30, use_bias=False)
    model = tf_keras.Sequential([tf_keras.Input((40,)), layer])
    layer.kernel.assign(values)
    wrapped = tfmot.clustering.keras.cluster_weights(
        model, 16, tfmot.clustering.keras.CentroidInitialization.KMEANS_PLUS_PLUS
    )
    wrapped(np.zeros([1, 40], np.float32))
    reference = tfmot.clustering.keras.strip_clustering(wrapped).get_weights()[0]
    assert np.unique(reference).size <= 16
    assert _error(values, cluster(values, None, 16)) <= 1.02 * float(np.sum((values - reference) ** 2))


def test_pruned_weights_are_cluster_0_and_no_cluster_is_empty():
    values = np.random.default_rng(3).normal(size=(3, 3, 4, 8)).astype(np.float32)
    mask = np.abs(values) > 0.5
    indices = cluster(values * mask, mask, 8)
    assert indices.dtype == np.int32 and indices.shape == values.shape
    assert np.array_equal(indices == 0, ~mask)
    assert np.array_equal(np.unique(indices), np.arange(8))
    unmasked = cluster(values, np.ones_like(mask), 8)
    assert np.array_equal(unmasked, cluster(values, None, 8)) and unmasked.max() == 7


@pytest.mark.parametrize("values", [np.zeros([2, 3]), np.array([[1.0, 1.0], [2.0, 1.0]])])
def test_fewer_values_than_clusters_make_fewer_clusters(values):
    indices = cluster(values, None, 16)
    assert indices.max() + 1 == np.unique(values).size
    assert _error(values, indices) == 0
    assert not cluster(values, np.zeros_like(values), 16).any()


def test_existing_clusters_have_zero_first():
    values = np.random.default_rng(4).choice([-1.0, 0.0, 2.0, 3.0], (10, 10)).astype(np.float32)
    indices = existing_clusters(values, 4)
    assert np.array_equal(indices == 0, values == 0)
    assert _error(values, indices) == 0 and np.array_equal(np.unique(indices), np.arange(4))
    assert existing_clusters(values, 3) is None
    assert existing_clusters(np.arange(6.0).reshape(2, 3), 64) is None, "a small kernel has few values anyway"
