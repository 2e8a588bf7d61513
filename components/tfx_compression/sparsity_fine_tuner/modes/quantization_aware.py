"""Mode `quantization_aware`: a copy of the network that rounds like int8 trains. Zeros and shared values stay."""

from tfx_compression.errors import ModelError
from tfx_compression.model_handle import ModelHandle
from tfx_compression.model_handle.compressed import Masks
from tfx_compression.sparsity_fine_tuner.clustering import existing_clusters
from tfx_compression.sparsity_fine_tuner.constraints import ClusterConstraint
from tfx_compression.sparsity_fine_tuner.quantization_aware_network import calibrate, quantization_aware
from tfx_compression.sparsity_fine_tuner.results import ModeResult
from tfx_compression.sparsity_fine_tuner.session import Session

_CALIBRATION_BATCHES = 16


def run(session: Session, masks: Masks) -> ModeResult:
    """Trains a quantization-aware copy of the session's model.

    Raises:
      ModelError: For a model without a graph of layers, or one of which tfmot can quantize nothing.
    """
    handle, config = session.handle, session.config
    if handle.kind == "saved_model" or handle.network is None:
        raise ModelError(
            "FineTuning(mode='quantization_aware') needs the graph of layers, and the model has none. Remedy: have "
            'Trainer save a tf_keras model with model.save(fn_args.serving_model_dir, save_format="tf", signatures=…).',
            field="FineTuning.mode",
            code="no-layers",
        )
    copy = quantization_aware(handle.network)
    if copy.network is not handle.network:
        calibrate(copy.network, (batch[0] for batch in session.data(0).take(_CALIBRATION_BATCHES)))
    clusters = {}
    for name, kernel in handle.kernels.items():
        numbers = existing_clusters(kernel.values, config.keep_clusters) if config.keep_clusters else None
        if numbers is not None:
            clusters[name] = numbers
    result_handle = ModelHandle("keras2", copy.network, notes=copy.notes)
    training = session.prepare(result_handle, masks)
    constraints = [ClusterConstraint(training.handle.kernels, clusters)] if clusters else []
    result = training.run(constraints)
    return ModeResult.from_training(result_handle, training.masks, result, copy.notes)
