"""Sparse kernels: which get encoded, and that it pays."""

import numpy as np
import pytest
import tf_keras
from tfx_compression.compressed_size import gzipped
from tfx_compression.tflite import flatbuffer
from tfx_compression.tflite.interpreter import Interpreter
from tfx_compression.tflite_quantizer import sparse

from tests.support import helpers

pytestmark = pytest.mark.slow  # converts models

UNITS = 512
X = np.random.default_rng(3).normal(size=(16, UNITS)).astype(np.float32)


def network(density: float, block: int = 1) -> tf_keras.Model:
    """A dense layer of `density`, in blocks of that many inputs, before a small full one."""
    tf_keras.utils.set_random_seed(4)
    x = tf_keras.Input((UNITS,), name="x")
    hidden = tf_keras.layers.Dense(UNITS, activation="relu", name="hidden")
    model = tf_keras.Model(x, tf_keras.layers.Dense(4, name="y")(hidden(x)))
    kept = np.random.default_rng(5).uniform(size=(UNITS // block, UNITS)) < density
    hidden.kernel.assign(hidden.kernel.numpy() * np.repeat(kept, block, axis=0))
    return model


def converted(density: float, block: int = 1, mode: str = "float32") -> bytes:
    return helpers.to_tflite(network(density, block), mode, X)


def assert_same_outputs(found: bytes, content: bytes) -> None:
    dense, encoded = (Interpreter(file).predict({"x": X})["y"] for file in (content, found))
    np.testing.assert_allclose(encoded, dense, atol=1e-5)


def encoded_tensors(content: bytes) -> int:
    return sum(tensor.sparsity is not None for tensor in flatbuffer.parse(content).subgraphs[0].tensors)


@pytest.fixture(scope="module")
def scattered() -> bytes:
    return converted(0.1)


def test_scattered_zeros_are_encoded_because_the_gzipped_file_gets_smaller(scattered):
    found, record = sparse.encode(scattered, "auto", {"x": X})
    assert record.encoded
    assert record.bytes_gzip == (gzipped(scattered), gzipped(found))
    assert record.bytes_gzip[1] < record.bytes_gzip[0]
    assert len(found) < 0.3 * len(scattered)
    assert encoded_tensors(found) == 1
    assert_same_outputs(found, scattered)


def test_blocks_of_a_dense_layer_make_it_faster():
    content = converted(0.1, block=4)
    found, record = sparse.encode(content, "auto", {"x": X})
    assert record.encoded
    assert record.speedup > 1.5
    assert f"{record.speedup:.2f} times as fast" in record.reason
    assert_same_outputs(found, content)


def test_a_dense_network_stays_as_it_is_however_much_it_is_wanted():
    content = converted(1.0)
    for wanted in (True, "auto"):
        found, record = sparse.encode(content, wanted, {"x": X})
        assert found == content
        assert (record.encoded, record.bytes_gzip, record.speedup) == (False, None, None)
        assert "no kernel is sparse enough" in record.reason


def test_what_is_not_asked_for_is_not_done(scattered):
    found, record = sparse.encode(scattered, False, {"x": X})
    assert found == scattered
    assert (record.encoded, record.reason) == (False, "not asked for")


@pytest.mark.parametrize("wanted", [True, "auto"])
def test_int8_kernels_stay_dense_because_no_runtime_takes_them_encoded(wanted):
    content = converted(0.1, mode="int8")
    found, record = sparse.encode(content, wanted, {"x": X})
    assert found == content
    assert not record.encoded
    assert "doesn't run" in record.reason
    assert record.bytes_gzip[0] == gzipped(content)


def test_what_is_neither_smaller_nor_faster_is_encoded_only_where_it_is_asked_for(scattered, monkeypatch):
    """The file seems to grow: no network was found whose float file does."""
    monkeypatch.setattr(sparse, "gzipped", lambda content: 10**9 - len(content))
    monkeypatch.setattr(sparse, "_FASTER", 100.0)
    found, record = sparse.encode(scattered, "auto", {"x": X})
    assert found == scattered
    assert not record.encoded
    assert record.reason.startswith("neither smaller nor faster")
    found, record = sparse.encode(scattered, True, {"x": X})
    assert record.encoded
    assert record.reason.startswith("asked for")
    assert encoded_tensors(found) == 1


def test_an_encoded_model_that_computes_something_else_is_not_used(scattered, monkeypatch):
    """The encoder is given another network, which stands in for one that gets it wrong."""
    other = converted(0.11)
    real = sparse.conversion.encode_sparse
    monkeypatch.setattr(sparse.conversion, "encode_sparse", lambda content: real(other))
    found, record = sparse.encode(scattered, True, {"x": X})
    assert found == scattered
    assert "computes something else: its output 'y' is off by" in record.reason
