"""Checks that data fits a Keras model, before Keras finds out inside of a traced function."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf

from tfx_compression.errors import DataError
from tfx_compression.keras_models import graph


def require_fitting(model: Any, data: Any, argument: str = "data") -> None:
    """Checks batches of (features, labels) against a model's inputs and its loss. Only certain misfits are refused.

    Args:
      model: A Keras model. One without a graph of layers takes anything.
      data: The batches.
      argument: Name of the argument that holds them, for the error.

    Raises:
      DataError: The data is no dataset of batches (code `not-batches`), a feature is missing (`missing-feature`), has
        another shape (`feature-shape`) or is text where numbers are taken or the other way round (`feature-type`), or
        the labels are missing (`no-labels`), text (`string-labels`) or of a shape that the loss doesn't take
        (`label-shape`).
    """
    if not isinstance(data, tf.data.Dataset):
        raise _error(
            argument, f"a {type(data).__name__} is no dataset. Remedy: a batched tf.data.Dataset", "not-batches"
        )
    spec = data.element_spec
    features, *others = spec if isinstance(spec, tuple) else (spec,)
    if _are_single_rows(model, features, others):
        raise _error(argument, "its elements are single rows. Remedy: data.batch(32)", "not-batches")
    if graph.has_inputs_and_outputs(model):
        for name, given, taken in _pairs(model, features, argument):
            _require_feature(name, given, taken, argument)
    if getattr(model, "loss", None) is not None:
        _require_labels(model, others[0] if others else None, argument)


@contextlib.contextmanager
def explained_labels() -> Iterator[None]:
    """Raises a DataError (code `label-range`) for classes that the block's model doesn't have."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        if "label value" not in error.message:
            raise
        line = next(line for line in error.message.splitlines() if "label value" in line)
        raise DataError(
            f"A label is not the number of a class that the model has: {line.strip()} Remedy: labels from 0 to the "
            "number of outputs minus 1.",
            field="data",
            code="label-range",
        ) from error


def _are_single_rows(model: Any, features: Any, others: list[Any]) -> bool:
    """Returns whether a dataset isn't batched: there is one value without an axis, or one axis too few."""
    tensors = [spec for spec in tf.nest.flatten((features, others)) if isinstance(spec, tf.TensorSpec)]
    if any(spec.shape.rank == 0 for spec in tensors):
        return True
    inputs = list(getattr(model, "inputs", None) or ())
    only = features if isinstance(features, tf.TensorSpec) and len(inputs) == 1 else None
    return only is not None and only.shape.rank is not None and only.shape == tf.TensorShape(inputs[0].shape)[1:]


def _pairs(model: Any, features: Any, argument: str) -> list[tuple[str, Any, Any]]:
    """Returns name, given spec and symbolic input of each input whose data is known."""
    inputs = graph.io_structures(model)[0]
    flat = graph.flat_tensors(inputs)
    names = sorted(inputs) if isinstance(inputs, dict) else list(getattr(model, "input_names", ()))
    if len(names) != len(flat):
        names = [tensor.name for tensor in flat]
    if isinstance(features, Mapping):
        if missing := [name for name in names if name not in features]:
            raise _error(
                argument,
                f"it has no feature {missing[0]!r}, only {', '.join(map(str, features))}. Remedy: features by the "
                "names of the model's inputs",
                "missing-feature",
            )
        return [(name, features[name], taken) for name, taken in zip(names, flat, strict=True)]
    given = list(features) if isinstance(features, tuple | list) else [features]
    return list(zip(names, given, flat, strict=True)) if len(given) == len(flat) else []


def _require_feature(name: str, given: Any, taken: Any, argument: str) -> None:
    if not isinstance(given, tf.TensorSpec) or given.shape.rank is None or taken.shape is None:
        return
    shape = tf.TensorShape(taken.shape)
    if not shape[1:].is_compatible_with(given.shape[1:]) and not _same_but_last_one(given.shape, shape):
        raise _error(
            argument,
            f"the feature {name!r} has the shape {given.shape}, and the model takes {shape}. Remedy: reshape it",
            "feature-shape",
        )
    if (given.dtype == tf.string) != (tf.as_dtype(taken.dtype) == tf.string):
        raise _error(
            argument,
            f"the feature {name!r} is of type {given.dtype.name}, and the model takes {tf.as_dtype(taken.dtype).name}. "
            "Remedy: the type that the model takes",
            "feature-type",
        )


def _same_but_last_one(one: tf.TensorShape, other: tf.TensorShape) -> bool:
    """Returns whether two shapes are the same except for a last axis of 1, which Keras adds or removes."""
    short, long = sorted((one, other), key=lambda shape: shape.rank)
    return bool(long.rank == short.rank + 1 and long[-1] in (1, None) and short[1:].is_compatible_with(long[1:-1]))


def _require_labels(model: Any, labels: Any, argument: str) -> None:
    if labels is None:
        raise _error(
            argument, "it has no labels, which the model's loss requires. Remedy: (features, labels)", "no-labels"
        )
    specs = tf.nest.flatten(labels)
    if any(getattr(spec, "dtype", None) == tf.string for spec in specs):
        raise _error(argument, "the labels are text. Remedy: numbers of classes, or one-hot rows", "string-labels")
    outputs = list(getattr(model, "outputs", None) or ())
    loss = getattr(model.loss, "name", None) or getattr(model.loss, "__name__", model.loss)  # object, function or name
    if len(outputs) != 1 or len(specs) != 1 or not isinstance(specs[0], tf.TensorSpec) or specs[0].shape.rank is None:
        return
    given, output = specs[0].shape, tf.TensorShape(outputs[0].shape)
    if loss == "sparse_categorical_crossentropy":
        fits = output[1:-1].is_compatible_with(given[1:]) or [*output[1:-1], 1] == list(given[1:])
    elif loss == "categorical_crossentropy":
        fits = output[1:].is_compatible_with(given[1:])
    else:
        return
    if not fits:
        raise _error(
            argument,
            f"the labels have the shape {given}, which the loss {loss} doesn't take for outputs of {output}. Remedy: "
            "sparse_categorical_crossentropy takes numbers of classes, categorical_crossentropy one-hot rows",
            "label-shape",
        )


def _error(argument: str, problem: str, code: str) -> DataError:
    return DataError(f"{argument} doesn't fit the model: {problem}.", field=argument, code=code)
