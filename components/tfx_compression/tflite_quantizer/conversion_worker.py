"""The whole of a conversion, in a process of its own: from a SavedModel of features to the file and its record."""

import importlib.metadata
import json
import os
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from ai_edge_litert.tools import flatbuffer_utils

from tfx_compression import compressed_size, worker
from tfx_compression.errors import ModelError
from tfx_compression.tflite import conversion, flatbuffer
from tfx_compression.tflite.contents import read_contents
from tfx_compression.tflite.interpreter import Interpreter
from tfx_compression.tflite.modes import MODES, ModeSpec
from tfx_compression.tflite.saved_model_graph import SavedModelGraph
from tfx_compression.tflite_quantizer import calibration, layer_errors, self_test, sparse, tflite_metadata
from tfx_compression.tflite_quantizer.config import Metadata, Quantization
from tfx_compression.tflite_quantizer.devices.judge import judge
from tfx_compression.tflite_quantizer.record import (
    AutoRecord,
    CalibrationRecord,
    EqualizedPair,
    InputRange,
    LayerError,
    QuantizationRecord,
    SignatureRecord,
    SparseRecord,
    TensorRecord,
)

SAVED_MODEL, MODEL, RECORD = "saved_model", "model.tflite", "record.json"
CALIBRATION, CHECK, TRIAL, LABELS = "calibration.npz", "check.npz", "trial.npz", "labels.npy"

Columns = Mapping[str, np.ndarray]

_ROWS = 4  # that are made where there are none
_FREE = 32  # what a free size is made
_NOISY_DB = 10.0
_ERROR_ROWS = 32  # that layers are compared on
_PACKAGES = ("tfx-compression", "tensorflow", "ai-edge-quantizer", "ai-edge-litert")
_AWARE = "The model is quantization-aware: it keeps the ranges that it was trained in, and is not calibrated."


def main(request: Mapping[str, Any]) -> None:
    """Converts the SavedModel in a folder and writes the file, its record and its self-test there.

    Args:
      request: `folder`, `config` (JSON), `strata` (rows by value of the feature that was stratified by).
    """
    folder = request["folder"]
    job = _Job(folder, Quantization(**json.loads(request["config"])), request["strata"])
    content = job.made()
    with open(os.path.join(folder, MODEL), "wb") as file:
        file.write(content)
    record = job.proof(content)
    with open(os.path.join(folder, RECORD), "w") as file:
        file.write(record.model_dump_json(indent=1))


class _Job:
    def __init__(self, folder: str, config: Quantization, strata: Mapping[str, int]):
        self.folder, self.config, self.strata = folder, config, dict(strata)
        self.saved_model = os.path.join(folder, SAVED_MODEL)
        self.rows, self.check, self.trial = (_read(folder, name) for name in (CALIBRATION, CHECK, TRIAL))
        labels = os.path.join(folder, LABELS)
        self.labels = np.load(labels, allow_pickle=False) if os.path.exists(labels) else None
        self.aware = SavedModelGraph(self.saved_model).is_quantization_aware(config.signatures)
        self.seconds: dict[str, float] = {}
        self.inputs: dict[str, InputRange] = {}
        self.sparse: SparseRecord | None = None
        self.auto: AutoRecord | None = None
        self.pairs: tuple[EqualizedPair, ...] = ()
        self.dense = b""  # the float model
        self.reference = b""  # the one that layers are compared with, where that is another: equalized

    def made(self) -> bytes:
        """The file's bytes, metadata included."""
        started = time.perf_counter()
        content = self._quantized()
        self._took("convert", started)
        started = time.perf_counter()
        if self.config.sparse is not False:
            content, self.sparse = sparse.encode(content, self.config.sparse, self.rows or self._made_up(content))
        content = _described(content, self.config.metadata, self.rows if self.config.needs_data else {})
        self._took("finish", started)
        return content

    def _quantized(self) -> bytes:
        config = self.config
        if self.aware and config.equalize is True:
            raise ModelError(
                "The model is quantization-aware: equalize=True would move the ranges that it was trained in. Remedy: "
                "equalize=False."
            )
        by_recipe = config.mode_spec.engine == "recipe"
        if not by_recipe and (self.aware or not (config.equalize is True or config.custom_ranges)):
            content = conversion.to_tflite(self.saved_model, self._options(config.mode), self.rows)
            if not config.mode_spec.quantized:
                self.dense = content
            return content
        if self.aware:
            raise ModelError(
                f"The model is quantization-aware, and mode {config.mode!r} would lose the ranges that it was trained "
                "in. Remedy: mode 'int8', or 'dynamic' for floats in and out."
            )
        content = self.dense = self._float()
        if config.searches:
            from tfx_compression.tflite_quantizer import auto

            found = auto.search(content, config, self.rows, self.trial, self.labels, worker.step)
            self.auto, self.reference, self.pairs = found.record, found.reference, found.pairs
            self.inputs = dict(found.inputs)
            return found.content
        if config.equalize is True:
            content = self.reference = self._equalized(content)
        ranges = None
        if config.needs_data:
            worker.step("calibrating")
            ranges = calibration.observe(content, self.rows, config.calibration)
            self.inputs = ranges.inputs
        if not by_recipe:
            return conversion.quantize_with_ranges(
                content, self._options(config.mode), ranges.tensors if ranges else {}
            )
        from tfx_compression.tflite_quantizer import recipes

        worker.step("quantizing layer by layer")
        if config.mode_spec.layers == "rules":
            choices = recipes.resolve(content, config.rules, config.per_channel)
        else:
            choices = recipes.uniform(content, config.mode_spec.precision or "", config.block_size, config.per_channel)
        return recipes.quantize_layers(
            content,
            choices,
            None if ranges is None else ranges.tensors,
            io=config.io if config.needs_data else "float32",
            per_channel=config.per_channel,
        )

    def _equalized(self, content: bytes) -> bytes:
        from tfx_compression.tflite_quantizer import equalization

        worker.step("equalizing layers")
        content, self.pairs = equalization.equalize(content)
        return content

    def _options(self, mode: Any) -> conversion.ConversionOptions:
        return conversion.ConversionOptions(
            mode=mode,
            io=self.config.io if self.config.io in MODES[mode].io else "float32",
            per_channel=self.config.per_channel,
            select_tf_ops=self.config.select_tf_ops,
            signatures=self.config.signatures,
        )

    def _float(self) -> bytes:
        return conversion.to_tflite(self.saved_model, self._options("float32"))

    def proof(self, content: bytes) -> QuantizationRecord:
        """What is in the file, as it runs."""
        started = time.perf_counter()
        worker.step("running the TFLite model for the first time")
        Interpreter(content).predict(
            {name: values[:1] for name, values in (self.rows or self._made_up(content)).items()}
        )
        if len(self.config.signatures) > 1:
            for name in self.config.signatures:
                worker.step(f"running the signature {name!r} for the first time")
                self_test.run_signature(content, name)
        config = self.config
        verdict = judge(content, config.target, config.max_arena_bytes)
        if not verdict.runs:
            raise ModelError(f"The model doesn't run on target {config.target!r}: {' '.join(verdict.problems)}")
        calibrated = self._calibrated(content)
        notes, warnings = self._said(calibrated)
        layers, differences = self._compared(content, notes)
        contents = read_contents(content)
        warnings += _of_floats(config.mode_spec, contents.float_ops) + _of_noise(layers)
        self._took("prove", started)
        return QuantizationRecord(
            config=config,
            versions={name: _version(name) for name in _PACKAGES},
            seconds=self.seconds,
            signatures=_signatures(content),
            ops=contents.ops,
            float_ops=contents.float_ops,
            select_tf_ops=conversion.flex_operators(content),
            bytes=len(content),
            bytes_gzip=compressed_size.gzipped(content),
            bytes_zstd=compressed_size.zstd(content),
            arena_bytes=contents.arena_bytes,
            parameters=sum(weight.size for weight in contents.weights.values()),
            sparsity=contents.sparsity,
            runtime=verdict.runtime,
            calibration=calibrated,
            layers=layers,
            sparse=self.sparse,
            equalization=self.pairs,
            auto=self.auto,
            verdict=verdict,
            notes=tuple(notes),
            warnings=tuple(warnings),
            self_test=differences,
        )

    def _said(self, calibrated: CalibrationRecord | None) -> tuple[list[str], list[str]]:
        notes = [_AWARE] if self.aware and self.config.mode_spec.quantized else []
        inputs = calibrated.inputs if calibrated else ()
        checked = {item.input: item.outside for item in inputs if item.outside is not None}
        limit = self.config.calibration.max_outside
        warnings = [
            f"{share:.1%} of the values of {name!r} in split {self.config.calibration.check_split!r} lie outside the "
            f"range that calibration saw, more than {limit:.1%}: they saturate. Remedy: more calibration.rows, or rows "
            "of a split that is like them."
            for name, share in checked.items()
            if share > limit
        ]
        if self.auto is not None and self.auto.drop > self.config.auto.max_drop:
            warnings.append(
                f"Nothing that was tried drops {self.auto.metric} by {self.config.auto.max_drop:g} or less; this drops "
                f"it by {self.auto.drop:g}. Remedy: equalize='auto', or a larger auto.max_drop."
            )
        return notes, warnings

    def _calibrated(self, content: bytes) -> CalibrationRecord | None:
        if self.aware or not self.config.needs_data:
            return None
        seen = self.inputs or {name: _range(name, values) for name, values in self.rows.items() if _float(values)}
        seen = {name: seen[name] for name in seen.keys() & _quantized_inputs(content)}
        outside = calibration.outside(calibration.Ranges({}, seen), self.check) if self.check else {}
        return CalibrationRecord(
            rows=_length(self.rows),
            method=self.config.calibration.ranges,
            inputs=tuple(seen[name].model_copy(update={"outside": outside.get(name)}) for name in sorted(seen)),
            checked_rows=_length(self.check),
            strata=self.strata,
        )

    def _compared(self, content: bytes, notes: list[str]) -> tuple[tuple, dict[str, float | None]]:
        """Each layer's error, and the self-test's difference from the float model, on calibration rows or made ones."""
        strings = [name for name, tensor in Interpreter(content).inputs.items() if tensor.dtype.kind in "OSU"]
        if strings or len(self.config.signatures) > 1:
            why = f"it takes the strings {', '.join(strings)}" if strings else "it has several signatures"
            notes.append(f"There is no self-test, nor errors by layer: {why}.")
            return (), {}
        self.dense = self.dense or self._float()
        worker.step("comparing with the float model")
        rows = self.rows or self.trial
        if not rows:
            notes.append(
                "Errors by layer and the self-test are of made rows, drawn evenly from 0 to 1: no data was read."
            )
        arrays = self_test.make(content, rows or None, float_content=self.dense)
        self_test.write(os.path.join(self.folder, self_test.FILE), arrays)
        differences = self_test.against_float(content, arrays)
        if not self.config.mode_spec.quantized:
            return (), differences
        columns = {name: values[:_ERROR_ROWS] for name, values in (rows or _real(content, arrays)).items()}
        return layer_errors.compare(self.reference or self.dense, content, columns), differences

    def _made_up(self, content: bytes) -> dict[str, np.ndarray]:
        """A few rows, evenly from 0 to 1; whole numbers are 0, strings empty."""
        generator = np.random.default_rng(0)
        rows = {}
        for name, tensor in Interpreter(content).inputs.items():
            shape = _sizes(tensor.shape)
            if tensor.dtype.kind in "OSU":
                rows[name] = np.full(shape, b"", object)
            else:
                whole = tensor.dtype.kind in "iub" and not tensor.scale
                rows[name] = np.zeros(shape, np.float32) if whole else generator.uniform(size=shape).astype(np.float32)
        return rows

    def _took(self, step: str, started: float) -> None:
        self.seconds[step] = time.perf_counter() - started


def _real(content: bytes, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The self-test's rows as real numbers."""
    from tfx_compression.tflite.interpreter import dequantize

    return {name: dequantize(arrays[f"input/{name}"], tensor) for name, tensor in Interpreter(content).inputs.items()}


def _sizes(shape: tuple[int, ...]) -> list[int]:
    return [_ROWS, *(size if size > 0 else _FREE for size in shape[1:])] if shape else []


def _described(content: bytes, metadata: Metadata, rows: Columns) -> bytes:
    if metadata == Metadata():
        return content
    worker.step("writing metadata")
    return tflite_metadata.write(
        content,
        name=metadata.name,
        description=metadata.description,
        version=metadata.version,
        author=metadata.author,
        license=metadata.license,
        labels=metadata.labels,
        normalization={name: (item.mean, item.std) for name, item in metadata.normalization.items()},
        ranges={name: (float(values.min()), float(values.max())) for name, values in rows.items() if _float(values)},
    )


def _signatures(content: bytes) -> tuple[SignatureRecord, ...]:
    model = flatbuffer.parse(content)

    def tensors(graph: Any, maps: Any) -> tuple[TensorRecord, ...]:
        return tuple(
            _tensor(item.name.decode(), graph.tensors[item.tensorIndex])
            for item in sorted(maps or (), key=lambda item: item.name)
        )

    return tuple(
        SignatureRecord(
            name=signature.signatureKey.decode(),
            inputs=tensors(model.subgraphs[signature.subgraphIndex], signature.inputs),
            outputs=tensors(model.subgraphs[signature.subgraphIndex], signature.outputs),
        )
        for signature in model.signatureDefs or ()
    )


def _tensor(name: str, tensor: Any) -> TensorRecord:
    quantization = tensor.quantization
    scaled = quantization is not None and quantization.scale is not None and len(quantization.scale) == 1
    shape = tensor.shapeSignature if tensor.shapeSignature is not None else tensor.shape
    return TensorRecord(
        name=name,
        dtype=flatbuffer_utils.type_to_name(tensor.type).lower(),
        shape=tuple(int(size) for size in (shape if shape is not None else ())),
        scale=float(quantization.scale[0]) if scaled else 0.0,
        zero_point=int(quantization.zeroPoint[0]) if scaled and quantization.zeroPoint is not None else 0,
    )


def _read(folder: str, name: str) -> dict[str, np.ndarray]:
    path = os.path.join(folder, name)
    if not os.path.exists(path):
        return {}
    with np.load(path, allow_pickle=False) as stored:
        return {key.removeprefix("feature/"): stored[key] for key in stored.files}


def _of_floats(mode: ModeSpec, float_ops: Mapping[str, int]) -> list[str]:
    """What computes in floats though the mode is of whole numbers."""
    left = {op: count for op, count in float_ops.items() if op not in ("QUANTIZE", "DEQUANTIZE")}
    if not mode.calibrated_by_converter or not left:
        return []
    return [
        f"{', '.join(f'{count} {op}' for op, count in left.items())} compute in floats, as there is no such kernel, or "
        "the model is quantization-aware in part only: what has no range from training stays as it is."
    ]


def _of_noise(layers: Iterable[LayerError]) -> list[str]:
    """Layers that compute something else than in the float model."""
    bad = sorted(
        (layer.snr_db, layer.layer) for layer in layers if layer.snr_db is not None and layer.snr_db < _NOISY_DB
    )
    if not bad:
        return []
    worst, name = bad[0]
    return [
        f"{len(bad)} of {len(tuple(layers))} layers return more noise than {_NOISY_DB:.0f} dB below the signal allows, "
        f"{name!r} most ({worst:.1f} dB). Remedy: a higher precision for it (mode 'mixed', or 'auto'), equalize=True, "
        "or other calibration.ranges."
    ]


def _quantized_inputs(content: bytes) -> set[str]:
    """The inputs of which whole numbers are made, by the application or by the model's first operators."""
    model = flatbuffer.parse(content)
    rounded = {
        place for operator in flatbuffer.operators(model) if operator.op == "QUANTIZE" for place in operator.inputs
    }
    inputs = Interpreter(content).inputs
    return {name for name, tensor in inputs.items() if tensor.scale or tensor.index in rounded}


def _float(values: np.ndarray) -> bool:
    return values.dtype.kind == "f"


def _range(name: str, values: np.ndarray) -> InputRange:
    low, high = float(values.min()), float(values.max())
    return InputRange(input=name, minimum=low, maximum=high, range=(min(low, 0.0), max(high, 0.0)))


def _length(columns: Columns) -> int:
    return len(next(iter(columns.values()))) if columns else 0


def _version(package: str) -> str:
    if package == "tfx-compression":
        from tfx_compression.version import __version__

        return __version__
    return importlib.metadata.version(package)
