"""The table of targets: the modes and options that each one supports."""

import re
from pathlib import Path

import pytest
from tfx_compression.tflite.modes import MODES
from tfx_compression.tflite_quantizer.devices.targets import TARGETS


@pytest.mark.parametrize(
    ("target", "modes"),
    [
        ("cpu", set(MODES)),
        ("edge_tpu", {"int8"}),
        ("microcontroller", {"float32", "int8", "int16x8", "int4", "mixed", "auto"}),
        ("android_nnapi_gpu", set(MODES)),
        ("ios_coreml", set(MODES)),
    ],
)
def test_modes_that_a_target_runs(target, modes):
    assert set(TARGETS[target].modes) == modes


def test_every_accelerator_names_its_source():
    for target in TARGETS.values():
        for accelerator in target.accelerators:
            assert accelerator.source.startswith("https://") and accelerator.source_date


def test_the_guide_lists_every_target():
    guide = (Path(__file__).parents[3] / "docs" / "devices.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", guide, re.MULTILINE) == list(TARGETS)
