"""Blessings: they hold for the bytes that were measured, and for no others."""

import json

import pytest
from tfx import types
from tfx.components.pusher import executor as stock
from tfx.types import standard_artifacts
from tfx_compression.errors import ModelError
from tfx_compression.tfx_support import blessings
from tfx_compression.tfx_support.verifying_pusher import VerifyingPusherExecutor

from tests.support.artifacts import artifact, run_executor
from tests.support.errors import raises

pytestmark = pytest.mark.slow  # imports TFX


@pytest.fixture
def model(tmp_path) -> types.Artifact:
    folder = tmp_path / "model/Format-Serving/variables"
    folder.mkdir(parents=True)
    (folder / "data").write_bytes(bytes(1000))
    (folder.parent / "saved_model.pb").write_bytes(b"graph")
    return artifact(standard_artifacts.Model, tmp_path / "model")


@pytest.fixture
def blessing(tmp_path, model) -> types.Artifact:
    (tmp_path / "blessing").mkdir()
    result = artifact(standard_artifacts.ModelBlessing, tmp_path / "blessing")
    result.set_int_custom_property("blessed", 1)
    result.set_string_custom_property(blessings.MODEL_DIGEST, blessings.model_digest(model))
    return result


def _change_a_byte(folder):
    (folder / "variables/data").write_bytes(bytes(999) + b"1")


def _swap_names(folder):
    (folder / "variables/data").rename(folder / "variables/other")


def _add_a_file(folder):
    (folder / "assets").mkdir()
    (folder / "assets/words").write_text("")


@pytest.mark.parametrize("change", [_change_a_byte, _swap_names, _add_a_file])
def test_a_blessing_does_not_hold_for_other_bytes(tmp_path, model, blessing, change):
    blessings.require_match(blessing, model)
    change(tmp_path / "model/Format-Serving")
    with raises(ModelError, code="blessing-of-other-bytes"):
        blessings.require_match(blessing, model)


def test_a_model_with_a_link_has_no_digest(tmp_path, model):
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "model/Format-Serving/link").symlink_to(tmp_path / "secret")
    with raises(ModelError, code="model-has-links"):
        blessings.model_digest(model)


def test_a_blessing_without_a_digest_is_refused(model, blessing):
    blessing.set_string_custom_property(blessings.MODEL_DIGEST, "")
    with raises(ModelError, code="blessing-without-digest"):
        blessings.require_match(blessing, model)


def test_a_blessing_that_contradicts_its_file_is_refused(tmp_path, blessing):
    assert blessings.is_blessed(blessing)
    (tmp_path / "blessing/NOT_BLESSED").write_text("")
    with raises(ModelError, code="contradictory-blessing"):
        blessings.is_blessed(blessing)


def _push(tmp_path, model, blessing) -> types.Artifact:
    pushed = artifact(standard_artifacts.PushedModel, tmp_path / "pushed")
    destination = {"filesystem": {"base_directory": str(tmp_path / "serving")}}
    run_executor(
        VerifyingPusherExecutor(),
        {"model": model, "model_blessing": blessing},
        {"pushed_model": pushed},
        push_destination=json.dumps(destination),
    )
    return pushed


def test_the_verifying_pusher_pushes_what_was_blessed(tmp_path, model, blessing):
    assert issubclass(VerifyingPusherExecutor, stock.Executor)
    assert _push(tmp_path, model, blessing).get_int_custom_property("pushed") == 1
    (version,) = (tmp_path / "serving").iterdir()
    assert (version / "variables/data").read_bytes() == bytes(1000)


def test_the_verifying_pusher_pushes_nothing_else(tmp_path, model, blessing):
    _change_a_byte(tmp_path / "model/Format-Serving")
    with raises(ModelError, code="blessing-of-other-bytes"):
        _push(tmp_path, model, blessing)
    blessing.set_int_custom_property("blessed", 0)
    assert _push(tmp_path, model, blessing).get_int_custom_property("pushed") == 0
    assert not (tmp_path / "serving").exists()
