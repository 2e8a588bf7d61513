"""The TFLiteQuantizer on a Trainer's model and an ExampleGen's rows: what it reads, writes and tells ML Metadata."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tfx.types import standard_artifacts
from tfx_compression.errors import DataError, ModelError, WorkerError
from tfx_compression.tflite.interpreter import Interpreter
from tfx_compression.tflite_quantizer import self_test
from tfx_compression.tflite_quantizer.config import AutoPrecision, Calibration, Metadata, Quantization
from tfx_compression.tflite_quantizer.executor import Executor
from tfx_compression.tflite_quantizer.record import QuantizationRecord

from tests.support import helpers

pytestmark = pytest.mark.slow  # imports TFX, converts models

ROWS = 400


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A trained network that serves serialized tf.Examples of raw images."""
    images, labels = helpers.images(ROWS)
    network = helpers.small_cnn()
    network.compile("adam", "sparse_categorical_crossentropy")
    network.fit(images / helpers.LARGEST, labels, 32, epochs=3, verbose=0)
    folder = tmp_path_factory.mktemp("trainer")
    helpers.save_with_examples_signature(network, folder / "Format-Serving")
    artifact = standard_artifacts.Model()
    artifact.uri = str(folder)
    return artifact


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """Two files to calibrate on, sorted by label as a table often is, rows like them, and some twice as bright."""
    folder = tmp_path_factory.mktemp("examples")
    images, labels = helpers.images(ROWS)
    order = np.argsort(labels, kind="stable")
    for part, places in enumerate(np.array_split(order, 2)):
        helpers.write_examples(folder / f"Split-train/part-{part}.gz", {"image": images[places]}, labels[places])
    images, labels = helpers.images(ROWS, seed=1)
    helpers.write_examples(folder / "Split-eval/part.gz", {"image": images}, labels)
    helpers.write_examples(folder / "Split-bright/part.gz", {"image": 2 * images}, labels)
    artifact = standard_artifacts.Examples()
    artifact.uri = str(folder)
    artifact.split_names = '["train", "eval", "bright"]'
    return artifact


@pytest.fixture(scope="module")
def schema(tmp_path_factory):
    folder = tmp_path_factory.mktemp("schema")
    made = helpers.schema({"image": ("FLOAT", helpers.IMAGE), "label": ("INT", ())})
    Path(folder, "schema.pbtxt").write_text(str(made))
    artifact = standard_artifacts.Schema()
    artifact.uri = str(folder)
    return artifact


class Run:
    """One execution."""

    def __init__(self, folder: Path, config: Quantization, mode: str | None = None, **inputs: Any):
        self.output = standard_artifacts.Model()
        self.output.uri = str(folder / "TFLiteQuantizer/tflite_model/1")
        context = Executor.Context(beam_pipeline_args=[], tmp_dir=str(folder / "tmp"), unique_id="1")
        Executor(context).Do(
            {name: [artifact] for name, artifact in inputs.items()},
            {"tflite_model": [self.output]},
            {"config": config.to_json(), "mode": mode},
        )
        self.content = Path(self.output.uri, "Format-Serving/tflite").read_bytes()
        self.record = QuantizationRecord.model_validate_json(Path(self.output.uri, "quantization.json").read_text())

    def property(self, name: str) -> Any:
        return self.output.get_custom_property(name)

    def accuracy(self) -> float:
        images, labels = helpers.images(ROWS, seed=1)
        (answers,) = Interpreter(self.content).predict({"image": images}).values()
        return float(np.mean(answers.argmax(axis=1) == labels))


def test_int8_is_calibrated_on_rows_out_of_all_files_of_the_split(tmp_path, model, examples):
    calibration = Calibration(rows=60, stratify_by="label")
    run = Run(tmp_path, Quantization(calibration=calibration), model=model, examples=examples)
    assert run.accuracy() > 0.9
    assert run.record.calibration.rows == run.property("calibration_rows") == 60
    assert run.record.calibration.strata == {"0": 20, "1": 20, "2": 20}
    assert run.record.calibration.checked_rows == 60 and run.record.warnings == ()
    (seen,) = run.record.calibration.inputs
    assert 0 <= seen.minimum < seen.maximum <= helpers.LARGEST
    assert seen.outside < 0.01


def test_ml_metadata_knows_what_became_of_the_model(tmp_path, model, examples):
    run = Run(tmp_path, Quantization(), model=model, examples=examples)
    assert run.property("mode") == "int8" and run.property("target") == "cpu"
    assert run.property("runtime") == run.record.runtime
    assert run.property("parent_uri") == model.uri
    assert run.property("bytes") == run.record.bytes == len(run.content)
    assert run.property("bytes_gzip") == run.record.bytes_gzip < run.property("bytes")
    assert run.property("arena_bytes") == run.record.arena_bytes
    assert run.property("float_ops") == 0


def test_proof_lies_beside_the_model(tmp_path, model, examples):
    metadata = Metadata(name="thirds", labels={"probabilities": ("left", "middle", "right")})
    run = Run(tmp_path, Quantization(metadata=metadata), model=model, examples=examples)
    assert b"thirds" in run.content
    arrays = self_test.read(str(Path(run.output.uri, "self_test.npz")))
    assert self_test.check(run.content, arrays) == {"probabilities": 0.0}
    assert 0 < run.record.self_test["probabilities"] < 0.1
    assert "thirds" in Path(run.output.uri, "report.html").read_text()
    details = json.loads(Path(run.output.uri, "tflite.json").read_text())
    assert details["ops"] == run.record.ops and details["runtime"] == run.record.runtime
    assert {"probabilities", "relu"} <= {layer.layer.split("/")[-1] for layer in run.record.layers}


def test_rows_beyond_the_calibrated_range_are_a_warning_in_record_and_log(tmp_path, model, examples, caplog):
    calibration = Calibration(check_split="bright")
    with caplog.at_level(logging.WARNING):
        run = Run(tmp_path, Quantization(calibration=calibration), model=model, examples=examples)
    (warning,) = run.record.warnings
    assert "of the values of 'image' in split 'bright' lie outside the range" in warning and "Remedy" in warning
    assert warning in caplog.text
    images, _ = helpers.images(ROWS, seed=1)
    (seen,) = run.record.calibration.inputs
    assert seen.outside == pytest.approx(np.mean(2 * images > seen.range[1]), abs=0.03)


def test_a_split_to_compare_with_that_is_not_there_is_a_note(tmp_path, model, examples):
    calibration = Calibration(check_split="evaluation")
    run = Run(tmp_path, Quantization(calibration=calibration), model=model, examples=examples)
    assert run.record.calibration.checked_rows == 0
    assert any("no split 'evaluation'" in note for note in run.record.notes)


def test_the_same_rows_and_seed_make_the_same_file(tmp_path, model, examples):
    calibrations = [Calibration(rows=20, seed=seed) for seed in (7, 7, 8)]
    contents = [
        Run(tmp_path / str(index), Quantization(calibration=calibration), model=model, examples=examples).content
        for index, calibration in enumerate(calibrations)
    ]
    assert contents[0] == contents[1] != contents[2]


def test_auto_finds_the_label_in_the_schema(tmp_path, model, examples, schema):
    config = Quantization(mode="auto", auto=AutoPrecision(max_drop=0.02, rows=300))
    run = Run(tmp_path, config, model=model, examples=examples, schema=schema)
    assert run.record.auto.rows == 300
    assert run.record.auto.baseline - run.record.auto.value <= 0.02
    assert run.property("metric") == "accuracy"
    assert run.property("metric_drop") == pytest.approx(run.record.auto.baseline - run.record.auto.value)
    assert run.accuracy() > 0.9


def test_the_mode_that_people_turn_at_run_time_overrides_the_configuration(tmp_path, model):
    run = Run(tmp_path, Quantization(mode="int8"), "dynamic", model=model)
    assert run.property("mode") == run.record.config.mode == "dynamic"
    assert run.accuracy() > 0.9


def test_a_microcontroller_gets_its_c_source(tmp_path, model, examples):
    config = Quantization(target="microcontroller", batch_size=1, max_arena_bytes=100_000)
    run = Run(tmp_path, config, model=model, examples=examples)
    source = Path(run.output.uri, "model.cc").read_text()
    assert source.count("0x") >= len(run.content)
    assert "model_len" in Path(run.output.uri, "model.h").read_text()
    assert run.record.verdict.runs and run.record.verdict.arena_bytes < 100_000


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (Quantization(calibration=Calibration(split="training")), DataError, "no split 'training', only: train"),
        (Quantization(calibration=Calibration(stratify_by="color")), ModelError, "has no 'color'; it has: image"),
        (Quantization(target="microcontroller", max_arena_bytes=100), ModelError, "target 'microcontroller'.*100"),
        (Quantization(max_memory_bytes=10 * 2**20), WorkerError, "in mode 'int8' ran out of memory"),
    ],
)
def test_what_fails_leaves_nothing_behind(tmp_path, model, examples, config, error, message):
    with pytest.raises(error, match=message):
        Run(tmp_path, config, model=model, examples=examples)
    assert not [name for _, _, names in os.walk(tmp_path) for name in names]
