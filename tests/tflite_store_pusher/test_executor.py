"""TFLiteStorePusher's executor: releases, refusals, and what it records."""

import json

import pytest
import tfx_compression as tfc
import tfx_compression.store as stores
from tfx import types
from tfx.types import standard_artifacts
from tfx_compression.errors import ModelError, StoreError
from tfx_compression.tflite_store_pusher.executor import Executor
from tfx_compression.tfx_support import blessings

from tests.support.artifacts import artifact, run_executor
from tests.support.errors import raises

pytestmark = pytest.mark.slow  # imports TFX

CONTENT = b"a flatbuffer"


@pytest.fixture
def model(tmp_path) -> types.Artifact:
    """A TFLite model with a description and a custom property."""
    model = artifact(standard_artifacts.Model, tmp_path / "model")
    (tmp_path / "model/Format-Serving").mkdir(parents=True)
    (tmp_path / "model/Format-Serving/tflite").write_bytes(CONTENT)
    (tmp_path / "model/tflite.json").write_text(json.dumps({"ops": {"CONV_2D": 2}}))
    model.set_string_custom_property("mode", "int8")
    return model


@pytest.fixture
def pushed(tmp_path) -> types.Artifact:
    return artifact(standard_artifacts.PushedModel, tmp_path / "pushed")


def blessing(folder, blessed: bool) -> types.Artifact:
    """Returns a blessing of the model in a folder."""
    result = artifact(standard_artifacts.ModelBlessing, folder / "blessing")
    result.set_int_custom_property("blessed", int(blessed))
    digest = blessings.model_digest(artifact(standard_artifacts.Model, folder / "model"))
    result.set_string_custom_property(blessings.MODEL_DIGEST, digest)
    return result


def push(tmp_path, pushed: types.Artifact, **inputs: types.Artifact) -> None:
    target = tfc.StoreTarget(uri=str(tmp_path / "store"), name="digits", channel="canary")
    run_executor(Executor(), inputs, {"pushed_model": pushed}, target=target.to_json())


def test_a_blessed_model_becomes_the_next_version_and_its_channel_moves(tmp_path, model, pushed):
    store = stores.open(str(tmp_path / "store"))
    store.publish("digits", b"older", {})
    push(tmp_path, pushed, model=model, model_blessing=blessing(tmp_path, True))
    assert store.versions("digits") == [1, 2]
    assert store.channels("digits") == {"canary": 2}
    store.pull("digits", tmp_path / "pulled", channel="canary")
    assert (tmp_path / "pulled").read_bytes() == CONTENT


def test_a_rerun_after_a_kill_completes_the_release_that_was_begun(tmp_path, model, pushed):
    push(tmp_path, pushed, model=model)  # Killed before TFX recorded its output, as far as ML Metadata knows.
    again = artifact(standard_artifacts.PushedModel, tmp_path / "again")
    push(tmp_path, again, model=model)
    store = stores.open(str(tmp_path / "store"))
    assert (store.versions("digits"), store.channels("digits")) == ([1], {"canary": 1})
    assert again.get_string_custom_property("pushed_version") == "1"
    (tmp_path / "model/tflite.json").write_text(json.dumps({"ops": {"CONV_2D": 2}, "runtime": "newer"}))
    push(tmp_path, artifact(standard_artifacts.PushedModel, tmp_path / "other"), model=model)
    assert store.versions("digits") == [1, 2]  # The same bytes of another recipe.


def test_the_manifest_describes_the_model(tmp_path, model, pushed):
    push(tmp_path, pushed, model=model, model_blessing=blessing(tmp_path, True))
    manifest = stores.open(str(tmp_path / "store")).manifest("digits", 1)
    assert manifest["ops"] == {"CONV_2D": 2}
    assert manifest["properties"] == {"mode": "int8"}
    assert manifest["model_uri"] == model.uri
    assert manifest["blessing_uri"] == str(tmp_path / "blessing")
    assert json.loads((tmp_path / "pushed/manifest.json").read_text()) == manifest


def test_the_artifact_has_the_place_of_the_release(tmp_path, model, pushed):
    push(tmp_path, pushed, model=model)
    manifest = stores.open(str(tmp_path / "store")).manifest("digits", 1)
    assert manifest["blessing_uri"] is None
    assert pushed.get_int_custom_property("pushed") == 1
    names = ("pushed_destination", "pushed_version", "store_name", "channel", "sha256")
    properties = [pushed.get_string_custom_property(name) for name in names]
    assert properties == [str(tmp_path / "store"), "1", "digits", "canary", manifest["sha256"]]


def test_a_refused_model_is_not_pushed(tmp_path, model, pushed):
    push(tmp_path, pushed, model=model, model_blessing=blessing(tmp_path, False))
    assert pushed.get_int_custom_property("pushed") == 0
    assert not (tmp_path / "store").exists()


def test_a_blessing_of_other_bytes_is_refused(tmp_path, model, pushed):
    blessed = blessing(tmp_path, True)
    (tmp_path / "model/Format-Serving/tflite").write_bytes(CONTENT[:-1] + b"R")
    with raises(ModelError, code="blessing-of-other-bytes"):
        push(tmp_path, pushed, model=model, model_blessing=blessed)
    assert not (tmp_path / "store").exists()


def test_a_saved_model_is_refused(tmp_path, pushed):
    saved_model = artifact(standard_artifacts.Model, tmp_path / "model")
    with raises(ModelError, code="no-tflite-model", match=str(tmp_path / "model")):
        push(tmp_path, pushed, model=saved_model)
    assert not (tmp_path / "store").exists()


def test_a_store_that_cannot_be_written_is_named(tmp_path, model, pushed):
    (tmp_path / "store").write_text("a file")
    with raises(StoreError, match=str(tmp_path / "store")):
        push(tmp_path, pushed, model=model)
