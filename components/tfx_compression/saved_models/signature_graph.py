"""A signature of a loaded SavedModel, with its frozen graph and the features that it parses."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfx_compression.data import example_parsing
from tfx_compression.data.example_parsing import FeatureTensors
from tfx_compression.errors import ModelError
from tfx_compression.saved_models.probes import SignatureInputs
from tfx_compression.tf_graphs import inlining, walks
from tfx_compression.tf_graphs.inlining import FrozenGraph


class UnusableSignatureError(ModelError):
    """TFLite can't have this signature, but possibly another one of the SavedModel."""


class SignatureGraph:
    """A signature and its frozen graph.

    Attributes:
      path: Path of the SavedModel.
      place: The signature, for error messages.
      loaded: The SavedModel; the tables of the signature live as long as it does.
      signature: The signature.
      frozen: Its frozen graph.
      outputs: Tensors that it returns, by name, in the order of the names.
      inputs: What it takes: tensors, or features that it parses from tf.Examples.
      raw: Tensors of the parsed features, or else of the arguments.
    """

    def __init__(self, path: str, loaded: Any, name: str) -> None:
        self.path = path
        self.place = f"The signature {name!r} of {path}"
        self.loaded = loaded
        self.signature = loaded.signatures[name]
        self.frozen = inlining.freeze(self.signature)
        # The outputs of a frozen function are a flat list, in the order of their sorted names.
        self.outputs = dict(zip(sorted(self.signature.structured_outputs), self.frozen.outputs, strict=True))
        specs = self.signature.structured_input_signature[1]
        arguments = {argument: specs[argument] for argument in sorted(specs)}
        parsers = require_parsers(self.place, self.frozen)
        self.inputs = SignatureInputs(f"{name!r} of {path}", arguments, example_parsing.parsed_features(parsers))
        self.arguments = dict(zip(arguments, self.frozen.inputs, strict=True))
        self.raw = example_parsing.parsed_tensors(parsers) or {key: [[place]] for key, place in self.arguments.items()}

    @property
    def parses_examples(self) -> bool:
        """Whether it takes serialized tf.Examples."""
        return bool(self.inputs.features)

    def required(self, features: FeatureTensors, stops: set[str]) -> FeatureTensors:
        """Returns the features that the outputs depend on, if the graph starts at the tensors named in `stops`."""
        return example_parsing.required_features(features, self.outputs.values(), stops)

    def operations(self, stops: set[str]) -> list[tf.Operation]:
        """Returns the operations that the outputs depend on, if the graph starts at the tensors named in `stops`."""
        return walks.walk_back(self.outputs.values(), lambda tensor: tensor.name in stops).operations


def require_parsers(place: str, frozen: FrozenGraph) -> list[tf.Operation]:
    """Returns the operations by which a graph parses batches of tf.Examples.

    Raises:
      UnusableSignatureError: If it parses in another way, or inside a loop or branch.
    """
    operations = walks.walk_back(frozen.outputs).operations
    parsers = example_parsing.find_parsers(operations)
    unsupported = [op.type for op in parsers if op.type != example_parsing.PARSE_OP or op.inputs[0].shape.rank == 0]
    unsupported += [name for name in walks.called_op_types(frozen.graph, operations) if name.startswith("Parse")]
    if unsupported:
        raise UnusableSignatureError(
            f"{place} parses its examples by {', '.join(dict.fromkeys(unsupported))}, which can't be cut off. "
            "Remedy: tf.io.parse_example in the serving signature, on serialized tf.Examples.",
            code="unsupported-parsing",
        )
    return parsers


def first_tensors(features: FeatureTensors) -> dict[str, tf.Tensor]:
    """Returns one tensor of each feature."""
    return {name: places[0][0] for name, places in features.items()}


def has_fixed_shape(places: Sequence[Sequence[tf.Tensor]]) -> bool:
    """Returns whether a feature is one dense tensor everywhere, of fixed shape apart from the number of rows."""
    return all(len(place) == 1 and place[0].shape.rank and place[0].shape[1:].is_fully_defined() for place in places)
