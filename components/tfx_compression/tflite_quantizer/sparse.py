"""Sparse kernels encoded as such: where that is asked for, or where it is of use."""

import statistics
import time
from collections.abc import Mapping
from typing import Literal

import numpy as np

from tfx_compression.compressed_size import gzipped
from tfx_compression.errors import ModelError
from tfx_compression.tflite import conversion, flatbuffer
from tfx_compression.tflite.interpreter import Interpreter
from tfx_compression.tflite_quantizer.record import SparseRecord

_FASTER = 1.05  # less is noise
_WARM_UP = 10
_ROUNDS = 200
_CALLS = 10  # timed together: one call of a small model is shorter than the clock is good for
_TOLERANCE = 1e-5  # of the largest output: float sums in another order


def encode(
    content: bytes, wanted: bool | Literal["auto"], columns: Mapping[str, np.ndarray]
) -> tuple[bytes, SparseRecord]:
    """A model with its sparse kernels encoded as such, if that is wanted, or of use.

    TensorFlow encodes kernels of which more than 30 % is zeros, in blocks where it finds them whole. What it makes
    is kept only where LiteRT runs it and computes the same; it refuses int8 kernels that are encoded so.

    Args:
      content: a flatbuffer.
      wanted: `auto`, only where the gzipped file gets smaller or the model at least 1.05 times as fast.
      columns: rows to run the models on: by input, [rows, …] real numbers.

    Returns:
      The flatbuffer to use, and why it is that one.
    """
    if not wanted:
        return content, SparseRecord(encoded=False, reason="not asked for")
    if flatbuffer.sub_byte_tensors(flatbuffer.parse(content)):
        reason = "there are weights of less than a byte, on which TensorFlow's encoder crashes"
        return content, SparseRecord(encoded=False, reason=reason)
    encoded = conversion.encode_sparse(content)
    if not _kernels(encoded):
        return content, SparseRecord(encoded=False, reason="no kernel is sparse enough for TensorFlow to encode it")
    sizes = (gzipped(content), gzipped(encoded))
    try:
        dense, sparse = Interpreter(content), Interpreter(encoded)
        different = _difference(dense.predict(columns), sparse.predict(columns))
    except ModelError as error:
        return content, SparseRecord(encoded=False, reason=f"the encoded model doesn't run: {error}", bytes_gzip=sizes)
    if different:
        return content, SparseRecord(encoded=False, reason=different, bytes_gzip=sizes)
    speedup = _speedup(dense, sparse, {name: values[:1] for name, values in columns.items()})
    smaller, faster = sizes[1] < sizes[0], speedup >= _FASTER
    found = f"gzipped {sizes[0]} bytes become {sizes[1]}, one row is {speedup:.2f} times as fast"
    if wanted == "auto" and not (smaller or faster):
        reason, used = f"neither smaller nor faster: {found}", content
    else:
        reason, used = f"{'of use' if wanted == 'auto' else 'asked for'}: {found}", encoded
    return used, SparseRecord(encoded=used is encoded, reason=reason, bytes_gzip=sizes, speedup=speedup)


def _kernels(content: bytes) -> int:
    """How many tensors are encoded sparse."""
    return sum(tensor.sparsity is not None for graph in flatbuffer.parse(content).subgraphs for tensor in graph.tensors)


def _difference(dense: Mapping[str, np.ndarray], sparse: Mapping[str, np.ndarray]) -> str:
    """In words, where outputs are not the same."""
    for name, expected in dense.items():
        apart = float(np.abs(sparse[name] - expected).max())
        if not apart <= _TOLERANCE * max(1.0, float(np.abs(expected).max())):
            return f"the encoded model computes something else: its output {name!r} is off by {apart:.3g}"
    return ""


def _speedup(dense: Interpreter, sparse: Interpreter, row: Mapping[str, np.ndarray]) -> float:
    """Dense by sparse latency: medians of runs in turn, so that what else the machine does hits both alike."""
    models = (dense.prepare(row), sparse.prepare(row))
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(_WARM_UP + _ROUNDS):
        for run, seconds in zip(models, times, strict=True):
            run()  # untimed: who comes after another finds the caches as that left them
            started = time.perf_counter()
            for _ in range(_CALLS):
                run()
            if turn >= _WARM_UP:
                seconds.append(time.perf_counter() - started)
    return statistics.median(times[0]) / statistics.median(times[1])
