"""What `tfx-compression inspect` says of every kind of model."""

import keras
import pytest
from tfx_compression.inspection import describe

from tests.support import helpers, kinds


@pytest.mark.parametrize("kind", ["keras2", "keras3", "saved_model"])
def test_the_kind_is_told_with_what_it_was_told_by(tmp_path, kind):
    path = str(tmp_path / "model")
    if kind == "keras2":
        helpers.small_dense().save(path, save_format="tf")
    elif kind == "keras3":
        path += ".keras"
        kinds.keras3_dense().save(path)
    else:
        kinds.keras3_dense().export(path, verbose=False)
    found = describe(path)
    assert found["kind"] == kind
    assert path in found["notes"][0]
    assert found["macs"] == 4 * 16 + 16 * 2
    assert [layer["size"] for layer in found["layers"]] == [4 * 16, 16 * 2]


def test_a_custom_classs_kernels_are_those_that_its_graph_uses(tmp_path):
    found = describe(kinds.module(tmp_path / "model"))
    assert [layer["name"] for layer in found["layers"]] == ["first", "second"]
    assert any("scale" in note for note in found["notes"])


def test_keras_3_is_beside_keras_2_in_one_process():
    assert keras.backend.backend() == "tensorflow"
    assert type(helpers.small_dense()).__module__.startswith("tf_keras.")
