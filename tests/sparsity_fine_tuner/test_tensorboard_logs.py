"""TensorBoard logs of a training."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tfx_compression.pruning.plan import PruningPlan
from tfx_compression.sparsity_fine_tuner.config import FineTuning
from tfx_compression.sparsity_fine_tuner.fine_tune import fine_tune

from tests.support import nets
from tests.support.fine_tuning import class_batches, classifier


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    read.Reload()
    tags = read.Tags()["tensors"]
    return {
        tag: {event.step: float(tf.make_ndarray(event.tensor_proto)) for event in read.Tensors(tag)} for tag in tags
    }


def test_logs_have_loss_metrics_sparsity_and_learning_rate_by_step(tmp_path):
    model = classifier(tf_keras)
    plan = PruningPlan(**nets.DENSE, schedule="constant", sparsity=0.5, begin_step=2, end_step=4, frequency=1)
    config = FineTuning(mode="gradual", epochs=2, learning_rate=0.04, learning_rate_schedule="linear", log_steps=2)
    tuned = fine_tune(
        model,
        class_batches(),
        config,
        plan=plan,
        masks={},
        log_dir=str(tmp_path),
        validation_data=class_batches(32),
    )
    train, validation = events(tmp_path / "train"), events(tmp_path / "validation")
    assert set(train) == {"loss", "accuracy", "sparsity", "learning_rate"}
    assert {tag: sorted(values) for tag, values in train.items()} == {tag: [2, 4, 6] for tag in train}
    assert train["sparsity"][2] == train["sparsity"][6] == pytest.approx(0.5, abs=0.02)
    assert train["loss"][6] == pytest.approx(tuned.history[1]["loss"])
    np.testing.assert_allclose([train["learning_rate"][step] for step in (2, 4, 6)], [0.032, 0.016, 0.0], atol=1e-8)
    assert set(validation) == {"loss", "accuracy"}
    assert validation["loss"] == pytest.approx({3: tuned.history[0]["val_loss"], 6: tuned.history[1]["val_loss"]})
