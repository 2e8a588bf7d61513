"""The outputs of a Transform layer in the graph of a serving signature.

Names don't help: the layer is inlined, and was traced anew for each signature. Tensors are therefore compared by what
they compute. The digest of a tensor consists of its operation, the operation's attributes and the digests of its
inputs. The walk starts at features, which count by name, constants, which count by value, and tables, which count by
identity. A tensor of the signature with the digest of an output of the layer is that output.
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf

from tfx_compression.data import example_parsing
from tfx_compression.data.example_parsing import FeatureTensors, tensor_names
from tfx_compression.errors import ModelError
from tfx_compression.saved_models.signature_graph import SignatureGraph, require_parsers
from tfx_compression.tf_graphs import inlining, walks
from tfx_compression.tf_graphs.inlining import FrozenGraph

TRANSFORM_LAYER = "tft_layer"  # the attribute of the model in TFX's own examples, or its beginning
TRANSFORM_SIGNATURE = "transform_features"  # their signature of Transform alone

_LayerOutputs = dict[str, tuple[list[str], tf.TensorShape]]  # by feature, the digests of its tensors, and its shape

_IDENTITIES = ("Identity", "IdentityN")
_IRRELEVANT_ATTRIBUTES = ("config", "config_proto", "executor_type", "output_shapes", "parallel_iterations")


def transformed_tensors(graph: SignatureGraph) -> FeatureTensors:
    """Returns the tensors of the features that Transform computes in a signature's graph.

    Transform is every layer that the SavedModel holds under a name that begins with `tft_layer`, and the signature
    `transform_features`. If there are several, the one counts behind which the outputs need the fewest parsed features.

    Raises:
      ModelError: If there is no Transform layer, or the signature uses none of its outputs.
    """
    cuts = list(_cuts(graph))
    if not cuts:
        raise ModelError(
            f"{graph.place} has no Transform layer to leave outside: the SavedModel has no attribute "
            f"{TRANSFORM_LAYER!r} and no signature {TRANSFORM_SIGNATURE!r}. "
            'Remedy: transform="inside", or model.tft_layer = tf_transform_output.transform_features_layer() in '
            "Trainer before it saves.",
            code="no-transform-layer",
        )
    raw = tensor_names(graph.raw)

    def remaining(cut: FeatureTensors) -> int:
        transformed = tensor_names(cut)
        stops = walks.walk_back(graph.outputs.values(), lambda tensor: tensor.name in transformed | raw).stops
        return len(stops.keys() - transformed)

    best = min(cuts, key=remaining)
    if not graph.required(best, tensor_names(best) | raw):
        raise ModelError(
            f"{graph.place} uses no output of the SavedModel's Transform layer. "
            'Remedy: transform="inside", or the tft_layer that the signature calls.',
            code="unused-transform-layer",
        )
    return best


def transform_operations(graph: SignatureGraph) -> set[str]:
    """Returns the names of the operations that belong to Transform; none if there is no Transform layer."""
    try:
        transformed = transformed_tensors(graph)
    except ModelError:
        return set()
    ends = [tensor for places in transformed.values() for place in places for tensor in place]
    raw = tensor_names(graph.raw)
    return {op.name for op in walks.walk_back(ends, lambda tensor: tensor.name in raw).operations}


def _cuts(graph: SignatureGraph) -> Iterator[FeatureTensors]:
    """Yields the tensors of the features that each Transform layer computes."""
    tensors: dict[str, list[tf.Tensor]] = {}
    known = digests(graph.frozen, graph.raw)
    for op in graph.frozen.graph.get_operations():
        for tensor in op.outputs:
            if tensor.name in known and op.type not in _IDENTITIES:
                tensors.setdefault(known[tensor.name], []).append(tensor)
    for outputs in _layer_outputs(graph):
        features: FeatureTensors = {}
        for name, (parts, shape) in outputs.items():
            if all(part in tensors for part in parts):
                features[name] = [list(place) for place in zip(*(tensors[part] for part in parts))]  # noqa: B905 - of one call
                for first, *others in features[name]:
                    if not others:
                        first.set_shape(shape)  # freezing loses the shape of what is looked up in a table
        yield features


def _layer_outputs(graph: SignatureGraph) -> Iterator[_LayerOutputs]:
    """Yields the outputs of each Transform layer."""
    loaded = graph.loaded
    for attribute in sorted(name for name in loaded._trackable_children() if name.startswith(TRANSFORM_LAYER)):
        for concrete in getattr(getattr(loaded, attribute).__call__, "concrete_functions", ()):
            arguments = concrete.structured_input_signature[0][:1]
            if arguments and isinstance(arguments[0], Mapping):
                frozen = inlining.freeze(concrete)
                yield _digested_outputs(concrete, frozen, _argument_tensors(arguments[0], frozen))
    if TRANSFORM_SIGNATURE in loaded.signatures:
        concrete = loaded.signatures[TRANSFORM_SIGNATURE]
        frozen = inlining.freeze(concrete)
        parsed = example_parsing.parsed_tensors(require_parsers(graph.place, frozen))
        arguments = concrete.structured_input_signature[1]
        yield _digested_outputs(concrete, frozen, parsed or _argument_tensors(arguments, frozen))


def _argument_tensors(specs: Mapping[str, Any], frozen: FrozenGraph) -> FeatureTensors:
    """Returns the tensors of a function's arguments by name; sparse arguments have several."""
    inputs = iter(frozen.inputs)
    return {
        name: [[next(inputs) for _ in tf.nest.flatten(specs[name], expand_composites=True)]] for name in sorted(specs)
    }


def _digested_outputs(concrete: Any, frozen: FrozenGraph, features: FeatureTensors) -> _LayerOutputs:
    known = digests(frozen, features)
    tensors = iter(frozen.outputs)
    outputs = {}
    for name, spec in sorted(concrete.structured_outputs.items()):
        parts = [next(tensors) for _ in tf.nest.flatten(spec, expand_composites=True)]
        if all(part.name in known for part in parts):
            outputs[name] = [known[part.name] for part in parts], spec.shape
    return outputs


def digests(frozen: FrozenGraph, features: FeatureTensors) -> dict[str, str]:
    """Returns the digest of each tensor that depends on a feature, by the tensor's name.

    The digest of an identity is that of its input.
    """
    starts = {
        tensor.name: _hash("feature", name, str(index))
        for name, places in features.items()
        for place in places
        for index, tensor in enumerate(place)
    }
    library = {function.signature.name: function for function in frozen.graph.as_graph_def().library.function}
    computed: dict[str, str] = {}
    dependent = set(starts)
    for op in frozen.graph.get_operations():
        taken = [computed.get(tensor.name, f"later {tensor.name}") for tensor in op.inputs]
        digest = "" if op.type in _IDENTITIES else _operation_digest(op, taken, frozen, library)
        for index, tensor in enumerate(op.outputs):
            computed[tensor.name] = starts.get(tensor.name) or (_hash(digest, str(index)) if digest else taken[index])
            if any(source.name in dependent for source in op.inputs):
                dependent.add(tensor.name)
    return {name: computed[name] for name in dependent}


def _operation_digest(op: tf.Operation, taken: list[str], frozen: FrozenGraph, library: Mapping[str, Any]) -> str:
    if op.type == "Placeholder":
        return _hash("given", str(id(frozen.captured[op.name])) if op.name in frozen.captured else op.name)
    return _hash(op.type, *_attributes(op.node_def, library), *taken)


def _attributes(node: Any, library: Mapping[str, Any]) -> Iterator[str]:
    """Yields a node's attributes as text. A function counts by its body, because its name is that of its trace."""
    for name in sorted(node.attr):
        value = node.attr[name]
        if name.startswith("_") or name in _IRRELEVANT_ATTRIBUTES:
            continue
        if value.WhichOneof("value") == "tensor":
            values = tf.make_ndarray(value.tensor)
            yield f"{name} {values.dtype} {values.shape} {values.tolist() if values.dtype == object else ''}"
            yield hashlib.sha256(values.tobytes()).hexdigest() if values.dtype != object else ""
            continue
        functions = [value.func] if value.HasField("func") else value.list.func
        if not functions:
            yield f"{name} {value.SerializeToString(deterministic=True)!r}"
        for function in functions:
            for inner in library[function.name].node_def:
                yield _hash(name, inner.op, *_attributes(inner, library))


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
