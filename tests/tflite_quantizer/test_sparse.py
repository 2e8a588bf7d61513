"""Encoding of sparse kernels: when it happens, and that the encoded model computes the same."""

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
    """Returns a dense layer with a share of weights that aren't zero, in blocks of inputs, and a small full layer."""
    tf_keras.utils.set_random_seed(4)
    x = tf_keras.Input((UNITS,), name="x")
    hidden = tf_keras.layers.Dense(UNITS, activation="relu", name="hidden")
    model = tf_keras.Model(x, tf_keras.layers.Dense(4, name="y")(hidden(x)))
    kept = np.random.default_rng(5).uniform(size=(UNITS // block, UNITS)) < density
    hidden.kernel.assign(hidden.kernel.numpy() * np.repeat(kept, block, axis=0))
    return model


def converted(density: float, block: int = 1, mode: str = "float32") -> bytes:
    return helpers.to_tflite(network(density, block), mode, X)


def assert_same_outputs(encoded_content: bytes, content: bytes) -> None:
    dense, encoded = (Interpreter(file).predict({"x": X})["y"] for file in (content, encoded_content))
    np.testing.assert_allclose(encoded, dense, atol=1e-5)


def encoded_tensors(content: bytes) -> int:
    return sum(tensor.sparsity is not None for tensor in flatbuffer.parse(content).subgraphs[0].tensors)


@pytest.fixture(scope="module")
def scattered() -> bytes:
    return converted(0.1)


def test_scattered_zeros_make_the_gzipped_file_smaller(scattered):
    result, record = sparse.encode(scattered, "auto", {"x": X})
    assert record.encoded
    assert record.bytes_gzip == (gzipped(scattered), gzipped(result))
    assert record.bytes_gzip[1] < record.bytes_gzip[0]
    assert len(result) < 0.3 * len(scattered)
    assert encoded_tensors(result) == 1
    assert_same_outputs(result, scattered)


def test_blocks_make_a_dense_layer_faster():
    content = converted(0.1, block=4)
    result, record = sparse.encode(content, "auto", {"x": X})
    assert record.encoded
    assert record.speedup > 1.5
    assert f"{record.speedup:.2f} times as fast" in record.reason
    assert_same_outputs(result, content)


def test_a_dense_network_is_not_encoded():
    content = converted(1.0)
    for requested in (True, "auto"):
        result, record = sparse.encode(content, requested, {"x": X})
        assert result == content
        assert (record.encoded, record.bytes_gzip, record.speedup) == (False, None, None)
        assert "no kernel is sparse enough" in record.reason


def test_nothing_is_encoded_without_a_request(scattered):
    result, record = sparse.encode(scattered, False, {"x": X})
    assert result == scattered
    assert (record.encoded, record.reason) == (False, "not requested")


@pytest.mark.parametrize("requested", [True, "auto"])
def test_int8_kernels_are_not_encoded_because_no_runtime_supports_it(requested):
    content = converted(0.1, mode="int8")
    result, record = sparse.encode(content, requested, {"x": X})
    assert result == content
    assert not record.encoded
    assert "doesn't run" in record.reason
    assert record.bytes_gzip[0] == gzipped(content)


def test_a_useless_encoding_needs_a_request(scattered, monkeypatch):
    """The sizes are faked: no network is known whose float file grows."""
    monkeypatch.setattr(sparse, "gzipped", lambda content: 10**9 - len(content))
    monkeypatch.setattr(sparse, "_MIN_SPEEDUP", 100.0)
    result, record = sparse.encode(scattered, "auto", {"x": X})
    assert result == scattered
    assert not record.encoded
    assert record.reason.startswith("neither smaller nor faster")
    result, record = sparse.encode(scattered, True, {"x": X})
    assert record.encoded
    assert record.reason.startswith("requested")
    assert encoded_tensors(result) == 1


def test_an_encoded_model_with_other_outputs_is_not_used(scattered, monkeypatch):
    """The encoder gets another network, in place of an encoder with a bug."""
    other = converted(0.11)
    real = sparse.conversion.encode_sparse
    monkeypatch.setattr(sparse.conversion, "encode_sparse", lambda content: real(other))
    result, record = sparse.encode(scattered, True, {"x": X})
    assert result == scattered
    assert "'y'" in record.reason and not record.encoded
