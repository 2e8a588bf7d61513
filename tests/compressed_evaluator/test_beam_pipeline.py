"""Rows are read and checked in batches, and errors come out of Beam as they were raised."""

from typing import Any

import apache_beam as beam
import numpy as np
import pytest
from google.protobuf import text_format
from tensorflow_model_analysis.proto import config_pb2
from tfx_compression.compressed_evaluator import beam_pipeline
from tfx_compression.compressed_evaluator.beam_errors import carried_errors, original_error
from tfx_compression.compressed_evaluator.beam_pipeline import PlannedModel
from tfx_compression.errors import DataError, ModelError

from tests.support.errors import raises
from tests.support.helpers import write_examples

ROWS = 120
X = np.zeros([ROWS, 2], np.float32)
_WEIGHTED = 'model_specs { label_key: "label" example_weight_key: "w" }'


def read(path: Any, config: str, **columns: np.ndarray) -> list[dict]:
    """The batches that the pipeline reads from rows with these columns."""
    file = write_examples(path / "rows.tfrecord", {"x": X, **columns})
    required = beam_pipeline._required_features(text_format.Parse(config, config_pb2.EvalConfig()))
    reader = beam_pipeline._ReadBatches(None, required, 50)
    reader.setup()
    try:
        return list(reader.process(file))
    except RuntimeError as error:
        raise original_error(error) or error from error


def test_rows_are_read_in_batches(tmp_path):
    batches = read(tmp_path, _WEIGHTED, label=np.zeros([ROWS, 1]), w=np.ones([ROWS, 1], np.float32))
    assert [len(batch["input"]) for batch in batches] == [50, 50, 20]


@pytest.mark.parametrize(
    ("columns", "code"),
    [
        ({}, "missing-example-weight"),
        ({"w": np.full([ROWS, 1], -1, np.float32)}, "invalid-example-weight"),
        ({"w": np.full([ROWS, 1], np.nan, np.float32)}, "invalid-example-weight"),
        ({"w": np.full([ROWS, 1], b"heavy")}, "invalid-example-weight"),
    ],
    ids=["missing", "negative", "NaN", "strings"],
)
def test_every_row_needs_a_valid_example_weight(tmp_path, columns, code):
    with raises(DataError, code=code, match="'w'"):
        read(tmp_path, _WEIGHTED, label=np.zeros([ROWS, 1]), **columns)


def test_every_row_needs_a_label(tmp_path):
    with raises(DataError, code="missing-label", match="'label' .* 50 of 50 "):
        read(tmp_path, 'model_specs { label_key: "label" }')


@pytest.mark.parametrize(
    ("labels", "shown"),
    [
        (np.full([5, 1], 7), "'7'"),
        (np.full([5, 1], -1), "'-1'"),
        (np.full([5, 1], 0.5, np.float32), "'0.5'"),
        (np.full([5, 1], b"red"), "'red'"),
        (np.zeros([5, 2], np.int64), "'0'"),
    ],
    ids=["too large", "negative", "fractions", "strings", "two per row"],
)
def test_labels_have_to_be_numbers_of_outputs(labels, shown):
    with raises(DataError, code="labels-not-classes", match=f"{shown}.* 0 to 2 "):
        beam_pipeline._require_classes(labels, np.zeros([5, 3]))


@pytest.mark.parametrize(
    ("arena_bytes", "rows"), [(0, 1024), (1, 1024), (128 << 10, 1024), (256 << 10, 512), (1 << 30, 1)]
)
def test_batches_fit_into_the_memory_for_tensors(arena_bytes, rows):
    models = {"small": PlannedModel("", {}), "large": PlannedModel("", {}, arena_bytes=arena_bytes)}
    assert beam_pipeline._batch_rows(models) == rows


# Errors


@pytest.mark.parametrize(
    "error",
    [DataError("no label <<x>>", field="label_key", code="no-label"), ModelError("can't\nrun"), DataError("plain")],
)
def test_an_error_keeps_its_class_field_and_code(error):
    with pytest.raises(RuntimeError) as caught, carried_errors():
        raise error
    wrapped = RuntimeError(f"Traceback …\n{caught.value!r} [while running 'Evaluate/Predict']")
    original = original_error(wrapped)
    assert (type(original), str(original), original.field, original.code) == (
        type(error),
        str(error),
        error.field,
        error.code,
    )


def test_other_errors_are_not_changed():
    assert original_error(RuntimeError("TensorFlow <<failed>> in Beam")) is None
    with pytest.raises(KeyError), carried_errors():
        raise KeyError("x")


@pytest.mark.slow
def test_an_error_comes_out_of_a_pipeline():
    def fail(_: int) -> None:
        with carried_errors():
            raise DataError("no label", field="label_key", code="no-label")

    with pytest.raises(RuntimeError) as caught, beam.Pipeline() as pipeline:
        pipeline | beam.Create([1]) | beam.Map(fail)
    original = original_error(caught.value)
    assert (type(original), original.code) == (DataError, "no-label")
