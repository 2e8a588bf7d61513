"""Errors of traced user code arrive as the code raised them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tfx_compression.errors import DataError
from tfx_compression.tracing import unwrapped_errors

from tests.support.errors import raises


class LabelError(Exception):
    """An error with a constructor of its own, which AutoGraph can't build again."""

    def __init__(self, label: int, classes: int):
        super().__init__(f"Label {label} of {classes} classes")


def lookup_fails(features):
    return {}["key"]


def chains_errors(features):
    try:
        return lookup_fails(features)
    except KeyError as error:
        raise ValueError("bad\nlabel") from error


def fails_while_handling(features):
    try:
        return {}["key"]
    except KeyError:
        raise ValueError("bad\nlabel")  # noqa: B904


def raises_label_error(features):
    raise LabelError(7, 3)


def traced_by_function(function):
    tf.function(function)(1)


def traced_by_nested_functions(function):
    inner = tf.function(function)

    def outer(features):
        return inner(features)

    tf.function(outer)(1)


def traced_by_map(function):
    tf.data.Dataset.range(3).map(function)


def traced_by_loss(function):
    model = tf_keras.Sequential([tf_keras.Input((2,)), tf_keras.layers.Dense(1)])
    model.compile("sgd", lambda labels, outputs: function(outputs))
    model.fit(np.zeros((4, 2)), np.zeros((4, 1)), verbose=0)


def traced_by_layer(function):
    class Failing(tf_keras.layers.Layer):
        def call(self, inputs, training=None):
            return function(inputs) if training else inputs

    model = tf_keras.Sequential([tf_keras.Input((2,)), Failing(), tf_keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(np.zeros((4, 2)), np.zeros((4, 1)), verbose=0)


TRACERS = [traced_by_function, traced_by_nested_functions, traced_by_map, traced_by_loss, traced_by_layer]


@pytest.mark.parametrize("trace", TRACERS)
@pytest.mark.parametrize(
    ("function", "error_class", "message"),
    [
        (chains_errors, ValueError, "bad\nlabel"),
        (raises_label_error, LabelError, "Label 7 of 3 classes"),
        (lookup_fails, KeyError, "'key'"),
    ],
)
def test_an_error_of_traced_code_keeps_class_and_message(trace, function, error_class, message):
    with pytest.raises(error_class) as caught, unwrapped_errors():
        trace(function)
    assert type(caught.value) is error_class
    assert str(caught.value) == message


def test_the_cause_that_the_code_gave_is_kept():
    with pytest.raises(ValueError) as caught, unwrapped_errors():
        traced_by_function(chains_errors)
    assert type(caught.value.__cause__) is KeyError


def test_the_error_that_the_code_was_handling_is_kept():
    with pytest.raises(ValueError) as caught, unwrapped_errors():
        traced_by_function(fails_while_handling)
    assert str(caught.value) == "bad\nlabel"
    assert type(caught.value.__context__) is KeyError
    assert caught.value.__cause__ is None


def test_an_error_that_the_code_raises_from_none_is_not_taken_for_a_wrapper():
    def hides_the_error(features):
        try:
            return lookup_fails(features)
        except KeyError:
            raise ValueError("bad label") from None

    with pytest.raises(ValueError) as caught, unwrapped_errors():
        traced_by_map(hides_the_error)
    assert str(caught.value) == "bad label"
    assert caught.value.__cause__ is None


def test_an_error_outside_of_tracing_passes_unchanged():
    error = ValueError("bad label")
    with pytest.raises(ValueError) as caught, unwrapped_errors():
        raise error
    assert caught.value is error


@pytest.mark.parametrize("library", [tf_keras, keras], ids=["keras2", "keras3"])
def test_nested_uses_unwrap_an_error_once(library):
    class Failing(library.layers.Layer):
        def call(self, inputs):
            return raises_label_error(inputs)

    layer = Failing()

    def call(features):
        return layer(features)

    with pytest.raises(Exception) as caught, unwrapped_errors(), unwrapped_errors():
        tf.function(call)(tf.zeros([1, 2]))
    assert "Label 7 of 3 classes" in str(caught.value)
    assert "in user code" not in str(caught.value)


def test_the_helper_decorates_functions():
    @unwrapped_errors()
    def build(function):
        traced_by_map(function)

    with pytest.raises(LabelError):
        build(raises_label_error)


@pytest.mark.parametrize("trace", [traced_by_function, traced_by_nested_functions, traced_by_map, traced_by_loss])
def test_an_error_of_this_package_passes_autograph_unchanged(trace):
    def refuses(features):
        raise DataError("No label.", field="label_key", code="no-label")

    with raises(DataError, field="label_key", code="no-label") as caught:
        trace(refuses)
    assert str(caught.value) == "No label."
