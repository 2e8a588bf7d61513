"""A cut signature for a fixed number of rows."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfx_compression.errors import ModelError
from tfx_compression.saved_models import equivalence, probes
from tfx_compression.saved_models.signature_graph import SignatureGraph
from tfx_compression.tf_graphs import rewriting
from tfx_compression.tf_graphs.subgraphs import Specs, call_by_name, subgraph_function


def sized_function(
    graph: SignatureGraph, features: Specs, fed: Mapping[str, Sequence[tf.Tensor]], batch_size: int | None
) -> tuple[Specs, Any]:
    """Returns the part of a signature behind its features, for a number of rows.

    Args:
      graph: The signature.
      features: The features, for any number of rows.
      fed: By feature, its tensors in the graph.
      batch_size: Number of rows. None for any number.

    Returns:
      The features with that number of rows, and the function from the features, in order, to the outputs.

    Raises:
      ModelError: If the signature takes another number of rows.
    """
    if batch_size is None:
        return features, subgraph_function(graph.frozen, features, fed, graph.outputs)
    sized = {name: _with_rows(graph.place, name, spec, batch_size) for name, spec in features.items()}
    function = subgraph_function(graph.frozen, sized, fed, graph.outputs)
    if rewriting.has_lists_of_rows(graph.frozen.graph.as_graph_def()):
        with_lists = subgraph_function(graph.frozen, sized, fed, graph.outputs, list_rows=batch_size)
        if _answers_alike(with_lists, function, probes.SignatureInputs(graph.place, sized)):
            return sized, with_lists
    return sized, function


def _with_rows(place: str, name: str, spec: tf.TensorSpec, rows: int) -> tf.TensorSpec:
    if not spec.shape.rank:
        return tf.TensorSpec(spec.shape, spec.dtype, name=name)
    if spec.shape[0] not in (None, rows):
        raise ModelError(
            f"{place} takes {spec.shape[0]} rows of {name!r} at once, not batch_size={rows}. "
            f"Remedy: batch_size={spec.shape[0]}, or a signature that takes any number.",
            code="batch-size",
        )
    return tf.TensorSpec([rows, *spec.shape[1:]], spec.dtype, name=name)


def _answers_alike(with_lists: Any, function: Any, inputs: probes.SignatureInputs) -> bool:
    """Returns whether a number of rows in the elements of lists leaves the answers as they are.

    Loops collect their results in such lists. TFLite must know the shape of the elements, in which a recurrent layer
    leaves the number of rows open. But the dimension that is open may also be another one than that of the rows.
    """
    try:
        references = equivalence.draw_references(functools.partial(call_by_name, function), inputs)
    except ModelError:  # there is nothing to compare with
        return False
    difference = equivalence.difference(references, lambda feeds: equivalence.arrays(call_by_name(with_lists, **feeds)))
    return difference is None
