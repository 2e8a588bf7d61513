"""What TFLite can't do: look up tables, and most operations on strings."""

import pytest
import tensorflow as tf
from tfx_compression.data.example_parsing import tensor_names
from tfx_compression.saved_models import tflite_limits
from tfx_compression.saved_models.signature_graph import UnusableSignatureError

from tests.support.errors import raises
from tests.support.signatures import open_signature, save_on_examples, transform_layer

WORD = tf.TensorSpec([None, 1], tf.string)
SPEC = {"word": tf.io.FixedLenFeature([1], tf.string), "x": tf.io.FixedLenFeature([1], tf.float32)}


def vocabulary() -> tf.lookup.StaticHashTable:
    return tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(["a"], [1.0]), -1.0)


def opened(path, function, **tracked):
    """A signature and the operations behind its parsing."""
    graph = open_signature(save_on_examples(path, SPEC, function, **tracked))
    return graph, graph.operations(tensor_names(graph.raw))


def test_a_lookup_is_refused_with_its_feature(tmp_path):
    table = vocabulary()
    graph, operations = opened(tmp_path, lambda parsed: {"y": table.lookup(parsed["word"])}, table=table)
    with raises(UnusableSignatureError, code="lookup-table", match=r"LookupTableFindV2 \(of word\).*device do it"):
        tflite_limits.refuse_tables(graph, operations)


def test_a_lookup_of_transform_is_refused_with_transform_as_the_remedy(tmp_path):
    layer = transform_layer(lambda features: {"word": layer.table.lookup(features["word"])}, word=WORD, x=WORD)
    layer.table = vocabulary()
    graph, operations = opened(
        tmp_path,
        lambda parsed: {"y": layer({"word": parsed["word"], "x": parsed["word"]})["word"] + parsed["x"]},
        tft_layer=layer,
    )
    with raises(UnusableSignatureError, match=r'in the Transform layer \(of word\).*transform="outside"'):
        tflite_limits.refuse_tables(graph, operations)


def test_a_signature_without_tables_passes(tmp_path):
    graph, operations = opened(tmp_path, lambda parsed: {"y": parsed["x"] * 2})
    tflite_limits.refuse_tables(graph, operations)
    assert tflite_limits.explain_string_operations(graph, operations) == ""


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda parsed: {"y": tf.strings.length(parsed["word"])}, "StringLength (of word)"),
        (lambda parsed: {"y": tf.strings.as_string(parsed["x"])}, "AsString (of x)"),
        (lambda parsed: {"y": tf.cast(parsed["word"] == "a", tf.float32)}, ""),
    ],
    ids=["length", "as_string", "equal"],
)
def test_operations_on_strings_that_tflite_lacks_are_explained(tmp_path, function, named):
    explanation = tflite_limits.explain_string_operations(*opened(tmp_path, function))
    assert named in explanation
    assert bool(explanation) == bool(named)
