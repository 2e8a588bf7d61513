"""The tensors behind a serving signature: a SavedModel that takes tf.Examples, made to take their features.

TFLite can't parse tf.Examples, so what is converted is the signature's own graph, cut where the parsing ends. Whatever
comes after it, a Transform layer included, is thus exactly what is served.
"""

import dataclasses
import re

import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from tfx_compression.models.errors import ModelError

SIGNATURE = "serving_default"
_TENSOR_NAME = re.compile(r"[A-Za-z0-9.][A-Za-z0-9_.\\/>-]*")  # TensorFlow's rule


@dataclasses.dataclass(frozen=True)
class FeatureSignature:
    """A signature as a function of features.

    Attributes:
      features: what it takes, by feature name; the first dimension is the batch.
      outputs: the names of what it returns, in order.
      parses_examples: whether the SavedModel's signature takes serialized tf.Examples.
      function: the features, in order, to a dict of outputs.
    """

    features: dict[str, tf.TensorSpec]
    outputs: tuple[str, ...]
    parses_examples: bool
    function: tf.types.experimental.GenericFunction

    def save(self, path: str) -> None:
        """Writes a SavedModel whose `serving_default` takes the features by name."""
        module = tf.Module()
        concrete = self.function.get_concrete_function()
        module.serve = concrete
        tf.saved_model.save(module, path, signatures={SIGNATURE: concrete})


def feature_signature(path: str) -> FeatureSignature:
    """The `serving_default` of the SavedModel in `path`, as a function of features.

    Raises:
      ModelError: where there is no such signature, or a feature of it has no fixed shape.
    """
    loaded = tf.saved_model.load(path)
    if SIGNATURE not in loaded.signatures:
        raise ModelError(
            f"The SavedModel in {path} has no signature {SIGNATURE!r}, only: {', '.join(loaded.signatures) or 'none'}. "
            f"Remedy: save it with signatures={{{SIGNATURE!r}: …}}."
        )
    signature = loaded.signatures[SIGNATURE]
    frozen = convert_variables_to_constants_v2(signature)
    # A frozen function returns a flat list, in the order of the signature's sorted names.
    outputs = tuple(sorted(signature.structured_outputs))
    graph_def = frozen.graph.as_graph_def()
    fetches = [tensor.name for tensor in frozen.outputs]
    needed = tf.compat.v1.graph_util.extract_sub_graph(graph_def, [tensor.op.name for tensor in frozen.outputs])
    parsed = _parsed_features(path, frozen.graph, {node.name for node in needed.node})
    parses_examples = bool(parsed)
    if not parses_examples:
        arguments = sorted(signature.structured_input_signature[1])
        parsed = {name: [tensor] for name, tensor in zip(arguments, frozen.inputs)}  # noqa: B905 - tables come after
    if any(place.dtype == tf.resource for places in parsed.values() for place in places) or len(frozen.inputs) > len(
        signature.structured_input_signature[1]
    ):
        raise ModelError(
            f"The model in {path} looks up a table (a vocabulary), which TFLite can't. Remedy: let the device look it "
            "up, and serve the network on what comes out."
        )
    features = {name: tf.TensorSpec(places[0].shape, places[0].dtype, name=name) for name, places in parsed.items()}
    unusable = [name for name in features if not _TENSOR_NAME.fullmatch(name) or name == "self"]
    if unusable:
        raise ModelError(
            f"The model in {path} reads features whose names no TensorFlow signature can have: {unusable}. "
            "Remedy: rename them: letters, digits, '_', '.', '-' and '/', and not 'self'."
        )

    def serve(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        fed = {place.name: tensor for places, tensor in zip(parsed.values(), tensors, strict=True) for place in places}
        results = tf.graph_util.import_graph_def(graph_def, input_map=fed, return_elements=fetches, name="")
        return dict(zip(outputs, results, strict=True))

    function = tf.function(serve, input_signature=list(features.values()))
    return FeatureSignature(features, outputs, parses_examples, function)


def _parsed_features(path: str, graph: tf.Graph, needed: set[str]) -> dict[str, list[tf.Tensor]]:
    """The dense tensors that come out of the graph's tf.Example parsing and are used, by feature name.

    A feature that is parsed in several places has several.
    """
    found: dict[str, list[tf.Tensor]] = {}
    variable: list[str] = []
    for parse in graph.get_operations():
        if parse.name not in needed or not parse.type.startswith("Parse"):
            continue
        if parse.type != "ParseExampleV2" or parse.inputs[0].shape.rank == 0:
            raise ModelError(
                f"The model in {path} parses its examples by {parse.type}, which can't be cut out of it. "
                "Remedy: tf.io.parse_example in the serving signature, on serialized tf.Examples."
            )

        def used(tensor: tf.Tensor) -> bool:
            return any(consumer.name in needed for consumer in tensor.consumers())

        sparse_keys, dense_keys, ragged_keys = (
            [key.decode() for key in tf.get_static_value(tensor)] for tensor in parse.inputs[2:5]
        )
        # In this order: indices, values and shapes of the sparse features, the dense ones, values and row splits of
        # the ragged ones.
        keys = [*sparse_keys * 3, *dense_keys, *ragged_keys * 2]
        for key, tensor in zip(keys, parse.outputs, strict=True):
            if not used(tensor):
                continue
            if key in dense_keys and tensor.shape.rank and tensor.shape[1:].is_fully_defined():
                found.setdefault(key, []).append(tensor)
            elif key not in variable:
                variable.append(key)
    if variable:
        raise ModelError(
            f"The model in {path} reads features of no fixed shape: {', '.join(variable)}. TFLite needs dense "
            "tensors. Remedy: give them a shape in the schema (SchemaGen(infer_feature_shape=True), or "
            "tf.io.FixedLenFeature in the serving signature)."
        )
    return found
