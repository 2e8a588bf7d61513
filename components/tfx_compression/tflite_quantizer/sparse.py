"""Encoding of sparse kernels, on request or where it pays."""

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

_MIN_SPEEDUP = 1.05  # below it, the difference is noise
_WARM_UP = 10
_ROUNDS = 200
_CALLS = 10  # timed together, since a call of a small model is shorter than the clock's resolution
_TOLERANCE = 1e-5  # relative to the largest output: float sums differ in their order


def encode(
    content: bytes, requested: bool | Literal["auto"], columns: Mapping[str, np.ndarray]
) -> tuple[bytes, SparseRecord]:
    """Returns a model with its sparse kernels encoded as such, if requested or useful.

    TensorFlow encodes float kernels with more than 30 % zeros, in blocks where it finds whole ones. The encoded model
    is used only if LiteRT runs it and computes the same; LiteRT refuses encoded int8 kernels.

    Args:
      content: A flatbuffer.
      requested: `auto` encodes only if the gzipped file gets smaller or the model at least 1.05 times as fast.
      columns: [rows, …] real values by input, to run the models on.

    Returns:
      The flatbuffer to use, and the record of the decision.
    """
    if not requested:
        return content, SparseRecord(encoded=False, reason="not requested")
    if flatbuffer.sub_byte_tensors(flatbuffer.parse(content)):
        reason = "there are weights of less than a byte, on which TensorFlow's encoder crashes"
        return content, SparseRecord(encoded=False, reason=reason)
    encoded = conversion.encode_sparse(content)
    if not _has_sparse_tensors(encoded):
        return content, SparseRecord(encoded=False, reason="no kernel is sparse enough for TensorFlow to encode it")
    sizes = (gzipped(content), gzipped(encoded))
    try:
        dense, sparse = Interpreter(content), Interpreter(encoded)
        difference = _difference(dense.predict(columns), sparse.predict(columns))
    except ModelError as error:
        return content, SparseRecord(encoded=False, reason=f"the encoded model doesn't run: {error}", bytes_gzip=sizes)
    if difference:
        return content, SparseRecord(encoded=False, reason=difference, bytes_gzip=sizes)
    speedup = _speedup(dense, sparse, {name: values[:1] for name, values in columns.items()})
    useful = sizes[1] < sizes[0] or speedup >= _MIN_SPEEDUP
    figures = f"gzipped {sizes[0]} bytes become {sizes[1]}, and one row runs {speedup:.2f} times as fast"
    if requested == "auto" and not useful:
        reason, used = f"neither smaller nor faster: {figures}", content
    else:
        reason, used = f"{'useful' if requested == 'auto' else 'requested'}: {figures}", encoded
    return used, SparseRecord(encoded=used is encoded, reason=reason, bytes_gzip=sizes, speedup=speedup)


def _has_sparse_tensors(content: bytes) -> bool:
    return any(tensor.sparsity is not None for graph in flatbuffer.parse(content).subgraphs for tensor in graph.tensors)


def _difference(dense: Mapping[str, np.ndarray], sparse: Mapping[str, np.ndarray]) -> str:
    """Returns which output of the encoded model differs; empty if none does."""
    for name, expected in dense.items():
        difference = float(np.abs(sparse[name] - expected).max())
        if not difference <= _TOLERANCE * max(1.0, float(np.abs(expected).max())):
            return f"the encoded model computes something else: its output {name!r} is off by {difference:.3g}"
    return ""


def _speedup(dense: Interpreter, sparse: Interpreter, row: Mapping[str, np.ndarray]) -> float:
    """Returns dense latency divided by sparse latency.

    Both are medians of runs in turn, so that other load on the machine slows both alike.
    """
    models = (dense.prepare(row), sparse.prepare(row))
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(_WARM_UP + _ROUNDS):
        for run, seconds in zip(models, times, strict=True):
            run()  # untimed, since the other model's run left its own data in the caches
            started = time.perf_counter()
            for _ in range(_CALLS):
                run()
            if turn >= _WARM_UP:
                seconds.append(time.perf_counter() - started)
    return statistics.median(times[0]) / statistics.median(times[1])
