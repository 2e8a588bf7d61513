"""Runs the TFLiteQuantizer: reads the model and rows, converts, and writes the TFLite model with its record."""

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
from tfx import types
from tfx.dsl.components.base import base_beam_executor

from tfx_compression import files
from tfx_compression.data import examples
from tfx_compression.errors import DataError
from tfx_compression.tflite import flatbuffer
from tfx_compression.tflite_quantizer import report, sampling, self_test
from tfx_compression.tflite_quantizer.config import Quantization
from tfx_compression.tflite_quantizer.devices import c_array
from tfx_compression.tflite_quantizer.devices.targets import TARGETS
from tfx_compression.tflite_quantizer.quantize import quantize_saved_model
from tfx_compression.tflite_quantizer.quantized_model import QuantizedModel
from tfx_compression.tflite_quantizer.rows import Columns, Rows, Signatures, read_examples
from tfx_compression.tfx_support import artifacts, inputs

_log = logging.getLogger(__name__)

RECORD_FILE = "quantization.json"
DETAILS_FILE = "tflite.json"


class Executor(base_beam_executor.BaseBeamExecutor):
    """Executor of TFLiteQuantizer."""

    def Do(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Converts the model.

        Args:
          input_dict: `model`; `examples`, for calibrated modes; `schema`, for the label in mode `auto`.
          output_dict: `tflite_model`.
          exec_properties: `config` (JSON); `mode`, which overrides the configuration's.
        """
        model = artifacts.single(input_dict, "model")
        output = artifacts.single(output_dict, "tflite_model")
        config = Quantization.merged(exec_properties["config"], {"mode": exec_properties.get("mode")})
        read = None
        if input_dict.get("examples"):

            def read(signatures: Signatures) -> Rows:
                return self._read_rows(signatures, config, input_dict)

        quantized = quantize_saved_model(artifacts.model_path(model), config, read)
        page = report.render(quantized.record)
        folder = artifacts.model_path(output)
        tf.io.gfile.makedirs(folder)
        with tf.io.gfile.GFile(os.path.join(folder, flatbuffer.MODEL_FILE), "wb") as file:
            file.write(quantized.content)
        _write_record(output.uri, quantized, page)
        _describe(output, model, quantized)
        for warning in quantized.record.warnings:
            _log.warning("TFLiteQuantizer: %s", warning)

    def _read_rows(
        self, signatures: Signatures, config: Quantization, input_dict: dict[str, list[types.Artifact]]
    ) -> Rows:
        """Returns rows that are drawn from the examples on Beam."""
        source = artifacts.single(input_dict, "examples")
        calibration = config.calibration
        seed = calibration.seed
        drawn = self._draw(source, calibration.split, calibration.rows, seed, stratify_by=calibration.stratify_by)
        calibrated = _columns(signatures, drawn, source, calibration.split)
        checked: Columns = {}
        notes: tuple[str, ...] = ()
        if config.needs_data and calibration.check_split is not None:
            split = calibration.check_split
            try:
                checked = _columns(signatures, self._draw(source, split, calibration.rows, seed), source, split)
            except DataError as error:  # The split may be absent or empty.
                notes = (f"Nothing was compared with the calibrated ranges: {error}",)
        trial: Columns = {}
        labels = None
        if config.searches:
            label = config.auto.label_key if config.needs_labels else None
            if config.needs_labels and label is None:
                features = [name for signature in signatures.values() for name in signature.example_features]
                label = examples.resolve_label(inputs.read_schema(input_dict), features, None)
            # With the same seed and split, the rows to calibrate on would all be among these.
            tried = self._draw(source, config.auto.split, config.auto.rows, seed + 1, label=label)
            trial, labels = _columns(signatures, tried, source, config.auto.split), tried.labels
        return Rows(calibrated, checked, trial, labels, drawn.strata, notes)

    def _draw(
        self,
        source: types.Artifact,
        split: str,
        rows: int,
        seed: int,
        *,
        label: str | None = None,
        stratify_by: str | None = None,
    ) -> sampling.Sample:
        paths = inputs.example_files(source, split)
        examples.require_rows(paths, f"split {split!r} of {source.uri}")
        with _named_source(source, split):
            return sampling.sample(
                paths,
                {},
                rows,
                seed,
                stratify_by=stratify_by,
                label=label,
                pipeline=self._make_beam_pipeline,
                temp=self._get_tmp_dir() or None,
            )


def _columns(signatures: Signatures, sample: sampling.Sample, source: types.Artifact, split: str) -> Columns:
    with _named_source(source, split):
        return read_examples(signatures, sample.rows)


@contextlib.contextmanager
def _named_source(source: types.Artifact, split: str) -> Iterator[None]:
    """Adds the examples' place to errors."""
    try:
        yield
    except DataError as error:
        raise DataError(
            f"{error} (in split {split!r} of {source.uri}). Remedy: give TFLiteQuantizer the examples that the model "
            "serves, example_gen.outputs['examples'].",
            field=error.field,
            code=error.code,
        ) from error


def _write_record(folder: str, quantized: QuantizedModel, page: str) -> None:
    """Writes the files beside the model."""
    record = quantized.record
    files.write_text(os.path.join(folder, RECORD_FILE), record.model_dump_json(indent=1))
    files.write_text(os.path.join(folder, artifacts.REPORT_FILE), page)
    details = {
        "inputs": [tensor.describe() for tensor in quantized.inputs.values()],
        "outputs": [tensor.describe() for tensor in quantized.outputs.values()],
        "ops": record.ops,
        "float_ops": record.float_ops,
        "calibration_rows": quantized.calibration_rows,
        "runtime": record.runtime,
        "target": record.config.target,
        "tensorflow": record.versions["tensorflow"],
    }
    files.write_text(os.path.join(folder, DETAILS_FILE), json.dumps(details, indent=1))
    if quantized.self_test:
        self_test.write(os.path.join(folder, self_test.FILE), quantized.self_test)
    if TARGETS[record.config.target].c_source:
        for name, text in c_array.write_sources(quantized.content).items():
            files.write_text(os.path.join(folder, name), text)


def _describe(output: types.Artifact, model: types.Artifact, quantized: QuantizedModel) -> None:
    """Sets the custom properties of the output."""
    record = quantized.record
    artifacts.describe_model(
        output,
        model,
        mode=record.config.mode,
        target=record.config.target,
        runtime=record.runtime,
        bytes_zstd=record.bytes_zstd,
        arena_bytes=record.arena_bytes,
        sparsity=record.sparsity,
        parameters=record.parameters,
        calibration_rows=quantized.calibration_rows,
        float_ops=sum(record.float_ops.values()),
        select_tf_ops=", ".join(record.select_tf_ops) or None,
        metric=record.auto.metric if record.auto else None,
        metric_drop=record.auto.drop if record.auto else None,
    )
