"""Serving signatures on tf.Examples as functions of features, for TFLite.

TFLite can't parse tf.Examples. What is converted is therefore the signature's own graph, cut where the parsing ends, or
where its Transform layer ends. Everything behind the cut is exactly what is served.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from tfx_compression.data import example_parsing
from tfx_compression.data.example_parsing import FeatureTensors, tensor_names
from tfx_compression.errors import DataError, ModelError
from tfx_compression.saved_models import equivalence, fixed_batch, probes, tflite_limits, transform_cut
from tfx_compression.saved_models.saved_model import SIGNATURE
from tfx_compression.saved_models.signature_graph import (
    SignatureGraph,
    UnusableSignatureError,
    first_tensors,
    has_fixed_shape,
)
from tfx_compression.tf_graphs.subgraphs import Columns, Specs, call_by_name, call_on_columns, subgraph_function

Preprocess = Callable[[Columns], dict[str, np.ndarray]]
ReadExamples = Callable[[Sequence[bytes]], dict[str, np.ndarray]]

_ARGUMENT_NAME = re.compile(r"[A-Za-z0-9.][A-Za-z0-9_.\\/>-]*")  # TensorFlow's rule


@dataclasses.dataclass(frozen=True)
class FeatureSignature:
    """A signature as a function of features.

    Attributes:
      features: Arguments, by feature name; the first dimension is the batch.
      outputs: Names of the outputs, in order.
      parses_examples: Whether the SavedModel's signature takes serialized tf.Examples.
      function: The function from the features, in order, to a dict of outputs.
      raw_features: Features that are parsed from a tf.Example, or arguments of the SavedModel's signature, from which
        the features are computed.
      preprocess: Computes columns of the features, [rows, …], from columns of `raw_features`. It returns its argument
        unless Transform stays outside.
      example_features: Names of the features that are parsed from a tf.Example.
      read_examples: Computes columns of the features from serialized tf.Examples, by the signature's own parsing with
        its defaults, or else by parsing `raw_features`.
      needs_select_tf_ops: Why TFLite's own operators can't run it: the operators, the features that they work on, and
        the remedy. Empty if TFLite may be able to.
      notes: Which signature replaced the requested one, and why.
    """

    features: dict[str, tf.TensorSpec]
    outputs: tuple[str, ...]
    parses_examples: bool
    function: tf.types.experimental.GenericFunction
    raw_features: dict[str, tf.TensorSpec]
    preprocess: Preprocess
    example_features: tuple[str, ...]
    read_examples: ReadExamples
    needs_select_tf_ops: str = ""
    notes: tuple[str, ...] = ()

    def save(self, path: str) -> None:
        """Writes a SavedModel whose `serving_default` takes the features by name."""
        save_signatures({SIGNATURE: self}, path)


def save_signatures(signatures: Mapping[str, FeatureSignature], path: str) -> None:
    """Writes a SavedModel with several signatures, by name, each of which takes its features by name."""
    concrete = {name: signature.function.get_concrete_function() for name, signature in signatures.items()}
    module = tf.Module()
    module.served = list(concrete.values())
    # Nobody trains it, and what custom gradients (of swish, say) capture isn't there.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(module, path, signatures=concrete, options=options)


def feature_signature(
    path: str,
    name: str = SIGNATURE,
    *,
    batch_size: int | None = None,
    transform: Literal["inside", "outside"] = "inside",
) -> FeatureSignature:
    """Returns a signature of a SavedModel as a function of features.

    If the signature parses tf.Examples in a way that can't be cut off, or looks up a vocabulary, it is replaced by the
    only other signature that takes tensors and returns the same outputs; `notes` say so.

    Args:
      path: Path of the SavedModel.
      name: Name of the signature.
      batch_size: Number of rows that the function takes at once. None for any number.
      transform: `inside` for the parsed features; `outside` for the features that the Transform layer returns
        (`tft_layer`, by TFX's convention, or the signature `transform_features`). The two parts are then proven to
        answer like the signature on drawn rows.

    Raises:
      ModelError: If there is no such signature, one of its features has no fixed shape, it looks up a table inside, or
        there is no Transform layer to leave outside.
    """
    loaded = tf.saved_model.load(path)
    if name not in loaded.signatures:
        raise ModelError(
            f"The SavedModel in {path} has no signature {name!r}, only: {', '.join(loaded.signatures) or 'none'}. "
            f"Remedy: save it with signatures={{{name!r}: …}}.",
            code="no-signature",
        )
    try:
        graph = SignatureGraph(path, loaded, name)
        return (
            _cut_behind_parsing(graph, batch_size)
            if transform == "inside"
            else _cut_behind_transform(graph, batch_size)
        )
    except UnusableSignatureError as error:
        if transform == "outside":
            raise
        replacements = list(_replacements(path, loaded, name, batch_size))
        if len(replacements) > 1:
            names = ", ".join(other for other, _ in replacements)
            raise ModelError(
                f"{error} The signatures {names} could replace it. Remedy: name one of them.",
                code="ambiguous-signature",
            ) from error
        if not replacements:
            raise
        ((other, signature),) = replacements
        reason = str(error).partition(" Remedy: ")[0]
        return dataclasses.replace(signature, notes=(f"The signature {other!r} replaces {name!r}. {reason}",))


def _replacements(path: str, loaded: Any, name: str, batch_size: int | None) -> Iterator[tuple[str, FeatureSignature]]:
    """Yields the other signatures that take tensors and return outputs of the same names, types and shapes."""

    def outputs(signature: str) -> dict[str, tf.TensorSpec]:
        specs = loaded.signatures[signature].structured_outputs
        return {
            key: tf.TensorSpec(spec.shape[1:] if spec.shape.rank else None, spec.dtype) for key, spec in specs.items()
        }

    wanted = outputs(name)
    for other in sorted(set(loaded.signatures) - {name}):
        given = outputs(other)
        if given.keys() != wanted.keys() or not all(given[key].is_compatible_with(wanted[key]) for key in wanted):
            continue
        try:
            signature = _cut_behind_parsing(SignatureGraph(path, loaded, other), batch_size)
        except UnusableSignatureError:
            continue
        if not signature.parses_examples:
            yield other, signature


@dataclasses.dataclass(frozen=True)
class _Cut:
    """Where a signature is cut.

    Attributes:
      graph: The signature.
      tensors: Tensors of the features, which the part behind the cut takes.
      features: The features as arguments, for any number of rows.
      raw_features, preprocess: See FeatureSignature.
      example_features: See FeatureSignature.
    """

    graph: SignatureGraph
    tensors: FeatureTensors
    features: Specs
    raw_features: Specs
    preprocess: Preprocess
    example_features: tuple[str, ...]


def _cut_behind_parsing(graph: SignatureGraph, batch_size: int | None) -> FeatureSignature:
    tensors = graph.required(graph.raw, tensor_names(graph.raw)) if graph.parses_examples else graph.raw
    features = _specs(graph, tensors, any_shape=not graph.parses_examples)
    return _feature_signature(_Cut(graph, tensors, features, features, dict, tuple(tensors)), batch_size)


def _cut_behind_transform(graph: SignatureGraph, batch_size: int | None) -> FeatureSignature:
    cut = transform_cut.transformed_tensors(graph)
    ends = tensor_names(cut) | tensor_names(graph.raw)
    transformed = graph.required(cut, ends)
    around = {
        name: places
        for name, places in graph.required(graph.raw, ends).items()
        if not tensor_names({name: places}) & tensor_names(cut)
    }
    if twice := sorted(transformed.keys() & around.keys()):
        raise ModelError(
            f"{graph.place} takes {', '.join(twice)} both as parsed and as transformed, which can't have one name. "
            "Remedy: another name in the preprocessing_fn (x_xf).",
            code="ambiguous-feature",
        )
    tensors = transformed | around
    features = _specs(graph, tensors)
    fetched = first_tensors(tensors)
    raw = example_parsing.required_features(graph.raw, fetched.values(), tensor_names(graph.raw))
    try:
        raw_features = _specs(graph, raw)
    except UnusableSignatureError as error:  # sparse features can be read from tf.Examples, but are no columns
        raw_features, preprocess = Specs(), functools.partial(_refuse, error)
    else:
        function = subgraph_function(graph.frozen, raw_features, _fed(raw), fetched)
        preprocess = functools.partial(call_on_columns, function, raw_features)
    signature = _feature_signature(_Cut(graph, tensors, features, raw_features, preprocess, tuple(raw)), batch_size)
    _prove(graph, signature, subgraph_function(graph.frozen, features, _fed(tensors), graph.outputs))
    return signature


def _feature_signature(cut: _Cut, batch_size: int | None) -> FeatureSignature:
    """Returns the part behind a cut, for `batch_size` rows.

    Raises:
      ModelError: If the part looks up a table, takes another number of rows, or takes arguments beside tf.Examples.
    """
    graph = cut.graph
    operations = graph.operations(tensor_names(cut.tensors))
    tflite_limits.refuse_tables(graph, operations)
    _refuse_other_arguments(graph, operations)
    features, function = fixed_batch.sized_function(graph, cut.features, _fed(cut.tensors), batch_size)
    return FeatureSignature(
        features=features,
        outputs=tuple(graph.outputs),
        parses_examples=graph.parses_examples,
        function=function,
        raw_features=cut.raw_features,
        preprocess=cut.preprocess,
        example_features=cut.example_features,
        read_examples=_example_reader(cut),
        needs_select_tf_ops=tflite_limits.explain_string_operations(graph, operations),
    )


def _refuse_other_arguments(graph: SignatureGraph, operations: list[tf.Operation]) -> None:
    names = {op.name for op in operations}
    others = [argument for argument, tensor in graph.arguments.items() if tensor.op.name in names]
    if graph.parses_examples and others:
        raise UnusableSignatureError(
            f"{graph.place} takes {', '.join(others)} beside tf.Examples. "
            "Remedy: a signature that parses all of its features from tf.Examples, or takes all of them as tensors.",
            code="mixed-arguments",
        )


def _example_reader(cut: _Cut) -> ReadExamples:
    """Returns the function from serialized tf.Examples to columns of the features."""
    graph = cut.graph
    if not graph.parses_examples:
        return lambda rows: cut.preprocess(example_parsing.parse_columns(rows, cut.raw_features))
    arguments = [name for name, spec in graph.inputs.arguments.items() if spec.dtype == tf.string]
    specs = {name: tf.TensorSpec([None], tf.string, name=name) for name in arguments}
    tensors = {name: [graph.arguments[name]] for name in arguments}
    function = subgraph_function(graph.frozen, specs, tensors, first_tensors(cut.tensors))

    def read(rows: Sequence[bytes]) -> dict[str, np.ndarray]:
        try:
            return call_on_columns(function, specs, dict.fromkeys(specs, np.array(rows, object)))
        except tf.errors.InvalidArgumentError as error:
            raise DataError(
                f"{graph.place} can't read a tf.Example: {example_parsing.one_line(error)}", code="unreadable-row"
            ) from error

    return read


def _specs(graph: SignatureGraph, tensors: FeatureTensors, any_shape: bool = False) -> Specs:
    """Returns features as arguments.

    Raises:
      UnusableSignatureError: If a feature is sparse, ragged or of free size, unless `any_shape`.
      ModelError: If no argument can have a feature's name.
    """
    free = [name for name, places in tensors.items() if not has_fixed_shape(places)]
    if free and not any_shape:
        raise UnusableSignatureError(
            f"{graph.place} reads features of no fixed shape: {', '.join(free)}. TFLite needs dense "
            "tensors. Remedy: give them a shape in the schema (SchemaGen(infer_feature_shape=True), or "
            "tf.io.FixedLenFeature in the serving signature).",
            code="free-shape",
        )
    if unusable := [name for name in tensors if not _ARGUMENT_NAME.fullmatch(name) or name == "self"]:
        raise ModelError(
            f"{graph.place} reads features whose names no TensorFlow signature can have: {unusable}. "
            "Remedy: rename them: letters, digits, '_', '.', '-' and '/', and not 'self'.",
            code="feature-name",
        )
    return {
        name: tf.TensorSpec(tensor.shape, tensor.dtype, name=name) for name, tensor in first_tensors(tensors).items()
    }


def _fed(tensors: FeatureTensors) -> dict[str, list[tf.Tensor]]:
    """Returns the tensor of each place of dense features."""
    return {name: [place[0] for place in places] for name, places in tensors.items()}


def _prove(graph: SignatureGraph, signature: FeatureSignature, network: Any) -> None:
    """Proves that the two parts of a signature, one after the other, answer like the signature.

    Args:
      graph: The signature.
      signature: The cut signature, which can also compute its features.
      network: Its function for any number of rows.

    Raises:
      ModelError: If they answer differently, or the signature answers nothing.
    """
    specs = {spec.name: spec for spec in signature.features.values()}
    arguments = {name: [tensor] for name, tensor in graph.arguments.items()}
    frozen = subgraph_function(graph.frozen, dict(graph.inputs.arguments), arguments, graph.outputs)

    def both_parts(feeds: equivalence.Feeds) -> dict[str, np.ndarray]:
        columns = equivalence.arrays(feeds)
        if graph.parses_examples:
            rows = next(column for column in columns.values() if column.dtype == object)
            transformed = signature.read_examples(list(rows))
        else:
            transformed = signature.preprocess({name: columns[name] for name in signature.raw_features})
        return call_on_columns(network, specs, transformed)

    try:
        words = probes.known_words(graph.path)
        references = equivalence.draw_references(
            graph.signature, graph.inputs, words, functools.partial(call_by_name, frozen)
        )
    except ModelError as error:
        raise ModelError(
            f'{error} That Transform can be left outside can\'t be proven. Remedy: transform="inside".', code=error.code
        ) from error
    if difference := equivalence.difference(references, both_parts):
        raise ModelError(
            f"{graph.place} can't be cut behind its Transform layer: on drawn rows {difference}. "
            'Remedy: transform="inside".',
            code="not-equivalent",
        )


def _refuse(error: ModelError, columns: Columns) -> dict[str, np.ndarray]:
    raise error
