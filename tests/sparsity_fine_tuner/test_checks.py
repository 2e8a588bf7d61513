"""Arguments of fine_tune that are refused before training."""

import pytest
from tfx_compression.errors import ConfigError
from tfx_compression.pruning.plan import PruningPlan
from tfx_compression.sparsity_fine_tuner import checks
from tfx_compression.sparsity_fine_tuner.config import EarlyStopping, FineTuning
from tfx_compression.sparsity_fine_tuner.fine_tune import fine_tune

from tests.support import nets
from tests.support.errors import raises


@pytest.mark.parametrize("mode", ["gradual", "iterative"])
def test_modes_that_prune_further_require_a_plan(mode):
    with raises(ConfigError, field="FineTuning.mode", code="plan-missing", match=f"'{mode}'"):
        checks.require_mode_fits_plan(FineTuning(mode=mode), None)


@pytest.mark.parametrize(
    ("mode", "schedule", "others"),
    [
        ("fixed", "cubic", "mode 'gradual'"),
        ("fixed", "polynomial", "mode 'gradual'"),
        ("fixed", "constant", "mode 'gradual' or 'dynamic'"),
        ("fixed", "iterative", "mode 'iterative'"),
        ("gradual", "one_shot", "'iterative' or 'dynamic'"),
        ("gradual", "iterative", "mode 'iterative'"),
        ("iterative", "cubic", "mode 'gradual'"),
        ("dynamic", "cubic", "mode 'gradual'"),
        ("dynamic", "iterative", "mode 'iterative'"),
        ("cluster", "cubic", "mode 'gradual'"),
        ("quantization_aware", "iterative", "mode 'iterative'"),
    ],
)
def test_schedule_that_the_mode_does_not_complete_is_refused(mode, schedule, others):
    plan = PruningPlan(schedule=schedule, sparsity=0.7)
    with raises(ConfigError, code="schedule-not-completed", match=rf"'{schedule}'.*'{mode}'.*0\.7.*{others}"):
        checks.require_mode_fits_plan(FineTuning(mode=mode), plan)


def test_dynamic_mode_refuses_plans_that_remove_channels():
    plan = PruningPlan(technique="neuron")
    with raises(ConfigError, field="FineTuning.mode", code="mode-for-weights-only", match="'dynamic'"):
        checks.require_mode_fits_plan(FineTuning(mode="dynamic"), plan)


def test_rewinding_refuses_plans_that_remove_channels():
    plan = PruningPlan(technique="neuron", protect=("last",), schedule="iterative", iterations=2)
    config = FineTuning(mode="iterative", rewind="start")
    with raises(ConfigError, field="FineTuning.rewind", code="rewind-for-weights-only"):
        checks.require_mode_fits_plan(config, plan)


def test_monitor_without_evaluation_data_is_refused():
    config = FineTuning(early_stopping=EarlyStopping(monitor="val_accuracy"))
    with raises(ConfigError, field="EarlyStopping.monitor", code="evaluation-data-missing", match="'val_accuracy'"):
        checks.require_monitored_data(config, None)
    checks.require_monitored_data(config, nets.points())


@pytest.mark.parametrize("kind", nets.EVERY_KIND)
@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"optimizer": "nonesuch", "loss": "mse"}, "FineTuning.optimizer"),
        ({"loss": "nonesuch"}, "FineTuning.loss"),
        ({"loss": "mse", "metrics": ("mae", "nonesuch")}, "FineTuning.metrics"),
    ],
    ids=["optimizer", "loss", "metric"],
)
def test_names_unknown_to_keras_are_refused(kind, options, field, tmp_path):
    config = FineTuning(**options)
    with raises(ConfigError, field=field, code="unknown-name", match="'nonesuch'"):
        fine_tune(nets.dense(kind, tmp_path), nets.points(), config)
