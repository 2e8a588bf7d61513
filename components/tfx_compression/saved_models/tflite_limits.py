"""Operations that TFLite doesn't have: lookups in tables, and most operations on strings."""

import tensorflow as tf

from tfx_compression.data import example_parsing
from tfx_compression.saved_models.signature_graph import SignatureGraph, UnusableSignatureError
from tfx_compression.saved_models.transform_cut import transform_operations
from tfx_compression.tf_graphs import walks

# Operations on strings that TFLite has, or that the converter removes.
_STRING_OPS = ("Identity", "Const", "Placeholder", "Equal", "NotEqual", "GatherV2", "Reshape", "Squeeze", "ExpandDims")


def refuse_tables(graph: SignatureGraph, operations: list[tf.Operation]) -> None:
    """Checks that operations look up no table.

    Raises:
      UnusableSignatureError: With the operations and the features that they work on.
    """
    captured = graph.frozen.captured
    lookups = [
        op
        for op in operations
        if op.type != "Identity" and any(walks.source(tensor).op.name in captured for tensor in op.inputs)
    ]
    if lookups:
        raise UnusableSignatureError(
            f"{graph.place} looks up a table (a vocabulary), which TFLite can't: {_explain(graph, lookups)}",
            code="lookup-table",
        )


def explain_string_operations(graph: SignatureGraph, operations: list[tf.Operation]) -> str:
    """Returns why TFLite can't run operations on strings, with the remedy; empty if it can."""
    unsupported = [
        op
        for op in operations
        if op.type not in _STRING_OPS and any(tensor.dtype == tf.string for tensor in (*op.inputs, *op.outputs))
    ]
    if not unsupported:
        return ""
    return f"{graph.place} works on strings by operators that TFLite doesn't have: {_explain(graph, unsupported)}"


def _explain(graph: SignatureGraph, operations: list[tf.Operation]) -> str:
    """Returns operations with their layer and the features that they depend on, and the remedy."""
    of_transform = transform_operations(graph)
    raw = example_parsing.tensor_names(graph.raw)
    phrases = []
    for op in operations:
        features = ", ".join(sorted(example_parsing.required_features(graph.raw, op.inputs, raw))) or "no feature"
        layer = " in the Transform layer" if op.name in of_transform else ""
        phrases.append(f"{op.type}{layer} (of {features})")
    if any(op.name in of_transform for op in operations):
        remedy = (
            'transform="outside", and the device does what Transform does before the model; or a preprocessing_fn '
            "without it (categories that are integers in the examples)."
        )
    else:
        remedy = "let the device do it before the model, and serve the network on the result."
    return f"{', '.join(dict.fromkeys(phrases))}. Remedy: {remedy}"
