"""Metadata in a TFLite file, read by code that shares nothing with the writer, and as a ZIP archive."""

import io
import struct
import zipfile
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.lite.tools import flatbuffer_utils
from tfx_compression.errors import ConfigError, ModelError
from tfx_compression.tflite.interpreter import Interpreter
from tfx_compression.tflite_quantizer import tflite_metadata
from tfx_compression.tflite_quantizer.tflite_metadata import GraphMetadata, ModelMetadata, TensorMetadata

from tests.support import helpers
from tests.support.errors import raises

pytestmark = pytest.mark.slow  # converts models

LABELS = ("left", "the middle, größer", "right")
WORDS = {"name": "Digits", "description": "Which third", "version": "1.2", "author": "us", "license": "Apache-2.0"}
EVERYTHING: dict[str, Any] = {
    **WORDS,
    "labels": {"probabilities": LABELS},
    "normalization": {"image": ((0.5, 1.5), (16.0, 4.0))},
    "ranges": {"image": (-1.0, 2.5)},
}


@pytest.fixture(scope="module")
def written(int8_cnn):
    return tflite_metadata.write(int8_cnn, **EVERYTHING)


# Reading: the entries of a table's vtable (uint16, from byte 4 on) are its fields' offsets; 0 is an absent field.


def at(data: bytes, place: int) -> int:
    """Returns the place that an offset points to."""
    return place + struct.unpack_from("<I", data, place)[0]


def field(data: bytes, table: int, number: int) -> int | None:
    vtable = table - struct.unpack_from("<i", data, table)[0]
    size = struct.unpack_from("<H", data, vtable)[0]
    if 4 + 2 * number >= size:
        return None
    offset = struct.unpack_from("<H", data, vtable + 4 + 2 * number)[0]
    return table + offset if offset else None


def text(data: bytes, table: int, number: int) -> str:
    place = at(data, field(data, table, number))
    (size,) = struct.unpack_from("<I", data, place)
    assert data[place + 4 + size] == 0
    return data[place + 4 : place + 4 + size].decode()


def floats(data: bytes, table: int, number: int) -> tuple[float, ...]:
    place = at(data, field(data, table, number))
    return struct.unpack_from(f"<{struct.unpack_from('<I', data, place)[0]}f", data, place + 4)


def tables(data: bytes, table: int, number: int) -> list[int]:
    place = at(data, field(data, table, number))
    return [at(data, place + 4 + 4 * index) for index in range(struct.unpack_from("<I", data, place)[0])]


def buffers(content: bytes) -> list[bytes]:
    """Returns the buffers named TFLITE_METADATA, as TensorFlow reads the model."""
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    return [bytes(model.buffers[entry.buffer].data) for entry in model.metadata if entry.name == b"TFLITE_METADATA"]


def test_fields_have_the_schemas_numbers(written):
    (data,) = buffers(written)
    assert data[4:8] == b"M001"
    root = at(data, 0)
    assert [text(data, root, number) for number in (0, 1, 2, 4, 5)] == list(WORDS.values())
    assert text(data, root, 7) == "1.0.0"  # min_parser_version
    (graph,) = tables(data, root, 3)
    assert text(data, graph, 0) == "serving_default"
    (image,) = tables(data, graph, 2)
    assert text(data, image, 0) == "image"
    (unit,) = tables(data, image, 4)
    assert data[field(data, unit, 0)] == 1  # NormalizationOptions
    options = at(data, field(data, unit, 1))
    assert (floats(data, options, 0), floats(data, options, 1)) == ((0.5, 1.5), (16.0, 4.0))  # mean, std
    stats = at(data, field(data, image, 5))
    assert (floats(data, stats, 0), floats(data, stats, 1)) == ((2.5,), (-1.0,))  # max, min
    assert field(data, image, 6) is None
    (output,) = tables(data, graph, 3)
    assert text(data, output, 0) == "probabilities"
    assert (field(data, output, 4), field(data, output, 5)) == (None, None)
    (file,) = tables(data, output, 6)
    assert data[field(data, file, 2)] == 2  # TENSOR_AXIS_LABELS
    assert text(data, file, 0) in zipfile.ZipFile(io.BytesIO(written)).namelist()


def test_labels_are_an_uncompressed_file(written):
    with zipfile.ZipFile(io.BytesIO(written)) as archive:
        (info,) = archive.infolist()
        assert archive.testzip() is None
        assert archive.read(info).decode().splitlines() == list(LABELS)
        assert info.compress_type == zipfile.ZIP_STORED


def test_written_metadata_is_read(int8_cnn, written):
    image = TensorMetadata("image", (0.5, 1.5), (16.0, 4.0), (-1.0,), (2.5,))
    graph = GraphMetadata("serving_default", (image,), (TensorMetadata("probabilities", labels=LABELS),))
    assert tflite_metadata.read(written) == ModelMetadata(**WORDS, graphs=(graph,), min_parser_version="1.0.0")
    assert tflite_metadata.read(int8_cnn) is None


def test_writing_again_replaces_the_metadata(int8_cnn, written):
    again = tflite_metadata.write(written, name="another")
    assert len(buffers(again)) == 1
    assert tflite_metadata.read(again).name == "another"
    assert tflite_metadata.read(again).graphs[0].outputs == (TensorMetadata("probabilities"),)
    assert not zipfile.is_zipfile(io.BytesIO(again))
    assert tflite_metadata.write(again, **EVERYTHING) == tflite_metadata.write(int8_cnn, **EVERYTHING) == written


def test_the_model_computes_the_same_on_both_runtimes(int8_cnn, written):
    images = helpers.images(7, seed=3)[0] / helpers.LARGEST
    before, after = (Interpreter(content).predict({"image": images}) for content in (int8_cnn, written))
    np.testing.assert_array_equal(after["probabilities"], before["probabilities"])

    def on_tensorflow(content: bytes) -> np.ndarray:
        run = tf.lite.Interpreter(model_content=content).get_signature_runner("serving_default")
        return run(image=np.full((1, 8, 8, 1), 5, np.int8))["probabilities"]

    np.testing.assert_array_equal(on_tensorflow(written), on_tensorflow(int8_cnn))


def test_tensors_have_the_graphs_order_and_the_signatures_names(tmp_path):
    path = helpers.save_function(
        lambda b, a, c: {"sum": a[:, :2] + b[:, :2] + c[:, :2], "last": 2.0 * c[:, 1:]},
        [tf.TensorSpec([None, size], tf.float32, name) for size, name in ((3, "b"), (4, "a"), (3, "c"))],
        tmp_path,
    )
    content = bytes(tf.lite.TFLiteConverter.from_saved_model(path).convert())
    (graph,) = tflite_metadata.read(tflite_metadata.write(content, labels={"last": ("no", "yes")})).graphs
    (signature,) = flatbuffer_utils.convert_bytearray_to_object(bytearray(content)).signatureDefs
    subgraph = flatbuffer_utils.convert_bytearray_to_object(bytearray(content)).subgraphs[0]
    inputs = {tensor.tensorIndex: tensor.name.decode() for tensor in signature.inputs}
    outputs = {tensor.tensorIndex: tensor.name.decode() for tensor in signature.outputs}
    assert sorted(inputs.values()) == ["a", "b", "c"]
    assert [tensor.name for tensor in graph.inputs] == [inputs[place] for place in subgraph.inputs]
    assert [tensor.name for tensor in graph.outputs] == [outputs[place] for place in subgraph.outputs]
    assert {tensor.name: tensor.labels for tensor in graph.outputs} == {"sum": (), "last": ("no", "yes")}


@pytest.mark.parametrize(
    ("fields", "code", "match"),
    [
        ({"labels": {"scores": LABELS}}, "unknown-output", "'scores'.*probabilities"),
        ({"normalization": {"picture": ((0.0,), (1.0,))}}, "unknown-input", "'picture'.*image"),
        ({"ranges": {"picture": (0.0, 1.0)}}, "unknown-input", "'picture'.*image"),
        ({"labels": {"probabilities": ("one", "two")}}, "label-count", "'probabilities' has 3 .* 2 "),
        ({"labels": {"probabilities": ("one", "two\n", "three")}}, "label-line-break", "'two"),
    ],
    ids=["output", "input", "range", "number", "line break"],
)
def test_metadata_that_does_not_fit_the_model_is_refused(int8_cnn, fields, code, match):
    with raises(ConfigError, code=code, match=match):
        tflite_metadata.write(int8_cnn, **fields)


def test_other_content_and_damaged_models_are_refused(int8_cnn, written):
    with raises(ModelError):
        tflite_metadata.read(b"PK\x03\x04 something else")
    with raises(ModelError):
        tflite_metadata.write(int8_cnn[:200])
    with raises(ModelError, code="damaged-metadata"):  # the file of labels is truncated
        tflite_metadata.read(written[: written.rindex(b"PK\x05\x06")])


def test_another_format_is_refused(written):
    with raises(ModelError, code="unknown-metadata", match="M002"):
        tflite_metadata.read(written.replace(b"M001", b"M002"))
