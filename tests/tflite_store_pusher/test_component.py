"""TFLiteStorePusher when a pipeline is built."""

import pytest
import tfx_compression as tfc
from tfx.types import standard_artifacts
from tfx_compression.errors import ConfigError

from tests.support.artifacts import channel
from tests.support.errors import raises

pytestmark = pytest.mark.slow  # imports TFX


def test_a_store_of_an_unknown_scheme_is_refused():
    with raises(ConfigError, field="StoreTarget.uri", code="unknown-scheme", match="ftp"):
        tfc.TFLiteStorePusher(
            model=channel(standard_artifacts.Model), target=tfc.StoreTarget(uri="ftp://host/models", name="digits")
        )


def test_the_target_is_a_json_property():
    target = tfc.StoreTarget(uri="/srv/models", name="digits")
    pusher = tfc.TFLiteStorePusher(model=channel(standard_artifacts.Model), target=target)
    assert tfc.StoreTarget.merged(pusher.exec_properties["target"], {}) == target
    assert "model_blessing" not in pusher.inputs
