"""Conversions for tests of the quantizer: without a process of their own, which takes seconds to start."""

import contextlib
import importlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tfx_compression import worker
from tfx_compression.tflite import flatbuffer
from tfx_compression.tflite.interpreter import Interpreter
from tfx_compression.tflite_quantizer import sources
from tfx_compression.tflite_quantizer.config import Quantization
from tfx_compression.tflite_quantizer.quantize import quantize_saved_model
from tfx_compression.tflite_quantizer.quantized_model import QuantizedModel
from tfx_compression.tflite_quantizer.rows import first_rows

from tests.support import helpers

CALIBRATION_ROWS = 40


@contextlib.contextmanager
def in_this_process() -> Iterator[None]:
    """Runs workers in this process. Whatever could crash it must keep its own."""

    def run(module: str, request: Mapping[str, Any], **_: Any) -> Any:
        return importlib.import_module(module).main(json.loads(json.dumps(request)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "run", run)
        yield


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Returns normally distributed float32 numbers."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def quantized(
    path: str, rows: dict[str, np.ndarray] | None = None, labels: np.ndarray | None = None, **fields: Any
) -> QuantizedModel:
    """Converts a SavedModel in this process. The first 40 rows calibrate, and mode `auto` tries on the others."""
    config = Quantization(**{"calibration": {"rows": CALIBRATION_ROWS}, **fields})
    with in_this_process():
        if rows is None:
            return quantize_saved_model(path, config)
        count = len(next(iter(rows.values())))
        data = helpers.batches(rows, np.zeros(count) if labels is None else labels)
        return quantize_saved_model(path, config, first_rows(data, config))


def saved_wide_net(folder: Any, sparsity: float = 0.9, block: int = 1) -> str:
    """Saves a net from 64 numbers, `x`, to 32 and 8, most of whose weights are zero, in blocks; returns its path."""
    x = tf_keras.Input((64,), name="x")
    y = tf_keras.layers.Dense(8, name="y")(tf_keras.layers.Dense(32, activation="relu", name="hidden")(x))
    model = tf_keras.Model(x, y)
    generator = np.random.default_rng(0)
    for layer in model.layers[1:]:
        inputs, outputs = layer.kernel.shape
        kept = np.repeat(generator.random((inputs // block, outputs)) > sparsity, block, axis=0)
        layer.kernel.assign(layer.kernel * kept)
    return sources.as_saved_model(model, str(folder / "wide"))


def converted_function(function: Any, specs: Any, path: Any, **tracked: Any) -> bytes:
    """Returns a function as a float TFLite model; `path` is where its SavedModel goes."""
    helpers.save_function(function, specs, path, **tracked)
    return bytes(tf.lite.TFLiteConverter.from_saved_model(str(path)).convert())


def predictions(content: bytes, columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns the only output of a TFLite model."""
    (values,) = Interpreter(content).predict(columns).values()
    return values


def dense_layers(content: bytes) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields kernel [outputs, inputs] and bias of each layer of a float model; a missing bias is zero."""
    model = flatbuffer.parse(content)
    graph = model.subgraphs[0]

    def values(place: int) -> np.ndarray:
        tensor = graph.tensors[place]
        return np.frombuffer(bytes(model.buffers[tensor.buffer].data), np.float32).reshape(tensor.shape)

    for operator in flatbuffer.operators(model):
        _, kernel, *bias = (place for place in operator.inputs if place >= 0)
        yield values(kernel), values(bias[0]) if bias else np.float32(0)


def squared_rounding_error(values: np.ndarray, low: float, high: float) -> float:
    """Returns the error of rounding [rows, …] values to int8 and back, with a range.

    It is the squared error divided by the sum of squares, averaged over rows.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / 255
    zero_point = np.clip(np.rint(-128 - low / scale), -128, 127)
    rows = values.reshape(len(values), -1).astype(np.float64)
    stored = np.clip(np.rint(rows / scale) + zero_point, -128, 127)
    squares = (rows**2).sum(axis=1)
    errors = (((stored - zero_point) * scale - rows) ** 2).sum(axis=1)
    return float(np.mean(np.divide(errors, squares, out=np.zeros_like(errors), where=squares > 0)))
