"""TFX's penguin example, unchanged: trained, pruned and fine-tuned as a SavedModel without Keras layers."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import helpers

pytestmark = pytest.mark.slow

SPECIES = "species"
# The example's feature names by the names in the table.
FEATURES = {
    "bill_length_mm": "culmen_length_mm",
    "bill_depth_mm": "culmen_depth_mm",
    "flipper_length_mm": "flipper_length_mm",
    "body_mass_g": "body_mass_g",
}

# The example's last layer has no softmax, which a SavedModel without layers can't tell.
LOSS = """
import tensorflow as tf

def loss_fn(labels, outputs):
    return tf.keras.losses.sparse_categorical_crossentropy(labels, outputs["outputs"], from_logits=True)
"""


def write_table(path: Path) -> int:
    """Writes the Palmer penguins as the example's CSV, measurements from 0 to 1 and species as numbers.

    Returns:
      The number of rows.
    """
    import palmerpenguins

    table = palmerpenguins.load_penguins().rename(columns=FEATURES)[[SPECIES, *FEATURES.values()]].dropna()
    measurements = table[list(FEATURES.values())]
    table[measurements.columns] = (measurements - measurements.min()) / (measurements.max() - measurements.min())
    table[SPECIES] = table[SPECIES].astype("category").cat.codes
    path.parent.mkdir(parents=True)
    table.to_csv(path, index=False)
    return len(table)


def components(folder: Path) -> list[Any]:
    """Returns the example's pipeline up to its Trainer, then Pruner and SparsityFineTuner."""
    import tfx_compression as tfc
    from tfx import v1 as tfx
    from tfx.examples.penguin import penguin_utils_keras

    module_file = penguin_utils_keras.__file__
    example_gen = tfx.components.CsvExampleGen(input_base=str(folder / "data"))
    examples = example_gen.outputs["examples"]
    statistics_gen = tfx.components.StatisticsGen(examples=examples)
    schema_gen = tfx.components.SchemaGen(statistics=statistics_gen.outputs["statistics"], infer_feature_shape=True)
    schema = schema_gen.outputs["schema"]
    transform = tfx.components.Transform(examples=examples, schema=schema, module_file=module_file)
    trainer = tfx.components.Trainer(
        module_file=module_file,
        examples=transform.outputs["transformed_examples"],
        transform_graph=transform.outputs["transform_graph"],
        schema=schema,
        train_args=tfx.proto.TrainArgs(num_steps=100),
        eval_args=tfx.proto.EvalArgs(num_steps=5),
    )
    pruner = tfc.Pruner(model=trainer.outputs["model"], plan=tfc.PruningPlan(sparsity=0.8, protect=()))
    tuner = tfc.SparsityFineTuner(
        model=pruner.outputs["pruned_model"],
        pruning_plan=pruner.outputs["pruning_plan"],
        teacher_model=trainer.outputs["model"],
        examples=examples,  # The SavedModel's signature takes raw examples.
        schema=schema,
        module_file=str(folder / "loss.py"),
        config=tfc.FineTuning(
            epochs=40,
            batch_size=20,
            learning_rate=0.01,
            learning_rate_schedule="cosine",
            distillation=tfc.Distillation(outputs="logits"),
        ),
    )
    return [example_gen, statistics_gen, schema_gen, transform, trainer, pruner, tuner]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a run of the pipeline."""
    import tf_keras
    from tfx import v1 as tfx

    folder = tmp_path_factory.mktemp("penguin")
    assert write_table(folder / "data/penguins.csv") == 342
    (folder / "loss.py").write_text(LOSS)
    tf_keras.utils.set_random_seed(0)  # The example's Trainer sets no seed.
    pipeline = tfx.dsl.Pipeline(
        pipeline_name="penguin",
        pipeline_root=str(folder / "root"),
        components=components(folder),
        metadata_connection_config=tfx.orchestration.metadata.sqlite_metadata_connection_config(
            str(folder / "metadata.sqlite")
        ),
        beam_pipeline_args=["--runner=DirectRunner", "--max_cache_memory_usage_mb=0"],
    )
    tfx.orchestration.LocalDagRunner().run(pipeline)
    return folder


def model(folder: Path, output: str) -> str:
    (path,) = (folder / "root").glob(f"{output}/*/Format-Serving")
    return str(path)


TRAINED, PRUNED, TUNED = "Trainer/model", "Pruner/pruned_model", "SparsityFineTuner/fine_tuned_model"


def rows(folder: Path) -> tuple[list[bytes], np.ndarray]:
    """Returns the serialized rows of the evaluation split, and their species."""
    import tensorflow as tf

    (path,) = (folder / "root").glob("CsvExampleGen/examples/*/Split-eval/*")
    serialized = [row.numpy() for row in tf.data.TFRecordDataset(str(path), compression_type="GZIP")]
    examples = [tf.train.Example.FromString(row) for row in serialized]
    return serialized, np.array([each.features.feature[SPECIES].int64_list.value[0] for each in examples])


def accuracy(folder: Path, output: str) -> float:
    serialized, species = rows(folder)
    answers = helpers.answers(model(folder, output), examples=serialized)["outputs"]
    return float(np.mean(answers.argmax(1) == species))


def test_the_example_trains_keras_2_and_saves_no_keras_metadata(folder):
    """`tf.saved_model.save` writes no layers."""
    import tf_keras
    from tfx.examples.penguin import penguin_utils_keras
    from tfx_compression import model_handle

    assert os.environ["TF_USE_LEGACY_KERAS"] == "1"
    assert issubclass(penguin_utils_keras.keras.Model, tf_keras.Model)
    assert not Path(model(folder, TRAINED), "keras_metadata.pb").exists()
    assert model_handle.load(model(folder, TRAINED)).kind == "saved_model"


def test_four_fifths_of_the_weights_are_zero_on_disk(folder):
    import tensorflow as tf

    for output, sparsity in ((TRAINED, 0.0), (PRUNED, 0.8), (TUNED, 0.8)):
        variables = tf.saved_model.load(model(folder, output)).variables
        kernels = [variable.numpy() for variable in variables if variable.shape.rank == 2]
        assert [kernel.shape for kernel in kernels] == [(4, 8), (8, 8), (8, 3)]
        zeros = sum(np.sum(kernel == 0) for kernel in kernels) / sum(kernel.size for kernel in kernels)
        assert zeros == pytest.approx(sparsity, abs=0.01)


def test_the_accuracy_is_within_two_points_of_the_dense_model(folder):
    """One run had 98 % dense, 60 % pruned and 98 % fine-tuned."""
    dense, pruned, tuned = (accuracy(folder, output) for output in (TRAINED, PRUNED, TUNED))
    assert dense > 0.95
    assert tuned >= pruned
    assert tuned >= dense - 0.02


def test_all_signatures_answer(folder):
    serialized, _ = rows(folder)
    before, after = ({}, {})
    for answers, output in ((before, TRAINED), (after, TUNED)):
        for signature in ("serving_default", "transform_features"):
            answers[signature] = helpers.answers(model(folder, output), signature, examples=serialized)
    assert after["serving_default"]["outputs"].shape == before["serving_default"]["outputs"].shape
    assert np.isfinite(after["serving_default"]["outputs"]).all()
    assert set(after["transform_features"]) == set(before["transform_features"])
    for name, values in before["transform_features"].items():
        np.testing.assert_array_equal(after["transform_features"][name], values)
