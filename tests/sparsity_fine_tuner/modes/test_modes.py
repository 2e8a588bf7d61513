"""The table of modes."""

import importlib

import pytest
from tfx_compression.errors import ConfigError
from tfx_compression.sparsity_fine_tuner import modes
from tfx_compression.sparsity_fine_tuner.config import FineTuning

from tests.support.errors import raises


@pytest.mark.parametrize("name", modes.MODES)
def test_each_mode_has_a_module_and_is_a_value_of_the_configuration(name):
    assert callable(importlib.import_module(f"{modes.__name__}.{name}").run)
    assert FineTuning(mode=name).mode == name


def test_unknown_modes_are_refused():
    with raises(ConfigError, field="FineTuning.mode", code="unknown-mode", match="'faster'.*fixed"):
        FineTuning(mode="faster")
