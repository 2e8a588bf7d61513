"""The networks that the benchmarks compress, and Fashion-MNIST. Importing it imports TensorFlow and tf_keras."""

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tf_keras

IDX = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
RESNET = (32, 64, 128)
MOBILENET = (32, 16, 32, 64, 96, 512)  # Stem, the blocks of each stage, last convolution.
DEPTHWISE = (32, 64, 128, 128, 256, 256, 512)  # Stem, then each block.

_layers = tf_keras.layers


def resnet(widths: Sequence[int] = RESNET, blocks: int = 2, stem_strides: int = 1) -> tf_keras.Model:
    """Builds a ResNet of basic blocks, one stage per width (He et al. 2016, arXiv:1512.03385), for 28x28 gray images.

    The first stage is as wide as the stem and adds to the stem's output, so both are one group of coupled channels.
    """
    inputs = x = tf_keras.Input((28, 28, 1), name="image")
    x = _convolution(x, widths[0], 3, stem_strides, "stem")
    for stage, width in enumerate(widths):
        for block in range(blocks):
            name, strides = f"stage{stage}_block{block}", 2 if stage and not block else 1
            short = x
            if x.shape[-1] != width or strides > 1:
                short = _convolution(x, width, 1, strides, f"{name}_short", activation=None)
            x = _convolution(x, width, 3, strides, f"{name}_a")
            x = _convolution(x, width, 3, 1, f"{name}_b", activation=None)
            x = _layers.ReLU(name=f"{name}_relu")(_layers.Add(name=f"{name}_add")([x, short]))
    return _classified(inputs, x, "resnet")


def mobilenet(widths: Sequence[int] = MOBILENET, expansion: int = 6) -> tf_keras.Model:
    """Builds a MobileNetV2 of inverted residuals (Sandler et al. 2018, arXiv:1801.04381), for 28x28 gray images."""
    stem, *stages, last = widths
    inputs = x = tf_keras.Input((28, 28, 1), name="image")
    x = _convolution(x, stem, 3, 1, "stem", "relu6")
    for stage, (width, blocks, strides) in enumerate(zip(stages, (1, 2, 3, 3), (1, 1, 2, 2), strict=True)):
        for block in range(blocks):
            name = f"stage{stage}_block{block}"
            x = _inverted_residual(x, width, expansion if stage else 1, 1 if block else strides, name)
    x = _convolution(x, last, 1, 1, "last", "relu6")
    return _classified(inputs, x, "mobilenet")


def depthwise(widths: Sequence[int] = DEPTHWISE) -> tf_keras.Model:
    """Builds a MobileNetV1 of depthwise separable convolutions (Howard et al. 2017, arXiv:1704.04861) for 28x28 images.

    The stem halves the image, and so does each block that grows the width, down to 4x4. A BatchNormalization and an
    unbounded ReLU follow each convolution, so that `harden` can be applied.
    """
    inputs = x = tf_keras.Input((28, 28, 1), name="image")
    x = _convolution(x, widths[0], 3, 2, "stem")
    for block, width in enumerate(widths[1:]):
        strides = 2 if block and width > x.shape[-1] and x.shape[1] > 4 else 1
        x = _layers.DepthwiseConv2D(3, strides, "same", use_bias=False, name=f"block{block}_depthwise")(x)
        x = _normalized(x, f"block{block}_depthwise", "relu")
        x = _convolution(x, width, 1, 1, f"block{block}")
    return _classified(inputs, x, "depthwise")


def harden(model: tf_keras.Model, exponent: float = 5.0, seed: int = 0) -> tf_keras.Model:
    """Returns a copy that computes the same function with weights that are hard to quantize.

    Before each depthwise convolution, gamma and beta of every channel are multiplied by s = 2 ** U(-exponent, exponent)
    and the channel's kernel is divided by s. The ReLU between them preserves positive factors, so the output does not
    change. The channels of that activation share one scale and now differ up to 4 ** exponent times in range.

    Raises:
      ValueError: If a depthwise convolution does not follow a BatchNormalization and an unbounded ReLU.
    """
    hard = tf_keras.models.clone_model(model)
    hard.set_weights(model.get_weights())
    generator = np.random.default_rng(seed)
    for layer in hard.layers:
        if not isinstance(layer, _layers.DepthwiseConv2D):
            continue
        relu, normalization = _producer(layer), _producer(_producer(layer))
        if not isinstance(relu, _layers.ReLU) or relu.max_value is not None:
            raise ValueError(f"{layer.name} must follow an unbounded ReLU, not {relu.name}.")
        if not isinstance(normalization, _layers.BatchNormalization):
            raise ValueError(f"{relu.name} must follow a BatchNormalization, not {normalization.name}.")
        scales = 2 ** generator.uniform(-exponent, exponent, normalization.gamma.shape[0]).astype(np.float32)
        normalization.gamma.assign(normalization.gamma * scales)
        normalization.beta.assign(normalization.beta * scales)
        kernel = layer.depthwise_kernel  # [height, width, channels, multiplier]
        kernel.assign(kernel / scales[:, None])
    return hard


def cnn(widths: Sequence[int] = (16, 32, 64), units: int = 128, dropout: float = 0.3) -> tf_keras.Model:
    """Builds a CNN of convolutions that each halve the image, then dense layers. An epoch takes seconds."""
    inputs = x = tf_keras.Input((28, 28, 1), name="image")
    for place, width in enumerate(widths):
        x = _layers.Conv2D(width, 3, 2, "same", use_bias=False, name=f"conv{place}")(x)
        # A low momentum lets the averages adapt within one epoch after channels are removed.
        x = _layers.BatchNormalization(momentum=0.9, name=f"conv{place}_bn")(x)
        x = _layers.ReLU(name=f"conv{place}_relu")(x)
    x = _layers.Dropout(dropout, name="flat_dropout")(_layers.Flatten(name="flat")(x))
    x = _layers.Dense(units, activation="relu", name="dense")(x)
    x = _layers.Dropout(dropout, name="dense_dropout")(x)
    return tf_keras.Model(inputs, _layers.Dense(10, activation="softmax", name="classifier")(x), name="cnn")


def halved(widths: Sequence[int]) -> tuple[int, ...]:
    """Returns the widths of the network that one would build by hand instead of pruning."""
    return tuple(width // 2 for width in widths)


def fashion_mnist(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads images [rows, 28, 28, 1] in 0..1 and labels [rows] of `train` or `test` from idx files, gzipped or not."""
    images, labels = (_read(idx_file(folder, name)) for name in IDX[split])
    return images[..., None].astype(np.float32) / 255, labels.astype(np.int32)


def idx_file(folder: Path, name: str) -> Path:
    """Returns the path of an idx file.

    Raises:
      FileNotFoundError: If the folder holds neither the file nor its gzipped form.
    """
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"There is no {name} or {name}.gz in the folder {folder}. Remedy: apt-get install dataset-fashion-mnist, or "
        "--data FOLDER with (Fashion-)MNIST's four idx files."
    )


def _read(path: Path) -> np.ndarray:
    """Reads the array in an idx file (yann.lecun.com/exdb/mnist)."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        content = file.read()
    dimensions = content[3]
    shape = np.frombuffer(content, ">i4", dimensions, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def _convolution(x: Any, width: int, size: int, strides: int, name: str, activation: str | None = "relu") -> Any:
    x = _layers.Conv2D(width, size, strides, "same", use_bias=False, name=name)(x)
    return _normalized(x, name, activation)


def _normalized(x: Any, name: str, activation: str | None) -> Any:
    x = _layers.BatchNormalization(name=f"{name}_bn")(x)
    if activation is None:
        return x
    return _layers.ReLU(6.0 if activation == "relu6" else None, name=f"{name}_{activation}")(x)


def _inverted_residual(x: Any, width: int, expansion: int, strides: int, name: str) -> Any:
    before = x
    if expansion > 1:
        x = _convolution(x, expansion * x.shape[-1], 1, 1, f"{name}_expand", "relu6")
    x = _layers.DepthwiseConv2D(3, strides, "same", use_bias=False, name=f"{name}_depthwise")(x)
    x = _normalized(x, f"{name}_depthwise", "relu6")
    x = _convolution(x, width, 1, 1, f"{name}_project", None)
    if strides > 1 or before.shape[-1] != width:
        return x
    return _layers.Add(name=f"{name}_add")([before, x])


def _producer(layer: Any) -> Any:
    """Returns the layer that produces the input of `layer`."""
    return layer.input._keras_history.layer


def _classified(inputs: Any, x: Any, name: str) -> tf_keras.Model:
    x = _layers.GlobalAveragePooling2D(name="pool")(x)
    return tf_keras.Model(inputs, _layers.Dense(10, activation="softmax", name="classifier")(x), name=name)
