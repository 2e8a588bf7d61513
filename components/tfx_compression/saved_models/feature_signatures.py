"""The tensors behind a serving signature: a SavedModel that takes tf.Examples, made to take their features.

TFLite can't parse tf.Examples, so what is converted is the signature's own graph, cut where the parsing ends, or where
its Transform layer ends. Whatever comes after it is thus exactly what is served.
"""

import collections
import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from tfx_compression.data import example_parsing
from tfx_compression.errors import DataError, ModelError
from tfx_compression.saved_models import transform_cut
from tfx_compression.saved_models.transform_cut import Frozen, Places

SIGNATURE = "serving_default"
Columns = Mapping[str, np.ndarray]
Front = Callable[[Columns], dict[str, np.ndarray]]
Read = Callable[[Sequence[bytes]], dict[str, np.ndarray]]
Specs = dict[str, tf.TensorSpec]

_TENSOR_NAME = re.compile(r"[A-Za-z0-9.][A-Za-z0-9_.\\/>-]*")  # TensorFlow's rule
_LOWERED = ("Enter", "Switch", "Merge", "NextIteration", "Exit")  # loops and branches of TensorFlow 1
# Those that TFLite has for strings, or that the converter takes away.
_STRING_OPS = ("Identity", "Const", "Placeholder", "Equal", "NotEqual", "GatherV2", "Reshape", "Squeeze", "ExpandDims")
_CALLS = re.compile(r"^((Stateful)?PartitionedCall(_\d+)?/)+")
_ELEMENT_SHAPE = {  # operations on lists that are told the shape of an element, and which input that is
    "TensorListReserve": 0,
    "EmptyTensorList": 0,
    "TensorListFromTensor": 1,
    "TensorListStack": 1,
    "TensorListGetItem": 2,
}
_ROWS = 8
_TOLERANCE = 1e-5


class _UnusableError(ModelError):
    """A signature that TFLite can't have, though another one of the SavedModel may do."""


@dataclasses.dataclass(frozen=True)
class FeatureSignature:
    """A signature as a function of features.

    Attributes:
      features: what it takes, by feature name; the first dimension is the batch.
      outputs: the names of what it returns, in order.
      parses_examples: whether the SavedModel's signature takes serialized tf.Examples.
      function: the features, in order, to a dict of outputs.
      raw_features: what is read of a tf.Example (or taken by the SavedModel's signature) to make the features.
      preprocess: from columns of those, [rows, …], to columns of the features; nothing happens in it unless Transform
        stays outside.
      example_features: the names of what is read of a tf.Example.
      read_examples: from serialized tf.Examples to columns of the features: by the signature's own parsing, its
        defaults included, or else by `raw_features`.
      needs_select_tf_ops: why TFLite's own operators can't do it, with the operators, what they work on, and the
        remedy; empty where nothing is known that they can't.
      notes: which signature was taken in the place of the one that was asked for, and why.
    """

    features: dict[str, tf.TensorSpec]
    outputs: tuple[str, ...]
    parses_examples: bool
    function: tf.types.experimental.GenericFunction
    raw_features: dict[str, tf.TensorSpec]
    preprocess: Front
    example_features: tuple[str, ...]
    read_examples: Read
    needs_select_tf_ops: str = ""
    notes: tuple[str, ...] = ()

    def save(self, path: str) -> None:
        """Writes a SavedModel whose `serving_default` takes the features by name."""
        save_signatures({SIGNATURE: self}, path)


def save_signatures(signatures: Mapping[str, FeatureSignature], path: str) -> None:
    """Writes a SavedModel with several signatures, by name; each takes its features by name."""
    concrete = {name: signature.function.get_concrete_function() for name, signature in signatures.items()}
    module = tf.Module()
    module.served = list(concrete.values())
    # Nobody trains it, and what custom gradients (of swish, say) captured isn't there.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(module, path, signatures=concrete, options=options)


def feature_signature(
    path: str,
    name: str = SIGNATURE,
    *,
    batch_size: int | None = None,
    transform: Literal["inside", "outside"] = "inside",
) -> FeatureSignature:
    """A signature of the SavedModel in `path`, as a function of features.

    Where it can't be one, because of how it parses its tf.Examples or because it looks up a vocabulary, the only other
    signature that takes tensors and returns the same outputs is taken in its place; `notes` say so.

    Args:
      path: of the SavedModel.
      name: of the signature.
      batch_size: rows that it takes at once, no more and no less; None is any number.
      transform: `inside`, the features are what is parsed; `outside`, they are what Transform's layer makes of it
        (`tft_layer`, by TFX's convention, or the signature `transform_features`). That the two parts together give the
        signature's answers is tried on made rows.

    Raises:
      ModelError: where there is no such signature, a feature of it has no fixed shape, it looks up a table inside, or
        there is no Transform layer to leave outside.
    """
    loaded = tf.saved_model.load(path)
    if name not in loaded.signatures:
        raise ModelError(
            f"The SavedModel in {path} has no signature {name!r}, only: {', '.join(loaded.signatures) or 'none'}. "
            f"Remedy: save it with signatures={{{name!r}: …}}."
        )
    try:
        signature = _Signature(path, loaded, name)
        return signature.inside(batch_size) if transform == "inside" else signature.outside(batch_size)
    except _UnusableError as error:
        if transform == "outside":
            raise
        others = list(_with_same_outputs(path, loaded, name, batch_size))
        if len(others) > 1:
            raise ModelError(
                f"{error} The signatures {', '.join(other for other, _ in others)} could take its place: name one of "
                "them."
            ) from error
        if not others:
            raise
        ((other, found),) = others
        why = str(error).partition(" Remedy: ")[0]
        return dataclasses.replace(found, notes=(f"The signature {other!r} was taken in the place of {name!r}. {why}",))


def _with_same_outputs(
    path: str, loaded: Any, name: str, batch_size: int | None
) -> Iterator[tuple[str, FeatureSignature]]:
    """The other signatures that take tensors and return outputs of the same names, types and shapes."""

    def described(signature: str) -> dict[str, tuple[tf.DType, list[int | None] | None]]:
        specs = loaded.signatures[signature].structured_outputs
        return {key: (spec.dtype, spec.shape[1:] if spec.shape.rank else None) for key, spec in specs.items()}

    wanted = described(name)
    for other in sorted(set(loaded.signatures) - {name}):
        found = described(other)
        if found.keys() != wanted.keys() or not all(_alike(found[key], wanted[key]) for key in wanted):
            continue
        try:
            signature = _Signature(path, loaded, other).inside(batch_size)
        except _UnusableError:
            continue
        if not signature.parses_examples:
            yield other, signature


def _alike(found: tuple[tf.DType, Any], wanted: tuple[tf.DType, Any]) -> bool:
    shapes = [tf.TensorShape(shape) for _, shape in (found, wanted)]
    return found[0] == wanted[0] and shapes[0].is_compatible_with(shapes[1])


class _Signature:
    """A signature of a loaded SavedModel, opened."""

    def __init__(self, path: str, loaded: Any, name: str) -> None:
        self.place = f"The signature {name!r} of {path}"
        self.loaded = loaded  # its tables live as long as it does
        self.signature = loaded.signatures[name]
        self.frozen = _freeze(self.signature)
        # A frozen function returns a flat list, in the order of the signature's sorted names.
        self.outputs = dict(zip(sorted(self.signature.structured_outputs), self.frozen.outputs, strict=True))
        self.arguments = sorted(self.signature.structured_input_signature[1])
        parsed = _parsed(self.place, self.frozen)
        self.parses_examples = bool(parsed)
        self.raw = parsed or {name: [[tensor]] for name, tensor in zip(self.arguments, self.frozen.inputs, strict=True)}

    def inside(self, batch_size: int | None) -> FeatureSignature:
        """The part behind the parsing."""
        used = _met(self.raw, self.outputs.values(), _names(self.raw)) if self.parses_examples else self.raw
        features = self._features(used)
        return self._signature(used, features, batch_size, features, dict, used)

    def outside(self, batch_size: int | None) -> FeatureSignature:
        """The part behind Transform."""
        made = self._cut_of_transform()
        ends = _names(made) | _names(self.raw)
        transformed = _met(made, self.outputs.values(), ends)
        around = {
            name: places
            for name, places in _met(self.raw, self.outputs.values(), ends).items()
            if not _names({name: places}) & _names(made)
        }
        if twice := sorted(transformed.keys() & around.keys()):
            raise ModelError(
                f"{self.place} takes {', '.join(twice)} both as parsed and as transformed, which one name can't be. "
                "Remedy: another name in the preprocessing_fn (x_xf)."
            )
        used = transformed | around
        features = self._features(used)
        fetched = {name: places[0][0] for name, places in used.items()}
        before = _met(self.raw, fetched.values(), _names(self.raw))
        try:
            parsed = self._features(before)
        except _UnusableError as error:  # sparse ones: they can be read out of tf.Examples, but are no columns
            parsed, front = Specs(), functools.partial(_refused, error)
        else:
            front = functools.partial(self._called, self._function(parsed, before, fetched), parsed)
        signature = self._signature(used, features, batch_size, parsed, front, before)
        self._prove(signature, self._function(features, used, self.outputs))
        return signature

    def _signature(
        self, used: Places, features: Specs, batch_size: int | None, parsed: Specs, front: Front, read: Places
    ) -> FeatureSignature:
        ops = _behind(self.outputs.values(), _names(used))[0]
        self._refuse_tables(ops)
        sized = _sized(self.place, features, batch_size)
        function = self._function(sized, used, self.outputs)
        if batch_size is not None and _lists_of_rows(self.frozen.graph.as_graph_def()):
            function = self._with_sized_lists(function, sized, used, batch_size)
        return FeatureSignature(
            features=sized,
            outputs=tuple(self.outputs),
            parses_examples=self.parses_examples,
            function=function,
            raw_features=parsed,
            preprocess=front,
            example_features=tuple(read),
            read_examples=self._reader(used, parsed, front),
            needs_select_tf_ops=self._on_strings(ops),
        )

    def _reader(self, used: Places, parsed: Specs, front: Front) -> Read:
        """What makes columns of the features of serialized tf.Examples."""
        if not self.parses_examples or len(self.arguments) > 1:
            return lambda rows: front(example_parsing.parse_columns(rows, parsed))
        specs = {name: tf.TensorSpec([None], tf.string, name=name) for name in self.arguments}
        arguments = {name: [[tensor]] for name, tensor in zip(self.arguments, self.frozen.inputs, strict=True)}
        function = self._function(specs, arguments, {name: places[0][0] for name, places in used.items()})

        def read(rows: Sequence[bytes]) -> dict[str, np.ndarray]:
            try:
                return self._called(function, specs, {name: np.array(rows, object) for name in specs})
            except tf.errors.InvalidArgumentError as error:
                raise DataError(f"{self.place} can't read a tf.Example: {example_parsing.one_line(error)}") from error

        return read

    def _cut_of_transform(self) -> Places:
        """Where each feature that Transform makes is in the graph, by name.

        Of several Transform layers the one counts behind which the fewest parsed features are needed.
        """
        outputs, raw = self.outputs.values(), _names(self.raw)
        found = list(transform_cut.places(self.loaded, self.frozen, self.raw, _freeze, self._parsed))
        if not found:
            raise ModelError(
                f"{self.place} has no Transform layer to leave outside: nothing hangs on the SavedModel as "
                f"{transform_cut.TRANSFORM_LAYER!r}, nor is there a signature {transform_cut.TRANSFORM_SIGNATURE!r}. "
                'Remedy: transform="inside", or model.tft_layer = tf_transform_output.transform_features_layer() in '
                "Trainer before it saves."
            )

        def remaining(made: Places) -> int:
            return len(_behind(outputs, _names(made) | raw)[1] - _names(made))

        best = min(found, key=remaining)
        if not _met(best, outputs, _names(best) | raw):
            raise ModelError(
                f"{self.place} uses nothing that the SavedModel's Transform layer makes. "
                'Remedy: transform="inside", or the tft_layer that the signature calls.'
            )
        return best

    def _parsed(self, frozen: Frozen) -> Places:
        return _parsed(self.place, frozen)

    @functools.cached_property
    def _transform_ops(self) -> set[str]:
        """The names of the operations that belong to Transform; none where there is no such layer."""
        try:
            made = self._cut_of_transform()
        except ModelError:
            return set()
        ends = [part for places in made.values() for parts in places for part in parts]
        return {op.name for op in _behind(ends, _names(self.raw))[0]}

    def _features(self, used: Places) -> Specs:
        """What tensors of the graph are as arguments."""
        variable = [
            name
            for name, places in used.items()
            if any(len(parts) > 1 or not _is_fixed(parts[0]) for parts in places) and used is not self.raw
        ]
        if variable:
            raise _UnusableError(
                f"{self.place} reads features of no fixed shape: {', '.join(variable)}. TFLite needs dense "
                "tensors. Remedy: give them a shape in the schema (SchemaGen(infer_feature_shape=True), or "
                "tf.io.FixedLenFeature in the serving signature)."
            )
        unusable = [name for name in used if not _TENSOR_NAME.fullmatch(name) or name == "self"]
        if unusable:
            raise ModelError(
                f"{self.place} reads features whose names no TensorFlow signature can have: {unusable}. "
                "Remedy: rename them: letters, digits, '_', '.', '-' and '/', and not 'self'."
            )
        tensors = {name: places[0][0] for name, places in used.items()}
        return {name: tf.TensorSpec(tensor.shape, tensor.dtype, name=name) for name, tensor in tensors.items()}

    def _refuse_tables(self, ops: list[tf.Operation]) -> None:
        looking_up = [
            op
            for op in ops
            if op.type != "Identity" and any(_source(tensor).op.name in self.frozen.captured for tensor in op.inputs)
        ]
        if looking_up:
            raise _UnusableError(
                f"{self.place} looks up a table (a vocabulary), which TFLite can't: {self._named(looking_up)}. "
                f"{self._remedy(looking_up)}"
            )

    def _on_strings(self, ops: list[tf.Operation]) -> str:
        """What operators that TFLite has not do to strings, and what to do about it."""
        found = [
            op
            for op in ops
            if op.type not in _STRING_OPS and any(tensor.dtype == tf.string for tensor in (*op.inputs, *op.outputs))
        ]
        if not found:
            return ""
        return (
            f"{self.place} works on strings by operators that TFLite has not: {self._named(found)}. "
            f"{self._remedy(found)}"
        )

    def _named(self, ops: list[tf.Operation]) -> str:
        """Operations in words, with the layer that they belong to and the features that they depend on."""
        words = []
        for op in ops:
            features = ", ".join(sorted(_met(self.raw, op.inputs, _names(self.raw)))) or "no feature"
            layer = " in the Transform layer" if op.name in self._transform_ops else ""
            words.append(f"{op.type}{layer} (of {features})")
        return ", ".join(dict.fromkeys(words))

    def _remedy(self, ops: list[tf.Operation]) -> str:
        if any(op.name in self._transform_ops for op in ops):
            return (
                'Remedy: transform="outside", and the device does what Transform does before the model; or a '
                "preprocessing_fn without it (categories that are whole numbers in the examples)."
            )
        return "Remedy: let the device do it before the model, and serve the network on what comes out."

    def _with_sized_lists(self, function: Any, specs: Specs, used: Places, batch_size: int) -> Any:
        """`function` with elements of lists, which loops collect, of `batch_size` rows; as it is where they aren't.

        TFLite must know their shape; that of a recurrent layer's was written into the graph for any number of rows.
        """
        sized = self._function(specs, used, self.outputs, rows_of_lists=batch_size)
        columns = {name: _drawn(spec, batch_size, seed) for seed, (name, spec) in enumerate(specs.items())}
        try:
            found, expected = (self._called(each, specs, columns) for each in (sized, function))
        except tf.errors.OpError:  # a list's elements have another number of rows
            return function
        return sized if all(_same(found[name], expected[name]) for name in expected) else function

    def _function(
        self, specs: Specs, fed: Places, fetched: Mapping[str, tf.Tensor], rows_of_lists: int | None = None
    ) -> Any:
        """The part of the graph between two rows of tensors: from `specs`, in order, to a dict of what is fetched."""
        definition = self.frozen.graph.as_graph_def()
        _drop_order(definition)
        if rows_of_lists is not None:
            _size_lists(definition, rows_of_lists)
        wanted = [tensor.name for tensor in fetched.values()]
        with tf.Graph().as_default() as graph:
            places = {
                name: tf.compat.v1.placeholder(spec.dtype, spec.shape, f"fed/{index}")
                for index, (name, spec) in enumerate(specs.items())
            }
            given = {parts[0].name: places[name] for name in specs for parts in fed[name]}
            imported = tf.graph_util.import_graph_def(definition, given, wanted, name="")
            ends = [given.get(name, tensor) for name, tensor in zip(wanted, imported, strict=True)]
        needed = tf.compat.v1.graph_util.extract_sub_graph(graph.as_graph_def(), [end.op.name for end in ends])
        names = _without_calls(needed)
        tables = {name: handle for name, handle in self.frozen.captured.items() if name in names}

        def serve(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
            inputs = {place.name: tensor for place, tensor in zip(places.values(), tensors, strict=True)}
            handles = {f"{names[name]}:0": tf.identity(handle) for name, handle in tables.items()}
            used = {name: tensor for name, tensor in inputs.items() if name.split(":")[0] in names}
            wanted = [f"{names[end.op.name]}:{end.value_index}" for end in ends]
            results = tf.graph_util.import_graph_def(needed, used | handles, wanted, name="")
            return {
                name: inputs.get(end.name, result) for name, end, result in zip(fetched, ends, results, strict=True)
            }

        return tf.function(serve, input_signature=list(specs.values()), autograph=False)

    def _called(self, function: Any, specs: Specs, columns: Columns) -> dict[str, np.ndarray]:
        feeds = [tf.constant(columns[name], spec.dtype) for name, spec in specs.items()]
        return {name: value.numpy() for name, value in function(*feeds).items()}

    def _prove(self, signature: FeatureSignature, network: Any) -> None:
        """Compares the two parts, one after the other, with the signature itself, on made rows.

        Args:
          signature: whose `read_examples` and `preprocess` are the first part.
          network: the second one, for any number of rows.

        Raises:
          ModelError: where an output is another one, or the signature doesn't answer.
        """
        taken = self.signature.structured_input_signature[1]
        rows = next((spec.shape[0] for spec in taken.values() if spec.shape.rank), None) or _ROWS
        every = _readable(self.frozen) if self.parses_examples else taken
        columns = {name: _drawn(spec, rows, seed) for seed, (name, spec) in enumerate(every.items())}
        given = {argument: _serialized(columns) for argument in taken} if self.parses_examples else columns
        try:
            expected = self.signature(**{name: tf.constant(value, taken[name].dtype) for name, value in given.items()})
        except tf.errors.OpError as error:
            raise ModelError(
                f"{self.place} doesn't answer made rows, so that Transform can't be proven to be left outside: "
                f'{error.message} Remedy: transform="inside".'
            ) from error
        if self.parses_examples:
            transformed = signature.read_examples(_serialized(columns))
        else:
            transformed = signature.preprocess({name: columns[name] for name in signature.raw_features})
        found = self._called(network, {spec.name: spec for spec in signature.features.values()}, transformed)
        for name, value in expected.items():
            if not _same(found[name], value.numpy()):
                raise ModelError(
                    f"{self.place} can't be cut behind its Transform layer: of made rows its output {name!r} is then "
                    'another one. Remedy: transform="inside".'
                )


def _refused(error: ModelError, columns: Columns) -> dict[str, np.ndarray]:
    raise error


def _freeze(function: Any) -> Frozen:
    # Loops stay whole: TFLite has them as they are, and makes one operator of an LSTM.
    frozen = convert_variables_to_constants_v2(function, lower_control_flow=False, aggressive_inlining=True)
    handles = {internal.op.name: external for external, internal in function.graph.captures}
    captured = {tensor.op.name: handles[tensor.op.name] for tensor in frozen.inputs if tensor.op.name in handles}
    inputs = [tensor for tensor in frozen.inputs if tensor.op.name not in captured]
    return Frozen(frozen.graph, inputs, list(frozen.outputs), captured)


def _parsed(place: str, frozen: Frozen) -> Places:
    """The tensors that come out of the graph's tf.Example parsing, by feature name.

    A feature that is parsed in several places has several; each is one tensor, or several of a sparse or ragged one.
    """
    found: Places = {}
    ops, _ = _behind(frozen.outputs, set())
    parses = [op for op in ops if op.type.startswith("Parse")]
    unknown = [op.type for op in parses if op.type != "ParseExampleV2" or op.inputs[0].shape.rank == 0]
    unknown += [name for name in _called_operations(frozen, ops) if name.startswith("Parse")]
    if unknown:
        raise _UnusableError(
            f"{place} parses its examples by {', '.join(dict.fromkeys(unknown))}, which can't be cut out of it. "
            "Remedy: tf.io.parse_example in the serving signature, on serialized tf.Examples."
        )
    for parse in parses:
        sparse, dense, ragged = _keys(parse)
        # In this order: indices, values and shapes of the sparse features, the dense ones, values and row splits of
        # the ragged ones.
        parts = dict[str, list[tf.Tensor]]()
        for key, tensor in zip([*sparse * 3, *dense, *ragged * 2], parse.outputs, strict=True):
            parts.setdefault(key, []).append(tensor)
        for key, tensors in parts.items():
            found.setdefault(key, []).append(tensors)
    return found


def _keys(parse: tf.Operation) -> Iterator[list[str]]:
    """The names of a ParseExampleV2's sparse, dense and ragged features."""
    return ([key.decode() for key in tf.get_static_value(tensor)] for tensor in parse.inputs[2:5])


def _called_operations(frozen: Frozen, ops: list[tf.Operation]) -> Iterator[str]:
    """The types of the operations in the functions that `ops` call: the bodies of loops and branches."""
    library = {function.signature.name: function for function in frozen.graph.as_graph_def().library.function}
    seen: set[str] = set()
    nodes = [op.node_def for op in ops if library]
    while nodes:
        for value in nodes.pop().attr.values():
            for name in {called.name for called in (value.func, *value.list.func)} & (library.keys() - seen):
                seen.add(name)
                nodes += library[name].node_def
                yield from (node.op for node in library[name].node_def)


def _behind(ends: Iterable[tf.Tensor], stops: set[str]) -> tuple[list[tf.Operation], set[str]]:
    """The operations that tensors depend on, back to the tensors called `stops`; and which of those were met."""
    ops: dict[str, tf.Operation] = {}
    met: set[str] = set()
    places = list(ends)
    while places:
        tensor = places.pop()
        if tensor.name in stops:
            met.add(tensor.name)
        elif tensor.op.name not in ops:
            ops[tensor.op.name] = tensor.op
            places += tensor.op.inputs
    return list(ops.values()), met


def _names(places: Places) -> set[str]:
    return {part.name for several in places.values() for parts in several for part in parts}


def _met(places: Places, ends: Iterable[tf.Tensor], stops: set[str]) -> Places:
    """Those of `places` that `ends` depend on, back to `stops`."""
    met = _behind(ends, stops)[1]
    return {name: several for name, several in places.items() if _names({name: several}) & met}


def _source(tensor: tf.Tensor) -> tf.Tensor:
    while tensor.op.type == "Identity":
        tensor = tensor.op.inputs[0]
    return tensor


def _is_fixed(tensor: tf.Tensor) -> bool:
    return bool(tensor.shape.rank and tensor.shape[1:].is_fully_defined())


def _sized(place: str, features: Specs, batch_size: int | None) -> Specs:
    """The features with a first dimension of `batch_size` rows."""
    if batch_size is None:
        return features
    sized = {}
    for name, spec in features.items():
        if spec.shape.rank and spec.shape[0] not in (None, batch_size):
            raise ModelError(
                f"{place} takes {spec.shape[0]} rows of {name!r} at once, not batch_size={batch_size}. "
                f"Remedy: batch_size={spec.shape[0]}, or a signature that takes any number."
            )
        shape = [batch_size, *spec.shape[1:]] if spec.shape.rank else spec.shape
        sized[name] = tf.TensorSpec(shape, spec.dtype, name=name)
    return sized


def _drop_order(definition: Any) -> None:
    """Takes away that operations wait for others whose result they don't take, such as assertions.

    Not where loops are operations of their own (TensorFlow 1): there it says what is in the loop.
    """
    if not any(node.op in _LOWERED for node in definition.node):
        for node in definition.node:
            data = [name for name in node.input if not name.startswith("^")]
            del node.input[:]
            node.input.extend(data)


def _lists_of_rows(definition: Any) -> list[tuple[Any, Any, int, np.ndarray]]:
    """The uses of lists of any number of rows: graph or function, node, place among its inputs, shape of an element."""
    found = []
    for nodes in (definition.node, *(function.node_def for function in definition.library.function)):
        constants = {node.name: node for node in nodes if node.op == "Const"}
        for node in nodes:
            place = _ELEMENT_SHAPE.get(node.op, -1)
            constant = constants.get(node.input[place].split(":")[0]) if place >= 0 else None
            if constant is not None:
                shape = tf.make_ndarray(constant.attr["value"].tensor).reshape(-1)
                if shape.size and shape[0] == -1 and -1 not in shape[1:]:
                    found.append((nodes, node, place, shape))
    return found


def _size_lists(definition: Any, rows: int) -> None:
    """Writes `rows` into the shapes of lists' elements; functions get new names, as they are others now."""
    renamed = {function.signature.name: f"{function.signature.name}_{rows}" for function in definition.library.function}
    for function in definition.library.function:
        function.signature.name = renamed[function.signature.name]
    for nodes in (definition.node, *(function.node_def for function in definition.library.function)):
        for value in (value for node in nodes for value in node.attr.values()):
            for called in (*([value.func] if value.HasField("func") else []), *value.list.func):
                called.name = renamed.get(called.name, called.name)
    for index, (nodes, node, place, shape) in enumerate(_lists_of_rows(definition)):
        constant = nodes.add(name=f"element_shape_{index}", op="Const")
        constant.attr["dtype"].type = tf.as_dtype(shape.dtype).as_datatype_enum
        constant.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(np.array([rows, *shape[1:]], shape.dtype)))
        node.input[place] = constant.name if nodes is definition.node else f"{constant.name}:output:0"
    for function in definition.library.function:
        context.context().add_function_def(function)  # importing the graph doesn't


def _without_calls(definition: Any) -> dict[str, str]:
    """Shortens the names of nodes by the calls that they were inlined from, which TFLite writes into the file.

    Returns:
      The new names, by the old ones; those that would be equal to another one stay as they are.
    """
    names = {node.name: _CALLS.sub("", node.name) for node in definition.node}
    counts = collections.Counter(names.values())
    names = {
        name: short if counts[short] == 1 and (short == name or short not in names) else name
        for name, short in names.items()
    }
    for node in definition.node:
        node.name = names[node.name]
        node.attr.pop("_class", None)  # colocation, by name
        for place, source in enumerate(node.input):
            control, name, output = re.fullmatch(r"(\^?)([^:]+)(.*)", source).groups()  # type: ignore[union-attr]
            node.input[place] = f"{control}{names[name]}{output}"
    return names


def _readable(frozen: Frozen) -> Specs:
    """What a tf.Example may have for the graph to parse it: features of fixed size, and one value of each other."""
    found = {}
    for parse in (op for op in frozen.graph.get_operations() if op.type == "ParseExampleV2"):
        sparse, dense, ragged = _keys(parse)
        for key, dtype, shape in zip(dense, parse.get_attr("Tdense"), parse.get_attr("dense_shapes"), strict=True):
            spec = tf.TensorSpec(tf.TensorShape([None]).concatenate(shape), dtype, name=key)
            if spec.shape[1:].is_fully_defined():
                found[key] = spec
        others = [*zip(sparse, parse.get_attr("sparse_types"), strict=True)]
        others += zip(ragged, parse.get_attr("ragged_value_types"), strict=True)
        found |= {key: tf.TensorSpec([None, 1], dtype, name=key) for key, dtype in others}
    return found


def _drawn(spec: tf.TensorSpec, rows: int, seed: int) -> np.ndarray:
    """Numbers around 0, of both signs, small and large; whole ones, and the digits of strings, 0 and 1."""
    generator = np.random.default_rng(seed)
    shape = [rows, *(size or 1 for size in spec.shape[1:])] if spec.shape.rank else []
    if spec.dtype.is_floating:
        sizes = np.resize([0.1, 1.0, 10.0], rows).reshape([-1, *[1] * (len(shape) - 1)]) if shape else 1.0
        return np.asarray(generator.normal(size=shape) * sizes, spec.dtype.as_numpy_dtype)
    whole = generator.integers(0, 2, shape)
    return whole.astype(str).astype(object) if spec.dtype == tf.string else whole.astype(spec.dtype.as_numpy_dtype)


def _serialized(columns: Columns) -> list[bytes]:
    rows = []
    for row in range(len(next(iter(columns.values())))):
        example = tf.train.Example()
        for name, values in columns.items():
            feature, flat = example.features.feature[name], values[row].ravel() if values.ndim > 1 else values[row:][:1]
            if values.dtype == object:
                feature.bytes_list.value.extend(value.encode() for value in flat)
            elif values.dtype.kind == "f":
                feature.float_list.value.extend(flat)
            else:
                feature.int64_list.value.extend(flat)
        rows.append(example.SerializeToString())
    return rows


def _same(found: np.ndarray, expected: np.ndarray) -> bool:
    """Equal but for rounding."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if not np.issubdtype(expected.dtype, np.floating):
        return bool((found == expected).all())
    largest = np.abs(expected[np.isfinite(expected)]).max(initial=1.0)
    return np.allclose(found, expected, 10 * _TOLERANCE, _TOLERANCE * largest, equal_nan=True)
