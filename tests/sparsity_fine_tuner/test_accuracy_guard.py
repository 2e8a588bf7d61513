"""The accuracy guard: what it measures, and configurations that it refuses."""

import pytest
import tf_keras
from tfx_compression.errors import ConfigError
from tfx_compression.pruning.plan import PruningPlan
from tfx_compression.sparsity_fine_tuner.config import AccuracyGuard, FineTuning
from tfx_compression.sparsity_fine_tuner.fine_tune import fine_tune

from tests.support import nets
from tests.support.errors import raises

PLAN = PruningPlan(**nets.DENSE, schedule="iterative")


@pytest.mark.slow
def test_guard_measures_on_the_evaluation_data():
    teacher = nets.dense("keras2", None)
    teacher.model.fit(nets.points(64), epochs=40, verbose=0)
    pruned = nets.pruned(teacher, schedule="iterative", iterations=3, sparsity=0.9)
    data = nets.points(64, seed=4)
    guard = AccuracyGuard(max_drop=0.3, step=0.2, minimum_step=0.05)
    config = FineTuning(mode="iterative", epochs=3, learning_rate=0.02, guard=guard)
    tuned = fine_tune(pruned, nets.points(64), config, teacher, validation_data=data)
    best = [each for each in tuned.rounds if each.accepted][-1]
    assert best.drop <= 0.3 < max(each.drop for each in tuned.rounds)
    assert best.metrics["loss"] - teacher.model.evaluate(data, verbose=0) == pytest.approx(best.drop, abs=1e-5)
    assert tuned.model.evaluate(data, verbose=0) == pytest.approx(best.metrics["loss"], rel=1e-5)


def test_guard_without_evaluation_data_is_refused():
    config = FineTuning(mode="iterative", guard=AccuracyGuard(max_drop=0.1, baseline=1.0))
    with raises(ConfigError, field="FineTuning.guard", code="evaluation-data-missing"):
        fine_tune(nets.dense("keras2", None), nets.points(), config, plan=PLAN)


def test_guard_without_a_baseline_is_refused():
    config = FineTuning(mode="iterative", guard=AccuracyGuard(max_drop=0.1))
    with raises(ConfigError, field="FineTuning.guard", code="baseline-missing"):
        fine_tune(nets.dense("keras2", None), nets.points(), config, plan=PLAN, validation_data=nets.points())


def test_guard_of_an_unknown_metric_is_refused_before_training():
    config = FineTuning(mode="iterative", guard=AccuracyGuard(max_drop=0.1, metric="accuracy"))
    model, teacher, steps = nets.dense("keras2", None), nets.dense("keras2", None), []
    count = tf_keras.callbacks.LambdaCallback(on_batch_end=lambda batch, logs: steps.append(batch))
    with raises(ConfigError, field="AccuracyGuard.metric", code="unknown-metric", match="'accuracy'.*loss"):
        fine_tune(
            model,
            nets.points(),
            config,
            teacher,
            plan=PLAN,
            validation_data=nets.points(),
            callbacks=[count],
        )
    assert not steps
