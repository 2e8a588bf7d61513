"""Examples and batches from the inputs of an executor."""

import numpy as np
import pytest
from tfx.types import standard_artifacts
from tfx_compression import model_handle
from tfx_compression.errors import DataError
from tfx_compression.tfx_support import inputs
from tfx_compression.tfx_support.user_module import UserModule

from tests.support import helpers
from tests.support.artifacts import examples_artifact, schema_artifact
from tests.support.errors import raises

pytestmark = pytest.mark.slow  # imports TFX


@pytest.fixture
def examples(tmp_path) -> standard_artifacts.Examples:
    return examples_artifact(tmp_path / "examples", {"train": {"x": np.zeros([4, 4], np.float32)}})


def test_an_unknown_split_is_refused_and_the_known_ones_are_named(examples):
    with raises(DataError, code="unknown-split", match="'test'.*train"):
        inputs.example_files(examples, "test")


def test_examples_of_another_format_are_refused(examples):
    examples.set_string_custom_property("payload_format", "FORMAT_PARQUET")
    with raises(DataError, code="not-tf-examples", match="FORMAT_PARQUET"):
        inputs.example_pattern(examples, "train")


def test_an_error_that_an_input_fn_raises_while_it_is_traced_arrives_unchanged(examples, tmp_path):
    module = tmp_path / "module.py"
    module.write_text(
        "import tensorflow as tf\n"
        "class LabelError(Exception):\n"
        "    pass\n"
        "def parse(row):\n"
        "    raise LabelError('no label')\n"
        "def input_fn(files, accessor, schema, batch_size):\n"
        "    return tf.data.Dataset.range(3).map(parse)\n"
    )
    schema = schema_artifact(tmp_path / "schema", {"x": ("FLOAT", [4])})
    input_dict = {"examples": [examples], "schema": [schema]}
    handle = model_handle.wrap(helpers.small_dense())
    with pytest.raises(Exception, match="^no label$") as caught:
        inputs.model_batches(handle, input_dict, UserModule({"module_file": str(module)}), "train", None, 2, False)
    assert type(caught.value).__name__ == "LabelError"
