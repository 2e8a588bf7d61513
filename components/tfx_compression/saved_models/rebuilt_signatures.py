"""Serving signatures of a network that replaces another one, with the names and answers of the original.

The original signature's own graph says what it parses. The rebuilt signature parses the same, and passes it through the
Transform layer, if there is one, and through the network. It is first rebuilt with the old network, and accepted only
if it then answers like the original (see `equivalence`).
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfx_compression.data import example_parsing
from tfx_compression.errors import ModelError
from tfx_compression.keras_models import graph
from tfx_compression.keras_models.library import is_keras3
from tfx_compression.saved_models import equivalence, probes
from tfx_compression.saved_models.equivalence import Reference
from tfx_compression.saved_models.probes import SignatureInputs
from tfx_compression.saved_models.saved_model import SIGNATURE, SavedModel
from tfx_compression.saved_models.transform_cut import TRANSFORM_LAYER

SignaturesFn = Callable[[Any, Any], Mapping[str, Any]]
FrontEnd = Callable[..., Any]  # from the signature's arguments, by name, to what the network takes

_REMEDY = (
    "Remedy: a signatures_fn(model, tf_transform_output) in the module file that returns {name: tf.function}; behind "
    "Transform, also pass transform_graph."
)


@dataclasses.dataclass(frozen=True)
class RebuiltSignatures:
    """Signatures that can be saved.

    Attributes:
      signatures: The signatures, by name.
      tracked: Objects that the signatures use, by the attribute of the saved object that must hold them.
    """

    signatures: dict[str, Any]
    tracked: dict[str, Any]


def rebuild(
    original: SavedModel, before: Any, after: Any, handles: set[int], transform_graph_uri: str | None = None
) -> RebuiltSignatures:
    """Rebuilds the signatures of a SavedModel with another network.

    Args:
      original: The SavedModel; its variables have the values of `before`.
      before: The Keras network that its signatures use.
      after: The network that replaces it, with the same inputs and outputs.
      handles: Ids of the handles of the variables that hold the weights of `before`. Signatures that use none of them,
        such as `transform_features`, are kept.
      transform_graph_uri: Path of Transform's output, for a SavedModel without a layer `tft_layer`.

    Raises:
      ModelError: If a signature can't be rebuilt to answer like the original.
    """
    layers = _transform_layers(original.loaded, transform_graph_uri)
    words = probes.known_words(original.path, _vocabularies(before))
    signatures: dict[str, Any] = {}
    tracked: dict[str, Any] = {}
    for name, signature in original.signatures.items():
        if handles & {id(external) for external, _ in signature.graph.captures}:
            rebuilder = _Rebuilder(f"{name!r} of {original.path}", signature, words)
            signatures[name], layer = rebuilder.rebuild(before, after, layers)
            if layer is not None:
                tracked[TRANSFORM_LAYER] = layer
        else:
            signatures[name] = signature
            tracked |= _independent_objects(original.loaded, handles)
    return RebuiltSignatures(signatures, tracked)


def tensor_signatures(network: Any) -> dict[str, Any]:
    """Returns a `serving_default` that takes the network's inputs by name and returns its outputs by name."""
    names = _input_names(network)
    specs = [
        tf.TensorSpec(tensor.shape, tensor.dtype, name) for name, tensor in zip(names, network.inputs, strict=True)
    ]

    def serve(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        return dict(zip(_output_names(network), _call(network, list(tensors)), strict=True))

    return {SIGNATURE: tf.function(serve, input_signature=specs)}


def user_signatures(signatures_fn: SignaturesFn, network: Any, transform_graph_uri: str | None) -> RebuiltSignatures:
    """Returns the signatures that the user's `signatures_fn(model, tf_transform_output or None)` makes for a network.

    Raises:
      ModelError: If it returns none.
    """
    transform = None if transform_graph_uri is None else _transform_output(transform_graph_uri)
    signatures = dict(signatures_fn(network, transform) or {})
    if not signatures:
        raise ModelError(
            "signatures_fn returned no signatures. Remedy: return {'serving_default': tf.function, …}.",
            field="signatures_fn",
            code="no-signatures",
        )
    return RebuiltSignatures(signatures, {})


class _Rebuilder:
    """Rebuilds one signature.

    Args:
      place: The signature, for error messages.
      signature: The signature.
      words: Words that the model may know.
    """

    def __init__(self, place: str, signature: Any, words: Sequence[bytes]) -> None:
        self._place = place
        try:
            self._inputs = probes.signature_inputs(place, signature)
            _require_rebuildable_parsing(self._inputs)
            self._references = equivalence.draw_references(signature, self._inputs, words)
        except ModelError as error:
            raise ModelError(f"{error} {_REMEDY}", code=error.code) from error

    def rebuild(self, before: Any, after: Any, layers: Sequence[Any]) -> tuple[Any, Any]:
        """Returns the signature with the network `after`, and the Transform layer that it uses, if any.

        Args:
          before: The network that the signature uses.
          after: The network that replaces it.
          layers: Transform layers that it may use.

        Raises:
          ModelError: If the signature does more than parsing, transforming and predicting.
        """
        failures = []
        for layer, transform in _transforms(layers):
            front_end = _front_end(self._inputs, transform)
            every_output = {str(index): index for index in range(len(before.outputs))}
            try:
                # As a graph, like the original: TensorFlow then fuses the same operations in both, and NaN and rounding
                # come out alike.
                function = self._function(front_end, before, every_output)
                answers = [equivalence.arrays(function(*each.feeds.values())) for each in self._references]
                outputs = _match_outputs(self._references, answers, _output_names(before))
            except equivalence.CALL_FAILURES as error:
                failures.append(equivalence.failure_summary(error))
                continue
            return self._function(front_end, after, outputs), layer
        raise ModelError(
            f"The signature {self._place} can't be rebuilt with another network: parsing, "
            f"{'Transform' if layers else '(no Transform layer found)'} and network alone don't give its answers "
            f"({'; '.join(dict.fromkeys(failures))}). {_REMEDY}",
            code="not-equivalent",
        )

    def _function(self, front_end: FrontEnd, network: Any, outputs: Mapping[str, int]) -> Any:
        """Returns the signature's function with a network, and with its outputs by name and index."""
        arguments = self._inputs.arguments

        def serve(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
            answers = _predict(network, front_end(**dict(zip(arguments, tensors, strict=True))))
            return {name: answers[index] for name, index in outputs.items()}

        return tf.function(serve, input_signature=list(arguments.values()))


def _require_rebuildable_parsing(inputs: SignatureInputs) -> None:
    """Checks that tf.io.parse_example, given the features of a signature, parses them alike."""
    if inputs.features and len(inputs.arguments) != 1:
        problem = f"parses tf.Examples and takes several arguments: {', '.join(sorted(inputs.arguments))}"
    elif ragged := [name for name, spec in inputs.features.items() if isinstance(spec, tf.io.RaggedFeature)]:
        problem = f"parses ragged features: {', '.join(ragged)}"
    elif computed := [name for name, spec in inputs.features.items() if example_parsing.has_computed_default(spec)]:
        problem = f"computes the default values of features: {', '.join(computed)}"
    else:
        return
    raise ModelError(f"The signature {inputs.place} {problem}.", code="unsupported-parsing")


def _front_end(inputs: SignatureInputs, transform: Callable[[Mapping[str, Any]], Any]) -> FrontEnd:
    """Returns the function from a signature's arguments to what the network takes."""
    if not inputs.features:
        return lambda **tensors: transform(dict(tensors))
    (name,) = inputs.arguments
    return lambda **tensors: transform(tf.io.parse_example(tensors[name], inputs.features))


def _transforms(layers: Sequence[Any]) -> Iterator[tuple[Any, Callable[[Mapping[str, Any]], Any]]]:
    """Yields what may be between parsing and network, with the Transform layer: nothing, or a call of a layer."""
    yield None, dict
    for layer in layers:
        yield layer, functools.partial(_call_on_features, layer)
        yield layer, functools.partial(_call_on_only_feature, layer)


def _call_on_features(layer: Any, features: Mapping[str, Any]) -> Any:
    return layer(dict(features))


def _call_on_only_feature(layer: Any, features: Mapping[str, Any]) -> Any:
    (feature,) = features.values()
    return layer(feature)


def _predict(network: Any, features: Any) -> list[Any]:
    """Returns the network's outputs for features by name, or for a single feature."""
    names = _input_names(network)
    if not isinstance(features, Mapping):
        features = {names[0]: features}
    if len(names) == 1 and names[0] not in features and len(features) == 1:
        features = {names[0]: next(iter(features.values()))}
    if missing := [name for name in names if name not in features]:
        raise KeyError(f"no feature is called like the network's inputs {', '.join(missing)}")
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


def _match_outputs(
    references: Sequence[Reference], answers: Sequence[Mapping[str, np.ndarray]], names: list[str]
) -> dict[str, int]:
    """Returns which output of the network each output of the signature is.

    Args:
      references: What the signature answers.
      answers: What the network answers to the same draws: its outputs by their index.
      names: Names of the network's outputs; they decide between outputs that are alike in all draws.
    """
    outputs = {}
    for name in references[0].answers:
        equal = [
            index
            for index in range(len(names))
            if all(
                equivalence.alike(answer[str(index)], reference.answers[name])
                for reference, answer in zip(references, answers, strict=True)
            )
        ]
        named = [index for index in equal if names[index] == name]
        if len(named or equal) != 1:
            raise ValueError(f"its output {name!r} equals {len(equal)} outputs of the network")
        outputs[name] = (named or equal)[0]
    return outputs


def _vocabularies(network: Any) -> Iterator[Sequence[Any]]:
    """Yields the vocabularies of a network's lookup layers."""
    for layer in network._flatten_layers():
        if callable(getattr(layer, "get_vocabulary", None)):
            yield layer.get_vocabulary()


def _transform_layers(loaded: Any, transform_graph_uri: str | None) -> list[Any]:
    layers = [getattr(loaded, TRANSFORM_LAYER, None)]
    if transform_graph_uri is not None:
        layers.append(_transform_output(transform_graph_uri).transform_features_layer())
    return [layer for layer in layers if callable(layer)]


def _transform_output(uri: str) -> Any:
    import tensorflow_transform as tft

    return tft.TFTransformOutput(uri)


def _independent_objects(loaded: Any, handles: set[int]) -> dict[str, Any]:
    """Returns the objects of a loaded model that use none of its network's variables: tables, the Transform layer."""
    return {
        name: child
        for name, child in loaded._trackable_children().items()
        if name.isidentifier() and name not in ("signatures", "keras_api") and not handles & _handles(child, set())
        if not callable(child) or isinstance(child, tf.Module) or name == TRANSFORM_LAYER
    }


def _handles(trackable: Any, seen: set[int]) -> set[int]:
    """Returns the ids of the handles of the variables that an object holds."""
    if id(trackable) in seen:
        return set()
    seen.add(id(trackable))
    if isinstance(trackable, tf.Variable):
        return {id(trackable.handle)}
    return {key for child in trackable._trackable_children().values() for key in _handles(child, seen)}
