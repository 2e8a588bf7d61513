"""Exec properties that component declarations share: configurations, the user's module, and the code's version."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfx.components.util import udf_utils
from tfx.dsl.components.base import base_component
from tfx.orchestration import data_types
from tfx.types.component_spec import ExecutionParameter

from tfx_compression.config import Config
from tfx_compression.version import __version__

CODE_VERSION = "code_version"
_COMMAND_LINE = frozenset(["cli", "lineage.py"])  # Only people see what this code computes.

MODULE_PARAMETERS = {
    "module_file": ExecutionParameter(type=str, optional=True),
    "module_path": ExecutionParameter(type=str, optional=True),
}


def config_properties(
    key: str, config: Config, overrides: Mapping[str, Any], fields: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Returns the exec properties of a configuration: its JSON, and each override as a property of its own.

    Args:
      key: Exec property of the JSON.
      config: The configuration.
      overrides: Values or RuntimeParameters by exec property. Those that are None are left out.
      fields: Field that an exec property overrides, if it has another name.

    Raises:
      ConfigError: An override, or the default of a RuntimeParameter, is not valid for its field.
    """
    field_of = {name: (fields or {}).get(name, name) for name in overrides}
    given = {name: value for name, value in overrides.items() if value is not None}
    runtime = {name for name, value in given.items() if isinstance(value, data_types.RuntimeParameter)}
    known = {field_of[name]: value.default if name in runtime else value for name, value in given.items()}
    merged = type(config).merged(config.to_json(), known)
    # An exec property needs the type of its field: a learning rate of 1 becomes a float.
    scalars = {name: value if name in runtime else getattr(merged, field_of[name]) for name, value in given.items()}
    return {key: config.to_json(), **scalars}


def code_version(component_module: str) -> str:
    """Returns a digest of the package's version and of the code that a component runs.

    TFX's cache key has an executor's class path, but not its code: without this digest in the exec properties, an
    upgraded component would reuse results of the old code. The digest covers every folder and module of the package
    but other components and the command line.

    Args:
      component_module: `__name__` of the component's module.
    """
    package = Path(__file__).parents[1]
    component = component_module.split(".")[1]
    digest = hashlib.sha256(__version__.encode())
    for path in sorted(package.rglob("*")):
        folder = path.relative_to(package).parts[0]
        is_other_component = folder != component and (package / folder / "component.py").exists()
        if path.suffix in (".py", ".jinja", ".js") and not is_other_component and folder not in _COMMAND_LINE:
            digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return f"{__version__}+{digest.hexdigest()[:12]}"


def package_module(component: base_component.BaseComponent) -> None:
    """Makes TFX pack the user's module file into a wheel, as for Trainer."""
    if udf_utils.should_package_user_modules() and component.exec_properties.get("module_file"):
        udf_utils.add_user_module_dependency(component, "module_file", "module_path")
