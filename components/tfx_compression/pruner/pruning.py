"""Pruning of a Keras model, without a pipeline."""

import numpy as np
import tensorflow as tf
import tf_keras

from tfx_compression.models import keras2, layers
from tfx_compression.models.compressed import Compressed, Summary
from tfx_compression.models.errors import ModelError
from tfx_compression.models.plan import PruningPlan


def prune(model: tf_keras.Model | str, plan: PruningPlan, data: tf.data.Dataset | None = None) -> Compressed:
    """Sets the least important weights of a model to zero, as `plan` says.

    Magnitude pruning as tfmot does it (Zhu & Gupta 2017, arXiv:1710.01878): of each kernel, the weights of the largest
    absolute values stay. Done at once, without training.

    Args:
      model: a Keras 2 model, which is changed in place, or the path of one.
      plan: what to prune.
      data: not used by magnitude pruning, which looks at the weights alone.

    Raises:
      ConfigError: where a rule of the plan matches no layer.
      ModelError: for a model that has no layers to prune, or a weight that is not a number.
    """
    loaded = keras2.load(model) if isinstance(model, str) else model
    network = keras2.network(loaded)
    kernels = layers.kernels(network)
    prunable = [name for name, (layer, attribute) in kernels.items() if attribute in _prunable_attributes(layer)]
    if not prunable:
        raise ModelError(f"The model {network.name!r} has no convolution or dense kernel that tfmot can prune.")
    sparsities = plan.sparsities(prunable)
    for name, (layer, attribute) in kernels.items():
        if not np.isfinite(getattr(layer, attribute).numpy()).all():
            raise ModelError(
                f"A weight of layer {name!r} is not finite. Remedy: look at the Trainer's loss, this model diverged."
            )
    before = layers.measure(network)
    masks = {name: _prune_layer(*kernels[name], sparsity) for name, sparsity in sparsities.items() if sparsity}
    return Compressed(loaded, Summary(before=before, after=layers.measure(network)), masks)


def _prunable_attributes(layer: tf_keras.layers.Layer) -> list[str]:
    """The kernels of `layer` that tfmot prunes: none where it refuses the layer."""
    try:
        wrapper = _wrap(layer, 0.5)
    except ValueError:  # tfmot's answer for a layer that it doesn't know
        return []
    prunable = [id(weight) for weight in wrapper.layer.get_prunable_weights()]
    return [name for name in layers.KERNELS if id(getattr(layer, name, None)) in prunable]


def _prune_layer(layer: tf_keras.layers.Layer, attribute: str, sparsity: float) -> np.ndarray:
    """Zeroes the kernel in place, through tfmot's wrapper at its first step; returns the mask of what is left."""
    wrapper = _wrap(layer, sparsity)
    wrapper.build(layer.get_input_shape_at(0))
    wrapper.pruning_step.assign(0)
    wrapper.pruning_obj.conditional_mask_update()
    wrapper.pruning_obj.weight_mask_op()
    return np.asarray(getattr(layer, attribute).numpy() != 0)  # also what was zero before stays so


def _wrap(layer: tf_keras.layers.Layer, sparsity: float) -> tf_keras.layers.Layer:
    import tensorflow_model_optimization as tfmot

    schedule = tfmot.sparsity.keras.ConstantSparsity(sparsity, begin_step=0, frequency=1)
    return tfmot.sparsity.keras.prune_low_magnitude(layer, pruning_schedule=schedule)
