"""Exec properties that components share: the configuration and the version of the code."""

import json
import shutil
from pathlib import Path

import pytest
import tfx_compression
import tfx_compression as tfc
from tfx import v1 as tfx
from tfx.types import standard_artifacts
from tfx_compression.errors import ConfigError
from tfx_compression.tfx_support import declaration

from tests.support.artifacts import channel
from tests.support.errors import raises

pytestmark = pytest.mark.slow  # imports TFX

_PACKAGE = Path(tfx_compression.__file__).parent
_COMPONENTS = {path.parent.name for path in _PACKAGE.glob("*/component.py")}
_COMMAND_LINE = {"cli", "lineage.py"}
_ENTRIES = {path.name for path in _PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"} - {"__pycache__"}


def runtime_parameter(name: str, default: float) -> tfx.dsl.experimental.RuntimeParameter:
    return tfx.dsl.experimental.RuntimeParameter(name=name, ptype=type(default), default=default)


# Configurations


def test_a_configuration_is_a_json_property_and_overrides_are_scalars():
    overrides = {"sparsity": 0.9, "technique": None}
    properties = declaration.config_properties("plan", tfc.PruningPlan(sparsity=0.3), overrides)
    assert json.loads(properties.pop("plan"))["sparsity"] == 0.3
    assert properties == {"sparsity": 0.9}


def test_an_override_takes_the_type_of_its_field():
    properties = declaration.config_properties("config", tfc.FineTuning(), {"learning_rate": 1})
    assert properties["learning_rate"] == 1.0
    assert isinstance(properties["learning_rate"], float)


def test_an_override_can_have_another_name_than_its_field():
    names = {"max_metric_drop": "max_bytes"}
    properties = declaration.config_properties("budget", tfc.Budget(), {"max_metric_drop": 10}, names)
    assert properties["max_metric_drop"] == 10


def test_a_runtime_parameter_stays_one():
    parameter = runtime_parameter("sparsity", 0.5)
    assert declaration.config_properties("plan", tfc.PruningPlan(), {"sparsity": parameter})["sparsity"] is parameter


@pytest.mark.parametrize("sparsity", [1.5, runtime_parameter("sparsity", 1.5)], ids=["value", "default"])
def test_an_invalid_override_is_refused_when_the_pipeline_is_built(sparsity):
    with raises(ConfigError, field="PruningPlan.sparsity", match="1.5"):
        tfc.Pruner(model=channel(standard_artifacts.Model), sparsity=sparsity)


# The version of the code


def test_the_code_version_is_an_exec_property():
    pruner = tfc.Pruner(model=channel(standard_artifacts.Model))
    assert pruner.exec_properties["code_version"] == declaration.code_version("tfx_compression.pruner.component")


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """A copy of the package, which a test can change."""
    copy = tmp_path_factory.mktemp("copy") / "tfx_compression"
    return Path(shutil.copytree(_PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__")))


@pytest.fixture
def code_version(package, monkeypatch):
    monkeypatch.setattr(declaration, "__file__", str(package / "tfx_support" / "declaration.py"))
    return lambda: declaration.code_version("tfx_compression.pruner.component")


def changed_after_an_edit(entry: Path, code_version) -> bool:
    """Returns whether the code's version is another while a comment is added to the first file of `entry`."""
    file = entry if entry.is_file() else next(path for path in sorted(entry.rglob("*.py")) if path.is_file())
    before, content = code_version(), file.read_text()
    file.write_text(content + "# edited\n")
    after = code_version()
    file.write_text(content)
    return before != after


@pytest.mark.parametrize("entry", [*sorted(_ENTRIES - _COMMAND_LINE - _COMPONENTS), "pruner"])
def test_the_code_version_covers_shared_code_and_the_component(package, code_version, entry):
    assert changed_after_an_edit(package / entry, code_version)


@pytest.mark.parametrize("entry", sorted(_ENTRIES & _COMMAND_LINE | _COMPONENTS - {"pruner"}))
def test_the_code_version_ignores_other_components_and_the_command_line(package, code_version, entry):
    assert not changed_after_an_edit(package / entry, code_version)


def test_the_code_version_covers_templates(package, code_version):
    before = code_version()
    template = package / "page" / "base.html.jinja"
    content = template.read_text()
    template.write_text(content + "\n")
    assert code_version() != before
    template.write_text(content)


def test_the_code_version_is_the_same_in_another_folder(code_version):
    assert code_version().startswith(f"{tfx_compression.__version__}+")
    copied = code_version()
    declaration.__file__ = str(_PACKAGE / "tfx_support" / "declaration.py")
    assert code_version() == copied
