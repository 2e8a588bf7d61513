"""The tensors behind a serving signature: a SavedModel that takes tf.Examples, made to take their features.

TFLite can't parse tf.Examples, so what is converted is the signature's own graph, cut where the parsing ends. Whatever
comes after it, a Transform layer included, is thus exactly what is served.
"""

import dataclasses
from collections.abc import Sequence

import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from tfx_compression.models.keras2 import ModelError

SIGNATURE = "serving_default"


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
    feeds = _parsed_features(path, frozen.graph, {node.name for node in needed.node})
    parses_examples = bool(feeds)
    if not parses_examples:
        arguments = sorted(signature.structured_input_signature[1])
        feeds = dict(zip(arguments, frozen.inputs, strict=True))
    features = {name: tf.TensorSpec(tensor.shape, tensor.dtype, name=name) for name, tensor in feeds.items()}
    fed: Sequence[str] = [tensor.name for tensor in feeds.values()]

    def serve(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        results = tf.graph_util.import_graph_def(
            graph_def, input_map=dict(zip(fed, tensors, strict=True)), return_elements=fetches, name=""
        )
        return dict(zip(outputs, results, strict=True))

    function = tf.function(serve, input_signature=list(features.values()))
    return FeatureSignature(features, outputs, parses_examples, function)


def _parsed_features(path: str, graph: tf.Graph, needed: set[str]) -> dict[str, tf.Tensor]:
    """The dense tensors that come out of the graph's tf.Example parsing and are used, by feature name."""
    found = {}
    for parse in graph.get_operations():
        if parse.type != "ParseExampleV2" or parse.name not in needed:
            continue
        _, _, sparse_keys, dense_keys, ragged_keys = (tf.get_static_value(tensor) for tensor in parse.inputs[:5])
        dense_at = 3 * len(sparse_keys)
        dense = parse.outputs[dense_at : dense_at + len(dense_keys)]
        used = {
            tensor.name: any(consumer.name in needed for consumer in tensor.consumers()) for tensor in parse.outputs
        }
        variable = [
            key.decode()
            for position, key in enumerate(sparse_keys)
            if any(used[parse.outputs[part * len(sparse_keys) + position].name] for part in range(3))
        ] + [key.decode() for key in ragged_keys]
        if variable:
            raise ModelError(
                f"The model in {path} reads features of no fixed shape: {', '.join(variable)}. TFLite needs dense "
                "tensors. Remedy: give them a shape in the schema (SchemaGen(infer_feature_shape=True), or "
                "tf.io.FixedLenFeature in the serving signature)."
            )
        found.update({key.decode(): tensor for key, tensor in zip(dense_keys, dense, strict=True) if used[tensor.name]})
    return found
