"""Execution of a functional Keras model call by call, so that inner values can be seen and calls replaced."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfx_compression.keras_models import graph
from tfx_compression.keras_models.library import is_keras3, keras_library

ApplyFn = Callable[[graph.Call], Any]


def execute(model: Any, inputs: Sequence[Any], apply: ApplyFn) -> list[Any]:
    """Executes a functional model, and the models nested in it, in inference mode.

    Args:
      model: A functional Keras 2 or Keras 3 model.
      inputs: Values of `model.inputs`.
      apply: Function that returns the result of a call, such as `call_layer`. The arguments of the call that it gets
        are values; its `outputs` are still symbolic.

    Returns:
      The flat outputs.
    """
    values = dict(zip(map(id, model.inputs), inputs, strict=True))
    for call in graph.calls(model):
        given = _with_values(call, values)
        if graph.is_functional(call.layer):
            first = graph.flat_tensors(next(iter(call.arguments.values())))
            results = execute(call.layer, [values[id(tensor)] for tensor in first], apply)
        else:
            results = tf.nest.flatten(apply(given))
        values.update(zip(map(id, call.outputs), results, strict=True))
    return [values[id(tensor)] for tensor in graph.flat_tensors(model.outputs)]


def call_layer(call: graph.Call) -> Any:
    """Returns the result of a call whose arguments are values."""
    return call.layer(*call.args, **call.kwargs)


def input_values(model: Any, features: Any) -> list[Any]:
    """Returns the values of `model.inputs` for a batch of features, in the structures and dtypes that Keras accepts."""
    structure = graph.io_structures(model)[0]
    values = keras_library(model).Model(structure, list(model.inputs))(features, training=False)
    return list(values) if isinstance(values, list | tuple) else [values]


def trace(model: Any) -> Any:
    """Returns a Keras model, also a subclassed one, as a concrete function; None if its inputs are unknown or it fails.

    A subclassed model knows its inputs once it was called.
    """
    try:
        return tf.function(lambda *inputs: model(*inputs, training=False), autograph=False).get_concrete_function(
            *_input_specs(model)
        )
    except (ValueError, TypeError, AttributeError, KeyError, NotImplementedError, tf.errors.OpError):
        return None


def _input_specs(model: Any) -> list[Any]:
    """Returns the specifications of the positional arguments of a model's call."""
    if not is_keras3(model):
        args, _ = model.save_spec()
        return list(args)
    from keras.src.export import export_utils

    signature = export_utils.get_input_signature(model)
    return list(tf.nest.map_structure(export_utils.make_tf_tensor_spec, signature))


def _with_values(call: graph.Call, values: dict[int, Any]) -> graph.Call:
    def value(tensor: Any) -> Any:
        return values[id(tensor)]

    args, kwargs, arguments = graph.map_tensors((call.args, call.kwargs, call.arguments), value)
    return dataclasses.replace(
        call, args=args, kwargs=kwargs, arguments=arguments, inputs=tuple(map(value, call.inputs))
    )
