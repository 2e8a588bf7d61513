"""Mode `cluster`: the weights of each kernel share a few values, which train."""

from tfx_compression.model_handle.compressed import Masks
from tfx_compression.sparsity_fine_tuner.clustering import cluster
from tfx_compression.sparsity_fine_tuner.constraints import ClusterConstraint
from tfx_compression.sparsity_fine_tuner.results import ModeResult
from tfx_compression.sparsity_fine_tuner.session import Session


def run(session: Session, masks: Masks) -> ModeResult:
    """Clusters the weights of each kernel and trains the mean of each cluster. Pruned weights stay zero."""
    training = session.prepare(session.handle, masks)
    handle = training.handle
    clusters = {
        name: cluster(kernel.values, masks.get(name), session.config.clusters)
        for name, kernel in handle.kernels.items()
        if kernel.prunable and name not in (*handle.tied, *handle.frozen)
    }
    constraints = [ClusterConstraint(handle.kernels, clusters)] if clusters else []
    result = training.run(constraints)
    return ModeResult.from_training(session.handle, training.masks, result)
