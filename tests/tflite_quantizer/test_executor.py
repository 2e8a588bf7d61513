"""TFLiteQuantizer on a Trainer's model and an ExampleGen's rows: inputs, files, and properties in ML Metadata."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tfx.types import standard_artifacts
from tfx_compression.errors import DataError, ModelError, WorkerError
from tfx_compression.tflite_quantizer import self_test
from tfx_compression.tflite_quantizer.config import AutoPrecision, Calibration, Metadata, Quantization
from tfx_compression.tflite_quantizer.executor import Executor
from tfx_compression.tflite_quantizer.record import QuantizationRecord

from tests.support import artifacts, helpers
from tests.support.conversions import in_this_process, predictions
from tests.support.errors import raises

pytestmark = pytest.mark.slow  # imports TFX, converts models

ROWS = 400


@pytest.fixture(scope="module")
def model(saved_cnn):
    """A trained network that serves serialized tf.Examples of raw images."""
    return artifacts.artifact(standard_artifacts.Model, Path(saved_cnn).parent)


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """Split train, sorted by label in two files as tables often are; eval, similar; bright, twice as bright."""
    folder = tmp_path_factory.mktemp("examples")
    images, labels = helpers.images(ROWS)
    order = np.argsort(labels, kind="stable")
    for part, places in enumerate(np.array_split(order, 2)):
        helpers.write_examples(folder / f"Split-train/part-{part}.gz", {"image": images[places]}, labels[places])
    images, labels = helpers.images(ROWS, seed=1)
    helpers.write_examples(folder / "Split-eval/part.gz", {"image": images}, labels)
    helpers.write_examples(folder / "Split-bright/part.gz", {"image": 2 * images}, labels)
    artifact = artifacts.artifact(standard_artifacts.Examples, folder)
    artifact.split_names = '["train", "eval", "bright"]'
    return artifact


class Run:
    """One execution. The conversion runs in this process unless `worker` is true."""

    def __init__(
        self, folder: Path, config: Quantization, mode: str | None = None, worker: bool = False, **inputs: Any
    ):
        self.output = artifacts.artifact(standard_artifacts.Model, folder / "TFLiteQuantizer/tflite_model/1")
        context = Executor.Context(beam_pipeline_args=[], tmp_dir=str(folder / "tmp"), unique_id="1")
        arguments = (Executor(context), inputs, {"tflite_model": self.output})
        if worker:
            artifacts.run_executor(*arguments, config=config.to_json(), mode=mode)
        else:
            with in_this_process():
                artifacts.run_executor(*arguments, config=config.to_json(), mode=mode)
        self.content = Path(self.output.uri, "Format-Serving/tflite").read_bytes()
        self.record = QuantizationRecord.model_validate_json(Path(self.output.uri, "quantization.json").read_text())

    def property(self, name: str) -> Any:
        return self.output.get_custom_property(name)

    def accuracy(self) -> float:
        images, labels = helpers.images(ROWS, seed=1)
        return float(np.mean(predictions(self.content, {"image": images}).argmax(axis=1) == labels))


@pytest.fixture(scope="module")
def int8(tmp_path_factory, model, examples):
    """An int8 conversion, calibrated on stratified rows, in a worker process."""
    config = Quantization(
        calibration=Calibration(rows=60, stratify_by="label"),
        metadata=Metadata(name="thirds", labels={"probabilities": ("left", "middle", "right")}),
    )
    return Run(tmp_path_factory.mktemp("int8"), config, worker=True, model=model, examples=examples)


def test_int8_is_calibrated_on_rows_from_all_files_of_the_split(int8):
    assert int8.accuracy() > 0.9
    assert int8.record.calibration.rows == int8.property("calibration_rows") == 60
    assert int8.record.calibration.strata == {"0": 20, "1": 20, "2": 20}
    assert int8.record.calibration.checked_rows == 60 and int8.record.warnings == ()
    (seen,) = int8.record.calibration.inputs
    assert 0 <= seen.minimum < seen.maximum <= helpers.LARGEST
    assert seen.outside < 0.01


def test_ml_metadata_has_the_models_properties(int8, model):
    assert int8.property("mode") == "int8" and int8.property("target") == "cpu"
    assert int8.property("runtime") == int8.record.runtime
    assert int8.property("parent_uri") == model.uri
    assert int8.property("bytes") == int8.record.bytes == len(int8.content)
    assert int8.property("bytes_gzip") == int8.record.bytes_gzip < int8.property("bytes")
    assert int8.property("arena_bytes") == int8.record.arena_bytes
    assert int8.property("float_ops") == 0


def test_record_report_and_self_test_are_beside_the_model(int8):
    assert b"thirds" in int8.content
    arrays = self_test.read(str(Path(int8.output.uri, "self_test.npz")))
    assert self_test.check(int8.content, arrays) == {"probabilities": 0.0}
    assert 0 < int8.record.self_test["probabilities"] < 0.1
    assert "thirds" in Path(int8.output.uri, "report.html").read_text()
    details = json.loads(Path(int8.output.uri, "tflite.json").read_text())
    assert details["ops"] == int8.record.ops and details["runtime"] == int8.record.runtime
    assert {"probabilities", "relu"} <= {layer.layer.split("/")[-1] for layer in int8.record.layers}


def test_rows_outside_the_calibrated_range_are_a_warning(tmp_path, model, examples, caplog):
    calibration = Calibration(check_split="bright")
    with caplog.at_level(logging.WARNING):
        run = Run(tmp_path, Quantization(calibration=calibration), model=model, examples=examples)
    (warning,) = run.record.warnings
    assert "'image'" in warning and "'bright'" in warning
    assert warning in caplog.text
    images, _ = helpers.images(ROWS, seed=1)
    (seen,) = run.record.calibration.inputs
    assert seen.outside == pytest.approx(np.mean(2 * images > seen.range[1]), abs=0.03)


def test_an_absent_split_to_check_is_a_note(tmp_path, model, examples):
    calibration = Calibration(check_split="evaluation")
    run = Run(tmp_path, Quantization(calibration=calibration), model=model, examples=examples)
    assert run.record.calibration.checked_rows == 0
    assert any("'evaluation'" in note for note in run.record.notes)


def test_the_seed_decides_on_the_file(tmp_path, model, examples):
    calibrations = [Calibration(rows=20, seed=seed, check_split=None) for seed in (7, 7, 8)]
    contents = [
        Run(tmp_path / str(index), Quantization(calibration=calibration), model=model, examples=examples).content
        for index, calibration in enumerate(calibrations)
    ]
    assert contents[0] == contents[1] != contents[2]


def test_a_search_finds_the_label_in_the_schema(tmp_path, model, examples):
    schema = artifacts.schema_artifact(tmp_path / "schema", {"image": ("FLOAT", helpers.IMAGE), "label": ("INT", ())})
    auto = AutoPrecision(max_drop=0.02, rows=300, precisions=("int8", "int8_weight_only", "float32"))
    run = Run(tmp_path, Quantization(mode="auto", auto=auto), model=model, examples=examples, schema=schema)
    assert run.record.auto.rows == 300
    assert run.record.auto.baseline - run.record.auto.value <= 0.02
    assert run.property("metric") == "accuracy"
    assert run.property("metric_drop") == pytest.approx(run.record.auto.baseline - run.record.auto.value)
    assert run.accuracy() > 0.9


def test_the_mode_parameter_overrides_the_configuration(tmp_path, model):
    run = Run(tmp_path, Quantization(mode="int8"), "dynamic", model=model)
    assert run.property("mode") == run.record.config.mode == "dynamic"
    assert run.accuracy() > 0.9


def test_a_microcontroller_gets_c_source(tmp_path, model, examples):
    config = Quantization(target="microcontroller", batch_size=1, max_arena_bytes=100_000)
    run = Run(tmp_path, config, model=model, examples=examples)
    source = Path(run.output.uri, "model.cc").read_text()
    assert source.count("0x") >= len(run.content)
    assert "model_len" in Path(run.output.uri, "model.h").read_text()
    assert run.record.verdict.runs and run.record.verdict.arena_bytes < 100_000


@pytest.mark.parametrize(
    ("config", "error", "code", "match"),
    [
        (Quantization(calibration=Calibration(split="training")), DataError, "unknown-split", "'training'.*train"),
        (Quantization(calibration=Calibration(stratify_by="color")), DataError, "missing-feature", "'color'.*image"),
        (
            Quantization(target="microcontroller", max_arena_bytes=100),
            ModelError,
            "unsupported-by-target",
            "'microcontroller'.*100",
        ),
    ],
)
def test_a_failed_execution_leaves_no_files(tmp_path, model, examples, config, error, code, match):
    with raises(error, code=code, match=match):
        Run(tmp_path, config, model=model, examples=examples)
    assert not [name for _, _, names in os.walk(tmp_path) for name in names]


def test_a_worker_that_needs_too_much_memory_leaves_no_files(tmp_path, model):
    with raises(WorkerError, code="out-of-memory", match="'dynamic'"):
        Run(tmp_path, Quantization(mode="dynamic", max_memory_bytes=10 * 2**20), worker=True, model=model)
    assert not [name for _, _, names in os.walk(tmp_path) for name in names]
