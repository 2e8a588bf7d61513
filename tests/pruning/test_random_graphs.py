"""The removal of channels is exact in random networks of the layers that have rules."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import pytest
import tf_keras
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tfx_compression.pruning.dependency_graph import DependencyGraph
from tfx_compression.pruning.surgery import remove

from tests.support import exactness

pytestmark = pytest.mark.slow

Pick = Callable[[Sequence[Any]], Any]
SIZE = 4  # of the images, and steps of the sequences


def random_graphs(examples: int) -> Any:
    """Returns the settings of a test of so many random graphs."""
    return settings(
        max_examples=int(os.environ.get("PRUNER_EXAMPLES", examples)),
        derandomize="PRUNER_EXAMPLES" not in os.environ,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


class Images:
    """Steps of a random convolutional network; each creates a tensor from one or two existing ones."""

    def __init__(self, K: Any, pick: Pick):
        self.K, self.layers, self.pick = K, K.layers, pick
        self.names = 0
        self.shared: dict[tuple, Any] = {}

    def conv(self, x: Any, filters: int = 0, size: int = 0, **arguments: Any) -> Any:
        self.names += 1
        activation = self.pick(["relu", None, "sigmoid"])
        return self.layers.Conv2D(
            filters or self.pick([2, 3, 4, 6]),
            size or self.pick([1, 3]),
            padding="same",
            name=f"conv{self.names}",
            **{"activation": activation, "use_bias": self.pick([True, False]), **arguments},
        )(x)

    def like(self, x: Any, other: Any) -> Any:
        """Returns `other` with as many channels as `x`."""
        return other if other.shape[-1] == x.shape[-1] else self.conv(other, int(x.shape[-1]))

    def normalized(self, x: Any, _: Any) -> Any:
        channels = int(x.shape[-1])
        groups = self.pick([each for each in (1, 2, 3, channels) if channels % each == 0])
        shared_axes = self.pick([None, [1, 2]])
        return self.pick(
            [
                self.layers.BatchNormalization(),
                self.layers.GroupNormalization(groups, center=self.pick([True, False])),
                self.layers.LayerNormalization(),
                self.layers.PReLU(shared_axes=shared_axes),
            ]
        )(x)

    def grouped(self, x: Any, _: Any) -> Any:
        channels = int(x.shape[-1])
        groups = self.pick([each for each in (1, 2, 3) if channels % each == 0])
        return self.conv(x, groups * self.pick([1, 2]), groups=groups)

    def depthwise(self, x: Any, _: Any) -> Any:
        multiplier = self.pick([1, 2]) if x.shape[-1] < 7 else 1
        return self.layers.DepthwiseConv2D(3, padding="same", depth_multiplier=multiplier, activation="relu")(x)

    def separable(self, x: Any, _: Any) -> Any:
        return self.layers.SeparableConv2D(self.pick([3, 4]), 3, padding="same", depth_multiplier=self.pick([1, 2]))(x)

    def transposed(self, x: Any, _: Any) -> Any:
        return self.layers.Conv2DTranspose(self.pick([3, 4]), 3, padding="same", activation="relu")(x)

    def pooled(self, x: Any, _: Any) -> Any:
        kind = self.pick([self.layers.MaxPooling2D, self.layers.AveragePooling2D])
        x = kind(2, strides=self.pick([1, 2]), padding="same")(x)
        return x if x.shape[1] == SIZE else self.layers.UpSampling2D(2)(x)

    def combined(self, x: Any, other: Any) -> Any:
        kinds = ["Add", "Subtract", "Multiply", "Maximum", "Minimum", "Average"]
        return getattr(self.layers, self.pick(kinds))()([x, self.like(x, other)])

    def operated(self, x: Any, other: Any) -> Any:
        other = self.like(x, other)
        return self.pick([lambda: x + other, lambda: x * 0.5 - other, lambda: -x * other])()

    def concatenated(self, x: Any, other: Any) -> Any:
        if x.shape[-1] + other.shape[-1] > 14:
            return self.conv(x)
        return self.layers.Concatenate()(self.pick([[x, other], [other, x], [x, other, x]]))

    def side_by_side(self, x: Any, other: Any) -> Any:
        x = self.layers.Concatenate(axis=1)([x, self.like(x, other)])
        return self.layers.Cropping2D(((SIZE // 2, SIZE // 2), (0, 0)))(x)

    def excited(self, x: Any, _: Any) -> Any:
        channels = int(x.shape[-1])
        gate = self.layers.GlobalAveragePooling2D(keepdims=self.pick([True, False]))(x)
        gate = self.layers.Reshape((1, 1, channels))(gate)
        gate = self.conv(self.conv(gate, 2, 1), channels, 1, activation="sigmoid")
        return self.layers.Multiply()([x, gate])

    def attended(self, x: Any, other: Any) -> Any:
        """Multiplies all channels by one."""
        return self.layers.Multiply()([x, self.conv(other, 1, activation="sigmoid")])

    def shuffled(self, x: Any, _: Any) -> Any:
        channels = int(x.shape[-1])
        groups = self.pick([each for each in (1, 2, 3) if channels % each == 0])
        x = self.layers.Reshape((SIZE, SIZE, groups, channels // groups))(x)
        return self.layers.Reshape((SIZE, SIZE, channels))(self.layers.Permute((1, 2, 4, 3))(x))

    def flat_and_back(self, x: Any, _: Any) -> Any:
        channels = int(x.shape[-1])
        if self.pick([True, False]):
            x = self.layers.Dense(self.pick([3, 4]), activation="relu")(self.layers.Reshape((-1, channels))(x))
            channels = int(x.shape[-1])
        else:
            x = self.layers.ReLU()(self.layers.Flatten()(x))
        return self.layers.Reshape((SIZE, SIZE, channels))(x)

    def through_a_dense_layer(self, x: Any, _: Any) -> Any:
        channels = self.pick([2, 3])
        x = self.layers.Dense(SIZE * SIZE * channels, activation="relu")(self.layers.GlobalMaxPooling2D()(x))
        return self.layers.Reshape((SIZE, SIZE, channels))(x)

    def turned(self, x: Any, _: Any) -> Any:
        x = self.layers.ReLU()(self.layers.Permute((3, 1, 2))(x))
        return self.layers.Permute(self.pick([(2, 3, 1), (3, 2, 1)]))(x)

    def nested(self, x: Any, other: Any) -> Any:
        """Calls a nested model, the same one for tensors of the same shapes."""
        key = "nested", x.shape[-1], other.shape[-1]
        if key not in self.shared:
            one, two = (self.K.Input(tuple(each.shape)[1:]) for each in (x, other))
            out = self.layers.Add()([self.conv(one, 4), self.conv(two, 4)])
            out = self.pick([out, self.layers.Concatenate()([out, two])])
            self.shared[key] = self.K.Model([one, two], out, name=f"nested{len(self.shared)}")
        return self.shared[key]([x, other])

    def again(self, x: Any, _: Any) -> Any:
        """Calls a layer, the same one for tensors of the same shape."""
        key = "again", x.shape[-1]
        if key not in self.shared:
            filters = self.pick([3, int(x.shape[-1])])
            name = f"again{len(self.shared)}"
            self.shared[key] = self.layers.Conv2D(filters, 3, padding="same", activation="relu", name=name)
        return self.shared[key](x)

    def model(self) -> Any:
        image = self.K.Input((SIZE, SIZE, 3), name="image")
        tensors = [image, self.conv(image), self.conv(image)]
        steps = [
            *(lambda x, _: self.conv(x), self.normalized, self.grouped, self.depthwise, self.separable),
            *(self.transposed, self.pooled, self.combined, self.operated, self.concatenated, self.side_by_side),
            *(self.excited, self.attended, self.shuffled, self.flat_and_back, self.through_a_dense_layer),
            *(self.turned, self.nested, self.again),
        ]
        for _ in range(self.pick([2, 4, 6, 9])):
            recent = tensors[-3:]
            tensors.append(self.pick(steps)(self.pick(recent), self.pick(tensors)))
        heads = [self.flat(tensors[-1]), self.flat(self.pick(tensors))]
        hidden = self.layers.Dense(4, activation="relu", name="hidden")(self.layers.Concatenate()(heads))
        outputs = [self.layers.Dense(3, activation="softmax", name="out")(hidden)]
        if self.pick([True, False, False]):
            outputs.append(self.pick(tensors[1:]))
        return self.K.Model(image, outputs)

    def flat(self, x: Any) -> Any:
        kinds = [self.layers.Flatten, self.layers.GlobalAveragePooling2D, self.layers.GlobalMaxPooling2D]
        return self.pick(kinds)()(x)


class Sequences:
    """Steps of a random network over sequences."""

    def __init__(self, K: Any, pick: Pick):
        self.K, self.layers, self.pick = K, K.layers, pick
        self.states: list[Any] = []

    def dense(self, x: Any, _: Any = None, units: int = 0) -> Any:
        dense = self.layers.Dense(units or self.pick([2, 3, 4, 6]), activation=self.pick(["relu", "tanh", None]))
        return self.pick([dense, self.layers.TimeDistributed(dense)])(x)

    def like(self, x: Any, other: Any) -> Any:
        return other if other.shape[-1] == x.shape[-1] else self.dense(other, units=int(x.shape[-1]))

    def recurrent(self, x: Any, _: Any) -> Any:
        kind = self.pick([self.layers.LSTM, self.layers.GRU, self.layers.SimpleRNN])
        units, returned = self.pick([2, 3, 4]), self.pick([True, False])
        layer = kind(units, return_sequences=True, return_state=returned, go_backwards=self.pick([True, False]))
        usable = [state for state in self.states if state.shape[-1] == units]
        if usable and kind is not self.layers.LSTM and self.pick([True, False]):
            result = layer(x, initial_state=self.pick(usable))
        else:
            result = layer(x)
        if not returned:
            return result
        self.states += result[1:]
        return result[0]

    def both_ways(self, x: Any, _: Any) -> Any:
        inner = self.pick([self.layers.LSTM, self.layers.GRU])(self.pick([2, 3]), return_sequences=True)
        return self.layers.Bidirectional(inner, merge_mode=self.pick(["concat", "sum", "mul", "ave"]))(x)

    def attention(self, x: Any, other: Any) -> Any:
        attention = self.layers.MultiHeadAttention(
            self.pick([1, 2, 3]),
            2,
            value_dim=self.pick([None, 3]),
            output_shape=self.pick([None, 4]),
            use_bias=self.pick([True, False]),
        )
        return attention(x, self.pick([x, other]), use_causal_mask=self.pick([True, False]))

    def normalized(self, x: Any, _: Any) -> Any:
        return self.pick([self.layers.LayerNormalization, self.layers.BatchNormalization])()(x)

    def added(self, x: Any, other: Any) -> Any:
        other = self.like(x, other)
        return self.pick([lambda: self.layers.Add()([x, other]), lambda: x + other])()

    def concatenated(self, x: Any, other: Any) -> Any:
        return self.layers.Concatenate()([x, other]) if x.shape[-1] + other.shape[-1] < 13 else self.dense(x)

    def convolved(self, x: Any, _: Any) -> Any:
        return self.layers.Conv1D(self.pick([3, 4]), 2, padding="causal", activation="relu")(x)

    def repeated(self, x: Any, _: Any) -> Any:
        return self.layers.RepeatVector(SIZE)(self.layers.GlobalMaxPooling1D()(x))

    def model(self) -> Any:
        words = self.K.Input((SIZE,), dtype="int32", name="words")
        steps = self.K.Input((SIZE, 3), name="steps")
        embedding = self.layers.Embedding(7, self.pick([4, 6]), mask_zero=self.pick([True, False]), name="embedding")
        tensors = [embedding(words), self.dense(steps)]
        kinds = [
            *(self.dense, self.recurrent, self.both_ways, self.attention, self.normalized, self.added),
            *(self.concatenated, self.convolved, self.repeated),
        ]
        for _ in range(self.pick([1, 2, 4, 6])):
            tensors.append(self.pick(kinds)(self.pick(tensors[-3:]), self.pick(tensors)))
        heads = [self.layers.GlobalAveragePooling1D()(tensors[-1]), self.layers.Flatten()(self.pick(tensors))]
        heads += [self.layers.GlobalMaxPooling1D()(each) for each in tensors[:2]]  # so that every input is used
        x = self.layers.Concatenate()(heads + self.states)
        outputs = [self.layers.Dense(2, name="out")(x)]
        if self.pick([True, False, False]):
            outputs.append(self.pick(tensors))
        return self.K.Model([words, steps], outputs)


def assert_removal_is_exact(model: Any, seed: int) -> None:
    exactness.with_random_weights(model, seed)
    dependencies = DependencyGraph(model)
    kept = exactness.random_units(dependencies, np.random.default_rng(seed))
    pruned = remove(dependencies, kept)
    inputs = exactness.random_inputs(model, seed, rows=2)
    exactness.zero(dependencies, kept)
    exactness.assert_equal(exactness.outputs(model, inputs), exactness.outputs(pruned, inputs), 3e-5)


def assert_removal_from_images_is_exact(K: Any, data: Any) -> None:
    model = Images(K, lambda options: options[data.draw(st.integers(0, len(options) - 1))]).model()
    assert_removal_is_exact(model, data.draw(st.integers(0, 99)))


@random_graphs(30)
@given(st.data())
def test_removal_from_random_convolutional_networks_is_exact(data):
    assert_removal_from_images_is_exact(keras, data)


@random_graphs(10)  # the rules are the same, and Keras 2 builds layers slowly
@given(st.data())
def test_removal_from_random_convolutional_networks_of_keras_2_is_exact(data):
    assert_removal_from_images_is_exact(tf_keras, data)


@random_graphs(20)
@given(st.data())
def test_removal_from_random_networks_over_sequences_is_exact(data):
    model = Sequences(keras, lambda options: options[data.draw(st.integers(0, len(options) - 1))]).model()
    assert_removal_is_exact(model, data.draw(st.integers(0, 99)))
