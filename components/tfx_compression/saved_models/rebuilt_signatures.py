"""Serving signatures of a network that replaces another: the same names and answers, made anew and proven.

The original signature's own graph says what it parses. What is rebuilt parses the same, passes it through Transform's
layer where there is one, and through the network. It is first rebuilt with the old network, and counts only if its
answers are then the original's.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfx_compression.errors import ModelError
from tfx_compression.keras_models import graph
from tfx_compression.keras_models.library import is_keras3
from tfx_compression.saved_models.saved_model import SavedModel
from tfx_compression.tf_graphs import inlining

TRANSFORM_LAYER = "tft_layer"  # the attribute of the model that TFX's own examples use
SignaturesFn = Callable[[Any, Any], Mapping[str, Any]]

_TOLERANCE = 1e-5
_ROWS = 12
_FREE_SIZE = 3
_KNOWN_WORDS = 4
_ASSET_BYTES = 10_000
_FAILURES = (ValueError, TypeError, KeyError, AttributeError, RuntimeError, tf.errors.OpError)
_REMEDY = (
    "Remedy: a signatures_fn(model, tf_transform_output) in the module file that returns {name: tf.function}; behind "
    "Transform, also pass transform_graph."
)


@dataclasses.dataclass(frozen=True)
class RebuiltSignatures:
    """Signatures that can be saved.

    Attributes:
      signatures: by name.
      tracked: by attribute, what has to hang on the object that is saved, because the signatures use it.
    """

    signatures: dict[str, Any]
    tracked: dict[str, Any]


def rebuild(
    original: SavedModel, before: Any, after: Any, own: set[int], transform_graph_uri: str | None = None
) -> RebuiltSignatures:
    """The signatures of `original`, with the network `after` in the place of `before`.

    Args:
      original: the SavedModel, its values those of `before`.
      before: the Keras network that its signatures use.
      after: the one that replaces it: the same inputs and outputs.
      own: ids of the handles of the variables that hold the weights of `before`; signatures that use none of them
        (`transform_features`) are carried over.
      transform_graph_uri: of Transform's output, where the SavedModel has no layer `tft_layer`.

    Raises:
      ModelError: for a signature that can't be rebuilt so that its answers are the same.
    """
    layers = _transform_layers(original.loaded, transform_graph_uri)
    words = _words(original.path, before)
    signatures: dict[str, Any] = {}
    tracked: dict[str, Any] = {}
    for name, signature in original.signatures.items():
        if own & {id(external) for external, _ in signature.graph.captures}:
            place = f"{name!r} of {original.path}"
            signatures[name], layer = _rebuilt(place, signature, before, after, layers, words)
            if layer is not None:
                tracked[TRANSFORM_LAYER] = layer
        else:
            signatures[name] = signature
            tracked |= _apart(original.loaded, own)
    return RebuiltSignatures(signatures, tracked)


def tensor_signatures(network: Any) -> dict[str, Any]:
    """A `serving_default` that takes the network's inputs by name and returns its outputs by name."""
    names = _input_names(network)
    specs = [
        tf.TensorSpec(tensor.shape, tensor.dtype, name) for name, tensor in zip(names, network.inputs, strict=True)
    ]

    def serve(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        return dict(zip(_output_names(network), _call(network, list(tensors)), strict=True))

    return {"serving_default": tf.function(serve, input_signature=specs)}


def user_signatures(signatures_fn: SignaturesFn, network: Any, transform_graph_uri: str | None) -> RebuiltSignatures:
    """The signatures that the user's `signatures_fn(model, tf_transform_output or None)` makes for a network."""
    transform = None
    if transform_graph_uri is not None:
        import tensorflow_transform as tft

        transform = tft.TFTransformOutput(transform_graph_uri)
    signatures = dict(signatures_fn(network, transform) or {})
    if not signatures:
        raise ModelError("signatures_fn returned no signatures. Remedy: return {'serving_default': tf.function, …}.")
    return RebuiltSignatures(signatures, {})


def _rebuilt(
    place: str, signature: Any, before: Any, after: Any, layers: Sequence[Any], words: Sequence[str]
) -> tuple[Any, Any]:
    """A signature with another network, and the Transform layer that it uses."""
    spec = _parsed(place, signature)
    arguments = _arguments(place, signature)
    proofs = _proofs(place, signature, arguments, spec, words)
    reasons = []
    ways: list[tuple[Any, Callable]] = [(None, dict), *((layer, call) for layer in layers for call in _calls(layer))]
    for used, call in ways:
        front = _front(arguments, spec, call)
        every = {str(index): index for index in range(len(before.outputs))}
        try:
            # As a graph, like the original: what TensorFlow fuses in one treats NaN and rounding alike in both.
            rebuilt = _function(arguments, front, before, every)
            answers = [[rebuilt(*feeds.values())[index].numpy() for index in every] for feeds, _ in proofs]
            order = _matched([expected for _, expected in proofs], answers, _output_names(before))
        except _FAILURES as error:
            reasons.append(str(error).splitlines()[0] if str(error) else type(error).__name__)
            continue
        return _function(arguments, front, after, order), used
    raise ModelError(
        f"The signature {place} can't be rebuilt with another network: parsing, "
        f"{'Transform' if layers else '(no Transform layer found)'} and network alone don't give its answers "
        f"({'; '.join(dict.fromkeys(reasons))}). {_REMEDY}"
    )


def _function(arguments: Mapping[str, tf.TensorSpec], front: Callable, network: Any, order: Mapping[str, int]) -> Any:
    def serve(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        answers = _through(network, front(**dict(zip(arguments, tensors, strict=True))))
        return {name: answers[index] for name, index in order.items()}

    return tf.function(serve, input_signature=list(arguments.values()))


def _front(arguments: Mapping[str, tf.TensorSpec], spec: Mapping[str, Any], call: Callable) -> Callable:
    """From the signature's arguments to what the network takes."""
    if not spec:
        return lambda **tensors: call(dict(tensors))
    (name,) = arguments
    return lambda **tensors: call(tf.io.parse_example(tensors[name], spec))


def _calls(layer: Any) -> tuple[Callable, Callable]:
    """The ways to call a Transform layer: with the features as Transform's own, or with the only one."""

    def alone(features: Mapping[str, Any]) -> Any:
        (feature,) = features.values()
        return layer(feature)

    return (lambda features: layer(dict(features))), alone


def _through(network: Any, features: Any) -> list[Any]:
    """The network's outputs for features by name, or for the only one."""
    names = _input_names(network)
    if not isinstance(features, Mapping):
        features = {names[0]: features}
    if len(names) == 1 and names[0] not in features and len(features) == 1:
        features = {names[0]: next(iter(features.values()))}
    if missing := [name for name in names if name not in features]:
        raise KeyError(f"nothing is called {', '.join(missing)} as the network's inputs are")
    return _call(network, [features[name] for name in names])


def _call(network: Any, inputs: list[Any]) -> list[Any]:
    results = network(tf.nest.pack_sequence_as(graph.io_structures(network)[0], inputs), training=False)
    return list(tf.nest.flatten(results))


def _input_names(network: Any) -> list[str]:
    return [tensor.name for tensor in network.inputs] if is_keras3(network) else list(network.input_names)


def _output_names(network: Any) -> list[str]:
    if not is_keras3(network):
        return list(network.output_names)
    names = [operation.name for operation in (tensor._keras_history.operation for tensor in network.outputs)]
    return names if len(set(names)) == len(names) else [f"output_{index}" for index in range(len(names))]


def _matched(
    expected: Sequence[Mapping[str, np.ndarray]], answers: Sequence[Sequence[np.ndarray]], names: list[str]
) -> dict[str, int]:
    """Which of the network's outputs each output of the signature is; by equal values in all proofs, then by name."""
    order = {}
    for name in expected[0]:
        equal = [
            index
            for index in range(len(names))
            if all(_same(own[index], known[name]) for known, own in zip(expected, answers, strict=True))
        ]
        named = [index for index in equal if names[index] == name]
        if len(named or equal) != 1:
            raise ValueError(f"its output {name!r} equals {len(equal)} outputs of the network")
        order[name] = (named or equal)[0]
    return order


def _same(answer: np.ndarray, expected: np.ndarray) -> bool:
    """Equal but for rounding: of numbers far above 1 their sums round by more."""
    if answer.shape != expected.shape or answer.dtype != expected.dtype:
        return False
    if not np.issubdtype(expected.dtype, np.floating):
        return bool((answer == expected).all())
    largest = np.abs(expected[np.isfinite(expected)]).max(initial=1.0)
    return np.allclose(answer, expected, 10 * _TOLERANCE, _TOLERANCE * largest, equal_nan=True)


def _arguments(place: str, signature: Any) -> dict[str, tf.TensorSpec]:
    specs = signature.structured_input_signature[1]
    if not specs:
        raise ModelError(f"The signature {place} takes no tensors by name. {_REMEDY}")
    return {name: tf.TensorSpec(spec.shape, spec.dtype, name) for name, spec in specs.items()}


def _parsed(place: str, signature: Any) -> dict[str, Any]:
    """What the signature's graph parses of tf.Examples, as tf.io.parse_example takes it; empty where it doesn't."""
    spec: dict[str, Any] = {}
    for op in inlining.inline_calls(signature).graph.get_operations():
        if not op.type.startswith("Parse"):
            continue
        if op.type != "ParseExampleV2" or len(signature.structured_input_signature[1]) != 1:
            raise ModelError(f"The signature {place} parses its examples by {op.type}. {_REMEDY}")
        sparse, dense, ragged = ([key.decode() for key in tf.get_static_value(keys)] for keys in op.inputs[2:5])
        if ragged:
            raise ModelError(f"The signature {place} parses ragged features: {', '.join(ragged)}. {_REMEDY}")
        for key, dtype in zip(sparse, op.get_attr("sparse_types"), strict=True):
            spec[key] = tf.io.VarLenFeature(dtype)
        for key, dtype, shape, default in zip(
            dense, op.get_attr("Tdense"), op.get_attr("dense_shapes"), op.inputs[5:], strict=True
        ):
            spec[key] = _dense(dtype, tf.TensorShape(shape), _constant(default))
    return spec


def _dense(dtype: tf.DType, shape: tf.TensorShape, default: np.ndarray) -> Any:
    if shape.rank and shape[0] is None:
        padding = default.ravel()[0] if default.size else None
        return tf.io.FixedLenSequenceFeature(shape[1:], dtype, allow_missing=True, default_value=padding)
    return tf.io.FixedLenFeature(shape, dtype, default.reshape(shape) if default.size else None)


def _constant(tensor: tf.Tensor) -> np.ndarray:
    while tensor.op.type in ("Identity", "Reshape"):
        tensor = tensor.op.inputs[0]
    value = tf.get_static_value(tensor)
    if value is None:
        raise ModelError(f"A signature parses a feature whose default value is computed ({tensor.op.type}). {_REMEDY}")
    return np.asarray(value)


def _proofs(
    place: str, signature: Any, arguments: Mapping[str, tf.TensorSpec], spec: Mapping[str, Any], words: Sequence[str]
) -> list[tuple[dict[str, tf.Tensor], dict[str, np.ndarray]]]:
    """What the signature answers to several draws, one for each way in which a front end may change some values only.

    A draw that it doesn't answer, such as an index out of range, proves nothing; it is then made of each input alone.
    """
    found: list[tuple[dict[str, tf.Tensor], dict[str, np.ndarray]]] = []
    reasons = []

    def answered(probes: Mapping[str, str]) -> bool:
        feeds = _feeds(arguments, spec, probes, words)
        try:
            found.append((feeds, {name: value.numpy() for name, value in signature(**feeds).items()}))
        except _FAILURES as error:
            reasons.append(error)
            return False
        return True

    answered({})
    for probe, takes in _PROBES.items():
        names = [name for name, feature in (spec or arguments).items() if takes(feature)]
        if names and not answered(dict.fromkeys(names, probe)) and len(names) > 1:
            for name in names:
                answered({name: probe})
    if not found:
        raise ModelError(
            f"The signature {place} does not answer what was made for it: {str(reasons[0]).rstrip(' .')}. {_REMEDY}"
        ) from reasons[0]
    return found


def _is_float(feature: Any) -> bool:
    return bool(feature.dtype.is_floating)


def _is_whole(feature: Any) -> bool:
    return bool(feature.dtype.is_integer)


def _is_text(feature: Any) -> bool:
    return bool(feature.dtype == tf.string)


def _may_lack(feature: Any) -> bool:
    """Whether an example may be without a feature."""
    sparse = isinstance(feature, tf.io.VarLenFeature | tf.io.FixedLenSequenceFeature)
    return sparse or (isinstance(feature, tf.io.FixedLenFeature) and feature.default_value is not None)


# What is drawn, and of which inputs: all others are numbers in 0..1, whole ones 0 and 1, strings `0` and `1`.
_PROBES: dict[str, Callable[[Any], bool]] = {
    "negative": _is_float,
    "large": _is_float,
    "nan": _is_float,
    "minus one": _is_whole,
    "small": _is_whole,
    "hundred": _is_whole,
    "text": _is_text,
    "words": _is_text,
    "lacking": _may_lack,
}
_WHOLE = {"minus one": (-1, 0, 1), "small": (0, 1, 2, 7), "hundred": (-1, 0, 1, 7, 100)}
_TEXT = ("0", "A", "a", "Straße", "", " a ")


def _feeds(
    arguments: Mapping[str, tf.TensorSpec], spec: Mapping[str, Any], probes: Mapping[str, str], words: Sequence[str]
) -> dict[str, tf.Tensor]:
    if spec:
        return {name: _examples(spec, probes, words) for name in arguments}
    return {
        name: _drawn(tensor, index, probes.get(name, ""), words)
        for index, (name, tensor) in enumerate(arguments.items())
    }


def _examples(spec: Mapping[str, Any], probes: Mapping[str, str], words: Sequence[str]) -> tf.Tensor:
    """Serialized tf.Examples of random values; every second one without the features whose probe is `lacking`."""
    rows = [tf.train.Example() for _ in range(_ROWS)]
    for index, (name, feature) in enumerate(spec.items()):
        shape = [_ROWS, *(feature.shape if isinstance(feature, tf.io.FixedLenFeature) else [_FREE_SIZE])]
        if isinstance(feature, tf.io.FixedLenSequenceFeature):
            shape += list(feature.shape)
        probe = probes.get(name, "")
        values = _drawn(tf.TensorSpec(shape, feature.dtype, name), index, probe, words).numpy().reshape(_ROWS, -1)
        for row, own in list(zip(rows, values, strict=True))[:: 2 if probe == "lacking" else 1]:
            place = row.features.feature[name]
            if feature.dtype == tf.string:
                place.bytes_list.value.extend(own)
            elif feature.dtype == tf.int64:
                place.int64_list.value.extend(own)
            else:
                place.float_list.value.extend(own)
    return tf.constant([row.SerializeToString() for row in rows])


def _drawn(spec: tf.TensorSpec, seed: int, probe: str, words: Sequence[str]) -> tf.Tensor:
    """A tensor of the kind that `probe` names; another draw for each seed."""
    if spec.shape.rank is None:
        raise ModelError(f"A signature takes {spec.name!r} in any shape. {_REMEDY}")
    free = [_ROWS] + [_FREE_SIZE] * len(spec.shape)
    shape = [size if size is not None else free[min(axis, 1)] for axis, size in enumerate(spec.shape)]
    generator = np.random.default_rng(seed)
    values = generator.uniform(0, 1, shape)
    if spec.dtype == tf.string:
        texts = {"text": _TEXT, "words": [*words, *_TEXT]}.get(probe)
        drawn = np.round(values).astype(np.int64).astype(str) if texts is None else np.resize(texts, shape)
        return tf.constant(np.vectorize(str.encode, otypes=[object])(drawn), tf.string)
    if probe in _WHOLE:
        values = np.resize(np.roll(_WHOLE[probe], seed), shape)
    elif probe == "negative":
        values = generator.normal(0, 10, shape)
    elif probe == "large":
        values *= 255
    elif probe == "nan":
        values.ravel()[seed % 3 :: 3] = np.nan
    elif not spec.dtype.is_floating:
        values = np.round(values)
    return tf.constant(values.astype(spec.dtype.as_numpy_dtype))


def _words(path: str, network: Any) -> list[str]:
    """Some words that the model knows, of its lookup layers and the SavedModel's vocabulary files, also changed."""
    known: list[str] = []
    for layer in network._flatten_layers():
        if callable(getattr(layer, "get_vocabulary", None)):
            known += [str(word) for word in layer.get_vocabulary()[: 2 * _KNOWN_WORDS]]
    for name in tf.io.gfile.glob(os.path.join(path, "assets", "*")) if path else []:
        with tf.io.gfile.GFile(name, "rb") as file:
            lines = file.read(_ASSET_BYTES).decode(errors="replace").splitlines()
        known += lines[:_KNOWN_WORDS]
    letters = [word for word in dict.fromkeys(known) if word.strip() and word != "[UNK]"][:_KNOWN_WORDS]
    return [changed for word in letters for changed in (word.swapcase(), word, f" {word} ", word.lower(), word.upper())]


def _transform_layers(loaded: Any, transform_graph_uri: str | None) -> list[Any]:
    layers = [getattr(loaded, TRANSFORM_LAYER, None)]
    if transform_graph_uri is not None:
        import tensorflow_transform as tft

        layers.append(tft.TFTransformOutput(transform_graph_uri).transform_features_layer())
    return [layer for layer in layers if callable(layer)]


def _apart(loaded: Any, own: set[int]) -> dict[str, Any]:
    """The objects that hang on a loaded model and reach none of its network's variables: tables, Transform's layer."""
    return {
        name: child
        for name, child in loaded._trackable_children().items()
        if name.isidentifier() and name not in ("signatures", "keras_api") and not own & _reached(child, set())
        if not callable(child) or isinstance(child, tf.Module) or name == TRANSFORM_LAYER
    }


def _reached(thing: Any, seen: set[int]) -> set[int]:
    """The ids of the handles of the variables below an object."""
    if id(thing) in seen:
        return set()
    seen.add(id(thing))
    if isinstance(thing, tf.Variable):
        return {id(thing.handle)}
    return {found for child in thing._trackable_children().values() for found in _reached(child, seen)}
