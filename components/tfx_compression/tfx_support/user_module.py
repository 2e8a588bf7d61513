"""The user's module file."""

import hashlib
import importlib
import importlib.machinery
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from tfx.components.util import udf_utils
from tfx.utils import io_utils


class UserModule:
    """The functions of the user's module file.

    The constructor imports the module, and installs its wheel first if TFX has made one.

    Args:
      exec_properties: A component's exec properties: with `module_path` (a module in a wheel that TFX made), with
        `module_file` (a Python file), or with neither.
    """

    def __init__(self, exec_properties: Mapping[str, Any]):
        self._module: ModuleType | None = None
        if path := exec_properties.get("module_path"):
            name, wheels = udf_utils.decode_user_module_key(path)
            for wheel in wheels:
                sys.path.insert(0, udf_utils.install_to_temp_directory(io_utils.ensure_local(wheel)))
            sys.modules.pop(name, None)  # Another component's wheel may have a module of the same name.
            self._module = importlib.import_module(name)
        elif path := exec_properties.get("module_file"):
            name = f"user_module_{hashlib.sha256(path.encode()).hexdigest()[:8]}"
            loader = importlib.machinery.SourceFileLoader(name, io_utils.ensure_local(path))
            self._module = sys.modules[name] = ModuleType(name)
            self._module.__file__ = loader.path
            loader.exec_module(self._module)

    def function(self, name: str) -> Callable[..., Any] | None:
        """Returns a function of the module, or None if it has none of that name."""
        return getattr(self._module, name, None)

    def custom_objects(self) -> dict[str, Any]:
        """Returns Keras classes and functions by name, from the module's `custom_objects()`."""
        function = self.function("custom_objects")
        return dict(function()) if function else {}
