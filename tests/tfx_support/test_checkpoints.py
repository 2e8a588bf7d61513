"""Fingerprints and folders of checkpoints: the same for another attempt, others for another computation."""

from pathlib import Path
from typing import Any

import pytest
from tfx.types import standard_artifacts
from tfx_compression.tfx_support import checkpoints

from tests.support.artifacts import artifact

pytestmark = pytest.mark.slow  # imports TFX


@pytest.fixture
def inputs(tmp_path) -> dict[str, Any]:
    for attempt in ("1", "2"):
        (tmp_path / "model" / attempt / "Format-Serving").mkdir(parents=True)
        (tmp_path / "model" / attempt / "Format-Serving" / "saved_model.pb").write_bytes(b"model")
    examples = artifact(standard_artifacts.Examples, "/examples")
    examples.split_names = '["train"]'
    return {"model": [artifact(standard_artifacts.Model, tmp_path / "model" / "1")], "examples": [examples]}


PROPERTIES = {"plan": "{}", "code_version": "1", "checkpoint_uri": None}


def test_the_same_files_elsewhere_have_the_same_fingerprint(inputs, tmp_path):
    other = {**inputs, "model": [artifact(standard_artifacts.Model, tmp_path / "model" / "2")]}
    assert checkpoints.fingerprint(other, PROPERTIES) == checkpoints.fingerprint(inputs, PROPERTIES)


def test_the_place_of_the_checkpoints_does_not_matter(inputs):
    other = {**PROPERTIES, "checkpoint_uri": "gs://bucket"}
    assert checkpoints.fingerprint(inputs, other) == checkpoints.fingerprint(inputs, PROPERTIES)


@pytest.mark.parametrize("change", [{"plan": '{"sparsity": 0.5}'}, {"code_version": "2"}])
def test_another_configuration_has_another_fingerprint(inputs, change):
    assert checkpoints.fingerprint(inputs, PROPERTIES | change) != checkpoints.fingerprint(inputs, PROPERTIES)


def test_other_files_of_the_model_have_another_fingerprint(inputs, tmp_path):
    before = checkpoints.fingerprint(inputs, PROPERTIES)
    (tmp_path / "model/1/Format-Serving/saved_model.pb").write_bytes(b"another")
    assert checkpoints.fingerprint(inputs, PROPERTIES) != before


def test_other_splits_have_another_fingerprint(inputs):
    before = checkpoints.fingerprint(inputs, PROPERTIES)
    inputs["examples"][0].split_names = '["eval"]'
    assert checkpoints.fingerprint(inputs, PROPERTIES) != before


def test_the_content_of_the_module_file_matters_and_its_place_does_not(inputs, tmp_path):
    def fingerprint(name: str, content: str) -> str:
        (tmp_path / name).write_text(content)
        return checkpoints.fingerprint(inputs, PROPERTIES | {"module_file": str(tmp_path / name)})

    assert fingerprint("a.py", "x = 1") == fingerprint("b.py", "x = 1")
    assert fingerprint("a.py", "x = 1") != fingerprint("a.py", "x = 2")


def test_the_wheel_of_the_module_matters(inputs):
    fingerprints = {
        checkpoints.fingerprint(inputs, PROPERTIES | {"module_path": path}) for path in ("m@1.whl", "m@2.whl")
    }
    assert len(fingerprints) == 2


def test_the_folder_is_next_to_the_outputs_or_below_the_given_uri():
    output = artifact(standard_artifacts.Model, "/pipeline/Pruner/pruned_model/7")
    assert checkpoints.folder(output, "key", None) == "/pipeline/Pruner/.checkpoints/key"
    assert checkpoints.folder(output, "key", "gs://bucket/here") == "gs://bucket/here/key"


def test_checkpoints_are_removed_if_there_are_any(tmp_path):
    folder = tmp_path / "checkpoints"
    checkpoints.remove(str(folder))
    (folder / "step-1").mkdir(parents=True)
    checkpoints.remove(str(folder))
    assert not Path(folder).exists()
