"""The user's module, from a file or from a wheel that TFX made."""

import pytest
from tfx.components.util import udf_utils
from tfx_compression.tfx_support.user_module import UserModule

pytestmark = pytest.mark.slow  # imports TFX

SOURCE = "def custom_objects():\n    return {'Layer': int}\ndef loss_fn():\n    return 3\n"


@pytest.fixture
def module_file(tmp_path):
    path = tmp_path / "code" / "my_module.py"
    path.parent.mkdir()
    path.write_text(SOURCE)
    return path


def test_a_module_file_is_imported(module_file):
    module = UserModule({"module_file": str(module_file)})
    assert module.function("loss_fn")() == 3
    assert module.function("input_fn") is None
    assert module.custom_objects() == {"Layer": int}


def test_a_wheel_is_installed_and_its_module_is_imported(module_file, tmp_path):
    wheel, name = udf_utils.package_user_module_file("Pruner", str(module_file), str(tmp_path / "wheels"))
    module = UserModule({"module_path": name, "module_file": "not used"})
    assert wheel.endswith(".whl")
    assert module.function("loss_fn")() == 3


def test_without_a_module_there_are_no_functions():
    module = UserModule({})
    assert module.function("loss_fn") is None
    assert module.custom_objects() == {}
