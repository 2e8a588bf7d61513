"""The nets that are compressed here, and Fashion-MNIST. Importing this file imports TensorFlow and tf_keras."""

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
MOBILENET = (32, 16, 32, 64, 96, 512)  # the stem, the blocks of each stage, the last convolution
DEPTHWISE = (32, 64, 128, 128, 256, 256, 512)  # the stem, each block

_layers = tf_keras.layers


def resnet(widths: Sequence[int] = RESNET, blocks: int = 2, stem_strides: int = 1) -> tf_keras.Model:
    """Stages of basic blocks, one for each width (He et al. 2016, arXiv:1512.03385), on 28x28 grey images.

    The first stage is as wide as the stem, whose output its sums take in: they are one group of coupled channels.
    """
    inputs = flow = tf_keras.Input((28, 28, 1), name="image")
    flow = _convolution(flow, widths[0], 3, stem_strides, "stem")
    for stage, width in enumerate(widths):
        for block in range(blocks):
            name, strides = f"stage{stage}_block{block}", 2 if stage and not block else 1
            short = flow
            if flow.shape[-1] != width or strides > 1:
                short = _convolution(flow, width, 1, strides, f"{name}_short", activation=None)
            flow = _convolution(flow, width, 3, strides, f"{name}_a")
            flow = _convolution(flow, width, 3, 1, f"{name}_b", activation=None)
            flow = _layers.ReLU(name=f"{name}_relu")(_layers.Add(name=f"{name}_add")([flow, short]))
    return _classified(inputs, flow, "resnet")


def mobilenet(widths: Sequence[int] = MOBILENET, expansion: int = 6) -> tf_keras.Model:
    """Inverted residuals with depthwise convolutions (Sandler et al. 2018, arXiv:1801.04381), on 28x28 grey images."""
    stem, *stages, last = widths
    inputs = flow = tf_keras.Input((28, 28, 1), name="image")
    flow = _convolution(flow, stem, 3, 1, "stem", "relu6")
    for stage, (width, blocks, strides) in enumerate(zip(stages, (1, 2, 3, 3), (1, 1, 2, 2), strict=True)):
        for block in range(blocks):
            name = f"stage{stage}_block{block}"
            flow = _inverted_residual(flow, width, expansion if stage else 1, 1 if block else strides, name)
    flow = _convolution(flow, last, 1, 1, "last", "relu6")
    return _classified(inputs, flow, "mobilenet")


def depthwise(widths: Sequence[int] = DEPTHWISE) -> tf_keras.Model:
    """Depthwise separable convolutions (Howard et al. 2017, arXiv:1704.04861), on 28x28 grey images.

    The image is halved by the stem and where the width grows, down to 4x4. After each convolution comes a
    BatchNormalization and a ReLU without an upper bound, so that `harden` can be applied.
    """
    inputs = flow = tf_keras.Input((28, 28, 1), name="image")
    flow = _convolution(flow, widths[0], 3, 2, "stem")
    for block, width in enumerate(widths[1:]):
        strides = 2 if block and width > flow.shape[-1] and flow.shape[1] > 4 else 1
        flow = _layers.DepthwiseConv2D(3, strides, "same", use_bias=False, name=f"block{block}_depthwise")(flow)
        flow = _normalized(flow, f"block{block}_depthwise", "relu")
        flow = _convolution(flow, width, 1, 1, f"block{block}")
    return _classified(inputs, flow, "depthwise")


def harden(model: tf_keras.Model, exponent: float = 5.0, seed: int = 0) -> tf_keras.Model:
    """The same function in weights that are hard to quantize, as a copy.

    Before each depthwise convolution every channel's gamma and beta are multiplied by its s, and the channel's kernel
    divided by it, s = 2 ** U(-exponent, exponent): the ReLU between them passes a positive factor on. The channels of
    that activation, which share one scale, then differ up to 4 ** exponent times in range.

    Raises:
      ValueError: where before a depthwise convolution there is no BatchNormalization followed by an unbounded ReLU.
    """
    hard = tf_keras.models.clone_model(model)
    hard.set_weights(model.get_weights())
    generator = np.random.default_rng(seed)
    for layer in hard.layers:
        if not isinstance(layer, _layers.DepthwiseConv2D):
            continue
        relu, normalization = _before(layer), _before(_before(layer))
        if not isinstance(relu, _layers.ReLU) or relu.max_value is not None:
            raise ValueError(f"Before {layer.name} is {relu.name}, no ReLU without an upper bound.")
        if not isinstance(normalization, _layers.BatchNormalization):
            raise ValueError(f"Before {relu.name} is {normalization.name}, no BatchNormalization.")
        scales = 2 ** generator.uniform(-exponent, exponent, normalization.gamma.shape[0]).astype(np.float32)
        normalization.gamma.assign(normalization.gamma * scales)
        normalization.beta.assign(normalization.beta * scales)
        kernel = layer.depthwise_kernel  # [height, width, channels, multiplier]
        kernel.assign(kernel / scales[:, None])
    return hard


def cnn(widths: Sequence[int] = (16, 32, 64), units: int = 128, dropout: float = 0.3) -> tf_keras.Model:
    """Convolutions that halve the image each, then dense layers: an epoch takes seconds."""
    inputs = flow = tf_keras.Input((28, 28, 1), name="image")
    for place, width in enumerate(widths):
        flow = _layers.Conv2D(width, 3, 2, "same", use_bias=False, name=f"conv{place}")(flow)
        # Momentum is low, so that averages follow within an epoch when channels go.
        flow = _layers.BatchNormalization(momentum=0.9, name=f"conv{place}_bn")(flow)
        flow = _layers.ReLU(name=f"conv{place}_relu")(flow)
    flow = _layers.Dropout(dropout, name="flat_dropout")(_layers.Flatten(name="flat")(flow))
    flow = _layers.Dense(units, activation="relu", name="dense")(flow)
    flow = _layers.Dropout(dropout, name="dense_dropout")(flow)
    return tf_keras.Model(inputs, _layers.Dense(10, activation="softmax", name="classifier")(flow), name="cnn")


def halved(widths: Sequence[int]) -> tuple[int, ...]:
    """The widths of the net that one would build by hand instead of pruning."""
    return tuple(width // 2 for width in widths)


def fashion_mnist(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images [rows, 28, 28, 1] in 0..1 and labels [rows] of `train` or `test`, from idx files, gzipped or not."""
    images, labels = (_read(idx_file(folder, name)) for name in IDX[split])
    return images[..., None].astype(np.float32) / 255, labels.astype(np.int32)


def idx_file(folder: Path, name: str) -> Path:
    """Where a file of the data set is.

    Raises:
      FileNotFoundError: with the remedy.
    """
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"There is no {name} or {name}.gz in the folder {folder}. Remedy: apt-get install dataset-fashion-mnist, or "
        "--data FOLDER with (Fashion-)MNIST's four idx files."
    )


def _read(path: Path) -> np.ndarray:
    """The array in an idx file (yann.lecun.com/exdb/mnist)."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        content = file.read()
    dimensions = content[3]
    shape = np.frombuffer(content, ">i4", dimensions, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def _convolution(flow: Any, width: int, size: int, strides: int, name: str, activation: str | None = "relu") -> Any:
    flow = _layers.Conv2D(width, size, strides, "same", use_bias=False, name=name)(flow)
    return _normalized(flow, name, activation)


def _normalized(flow: Any, name: str, activation: str | None) -> Any:
    flow = _layers.BatchNormalization(name=f"{name}_bn")(flow)
    if activation is None:
        return flow
    return _layers.ReLU(6.0 if activation == "relu6" else None, name=f"{name}_{activation}")(flow)


def _inverted_residual(flow: Any, width: int, expansion: int, strides: int, name: str) -> Any:
    before = flow
    if expansion > 1:
        flow = _convolution(flow, expansion * flow.shape[-1], 1, 1, f"{name}_expand", "relu6")
    flow = _layers.DepthwiseConv2D(3, strides, "same", use_bias=False, name=f"{name}_depthwise")(flow)
    flow = _normalized(flow, f"{name}_depthwise", "relu6")
    flow = _convolution(flow, width, 1, 1, f"{name}_project", None)
    if strides > 1 or before.shape[-1] != width:
        return flow
    return _layers.Add(name=f"{name}_add")([before, flow])


def _before(layer: Any) -> Any:
    """The layer that a layer of one input takes in."""
    return layer.input._keras_history.layer


def _classified(inputs: Any, flow: Any, name: str) -> tf_keras.Model:
    flow = _layers.GlobalAveragePooling2D(name="pool")(flow)
    return tf_keras.Model(inputs, _layers.Dense(10, activation="softmax", name="classifier")(flow), name=name)
