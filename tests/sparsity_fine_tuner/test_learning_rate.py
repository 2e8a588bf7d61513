"""The learning rate of each step, against Keras' schedules."""

import numpy as np
import pytest
import tf_keras
from tfx_compression.sparsity_fine_tuner.config import FineTuning
from tfx_compression.sparsity_fine_tuner.learning_rate import learning_rate


@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_learning_rate_equals_keras_schedules_after_warm_up(schedule, warmup):
    config = FineTuning(
        learning_rate=0.04, learning_rate_schedule=schedule, final_learning_rate=0.25, warmup_steps=warmup
    )
    decay_steps = 10 - warmup - 1  # the last step has the final rate
    schedules = tf_keras.optimizers.schedules
    keras_schedule = {
        "constant": lambda step: 0.04,
        "linear": schedules.PolynomialDecay(0.04, decay_steps, end_learning_rate=0.01, power=1.0),
        "cosine": schedules.CosineDecay(0.04, decay_steps, alpha=0.25),
    }[schedule]
    expected = [0.04 * (step + 1) / warmup for step in range(warmup)]
    expected += [float(keras_schedule(step)) for step in range(10 - warmup)]
    np.testing.assert_allclose([learning_rate(config, step, 10) for step in range(10)], expected, rtol=1e-5)
    assert expected[-1] == pytest.approx(0.04 if schedule == "constant" else 0.01)
