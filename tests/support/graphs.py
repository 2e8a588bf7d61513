"""Small networks, one for each shape of graph that pruning handles, in Keras 2 or Keras 3.

A builder takes the Keras module and returns a model. `GRAPHS` holds the builders by name.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tf_keras

KERAS = [tf_keras, keras]
GRAPHS: dict[str, Callable[[Any], Any]] = {}


def _graph(build: Callable[[Any], Any]) -> Callable[[Any], Any]:
    GRAPHS[build.__name__] = build
    return build


def _image(K: Any, size: int = 6) -> Any:
    return K.Input((size, size, 3), name="image")


def _words(K: Any) -> Any:
    return K.Input((5,), dtype="int32", name="words")


def _steps(K: Any) -> Any:
    return K.Input((5, 3), name="steps")


def _conv(K: Any, filters: int, name: str, size: int = 3, **arguments: Any) -> Any:
    return K.layers.Conv2D(filters, size, padding="same", name=name, **{"activation": "relu", **arguments})


def _classified(K: Any, inputs: Any, x: Any) -> Any:
    """Returns the model that maps feature maps, vectors or sequences to three numbers."""
    if len(x.shape) == 4:
        x = K.layers.GlobalAveragePooling2D(name="pool")(x)
    elif len(x.shape) == 3:
        x = K.layers.GlobalAveragePooling1D(name="pool")(x)
    return K.Model(inputs, K.layers.Dense(3, name="out")(x), name="network")


@_graph
def plain_convolutions(K: Any) -> Any:
    image = _image(K)
    return _classified(K, image, _conv(K, 5, "second")(_conv(K, 4, "first")(image)))


@_graph
def convolutions_over_time(K: Any) -> Any:
    steps = _steps(K)
    x = K.layers.Conv1D(4, 2, padding="causal", activation="relu", name="first")(steps)
    x = K.layers.SeparableConv1D(6, 2, padding="same", activation="relu", name="second")(x)
    x = K.layers.DepthwiseConv1D(2, name="third", activation="relu")(x)
    x = K.layers.Conv1DTranspose(4, 2, name="fourth")(x)
    x = K.layers.ZeroPadding1D(1)(K.layers.UpSampling1D(2)(K.layers.MaxPooling1D(2)(x)))
    return _classified(K, steps, K.layers.Cropping1D(1)(x))


@_graph
def convolutions_over_volumes(K: Any) -> Any:
    volume = K.Input((4, 4, 4, 2), name="volume")
    x = K.layers.Conv3D(4, 2, activation="relu", name="first")(volume)
    x = K.layers.Conv3DTranspose(3, 2, activation="relu", name="second")(K.layers.AveragePooling3D(2)(x))
    return _classified(K, volume, K.layers.GlobalMaxPooling3D()(x))


@_graph
def without_bias(K: Any) -> Any:
    image = _image(K)
    return _classified(K, image, _conv(K, 5, "second", use_bias=False)(_conv(K, 4, "first", 1, use_bias=False)(image)))


@_graph
def dense_layers(K: Any) -> Any:
    x = K.Input((4,), name="x")
    hidden = K.layers.Dense(6, activation="relu", name="first")(x)
    hidden = K.layers.Dropout(0.5)(hidden)
    return _classified(K, x, K.layers.Dense(5, activation="tanh", use_bias=False, name="second")(hidden))


@_graph
def batch_normalization(K: Any) -> Any:
    image = _image(K)
    x = K.layers.BatchNormalization(name="norm")(_conv(K, 6, "first", activation=None, use_bias=False)(image))
    x = K.layers.BatchNormalization(scale=False, name="second_norm")(_conv(K, 4, "second")(K.layers.ReLU()(x)))
    x = K.layers.BatchNormalization(center=False, name="third_norm")(x)
    return _classified(K, image, x)


@_graph
def depthwise(K: Any) -> Any:
    image = _image(K)
    x = K.layers.DepthwiseConv2D(3, activation="relu", name="depthwise")(_conv(K, 6, "first")(image))
    return _classified(K, image, _conv(K, 4, "second", 1)(x))


@_graph
def depthwise_that_multiplies(K: Any) -> Any:
    image = _image(K)
    x = K.layers.DepthwiseConv2D(3, depth_multiplier=2, activation="relu", name="depthwise")(
        _conv(K, 4, "first")(image)
    )
    x = K.layers.BatchNormalization(name="norm")(x)
    return _classified(K, image, _conv(K, 8, "second", 1)(x) + x)


@_graph
def depthwise_on_the_input(K: Any) -> Any:
    image = _image(K)
    x = K.layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(image)
    return _classified(K, image, _conv(K, 4, "first", 1)(x))


@_graph
def separable(K: Any) -> Any:
    image = _image(K)
    x = K.layers.SeparableConv2D(6, 3, depth_multiplier=2, activation="relu", name="first")(image)
    x = K.layers.SeparableConv2D(4, 3, depth_multiplier=2, activation="relu", name="second")(x)
    return _classified(K, image, K.layers.SeparableConv2D(5, 1, use_bias=False, name="third")(x))


@_graph
def transposed(K: Any) -> Any:
    image = _image(K)
    x = K.layers.Conv2DTranspose(6, 3, strides=2, activation="relu", name="first")(image)
    x = K.layers.Conv2DTranspose(4, 3, use_bias=False, activation="relu", name="second")(x)
    return _classified(K, image, x)


@_graph
def grouped(K: Any) -> Any:
    image = _image(K)
    x = _conv(K, 9, "second", groups=3)(_conv(K, 6, "first")(image))
    return _classified(K, image, _conv(K, 4, "fourth", groups=4)(_conv(K, 8, "third")(x)))


@_graph
def residual(K: Any) -> Any:
    image = _image(K)
    x = stem = _conv(K, 6, "stem")(image)
    for name in ("first", "second"):
        inner = K.layers.BatchNormalization(name=f"{name}_norm")(_conv(K, 4, name, activation=None)(x))
        inner = _conv(K, 6, f"{name}_out", 1, activation=None)(K.layers.ReLU()(inner))
        x = K.layers.ReLU()(K.layers.Add()([x, inner]))
    return _classified(K, image, K.layers.Add()([x, stem, x]))


@_graph
def element_by_element(K: Any) -> Any:
    image = _image(K)
    a, b = _conv(K, 6, "a")(image), _conv(K, 6, "b")(image)
    x = K.layers.Subtract()([a, b])
    x = K.layers.Average()([x, _conv(K, 6, "c")(image)])
    x = K.layers.Maximum()([x, _conv(K, 6, "d")(image)])
    x = K.layers.Minimum()([x, _conv(K, 6, "e")(image)])
    return _classified(K, image, K.layers.Multiply()([x, _conv(K, 6, "f")(image)]))


@_graph
def squeeze_excite(K: Any) -> Any:
    image = _image(K)
    x = _conv(K, 6, "first")(image)
    gate = K.layers.Reshape((1, 1, 6))(K.layers.GlobalAveragePooling2D()(x))
    gate = _conv(K, 6, "expand", 1, activation="sigmoid")(_conv(K, 2, "squeeze", 1)(gate))
    return _classified(K, image, _conv(K, 4, "second")(K.layers.Multiply()([x, gate])))


@_graph
def squeeze_excite_that_keeps_dimensions(K: Any) -> Any:
    image = _image(K)
    x = _conv(K, 6, "first")(image)
    gate = K.layers.Dense(2, activation="relu", name="squeeze")(K.layers.GlobalAveragePooling2D(keepdims=True)(x))
    return _classified(K, image, K.layers.Multiply()([K.layers.Dense(6, "sigmoid", name="expand")(gate), x]))


@_graph
def squeeze_excite_of_lower_rank(K: Any) -> Any:
    """Merging layers of Keras insert missing axes after the batch axis."""
    image = _image(K)
    x = _conv(K, 6, "first")(image)
    gate = K.layers.Dense(6, activation="sigmoid", name="expand")(K.layers.GlobalAveragePooling2D()(x))
    return _classified(K, image, K.layers.Multiply()([x, gate]))


@_graph
def spatial_attention(K: Any) -> Any:
    """One channel is broadcast over all others."""
    image = _image(K)
    x = _conv(K, 6, "first")(image)
    return _classified(K, image, K.layers.Multiply()([x, _conv(K, 1, "attention", activation="sigmoid")(x)]))


@_graph
def concatenation(K: Any) -> Any:
    image = _image(K)
    x = K.layers.Concatenate()([_conv(K, 4, "a")(image), image, _conv(K, 3, "b")(image)])
    x = K.layers.BatchNormalization(name="norm")(x)
    x = K.layers.DepthwiseConv2D(3, name="depthwise")(x)
    return _classified(K, image, _conv(K, 5, "second")(x))


@_graph
def concatenation_along_positions(K: Any) -> Any:
    image = _image(K)
    x = K.layers.Concatenate(axis=1)([_conv(K, 4, "a")(image), _conv(K, 4, "b")(image)])
    x = K.layers.Concatenate(axis=-2)([x, x])
    return _classified(K, image, _conv(K, 5, "second")(x))


@_graph
def concatenation_of_residuals(K: Any) -> Any:
    image = _image(K)
    a, b = _conv(K, 4, "a")(image), _conv(K, 3, "b")(image)
    a, b = K.layers.Add()([a, _conv(K, 4, "a2")(a)]), K.layers.Add()([b, _conv(K, 3, "b2")(b)])
    x = K.layers.Concatenate()([a, b])
    return _classified(K, image, K.layers.Add()([x, _conv(K, 7, "joined")(x)]))


@_graph
def concatenations_that_overlap(K: Any) -> Any:
    """The sum of two concatenations with different boundaries couples channels across them."""
    image = _image(K)
    a, b = _conv(K, 4, "a")(image), _conv(K, 2, "b")(image)
    concatenate = K.layers.Concatenate
    return _classified(K, image, K.layers.Add()([concatenate()([a, b]), concatenate()([b, a])]))


@_graph
def dense_net(K: Any) -> Any:
    x = image = _image(K)
    for name in ("a", "b", "c"):
        y = _conv(K, 4, name)(K.layers.BatchNormalization(name=f"{name}_norm")(x))
        x = K.layers.Concatenate()([x, y])
    return _classified(K, image, _conv(K, 5, "transition", 1)(x))


@_graph
def flattened(K: Any) -> Any:
    image = _image(K)
    x = K.layers.Flatten()(K.layers.MaxPooling2D(2)(_conv(K, 4, "first")(image)))
    return _classified(K, image, K.layers.Dense(6, activation="relu", name="hidden")(x))


@_graph
def flattened_concatenation(K: Any) -> Any:
    image = _image(K, 4)
    x = K.layers.Concatenate()([_conv(K, 3, "a")(image), _conv(K, 2, "b")(image)])
    flat = K.layers.BatchNormalization(name="norm")(K.layers.Flatten()(x))
    joined = K.layers.Concatenate()([flat, K.layers.GlobalMaxPooling2D()(x)])
    return _classified(K, image, joined)


@_graph
def positions(K: Any) -> Any:
    """Layers that change the number of positions."""
    image = _image(K)
    x = K.layers.ZeroPadding2D(1)(_conv(K, 4, "first")(image))
    x = K.layers.Cropping2D(((1, 0), (0, 1)))(K.layers.AveragePooling2D(2, padding="same")(x))
    x = K.layers.UpSampling2D(2, interpolation="bilinear")(K.layers.SpatialDropout2D(0.2)(x))
    x = _conv(K, 5, "second")(K.layers.MaxPooling2D(3, 2)(x))
    return _classified(K, image, K.layers.GlobalMaxPooling2D()(x))


@_graph
def image_to_sequence(K: Any) -> Any:
    image = _image(K, 4)
    x = K.layers.Reshape((16, 4))(_conv(K, 4, "first")(image))
    x = K.layers.Dense(5, activation="relu", name="hidden")(x)
    x = K.layers.Reshape((-1, 4, 5))(x)
    return _classified(K, image, _conv(K, 6, "second")(x))


@_graph
def rows_as_channels(K: Any) -> Any:
    """(H, W, C) to (H, W * C): each row has several copies of a channel."""
    image = _image(K, 4)
    x = K.layers.Reshape((4, 16))(_conv(K, 4, "first")(image))
    return _classified(K, image, K.layers.Dense(5, activation="relu", name="hidden")(x))


@_graph
def dense_to_image(K: Any) -> Any:
    x = K.Input((3,), name="x")
    image = K.layers.Reshape((2, 2, 4))(K.layers.Dense(16, activation="relu", name="first")(x))
    return _classified(K, x, _conv(K, 5, "second")(K.layers.UpSampling2D(2)(image)))


@_graph
def permuted(K: Any) -> Any:
    image = _image(K, 4)
    x = K.layers.Permute((3, 1, 2))(_conv(K, 4, "first")(image))
    x = K.layers.Permute((2, 3, 1))(K.layers.ReLU()(x))
    x = K.layers.Permute((3, 2, 1))(_conv(K, 5, "second")(x))
    return _classified(K, image, K.layers.Flatten()(x))


@_graph
def channel_shuffle(K: Any) -> Any:
    image = _image(K, 4)
    x = K.layers.Reshape((4, 4, 2, 3))(_conv(K, 6, "first")(image))
    x = K.layers.Reshape((4, 4, 6))(K.layers.Permute((1, 2, 4, 3))(x))
    return _classified(K, image, _conv(K, 6, "second", groups=3)(x))


@_graph
def layer_normalization(K: Any) -> Any:
    image = _image(K)
    x = K.layers.LayerNormalization(name="norm")(_conv(K, 6, "first")(image))
    return _classified(K, image, _conv(K, 5, "second")(x))


@_graph
def one_normalization_group(K: Any) -> Any:
    image = _image(K)
    return _classified(K, image, K.layers.GroupNormalization(1, name="norm")(_conv(K, 6, "first")(image)))


@_graph
def block_that_is_dropped(K: Any) -> Any:
    """As in EfficientNet."""
    image = _image(K)
    x = _conv(K, 4, "first")(image)
    dropped = K.layers.Dropout(0.5, noise_shape=(None, 1, 1, 1))(_conv(K, 4, "second")(x))
    return _classified(K, image, K.layers.Add()([x, dropped]))


@_graph
def group_normalization(K: Any) -> Any:
    image = _image(K)
    x = K.layers.GroupNormalization(3, name="norm")(_conv(K, 6, "first")(image))
    x = K.layers.GroupNormalization(-1, name="instance_norm")(_conv(K, 4, "second")(x))
    x = K.layers.GroupNormalization(2, center=False, scale=False, name="plain_norm")(_conv(K, 8, "third")(x))
    return _classified(K, image, x)


@_graph
def one_group_normalization_twice(K: Any) -> Any:
    image = _image(K)
    norm = K.layers.GroupNormalization(4, center=False, scale=False, name="norm")
    x = K.layers.Concatenate()([norm(_conv(K, 8, "first")(image)), norm(_conv(K, 8, "second")(image))])
    return _classified(K, image, x)


@_graph
def parametric_relu(K: Any) -> Any:
    image = _image(K)
    x = K.layers.PReLU(name="by_place")(_conv(K, 4, "first", activation=None)(image))
    x = K.layers.PReLU(shared_axes=[1, 2], name="by_channel")(_conv(K, 5, "second", activation=None)(x))
    x = K.layers.PReLU(shared_axes=[1, 2, 3], name="one")(_conv(K, 5, "third", activation=None)(x))
    return _classified(K, image, x)


@_graph
def embedding(K: Any) -> Any:
    words = _words(K)
    x = K.layers.Embedding(7, 6, name="embedding")(words)
    x = K.layers.SpatialDropout1D(0.1)(x)
    return _classified(K, words, K.layers.Dense(4, activation="relu", name="hidden")(x))


@_graph
def embeddings_with_positions(K: Any) -> Any:
    words, positions = _words(K), K.Input((5,), dtype="int32", name="positions")
    x = K.layers.Embedding(7, 6, name="word")(words) + K.layers.Embedding(7, 6, name="position")(positions)
    return _classified(K, [words, positions], K.layers.Dense(4, activation="relu", name="hidden")(x))


@_graph
def masked_words(K: Any) -> Any:
    words = _words(K)
    x = K.layers.Embedding(7, 6, mask_zero=True, name="embedding")(words)
    x = K.layers.LSTM(4, return_sequences=True, name="first")(x)
    x = K.layers.GRU(5, return_sequences=True, name="second")(x)
    return _classified(K, words, K.layers.TimeDistributed(K.layers.Dense(4, name="dense"), name="steps")(x))


@_graph
def stacked_recurrent(K: Any) -> Any:
    words = _words(K)
    x = K.layers.Embedding(7, 4, name="embedding")(words)
    x = K.layers.LSTM(6, return_sequences=True, name="first")(x)
    x = K.layers.GRU(5, return_sequences=True, go_backwards=True, name="second")(x)
    x = K.layers.GRU(4, reset_after=False, return_sequences=True, name="third")(x)
    return _classified(K, words, K.layers.SimpleRNN(4, use_bias=False, name="fourth")(x))


@_graph
def recurrent_states(K: Any) -> Any:
    steps = _steps(K)
    sequence, hidden, carry = K.layers.LSTM(6, return_sequences=True, return_state=True, name="encoder")(steps)
    x = K.layers.LSTM(6, name="decoder")(sequence, initial_state=[hidden, carry])
    last, state = K.layers.GRU(4, return_state=True, name="gru")(sequence)
    return _classified(K, steps, K.layers.Concatenate()([x, last, state, carry]))


@_graph
def state_from_a_dense_layer(K: Any) -> Any:
    steps, x = _steps(K), K.Input((2,), name="x")
    state = K.layers.Dense(4, activation="tanh", name="state")(x)
    return _classified(K, [steps, x], K.layers.GRU(4, name="gru")(steps, initial_state=state))


@_graph
def state_from_the_input(K: Any) -> Any:
    steps, state = _steps(K), K.Input((4,), name="state")
    x = K.layers.SimpleRNN(4, return_sequences=True, name="rnn")(steps, initial_state=state)
    return _classified(K, [steps, state], K.layers.GRU(5, name="gru")(x))


def _bidirectional(merge_mode: str | None) -> None:
    def build(K: Any) -> Any:
        steps = _steps(K)
        inner = K.layers.LSTM(4, return_sequences=True, name="lstm")
        x = K.layers.Bidirectional(inner, merge_mode=merge_mode, name="both")(steps)
        return _classified(K, steps, K.layers.Concatenate()(x) if merge_mode is None else x)

    build.__name__ = f"bidirectional_{merge_mode}".lower()
    _graph(build)


for _mode in ("concat", "sum", "mul", "ave", None):
    _bidirectional(_mode)


@_graph
def bidirectional_states(K: Any) -> Any:
    steps = _steps(K)
    inner = K.layers.LSTM(4, return_sequences=True, return_state=True, name="lstm")
    x, *states = K.layers.Bidirectional(inner, name="both")(steps)
    x = K.layers.Bidirectional(K.layers.LSTM(4, name="second"), name="decoder")(x, initial_state=states)
    return _classified(K, steps, K.layers.Concatenate()([x, *states]))


@_graph
def bidirectional_over_two_layers(K: Any) -> Any:
    steps = _steps(K)
    forward = K.layers.LSTM(4, name="forth")
    backward = K.layers.GRU(4, go_backwards=True, name="back")
    return _classified(K, steps, K.layers.Bidirectional(forward, backward_layer=backward, name="both")(steps))


@_graph
def self_attention(K: Any) -> Any:
    steps = _steps(K)
    x = K.layers.Dense(6, activation="relu", name="embedding")(steps)
    x = K.layers.Add()([x, K.layers.MultiHeadAttention(3, 2, name="attention")(x, x)])
    return _classified(K, steps, K.layers.MultiHeadAttention(2, 3, value_dim=4, use_bias=False, name="second")(x, x))


@_graph
def cross_attention(K: Any) -> Any:
    steps, other = _steps(K), K.Input((4, 2), name="other")
    query = K.layers.Dense(6, activation="relu", name="query")(steps)
    value = K.layers.Dense(5, activation="relu", name="value")(other)
    key = K.layers.Dense(4, activation="relu", name="key")(other)
    attention = K.layers.MultiHeadAttention(3, 2, output_shape=7, name="attention")
    return _classified(K, [steps, other], attention(query, key=key, value=value))


@_graph
def transformer(K: Any) -> Any:
    words = _words(K)
    x = K.layers.Embedding(7, 8, name="embedding")(words)
    for name in ("first", "second"):
        y = K.layers.LayerNormalization(name=f"{name}_norm")(x)
        x = x + K.layers.MultiHeadAttention(2, 3, name=name)(y, y)
        y = K.layers.Dense(6, activation="gelu", name=f"{name}_mlp")(
            K.layers.LayerNormalization(name=f"{name}_norm2")(x)
        )
        x = x + K.layers.Dense(8, name=f"{name}_out")(y)
    return _classified(K, words, K.layers.LayerNormalization(name="norm")(x))


@_graph
def masked_attention(K: Any) -> Any:
    words = _words(K)
    x = K.layers.Embedding(7, 8, mask_zero=True, name="embedding")(words)
    x = K.layers.Add()([x, K.layers.MultiHeadAttention(2, 3, name="attention")(x, x, use_causal_mask=True)])
    return _classified(K, words, x)


@_graph
def time_distributed(K: Any) -> Any:
    film = K.Input((2, 4, 4, 3), name="film")
    x = K.layers.TimeDistributed(_conv(K, 4, "inner"), name="convolution")(film)
    x = K.layers.TimeDistributed(K.layers.BatchNormalization(), name="norm")(x)
    x = K.layers.TimeDistributed(K.layers.Flatten(), name="flatten")(x)
    return _classified(K, film, K.layers.TimeDistributed(K.layers.Dense(5, activation="relu"), name="dense")(x))


@_graph
def repeated(K: Any) -> Any:
    x = K.Input((3,), name="x")
    hidden = K.layers.RepeatVector(4)(K.layers.Dense(5, activation="relu", name="hidden")(x))
    return _classified(K, x, K.layers.GRU(4, name="gru")(hidden))


@_graph
def nested_models(K: Any) -> Any:
    image = _image(K)
    inside = K.Input((6, 6, 4), name="inside")
    y = _conv(K, 5, "inner", 1)(inside)
    deepest = K.Sequential([K.Input((6, 6, 5)), _conv(K, 4, "deepest")], name="sequence")
    nested = K.Model(inside, K.layers.Add()([inside, deepest(y)]), name="nested")
    return _classified(K, image, nested(_conv(K, 4, "first")(image)))


@_graph
def nested_model_of_several(K: Any) -> Any:
    """A nested model that takes and returns dictionaries."""
    image = _image(K)
    inside = {"zebra": K.Input((6, 6, 4), name="zebra"), "apple": K.Input((6, 6, 3), name="apple")}
    outputs = {"z": _conv(K, 5, "on_zebra")(inside["zebra"]), "a": _conv(K, 6, "on_apple")(inside["apple"])}
    nested = K.Model(inside, outputs, name="nested")
    result = nested({"zebra": _conv(K, 4, "first")(image), "apple": _conv(K, 3, "second")(image)})
    return _classified(K, image, K.layers.Concatenate()([_conv(K, 2, "third")(result["z"]), result["a"]]))


@_graph
def sequential(K: Any) -> Any:
    layers = [K.Input((6, 6, 3), name="image"), _conv(K, 4, "first"), K.layers.MaxPooling2D(), K.layers.Flatten()]
    hidden = K.layers.Dense(5, activation="relu", name="hidden")
    return K.Sequential([*layers, hidden, K.layers.Dense(3, activation="softmax", name="out")], name="network")


@_graph
def siamese(K: Any) -> Any:
    one, other = K.Input((4,), name="one"), K.Input((4,), name="other")
    first = K.layers.Dense(6, activation="relu", name="first")
    second = K.layers.Dense(5, activation="relu", name="second")
    x = K.layers.Subtract()([second(first(one)), second(first(other))])
    return _classified(K, [one, other], x)


@_graph
def shared_nested_model(K: Any) -> Any:
    one, other = _image(K), K.Input((6, 6, 3), name="other")
    tower = K.Sequential([K.Input((6, 6, 4)), _conv(K, 5, "inner"), K.layers.Flatten()], name="tower")
    x = [tower(_conv(K, 4, "first")(one)), tower(_conv(K, 4, "second")(other))]
    return _classified(K, [one, other], K.layers.Concatenate()(x))


@_graph
def shared_reshape(K: Any) -> Any:
    image = _image(K, 4)
    reshape = K.layers.Reshape((16, 4))
    x = [reshape(_conv(K, 4, "first")(image)), reshape(_conv(K, 4, "second")(image))]
    return _classified(K, image, K.layers.Concatenate()(x))


@_graph
def one_layer_again_and_again(K: Any) -> Any:
    image = _image(K)
    x = _conv(K, 4, "first")(image)
    again = _conv(K, 4, "again")
    return _classified(K, image, again(again(again(x))))


@_graph
def several_inputs_and_outputs(K: Any) -> Any:
    image, x = _image(K), K.Input((2,), name="x")
    trunk = K.layers.GlobalAveragePooling2D()(_conv(K, 6, "first")(image))
    joined = K.layers.Concatenate()([trunk, K.layers.Dense(5, activation="relu", name="hidden")(x)])
    out = [K.layers.Dense(3, activation="softmax", name="label")(joined), K.layers.Dense(1, name="size")(trunk)]
    return K.Model([image, x], out, name="network")


@_graph
def dictionaries(K: Any) -> Any:
    inputs = {"zoom": K.Input((2,), name="zoom"), "image": _image(K)}
    trunk = K.layers.GlobalAveragePooling2D()(_conv(K, 6, "first")(inputs["image"]))
    joined = K.layers.Concatenate()([trunk, K.layers.Dense(5, activation="relu", name="hidden")(inputs["zoom"])])
    out = {"size": K.layers.Dense(1, name="size")(joined), "label": K.layers.Dense(3, name="label")(trunk)}
    return K.Model(inputs, out, name="network")


@_graph
def inner_tensor_as_output(K: Any) -> Any:
    image = _image(K)
    x = _conv(K, 5, "second")(_conv(K, 4, "first")(image))
    y = K.layers.GlobalAveragePooling2D(name="pool")(_conv(K, 6, "third")(x))
    return K.Model(image, [x, K.layers.Dense(3, name="out")(y)], name="network")


@_graph
def tied_to_the_input(K: Any) -> Any:
    image = _image(K)
    x = K.layers.Add()([_conv(K, 3, "first")(_conv(K, 4, "inner")(image)), image])
    return _classified(K, image, _conv(K, 5, "second")(x))


@_graph
def operators(K: Any) -> Any:
    image = _image(K)
    relu, maximum = (tf.nn.relu, tf.maximum) if K is tf_keras else (keras.ops.relu, keras.ops.maximum)
    x, y = _conv(K, 4, "first", activation=None)(image), _conv(K, 4, "second", activation=None)(image)
    x = maximum(relu(x) * 2.0 + y, 1.0 - y) / 3.0 - x
    return _classified(K, image, _conv(K, 5, "third")(-x))


@_graph
def operators_on_one_channel(K: Any) -> Any:
    image = _image(K)
    x = _conv(K, 4, "first")(image)
    return _classified(K, image, _conv(K, 5, "second")(x * _conv(K, 1, "gate")(x) + x))


@_graph
def activations(K: Any) -> Any:
    image = _image(K)
    x = _conv(K, 4, "first", activation=None)(image)
    for kind in ("sigmoid", "gelu", "swish", "elu", "hard_sigmoid"):
        x = K.layers.Activation(kind)(x)
    x = K.layers.Rescaling(0.5, 1.0)(K.layers.LeakyReLU()(K.layers.ELU()(x)))
    return _classified(K, image, _conv(K, 5, "second", activation=K.layers.LeakyReLU())(x))


@_graph
def positions_of_any_number(K: Any) -> Any:
    image = K.Input((None, None, 3), name="image")
    x = K.layers.BatchNormalization()(_conv(K, 4, "first")(image))
    x = K.layers.Add()([x, _conv(K, 4, "second")(x)])
    x = K.layers.Concatenate()([x, _conv(K, 3, "third")(x)])
    x = K.layers.Dense(5, activation="relu", name="hidden")(K.layers.Reshape((-1, 7))(x))
    return _classified(K, image, x)


@_graph
def steps_of_any_number(K: Any) -> Any:
    steps = K.Input((None, 3), name="steps")
    x = K.layers.LSTM(4, return_sequences=True, name="lstm")(K.layers.Dense(5, activation="relu", name="first")(steps))
    x = K.layers.MultiHeadAttention(2, 3, name="attention")(x, x)
    return _classified(K, steps, x)


@_graph
def mixed_precision(K: Any) -> Any:
    image = _image(K)
    x = _conv(K, 4, "first", dtype="mixed_bfloat16")(image)
    x = K.layers.BatchNormalization(dtype="mixed_bfloat16")(x)
    x = K.layers.GlobalAveragePooling2D(dtype="mixed_bfloat16")(_conv(K, 5, "second", dtype="mixed_bfloat16")(x))
    return K.Model(image, K.layers.Dense(3, dtype="float32", name="out")(x), name="network")


@_graph
def frozen(K: Any) -> Any:
    image = _image(K)
    nested = K.Sequential([K.Input((6, 6, 4)), _conv(K, 5, "inner"), K.layers.BatchNormalization()], name="nested")
    nested.trainable = False
    both = K.layers.Bidirectional(K.layers.LSTM(4, name="lstm"), name="both")
    first = _conv(K, 4, "first")
    first.trainable = False
    x = K.layers.Reshape((36, 5))(nested(first(image)))
    model = _classified(K, image, both(K.layers.MultiHeadAttention(2, 3, name="attention")(x, x)))
    both.forward_layer.trainable = False
    model.get_layer("attention")._query_dense.trainable = False
    return model


@_graph
def softmax_in_the_middle(K: Any) -> Any:
    image = _image(K)
    x = _conv(K, 4, "attention", 1, activation="softmax")(_conv(K, 5, "first")(image))
    return _classified(K, image, _conv(K, 4, "second")(x))


@_graph
def softmax_over_places(K: Any) -> Any:
    steps = _steps(K)
    x = K.layers.Dense(6, activation="relu", name="first")(steps)
    weights = K.layers.Softmax(axis=1)(K.layers.Dense(6, name="scores")(x))
    return _classified(K, steps, K.layers.Multiply()([x, weights]))


@_graph
def softmax_layer_at_the_end(K: Any) -> Any:
    x = K.Input((4,), name="x")
    logits = K.layers.Dense(3, name="out")(K.layers.Dense(6, activation="relu", name="first")(x))
    return K.Model(x, K.layers.Softmax()(logits), name="network")


@_graph
def preprocessing(K: Any) -> Any:
    """Layers with state beside their weights."""
    x = K.Input((3,), name="x")
    normalize = K.layers.Normalization(name="normalize")
    normalize.adapt(np.random.default_rng(0).normal(3.0, 5.0, (50, 3)).astype(np.float32))
    return _classified(K, x, K.layers.Dense(5, activation="relu", name="hidden")(normalize(x)))
