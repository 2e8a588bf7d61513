"""Where a Transform layer ends in the graph of a serving signature.

Names say nothing: the layer is inlined, and was traced anew for each signature. So tensors are compared by what they
compute. The digest of a tensor is made of its operation, the operation's attributes and the digests of its inputs; at
the start are features by name, constants by value and tables by identity. A tensor of the signature with the digest of
an output of the layer is that output.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tensorflow as tf

TRANSFORM_LAYER = "tft_layer"  # what the attribute of the model starts with in TFX's own examples
TRANSFORM_SIGNATURE = "transform_features"  # and what they call a signature of Transform alone
Places = dict[str, list[list[tf.Tensor]]]  # by feature, each place of it in a graph; several tensors of a sparse one
_Results = dict[str, tuple[list[str], tf.TensorShape]]  # by feature, the digests of its tensors, and the shape of all

_SAME = ("Identity", "IdentityN")
_IGNORED = ("config", "config_proto", "executor_type", "output_shapes", "parallel_iterations")


@dataclasses.dataclass(frozen=True)
class Frozen:
    """A function's graph with its variables as constants and all calls inlined; loops and branches are functions.

    Attributes:
      graph: the graph.
      inputs, outputs: the tensors of the function's own arguments and results, in its order.
      captured: by the name of its placeholder's operation, what the function takes beside that: handles of tables.
    """

    graph: tf.Graph
    inputs: list[tf.Tensor]
    outputs: list[tf.Tensor]
    captured: dict[str, Any]


def places(
    loaded: Any,
    frozen: Frozen,
    features: Places,
    freeze: Callable[[Any], Frozen],
    parsed: Callable[[Frozen], Places],
) -> Iterator[Places]:
    """Where in a signature's graph the features are that a Transform layer makes: once for each such layer.

    Args:
      loaded: the SavedModel; its layers are those that hang on it, and what its signature `transform_features` does.
      frozen: the signature.
      features: its parsed features.
      freeze: makes a Frozen of a concrete function.
      parsed: finds the parsed features in one.
    """
    tensors: dict[str, list[tf.Tensor]] = {}
    known = digests(frozen, features)
    for op in frozen.graph.get_operations():
        for tensor in op.outputs:
            if tensor.name in known and op.type not in _SAME:
                tensors.setdefault(known[tensor.name], []).append(tensor)
    for made in _made(loaded, freeze, parsed):
        found: Places = {}
        for name, (parts, shape) in made.items():
            if all(part in tensors for part in parts):
                found[name] = [list(several) for several in zip(*(tensors[part] for part in parts))]  # noqa: B905 - of one call
                for first, *others in found[name]:
                    if not others:
                        first.set_shape(shape)  # freezing loses that of what is looked up in a table
        yield found


def _made(loaded: Any, freeze: Callable[[Any], Frozen], parsed: Callable[[Frozen], Places]) -> Iterator[_Results]:
    """The digests and shapes of what each Transform layer makes, by feature."""
    for attribute in sorted(name for name in loaded._trackable_children() if name.startswith(TRANSFORM_LAYER)):
        for concrete in getattr(getattr(loaded, attribute).__call__, "concrete_functions", ()):
            arguments = concrete.structured_input_signature[0][:1]
            if arguments and isinstance(arguments[0], Mapping):
                frozen = freeze(concrete)
                yield _results(concrete, frozen, _arguments(arguments[0], frozen))
    if TRANSFORM_SIGNATURE in loaded.signatures:
        concrete = loaded.signatures[TRANSFORM_SIGNATURE]
        frozen = freeze(concrete)
        arguments = concrete.structured_input_signature[1]
        yield _results(concrete, frozen, parsed(frozen) or _arguments(arguments, frozen))


def _arguments(specs: Mapping[str, Any], frozen: Frozen) -> Places:
    """The tensors of a function's arguments, by name: several of a sparse one."""
    inputs = iter(frozen.inputs)
    return {
        name: [[next(inputs) for _ in tf.nest.flatten(specs[name], expand_composites=True)]] for name in sorted(specs)
    }


def _results(concrete: Any, frozen: Frozen, features: Places) -> _Results:
    known = digests(frozen, features)
    outputs = iter(frozen.outputs)
    found = {}
    for name, spec in sorted(concrete.structured_outputs.items()):
        parts = [next(outputs) for _ in tf.nest.flatten(spec, expand_composites=True)]
        if all(part.name in known for part in parts):
            found[name] = [known[part.name] for part in parts], spec.shape
    return found


def digests(frozen: Frozen, features: Places) -> dict[str, str]:
    """The digest of each tensor that depends on a feature, by the tensor's name; an identity has its input's."""
    starts = {
        part.name: _hash("feature", name, str(index))
        for name, places in features.items()
        for parts in places
        for index, part in enumerate(parts)
    }
    library = {function.signature.name: function for function in frozen.graph.as_graph_def().library.function}
    every: dict[str, str] = {}
    depends = set(starts)
    for op in frozen.graph.get_operations():
        taken = [every.get(tensor.name, f"later {tensor.name}") for tensor in op.inputs]
        own = "" if op.type in _SAME else _operation(op, taken, frozen, library)
        for index, tensor in enumerate(op.outputs):
            every[tensor.name] = starts.get(tensor.name) or (_hash(own, str(index)) if own else taken[index])
            if any(source.name in depends for source in op.inputs):
                depends.add(tensor.name)
    return {name: every[name] for name in depends}


def _operation(op: tf.Operation, taken: list[str], frozen: Frozen, library: Mapping[str, Any]) -> str:
    if op.type == "Placeholder":
        return _hash("given", str(id(frozen.captured[op.name])) if op.name in frozen.captured else op.name)
    return _hash(op.type, *_attributes(op.node_def, library), *taken)


def _attributes(node: Any, library: Mapping[str, Any]) -> Iterator[str]:
    """A node's attributes in words; a function's name is its trace's, so what is in it stands for it."""
    for name in sorted(node.attr):
        value = node.attr[name]
        if name.startswith("_") or name in _IGNORED:
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
