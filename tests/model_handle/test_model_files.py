"""Finding a model on disk, its format and its kernels."""

import numpy as np
import pytest
from tensorflow.lite.python import schema_py_generated as schema
from tfx_compression.errors import ModelError
from tfx_compression.model_handle import model_files

from tests.support import by_hand, helpers, kinds
from tests.support.errors import raises


def test_a_tflite_model_is_found_in_the_folder_where_tfx_stores_it(tmp_path):
    graph = by_hand.Graph()
    weights = np.float32([[1, 0], [2, 3]])
    x, kernel = graph.tensor("x", [1, 2]), graph.constant("kernel", weights)
    options, kind = schema.FullyConnectedOptionsT(), schema.BuiltinOptions.FullyConnectedOptions
    y = graph.apply(by_hand.Op.FULLY_CONNECTED, [x, kernel, -1], [graph.tensor("y", [1, 2])], options, kind)
    graph.inputs, graph.outputs = [x], [y]
    (tmp_path / "tflite").write_bytes(by_hand.model(graph))
    path = model_files.locate(str(tmp_path))
    assert path == str(tmp_path / "tflite")
    assert model_files.model_format(path) == "tflite"
    (values,) = model_files.read_kernels(path).values()
    np.testing.assert_array_equal(values, weights)
    assert model_files.sparsity(values) == 0.25


@pytest.mark.parametrize("kind", ["keras", "keras2 SavedModel", "SavedModel"])
def test_kernels_are_read_by_layer_or_by_variable(tmp_path, kind):
    path = str(tmp_path / ("model.keras" if kind == "keras" else "model"))
    if kind == "keras":
        kinds.keras3_dense().save(path)
    elif kind == "keras2 SavedModel":
        helpers.small_dense().save(path, save_format="tf")
    else:
        kinds.module(path)
    assert model_files.locate(path) == path
    assert model_files.model_format(path) == ("keras" if kind == "keras" else "saved_model")
    assert list(model_files.read_kernels(path)) == (["first", "second"] if kind == "SavedModel" else ["hidden", "y"])


def test_a_path_without_a_model_is_refused(tmp_path):
    for path in (str(tmp_path), str(tmp_path / "nothing")):
        with raises(ModelError, code="missing-model", match=path):
            model_files.locate(path)
