"""Descriptions of every kind of model."""

import keras
import pytest
from tfx_compression.cli.inspection import describe
from tfx_compression.errors import ModelError

from tests.support import helpers, kinds
from tests.support.errors import raises


@pytest.mark.parametrize("kind", ["keras2", "keras3", "saved_model"])
def test_a_description_has_the_kind_and_what_reveals_it(tmp_path, kind):
    path = str(tmp_path / "model")
    if kind == "keras2":
        helpers.small_dense().save(path, save_format="tf")
    elif kind == "keras3":
        path += ".keras"
        kinds.keras3_dense().save(path)
    else:
        kinds.keras3_dense().export(path, verbose=False)
    description = describe(path)
    assert description["kind"] == kind
    assert path in description["notes"][0]
    assert description["macs"] == 4 * 16 + 16 * 2
    assert [layer["size"] for layer in description["layers"]] == [4 * 16, 16 * 2]


def test_the_kernels_of_a_custom_class_are_those_its_graph_uses(tmp_path):
    description = describe(kinds.module(tmp_path / "model"))
    assert [layer["name"] for layer in description["layers"]] == ["first", "second"]
    assert any("scale" in note for note in description["notes"])


def test_a_file_that_is_no_model_is_named(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"TFL")
    with raises(ModelError, match=str(path)):
        describe(str(path))


def test_keras_3_and_keras_2_coexist_in_one_process():
    assert keras.backend.backend() == "tensorflow"
    assert type(helpers.small_dense()).__module__.startswith("tf_keras.")
