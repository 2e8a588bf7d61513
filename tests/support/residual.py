"""A residual network and its data, for tests of pruning."""

import tensorflow as tf
import tf_keras

from tests.support import helpers


def residual_net(seed: int = 0) -> tf_keras.Model:
    """Returns a classifier of images: a stem, a residual block that adds to its channels, then a wider convolution."""
    tf_keras.utils.set_random_seed(seed)
    layers = tf_keras.layers
    image = tf_keras.Input(helpers.IMAGE, name="image")
    x = layers.Conv2D(16, 3, padding="same", name="stem")(image)
    x = layers.BatchNormalization(name="stem_norm")(x)
    x = stem = layers.ReLU(name="stem_relu")(x)
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="inner")(x)
    x = layers.Conv2D(16, 3, padding="same", name="outer")(x)
    x = layers.Add(name="sum")([stem, x])
    x = layers.Conv2D(24, 3, activation="relu", name="wide")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dense(12, activation="relu", name="hidden")(x)
    model = tf_keras.Model(image, layers.Dense(3, activation="softmax", name="logits")(x), name="residual_net")
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def data(rows: int = 64) -> tf.data.Dataset:
    """Returns batches of images and labels for the network."""
    images, labels = helpers.images(rows)
    return helpers.batches({"image": images / helpers.LARGEST}, labels)


def widths(model: tf_keras.Model) -> dict[str, int]:
    """Returns the number of output channels of each layer with a kernel."""
    return {layer.name: layer.kernel.shape[-1] for layer in model.layers if hasattr(layer, "kernel")}
