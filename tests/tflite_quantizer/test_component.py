"""TFLiteQuantizer when a pipeline is built: wrong wiring."""

import pytest
import tfx_compression as tfc
from tfx.types import standard_artifacts
from tfx_compression.errors import ConfigError

from tests.support.artifacts import channel
from tests.support.errors import raises

pytestmark = pytest.mark.slow  # imports TFX


def test_a_calibrated_mode_requires_examples():
    with raises(ConfigError, field="TFLiteQuantizer.examples", code="missing-input", match="'int8'"):
        tfc.TFLiteQuantizer(model=channel(standard_artifacts.Model))
    tfc.TFLiteQuantizer(model=channel(standard_artifacts.Model), config=tfc.Quantization(mode="dynamic"))


def test_a_metric_of_the_mode_auto_requires_labels():
    config = tfc.Quantization(mode="auto")
    channels = {"model": channel(standard_artifacts.Model), "examples": channel(standard_artifacts.Examples)}
    with raises(ConfigError, field="TFLiteQuantizer.schema", code="missing-input"):
        tfc.TFLiteQuantizer(**channels, config=config)
    tfc.TFLiteQuantizer(**channels, config=config, schema=channel(standard_artifacts.Schema))
