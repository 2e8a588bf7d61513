"""What would bless a model by accident is refused with the reason."""

import os

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_analysis as tfma
import tfx_compression as tfc
from google.protobuf import text_format
from tensorflow_model_analysis.proto import config_pb2
from tfx_compression.compressed_evaluator import evaluate
from tfx_compression.compressed_evaluator.budget import Budget
from tfx_compression.errors import ConfigError, DataError

from tests.support.helpers import save_function, write_examples

pytestmark = pytest.mark.slow  # loads models, some run Beam

ROWS = 120


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refused")
    spec = tf.TensorSpec([None, 4], tf.float32, name="x")
    save_function(lambda x: {"classes": tf.nn.softmax(x[:, :3])}, [spec], folder / "classes")
    save_function(lambda x: {"logit": x[:, :1]}, [spec], folder / "logit")
    save_function(lambda x: {"logit": x[:, :1] - 0.75}, [spec], folder / "shifted")
    return folder


def rows(folder, name: str, **columns: np.ndarray) -> str:
    x = np.random.default_rng(0).normal(size=(ROWS, 4)).astype(np.float32)
    label = (x[:, :1] > 0).astype(np.int64)
    write_examples(folder / f"{name}.tfrecord", {"x": x, "label": label, **columns})
    return str(folder / f"{name}.tfrecord")


def config(text: str) -> config_pb2.EvalConfig:
    return text_format.Parse(text, config_pb2.EvalConfig())


def refused(made, error, message: str, model: str, examples: str, eval_config=None) -> None:
    with pytest.raises(error, match=message):
        tfc.evaluate({"a": str(made / model)}, examples, "label", baseline=str(made / model), eval_config=eval_config)


def test_a_metric_of_classes_on_one_output(made, tmp_path):
    """Of one column the argmax is always 0: every model would be as good."""
    message = "SparseCategoricalAccuracy needs an output for each class.*BinaryAccuracy"
    refused(made, ConfigError, message, "logit", rows(tmp_path, "rows"))


@pytest.mark.parametrize(
    ("label", "shown"),
    [
        (np.full([ROWS, 1], 7), "'7'"),
        (np.full([ROWS, 1], -1), "'-1'"),
        (np.full([ROWS, 1], 0.5, np.float32), "'0.5'"),
        (np.full([ROWS, 1], b"red"), "'red'"),
        (np.zeros([ROWS, 2], np.int64), "'0'"),
    ],
    ids=["too large", "negative", "fractions", "strings", "two"],
)
def test_labels_that_are_no_classes_of_the_models(made, tmp_path, label, shown):
    examples = rows(tmp_path, "rows", label=label)
    refused(made, DataError, rf"labels of a batch are {shown}.*from 0 to 2.*Remedy: [^\[]*$", "classes", examples)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "example weight 'w' is missing in 120 of 120"),
        ({"w": np.zeros([ROWS, 1], np.float32)}, "All example weights are zero"),
        ({"w": np.full([ROWS, 1], -1, np.float32)}, "'w' is not a number of 0 or more"),
        ({"w": np.full([ROWS, 1], np.nan, np.float32)}, "'w' is not a number of 0 or more"),
    ],
    ids=["missing", "zero", "negative", "NaN"],
)
def test_example_weights_that_weigh_nothing(made, tmp_path, columns, message):
    weighted = config(
        'model_specs { label_key: "label" example_weight_key: "w" }'
        'metrics_specs { metrics { class_name: "SparseCategoricalAccuracy" } }'
    )
    refused(made, DataError, message, "classes", rows(tmp_path, "rows", **columns), weighted)


def test_a_few_heavy_rows_are_not_many(made, tmp_path):
    weights = np.full([ROWS, 1], 1e-6, np.float32)
    weights[:3] = 1
    found = tfc.evaluate(
        {"a": str(made / "classes")},
        rows(tmp_path, "rows", w=weights),
        baseline=str(made / "classes"),
        eval_config=config(
            'model_specs { label_key: "label" example_weight_key: "w" }'
            'metrics_specs { metrics { class_name: "SparseCategoricalAccuracy" } }'
        ),
        budget=Budget(max_metric_drop={"sparse_categorical_accuracy": 0.1}),
    )
    assert (found.rows, found.chosen) == (ROWS, None)
    assert "to tell how sure a drop is, at least 20: not held (measured 3)" in found.reason


def test_a_slice_with_a_threshold_and_no_rows_is_not_held(made, tmp_path):
    found = tfc.evaluate(
        {"a": str(made / "classes")},
        rows(tmp_path, "rows", colour=np.full([ROWS, 1], b"red")),
        baseline=str(made / "classes"),
        eval_config=config(
            """
            model_specs { label_key: "label" }
            metrics_specs { metrics { class_name: "SparseCategoricalAccuracy"
              per_slice_thresholds { slicing_specs { feature_values { key: "colour" value: "blue" } }
                threshold { value_threshold { lower_bound { value: 0.1 } } } } } }
            slicing_specs {} slicing_specs { feature_keys: "colour" }
            """
        ),
    )
    assert found.chosen is None
    assert "no example is in it" in found.reason
    assert "blue" in found.reason


def test_a_loss_by_a_name_that_does_not_say_so():
    renamed = config(
        'model_specs { label_key: "label" } metrics_specs { metrics { '
        'class_name: "SparseCategoricalCrossentropy" config: \'"name": "nll"\' } }'
    )
    with pytest.raises(ConfigError, match=r"called 'nll', which doesn't say that it is better when smaller.*'loss'"):
        evaluate.config_for(["a"], renamed, Budget(), has_baseline=False)


def test_one_metric_under_two_names():
    with pytest.raises(ConfigError, match="limits one metric twice: BinaryAccuracy, binary_accuracy"):
        Budget(max_metric_drop={"BinaryAccuracy": -0.5, "binary_accuracy": 0.9}).for_metrics(["binary_accuracy"])


def test_a_candidate_without_a_name(made):
    with pytest.raises(ConfigError, match="needs a name"):
        tfc.evaluate({"": str(made / "classes")}, "nowhere", "label", baseline=str(made / "classes"))


def test_files_that_are_no_tfrecords_are_named(made, tmp_path):
    (tmp_path / "rows.gz").write_bytes(b"plain")
    refused(made, DataError, r"rows\.gz can't be read as TFRecords.*Remedy", "classes", str(tmp_path / "rows.gz"))


def test_a_file_that_two_patterns_match_counts_once(made, tmp_path):
    rows(tmp_path, "rows")
    patterns = [str(tmp_path / "*"), str(tmp_path / "rows.*")]
    found = tfc.evaluate({"a": str(made / "classes")}, patterns, "label", baseline=str(made / "classes"))
    assert found.rows == ROWS


def test_answers_of_logits_are_not_cut_at_a_half(made, tmp_path):
    """Where they are cut, only the metric knows."""
    found = tfc.evaluate(
        {"a": str(made / "shifted")},
        rows(tmp_path, "rows"),
        baseline=str(made / "logit"),
        eval_config=config(
            'model_specs { label_key: "label" } metrics_specs { metrics { '
            'class_name: "BinaryAccuracy" config: \'"threshold": 0.0\' } }'
        ),
    )
    assert found.baseline.metrics["binary_accuracy"] == 1
    assert found.metrics["a"]["binary_accuracy"] < 0.9
    assert found.comparisons["a"].agreement is None
    assert found.comparisons["a"].behaviour[""].mended is None


def test_what_an_earlier_evaluation_left_is_gone_when_one_ends_early(made, tmp_path):
    good = rows(tmp_path, "rows")
    output = tmp_path / "output"
    model = str(made / "classes")
    tfc.evaluate({"a": model}, good, "label", baseline=model, output_path=str(output))
    assert tfma.load_eval_result(str(output), model_name="a").slicing_metrics
    with pytest.raises(DataError):
        tfc.evaluate({"a": model}, good, "nolabel", baseline=model, output_path=str(output))
    assert not list(output.iterdir())
