"""The public names, and what importing them loads."""

import subprocess
import sys

import pytest
import tfx_compression as tfc
from tfx_compression import errors


def modules_after(statement: str) -> set[str]:
    """Returns the modules that a new interpreter has loaded after a statement, which must print nothing."""
    script = f"{statement}\nimport sys\nprint(*sorted(sys.modules))"
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert process.stderr == ""
    assert process.stdout.count("\n") == 1
    return set(process.stdout.split())


def test_importing_the_package_loads_nothing_and_prints_nothing():
    loaded = modules_after("import tfx_compression as tfc; dir(tfc)")
    assert {name for name in loaded if name.startswith("tfx_compression")} == {
        "tfx_compression",
        "tfx_compression.version",
    }
    assert not loaded & {"tensorflow", "tf_keras", "tfx", "apache_beam", "numpy", "pydantic"}


def test_the_configurations_load_without_tensorflow():
    configurations = ["PruningPlan", "FineTuning", "Quantization", "Budget", "StoreTarget"]
    loaded = modules_after(f"from tfx_compression import {', '.join(configurations)}")
    assert "pydantic" in loaded
    assert not loaded & {"tensorflow", "tf_keras", "tfx", "apache_beam", "numpy"}


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Prunner"):
        tfc.Prunner  # noqa: B018


def test_every_public_name_is_listed_by_dir():
    assert set(tfc.__all__) <= set(dir(tfc))


@pytest.mark.slow
def test_every_public_name_loads():
    public = {name: getattr(tfc, name) for name in tfc.__all__}
    assert public.pop("__version__")
    assert {name: value.__name__ for name, value in public.items()} == {name: name for name in public}
    assert {value.__module__.partition(".")[0] for value in public.values()} == {"tfx_compression"}


def test_the_errors_are_public_and_load_nothing_else():
    names = ["ConfigError", "ModelError", "DataError", "StoreError", "LineageError", "WorkerError"]
    assert all(issubclass(getattr(tfc, name), tfc.CompressionError) for name in names)
    assert tfc.CompressionError is errors.CompressionError
    loaded = modules_after("from tfx_compression import CompressionError")
    assert not loaded & {"tensorflow", "tfx", "numpy", "pydantic"}
