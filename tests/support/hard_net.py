"""A net that is hard to quantize and computes the same as the net that it is made from."""

import numpy as np
import tf_keras


def harden(model: tf_keras.Model, seed: int = 0) -> tf_keras.Model:
    """Returns a copy that computes the same, with channel ranges before depthwise convolutions up to 2^10 apart.

    Gamma and beta of the preceding BatchNormalization are scaled by s = 2^U(-5, 5) per channel, and the depthwise
    kernel by 1 / s. A ReLU between the two commutes with the scales.
    """
    hard = tf_keras.models.clone_model(model)
    hard.set_weights(model.get_weights())
    generator = np.random.default_rng(seed)
    for layer in hard.layers:
        if not isinstance(layer, tf_keras.layers.DepthwiseConv2D):
            continue
        before = _before(layer)
        if isinstance(before, tf_keras.layers.ReLU) and before.max_value is None:
            before = _before(before)
        if not isinstance(before, tf_keras.layers.BatchNormalization):
            continue
        scale = 2.0 ** generator.uniform(-5.0, 5.0, before.gamma.shape[0])
        before.gamma.assign(before.gamma * scale)
        before.beta.assign(before.beta * scale)
        layer.depthwise_kernel.assign(layer.depthwise_kernel / scale[None, None, :, None])
    return hard


def _before(layer: tf_keras.layers.Layer) -> tf_keras.layers.Layer:
    (node,) = layer.inbound_nodes
    return node.inbound_layers
