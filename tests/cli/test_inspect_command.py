"""`tfx-compression inspect`: a table for people and JSON for programs."""

import json

import pytest

from tests.support import helpers


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The file of a network with half of the weights of one kernel at zero."""
    network = helpers.small_dense()
    helpers.zero_smallest(network, "hidden", 0.5)
    path = tmp_path_factory.mktemp("models") / "small [dense].h5"
    network.save(path)
    return path


def test_a_table_has_the_kernels_and_their_zeros(run, model):
    status, out, err = run("inspect", model)
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    assert (status, err) == (0, "")
    assert rows == [["hidden", "64", "50.0 %"], ["y", "32", "0.0 %"]]
    assert str(model) in out
    assert "macs 96" in out


def test_json_has_the_same(run, model):
    status, out, err = run("inspect", model, "--json")
    assert (status, err) == (0, "")
    description = json.loads(out)
    assert description["kind"] == "keras2"
    assert description["macs"] == 96
    assert description["layers"][0] == {"name": "hidden", "size": 64, "sparsity": 0.5}


def test_a_tflite_model_is_described_by_its_operators(run, tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(helpers.to_tflite(helpers.small_dense(), "float32"))
    status, out, _ = run("inspect", path)
    assert status == 0
    assert "ops (FULLY_CONNECTED=2)" in out
    assert "float ops" in out
