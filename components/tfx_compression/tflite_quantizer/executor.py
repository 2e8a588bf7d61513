"""Runs the TFLiteQuantizer: reads the Model and the rows, converts, writes the TFLite model and its proof."""

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
from tfx_compression.errors import ModelError
from tfx_compression.tflite import flatbuffer
from tfx_compression.tflite_quantizer import report, sampling, self_test
from tfx_compression.tflite_quantizer.config import Quantization
from tfx_compression.tflite_quantizer.devices import c_array
from tfx_compression.tflite_quantizer.devices.targets import TARGETS
from tfx_compression.tflite_quantizer.quantize import (
    Columns,
    Quantized,
    Rows,
    Signatures,
    columns_of,
    quantize_saved_model,
)
from tfx_compression.tfx_support import artifacts, inputs

_log = logging.getLogger(__name__)

RECORD_FILE = "quantization.json"


class Executor(base_beam_executor.BaseBeamExecutor):
    """See the component."""

    def Do(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Converts.

        Args:
          input_dict: `model`; `examples` for calibrated modes; `schema`, for the label of mode `auto`.
          output_dict: `tflite_model`.
          exec_properties: `config` (JSON), `mode` (overrides it).
        """
        model = artifacts.single(input_dict, "model")
        output = artifacts.single(output_dict, "tflite_model")
        config = Quantization.merged(exec_properties["config"], {"mode": exec_properties.get("mode")})
        read = None
        if input_dict.get("examples"):

            def read(signatures: Signatures) -> Rows:
                return self._rows(signatures, config, input_dict)

        quantized = quantize_saved_model(artifacts.model_path(model), config, read)
        page = report.render(quantized.record)
        folder = artifacts.model_path(output)
        tf.io.gfile.makedirs(folder)
        with tf.io.gfile.GFile(os.path.join(folder, flatbuffer.MODEL_FILE), "wb") as file:
            file.write(quantized.content)
        self._write_proof(output.uri, quantized, page)
        self._describe(output, model, quantized)
        for warning in quantized.record.warnings:
            _log.warning("TFLiteQuantizer: %s", warning)

    def _write_proof(self, folder: str, quantized: Quantized, page: str) -> None:
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
        files.write_text(os.path.join(folder, "tflite.json"), json.dumps(details, indent=1))
        if quantized.self_test:
            self_test.write(os.path.join(folder, self_test.FILE), quantized.self_test)
        if TARGETS[record.config.target].c_source:
            for name, text in c_array.write_sources(quantized.content).items():
                files.write_text(os.path.join(folder, name), text)

    def _describe(self, output: types.Artifact, model: types.Artifact, quantized: Quantized) -> None:
        record = quantized.record
        chosen = record.auto
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
            metric=chosen.metric if chosen else None,
            metric_drop=chosen.drop if chosen else None,
        )

    def _rows(self, signatures: Signatures, config: Quantization, input_dict: dict[str, list[types.Artifact]]) -> Rows:
        """Rows drawn from the examples, on Beam."""
        examples_input = artifacts.single(input_dict, "examples")
        calibration = config.calibration
        seed = calibration.seed

        def columns(sample: sampling.Sample, split: str) -> Columns:
            with _told(examples_input, split):
                return columns_of(signatures, sample.rows)

        drawn = self._sample(
            examples_input, calibration.split, calibration.rows, seed, stratify=calibration.stratify_by
        )
        calibrated = columns(drawn, calibration.split)
        checked: Columns = {}
        notes: tuple[str, ...] = ()
        if config.needs_data and calibration.check_split is not None:
            split = calibration.check_split
            try:
                checked = columns(self._sample(examples_input, split, calibration.rows, seed), split)
            except examples.DataError as error:  # no such split, or no rows in it
                notes = (f"Nothing was compared with the calibrated ranges: {error}",)
        trial: Columns = {}
        labels = None
        if config.searches:
            label = config.auto.label_key if config.needs_labels else None
            if config.needs_labels and label is None:
                features = [name for signature in signatures.values() for name in signature.example_features]
                label = examples.resolve_label(inputs.read_schema(input_dict), features, None)
            # By another seed: of the same split, the rows to calibrate on would all be among these.
            found = self._sample(examples_input, config.auto.split, config.auto.rows, seed + 1, label=label)
            trial, labels = columns(found, config.auto.split), found.labels
        return Rows(calibrated, checked, trial, labels, drawn.strata, notes)

    def _sample(
        self,
        examples_input: types.Artifact,
        split: str,
        rows: int,
        seed: int,
        *,
        label: str | None = None,
        stratify: str | None = None,
    ) -> sampling.Sample:
        found = inputs.example_files(examples_input, split)
        examples.require_rows(found, f"split {split!r} of {examples_input.uri}")
        with _told(examples_input, split):
            return sampling.sample(
                found,
                {},
                rows,
                seed,
                stratify_by=stratify,
                label=label,
                pipeline=self._make_beam_pipeline,
                temp=self._get_tmp_dir() or None,
            )


@contextlib.contextmanager
def _told(examples_input: types.Artifact, split: str) -> Iterator[None]:
    """Errors of examples say which they are."""
    try:
        yield
    except examples.DataError as error:
        raise ModelError(
            f"{error} (in split {split!r} of {examples_input.uri}). Remedy: give TFLiteQuantizer the examples that the "
            "model serves, example_gen.outputs['examples']."
        ) from error
