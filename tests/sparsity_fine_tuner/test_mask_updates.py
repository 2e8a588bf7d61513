"""Schedules of mask updates against tfmot's, and one update of RigL against the paper's rule."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tfx_compression.errors import ConfigError
from tfx_compression.pruning.plan import PruningPlan
from tfx_compression.sparsity_fine_tuner.mask_updates import Schedule, drop_and_grow

from tests.support.errors import raises
from tests.support.fine_tuning import rigl_update

slow = pytest.mark.slow


@st.composite
def schedules(draw):
    begin = draw(st.integers(0, 20))
    end = begin + draw(st.integers(1, 60))
    kind = draw(st.sampled_from(["polynomial", "cubic"]))
    power = draw(st.floats(0.5, 6.0))
    initial, final = sorted(draw(st.tuples(st.floats(0.0, 0.95), st.floats(0.01, 0.98))))
    frequency = draw(st.integers(1, 25))
    return PruningPlan(
        schedule=kind,
        power=power,
        begin_step=begin,
        end_step=end,
        frequency=frequency,
        initial_sparsity=initial,
        sparsity=final,
    )


@settings(max_examples=25, deadline=None)
@given(plan=schedules())
def test_schedule_equals_tfmots_polynomial_decay(plan):
    import tensorflow_model_optimization as tfmot

    power = 3.0 if plan.schedule == "cubic" else plan.power
    reference = tfmot.sparsity.keras.PolynomialDecay(
        plan.initial_sparsity, plan.sparsity, plan.begin_step, plan.end_step, power, plan.frequency
    )
    schedule = Schedule(plan, plan.end_step + 5)
    for step in range(plan.end_step + 6):
        due, expected = reference(step)
        reached = plan.initial_sparsity + (plan.sparsity - plan.initial_sparsity) * schedule.progress(step)
        assert schedule.is_due(step) == bool(due) or step == plan.end_step  # always due
        assert reached == pytest.approx(float(expected), abs=1e-5)


def test_constant_schedule_equals_tfmots():
    import tensorflow_model_optimization as tfmot

    reference = tfmot.sparsity.keras.ConstantSparsity(0.7, begin_step=3, end_step=20, frequency=4)
    schedule = Schedule(PruningPlan(schedule="constant", sparsity=0.7, begin_step=3, end_step=20, frequency=4), 30)
    assert [step for step in range(31) if schedule.is_due(step)] == [3, 7, 11, 15, 19, 20]
    for step in range(31):
        due, expected = reference(step)
        assert schedule.is_due(step) == bool(due) or step == 20
        assert 0.7 * schedule.progress(step) == pytest.approx(float(expected))


@pytest.mark.parametrize(("steps", "end"), [(100, 75), (10, 7), (2, 1)])
def test_schedule_ends_after_three_quarters_by_default(steps, end):
    schedule = Schedule(PruningPlan(schedule="cubic"), steps)
    assert schedule.end == end
    assert schedule.is_due(end) and not schedule.is_due(end + 1)
    assert schedule.progress(end) == 1.0


def test_schedule_longer_than_the_training_is_refused():
    plan = PruningPlan(schedule="cubic", end_step=9)
    with raises(ConfigError, field="PruningPlan.end_step", code="schedule-outside-training", match="step 9"):
        Schedule(plan, 8)


def test_schedule_that_begins_after_its_default_end_is_refused():
    plan = PruningPlan(schedule="cubic", begin_step=6)
    with raises(ConfigError, field="PruningPlan.end_step", code="schedule-outside-training", match="step 6"):
        Schedule(plan, 8)


@st.composite
def updates(draw):
    shape = draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    size = shape[0] * shape[1]
    numbers = st.lists(st.integers(0, 5), min_size=size, max_size=size)  # few values, so that many tie
    weights, growth = (np.array(draw(numbers), np.float32).reshape(shape) for _ in range(2))
    active = np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size))).reshape(shape)
    return weights, growth, active, draw(st.floats(0.0, 1.0))


@given(update=updates())
def test_drop_and_grow_follows_the_paper(update):
    weights, growth, active, share = update
    before = active.copy()
    chosen = drop_and_grow(weights, growth, active, share)
    assert {tuple(place) for place in np.argwhere(chosen)} == rigl_update(weights, growth, active, share)
    assert np.count_nonzero(chosen) == np.count_nonzero(active)
    np.testing.assert_array_equal(active, before)


def test_ties_drop_and_grow_the_first_elements():
    ones = np.ones(6, np.float32)
    active = np.array([True, True, True, True, False, False])
    np.testing.assert_array_equal(drop_and_grow(ones, ones, active, 0.5), [True, True, True, True, False, False])
    np.testing.assert_array_equal(
        drop_and_grow(ones, np.array([0, 0, 1, 1, 2, 2]), active, 0.5), [False, False, True, True, True, True]
    )
