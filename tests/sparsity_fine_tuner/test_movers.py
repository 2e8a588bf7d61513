"""Masks that move: at which steps, how far, and where to."""

import math

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from hypothesis import given, settings
from hypothesis import strategies as st
from tfx_compression import model_handle
from tfx_compression.errors import ConfigError, ModelError
from tfx_compression.pruning.masks import check_pattern
from tfx_compression.pruning.plan import LayerRule, PruningPlan
from tfx_compression.pruning.prune import prune
from tfx_compression.sparsity_fine_tuner.config import FineTuning
from tfx_compression.sparsity_fine_tuner.movers import Schedule, drop_and_grow
from tfx_compression.sparsity_fine_tuner.training import fine_tune

from tests.support import helpers, nets
from tests.support.nets import eagerly  # noqa: F401 - a fixture

SGD = {"optimizer": "sgd", "loss": "mse", "learning_rate": 0.05}


def sparsity(values: np.ndarray) -> float:
    return float(np.mean(values == 0))


# The schedule.


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
def test_the_schedule_is_tfmots_polynomial_decay(plan):
    import tensorflow_model_optimization as tfmot

    power = 3.0 if plan.schedule == "cubic" else plan.power
    theirs = tfmot.sparsity.keras.PolynomialDecay(
        plan.initial_sparsity, plan.sparsity, plan.begin_step, plan.end_step, power, plan.frequency
    )
    own = Schedule(plan, plan.end_step + 5)
    for step in range(plan.end_step + 6):
        due, wanted = theirs(step)
        reached = plan.initial_sparsity + (plan.sparsity - plan.initial_sparsity) * own.gone(step)
        assert own.due(step) == bool(due) or step == plan.end_step  # where ours always moves
        assert reached == pytest.approx(float(wanted), abs=1e-5)


def test_the_constant_schedule_is_tfmots_and_at_the_target_at_once():
    import tensorflow_model_optimization as tfmot

    theirs = tfmot.sparsity.keras.ConstantSparsity(0.7, begin_step=3, end_step=20, frequency=4)
    own = Schedule(PruningPlan(schedule="constant", sparsity=0.7, begin_step=3, end_step=20, frequency=4), 30)
    assert [step for step in range(31) if own.due(step)] == [3, 7, 11, 15, 19, 20]
    for step in range(31):
        due, wanted = theirs(step)
        assert own.due(step) == bool(due) or step == 20
        assert 0.7 * own.gone(step) == pytest.approx(float(wanted))


@pytest.mark.parametrize(("steps", "end"), [(100, 75), (10, 7), (2, 1)])
def test_without_an_end_the_schedule_takes_three_quarters_of_the_training(steps, end):
    schedule = Schedule(PruningPlan(schedule="cubic"), steps)
    assert schedule.end == end
    assert schedule.due(end) and not schedule.due(end + 1)
    assert schedule.gone(end) == 1.0


def test_a_schedule_that_is_longer_than_the_training_is_refused_with_the_remedy():
    plan = PruningPlan(**nets.DENSE, schedule="cubic", end_step=9)
    model = nets.dense("keras2", None)
    with pytest.raises(ConfigError, match=r"to 9, and the training has 8 steps. Remedy: more epochs"):
        fine_tune(model, nets.points(), FineTuning(mode="gradual", epochs=2), plan=plan)


def test_a_schedule_that_begins_after_its_default_end_is_refused():
    plan = PruningPlan(**nets.DENSE, schedule="cubic", begin_step=6)
    with pytest.raises(ConfigError, match=r"from step 6 to 6, and the training has 8 steps"):
        fine_tune(nets.dense("keras2", None), nets.points(), FineTuning(mode="gradual", epochs=2), plan=plan)


# Gradual pruning.


def gradual(kind, folder, data=None, epochs=4, optimizer="sgd", record=False, **plan):
    """A net that was pruned gradually in 16 steps; what was seen on the way."""
    model = nets.dense(kind, folder)
    plan = PruningPlan(**{**nets.DENSE, "schedule": "cubic", "sparsity": 0.8, "frequency": 3, **plan})
    pruned = prune(model, plan)
    model = pruned.handle
    seen = nets.seen(model)
    config = FineTuning(mode="gradual", epochs=epochs, **{**SGD, "optimizer": optimizer})
    tuned = fine_tune(
        model,
        nets.points() if data is None else data,
        config,
        plan=plan,
        target_sparsity=pruned.target_sparsity if record else None,
        masks=pruned.masks,
        callbacks=[seen],
    )
    return tuned, seen


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_gradual_pruning_of_a_keras_2_model_is_tfmots_to_the_bit(optimizer):
    """tfmot counts a step when it begins, so its schedule is one behind ours, which counts them when they end.

    Both choose at the same numbers of steps here, in one epoch: at the end of each, tfmot masks once more.
    """
    import tensorflow_model_optimization as tfmot

    data = nets.points(256)
    _, seen = gradual("keras2", None, data, epochs=1, optimizer=optimizer, end_step=12)

    model = helpers.small_dense()
    schedule = tfmot.sparsity.keras.PolynomialDecay(0.0, 0.8, 1, 13, power=3, frequency=3)
    wrapped = tfmot.sparsity.keras.prune_low_magnitude(model, schedule)
    made = {"sgd": tf_keras.optimizers.SGD, "adam": tf_keras.optimizers.Adam}[optimizer](SGD["learning_rate"])
    wrapped.compile(made, "mse", run_eagerly=True)
    layers = [layer for layer in wrapped.layers if hasattr(layer, "pruning_vars")]
    masks, values = [], []

    def keep(batch, logs):
        masks.append([layer.pruning_vars[0][1].numpy() != 0 for layer in layers])
        values.append([layer.pruning_vars[0][0].numpy() for layer in layers])

    watch = tf_keras.callbacks.LambdaCallback(on_train_batch_end=keep)
    wrapped.fit(data, epochs=1, verbose=0, callbacks=[tfmot.sparsity.keras.UpdatePruningStep(), watch])
    assert sorted(seen.moved) == [3, 6, 9, 12]
    for step in range(1, 16):  # the masks of tfmot's next step are ours after this one
        for name, mask in zip(nets.KERNELS, masks[step], strict=True):
            np.testing.assert_array_equal(seen.kernels[step][name] != 0, mask, err_msg=f"{name} after {step} steps")
    for name, value, mask in zip(nets.KERNELS, values[15], masks[15], strict=True):
        np.testing.assert_array_equal(seen.kernels[16][name], value * mask)
        assert np.mean(mask) == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize("kind", nets.EVERY_KIND)
def test_every_kind_of_model_is_pruned_gradually_by_the_schedule(kind, tmp_path):
    tuned, seen = gradual(kind, tmp_path)
    assert sorted(seen.moved) == [3, 6, 9, 12]
    for step, reached in seen.moved.items():
        for name in nets.KERNELS:
            wanted = 0.8 * (1 - (1 - step / 12) ** 3)
            size = seen.kernels[step][name].size
            assert sparsity(seen.kernels[step][name]) == pytest.approx(wanted, abs=1.01 / size)
        assert reached == pytest.approx(np.mean(np.concatenate([k.ravel() for k in seen.kernels[step].values()]) == 0))
    for name, mask in tuned.masks.items():
        np.testing.assert_array_equal(seen.kernels[-1][name] != 0, mask)


@pytest.mark.slow
@pytest.mark.parametrize("kind", nets.KINDS[1:])
def test_the_masks_are_the_same_for_every_kind_of_the_same_net(kind, tmp_path):
    expected, _ = gradual("keras2", None)
    tuned, _ = gradual(kind, tmp_path)
    for name, mask in expected.masks.items():
        np.testing.assert_array_equal(tuned.masks[name], mask)


def test_an_end_that_is_no_multiple_of_the_frequency_is_due_all_the_same():
    _, seen = gradual("keras2", None, frequency=5, end_step=13)
    assert sorted(seen.moved) == [5, 10, 13]
    assert sparsity(seen.kernels[13]["hidden"]) == pytest.approx(0.8, abs=0.01)


def test_what_is_masked_may_come_back_when_masks_are_chosen_anew():
    """As with tfmot: in the step before, masked weights move as the optimizer has them."""
    _, seen = gradual("keras2", None, epochs=8, schedule="constant", sparsity=0.5, frequency=2)
    came_back = [
        np.any((before[name] == 0) & (after[name] != 0))
        for before, after in zip(seen.kernels[:-1], seen.kernels[1:], strict=True)
        for name in nets.KERNELS
    ]
    assert any(came_back)
    assert all(sparsity(each["hidden"]) == 0.5 for each in seen.kernels)


@pytest.mark.parametrize("criterion", ["taylor", pytest.param("fisher", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", nets.EVERY_KIND)
def test_gradual_pruning_by_a_criterion_of_the_data(kind, criterion, tmp_path):
    model = nets.dense(kind, tmp_path)
    plan = PruningPlan(
        **nets.DENSE, schedule="polynomial", sparsity=0.6, criterion=criterion, frequency=2, sample_rows=16
    )
    seen = nets.seen(model)
    fine_tune(model, nets.points(), FineTuning(mode="gradual", epochs=1, **SGD), plan=plan, callbacks=[seen])
    assert sorted(seen.moved) == [2, 3]
    assert all(sparsity(value) == pytest.approx(0.6, abs=0.02) for value in seen.kernels[-1].values())


def test_the_criterion_of_the_data_chooses_the_masks(eagerly):  # noqa: F811
    model = nets.dense("keras2", None)
    plan = PruningPlan(**nets.DENSE, schedule="constant", sparsity=0.5, criterion="taylor", end_step=2, sample_rows=32)
    step, made = nets.before_holds(model)
    tuned = fine_tune(
        model, nets.points(32), FineTuning(mode="gradual", epochs=1, **SGD), plan=plan, train_step=step, masks={}
    )
    x, y = helpers.points(32)
    gradients = gradients_of(made[1], model.model, x, y)
    for name, mask in tuned.masks.items():
        scores = np.abs(gradients[name] * made[1][name])
        largest = np.sort(scores.ravel())[-scores.size // 2 :]
        np.testing.assert_array_equal(mask, scores >= largest[0])


def test_the_sparsity_of_each_layer_is_that_of_pruners_record():
    rules = (LayerRule(layers="y", sparsity=0.25),)
    tuned, seen = gradual("keras2", None, record=True, rules=rules)
    assert sparsity(seen.kernels[-1]["y"]) == 0.25
    assert sparsity(seen.kernels[-1]["hidden"]) == pytest.approx(0.8, abs=0.01)
    assert sparsity(seen.kernels[6]["y"]) == pytest.approx(0.25 * (1 - 0.5**3), abs=0.04)  # on the same schedule
    assert {name: sparsity(mask) for name, mask in tuned.masks.items()}["y"] == 0.25


def test_a_layer_that_a_rule_leaves_alone_stays_dense():
    _, seen = gradual("keras2", None, rules=(LayerRule(layers="y", sparsity=0.0),))
    assert sparsity(seen.kernels[-1]["y"]) == 0.0
    assert sparsity(seen.kernels[-1]["hidden"]) == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("record", [True, False])
@pytest.mark.parametrize(
    "allocation", ["global", *(pytest.param(each, marks=pytest.mark.slow) for each in ("erdos_renyi", "lamp"))]
)
def test_gradual_pruning_shares_the_sparsity_out_as_the_plan_does(allocation, record):
    model = nets.dense("keras2", None)
    plan = PruningPlan(**nets.DENSE, schedule="cubic", sparsity=0.3, frequency=2, allocation=allocation)
    pruned = prune(model, plan)
    model = pruned.handle
    targets = {group.name: group.target_sparsity for group in pruned.record.groups}
    seen = nets.seen(model)
    fine_tune(
        model,
        nets.points(),
        FineTuning(mode="gradual", epochs=2, **SGD),
        plan=plan,
        target_sparsity=pruned.target_sparsity if record else None,
        masks=pruned.masks,
        callbacks=[seen],
    )
    for name, value in seen.kernels[-1].items():
        assert sparsity(value) == pytest.approx(targets[name], abs=1.01 / value.size)


@pytest.mark.slow
def test_n_of_m_is_chosen_anew_while_training_and_always_whole():
    _, seen = gradual("keras2", None, epochs=8, schedule="constant", pattern="2:4", sparsity=0.5)
    kernels = model_handle.wrap(helpers.small_dense()).kernels
    plan = PruningPlan(pattern="2:4", sparsity=0.5)
    for each in seen.kernels:
        for name, value in each.items():
            assert check_pattern(kernels[name], value, plan) and sparsity(value) == 0.5
    assert any((seen.kernels[0][name] != 0).tolist() != (seen.kernels[-1][name] != 0).tolist() for name in nets.KERNELS)


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["4x1", "2x2", "3x2"])  # of 3x2, the last are cut off
def test_blocks_are_whole_at_every_update(pattern):
    _, seen = gradual("keras2", None, pattern=pattern)
    kernels, plan = model_handle.wrap(helpers.small_dense()).kernels, PruningPlan(pattern=pattern)
    for step in seen.moved:
        for name, value in seen.kernels[step].items():
            assert check_pattern(kernels[name], value, plan)
    assert sparsity(seen.kernels[-1]["hidden"]) > 0.7


# Dynamic sparse training.


def plainly_dropped_and_grown(weights, growth, active, share):
    """The rule of the paper, one element after the other."""
    places = [tuple(place) for place in np.argwhere(active)]
    count = math.floor(share * len(places))
    dropped = sorted(places, key=lambda place: weights[place])[:count]
    stays = set(places) - set(dropped)
    empty = [place for place in np.ndindex(*active.shape) if place not in stays]
    grown = sorted(empty, key=lambda place: -growth[place])[:count]
    return stays | set(grown)


@st.composite
def updates(draw):
    shape = draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    size = shape[0] * shape[1]
    numbers = st.lists(st.integers(0, 5), min_size=size, max_size=size)  # few, so that many tie
    weights, growth = (np.array(draw(numbers), np.float32).reshape(shape) for _ in range(2))
    active = np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size))).reshape(shape)
    return weights, growth, active, draw(st.floats(0.0, 1.0))


@given(update=updates())
def test_drop_and_grow_is_the_rule_of_the_paper(update):
    weights, growth, active, share = update
    before = active.copy()
    chosen = drop_and_grow(weights, growth, active, share)
    assert {tuple(place) for place in np.argwhere(chosen)} == plainly_dropped_and_grown(weights, growth, active, share)
    assert np.count_nonzero(chosen) == np.count_nonzero(active)
    np.testing.assert_array_equal(active, before)


def test_of_equals_the_first_are_dropped_and_grown():
    ones = np.ones(6, np.float32)
    active = np.array([True, True, True, True, False, False])
    np.testing.assert_array_equal(drop_and_grow(ones, ones, active, 0.5), [True, True, True, True, False, False])
    np.testing.assert_array_equal(
        drop_and_grow(ones, np.array([0, 0, 1, 1, 2, 2]), active, 0.5), [False, False, True, True, True, True]
    )


def gradients_of(values, network, x, y):
    """Of the mean squared error by the dense net's kernels, by a tape of its own."""
    kernels = {name: tf.Variable(values[name]) for name in nets.KERNELS}
    _, bias, _, last_bias = (tf.convert_to_tensor(weight) for weight in network.get_weights())
    with tf.GradientTape() as tape:
        hidden = tf.nn.relu(x @ kernels["hidden"] + bias)
        loss = tf.reduce_mean((hidden @ kernels["y"] + last_bias - y) ** 2)
    return {name: value.numpy() for name, value in tape.gradient(loss, kernels).items()}


@pytest.mark.parametrize("block", [(1, 1), pytest.param((2, 2), marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", nets.EVERY_KIND[:2])
def test_dynamic_training_drops_the_least_and_grows_where_the_gradient_is_largest(kind, block, eagerly):  # noqa: F811
    model = nets.dense(kind, None)
    plan = PruningPlan(
        **nets.DENSE, sparsity=0.5, frequency=3, pattern="unstructured" if block == (1, 1) else "2x2", end_step=10
    )
    pruned = prune(model, plan)
    model = pruned.handle
    step, made = nets.before_holds(model)
    seen = nets.seen(model)
    x, y = helpers.points(64)
    config = FineTuning(mode="dynamic", epochs=4, drop_fraction=0.6, batch_size=16, learning_rate=0.05)
    updates, masks = [], [pruned.masks]

    def expected(number):
        before = masks[-1]
        held = {name: made[-1][name] * before[name] for name in nets.KERNELS}
        gradients = gradients_of(held, model.model, x, y)
        share = 0.3 * (1 + math.cos(math.pi * number / 10))
        pooled = [{name: _pooled(values[name], block) for name in nets.KERNELS} for values in (held, gradients, before)]
        places = {
            name: plainly_dropped_and_grown(pooled[0][name], pooled[1][name], pooled[2][name] > 0.5, share)
            for name in nets.KERNELS
        }
        updates.append((number, held, before))
        masks.append({name: _whole(places[name], pooled[2][name].shape, block) for name in nets.KERNELS})

    seen.on_prune = lambda number, reached: expected(number)
    tuned = fine_tune(
        model,
        nets.points(),
        config,
        plan=pruned.plan,
        masks=pruned.masks,
        train_step=step,
        callbacks=[seen],
    )
    assert [number for number, *_ in updates] == [3, 6, 9]
    for (number, held, before), chosen in zip(updates, masks[1:], strict=True):
        for name, mask in chosen.items():
            after = seen.kernels[number][name]
            stayed = mask & before[name]
            np.testing.assert_array_equal(after[stayed], held[name][stayed])  # also those that were dropped and grown
            assert not after[~stayed].any()  # what is grown begins at zero
            following = made[number][name] * mask
            np.testing.assert_array_equal(seen.kernels[number + 1][name], following)
    for name, mask in tuned.masks.items():
        np.testing.assert_array_equal(mask, masks[-1][name])
    assert any((mask != pruned.masks[name]).any() for name, mask in tuned.masks.items())


def _whole(places, shape, block):
    mask = np.zeros(shape, bool)
    mask[tuple(np.array(sorted(places)).T)] = True
    return mask.repeat(block[0], 0).repeat(block[1], 1)


def _pooled(values, block):
    rows, columns = values.shape
    return np.abs(values).reshape(rows // block[0], block[0], columns // block[1], block[1]).mean((1, 3))


@pytest.mark.parametrize("kind", nets.EVERY_KIND)
@pytest.mark.parametrize("pattern", ["unstructured", pytest.param("2x2", marks=pytest.mark.slow)])
def test_dynamic_training_keeps_the_number_of_zeros_of_each_kernel(kind, pattern, tmp_path):
    model = nets.dense(kind, tmp_path)
    pruned = nets.pruned(model, sparsity=0.75, frequency=3, pattern=pattern)
    model = pruned.handle
    seen = nets.seen(model)
    config = FineTuning(mode="dynamic", epochs=4, drop_fraction=0.5, **SGD)
    tuned = fine_tune(
        model,
        nets.points(),
        config,
        plan=pruned.plan,
        masks=pruned.masks,
        callbacks=[seen],
    )
    assert sorted(seen.moved) == [3, 6, 9]
    changed = False
    for name, mask in tuned.masks.items():
        assert np.count_nonzero(mask) == np.count_nonzero(pruned.masks[name])
        changed |= bool((mask != pruned.masks[name]).any())
        for each in seen.kernels:
            assert np.count_nonzero(each[name]) <= np.count_nonzero(mask)
        assert not seen.kernels[-1][name][~mask].any()
    assert changed


@pytest.mark.slow
@pytest.mark.parametrize("kind", nets.KINDS[1:])
def test_dynamic_training_ends_with_the_same_masks_for_every_kind(kind, tmp_path):
    found = []
    for each in ("keras2", kind):
        model = nets.dense(each, tmp_path)
        pruned = nets.pruned(model, sparsity=0.75, frequency=3)
        model = pruned.handle
        config = FineTuning(mode="dynamic", epochs=4, drop_fraction=0.5, **SGD)
        found.append(
            fine_tune(
                model,
                nets.points(),
                config,
                plan=pruned.plan,
                masks=pruned.masks,
            ).masks
        )
    for name, mask in found[0].items():
        np.testing.assert_array_equal(found[1][name], mask)


def test_dynamic_training_of_n_of_m_is_refused_with_the_remedy():
    model = nets.dense("keras2", None)
    pruned = nets.pruned(model, pattern="2:4", sparsity=0.5, frequency=2)
    model = pruned.handle
    with pytest.raises(ConfigError, match=r"'2:4'.*Remedy: mode 'fixed', or an unstructured pattern or blocks"):
        fine_tune(
            model,
            nets.points(),
            FineTuning(mode="dynamic"),
            plan=pruned.plan,
            masks=pruned.masks,
        )


def test_dynamic_training_in_which_nothing_would_ever_move_is_refused():
    model = nets.dense("keras2", None)
    pruned = nets.pruned(model, frequency=100)
    model = pruned.handle
    with pytest.raises(ConfigError, match=r"every 100 steps.*Remedy: a smaller PruningPlan.frequency"):
        fine_tune(
            model,
            nets.points(),
            FineTuning(mode="dynamic"),
            plan=pruned.plan,
            masks=pruned.masks,
        )


@pytest.mark.parametrize("mode", ["gradual", "dynamic"])
def test_the_loss_in_the_log_is_that_of_the_steps_and_not_of_the_probe(mode, eagerly):  # noqa: F811
    model = nets.dense("keras2", None)
    schedule = {"schedule": "constant", "criterion": "taylor"} if mode == "gradual" else {}
    plan = PruningPlan(**nets.DENSE, sparsity=0.5, frequency=1, end_step=3, **schedule)
    pruned = prune(model, plan, nets.points())
    model = pruned.handle
    losses = []

    def step(network, batch):
        with_loss = tf.reduce_mean((network(batch[0]) - batch[1]) ** 2)
        losses.append(float(with_loss))
        return network.train_step(batch)

    tuned = fine_tune(
        model,
        nets.points(),
        FineTuning(mode=mode, epochs=1, **SGD),
        plan=plan,
        masks=pruned.masks,
        train_step=step,
    )
    assert len(losses) == 4
    assert tuned.history[0]["loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_gradients_that_are_not_finite_are_an_error_that_names_the_layer():
    x, y = helpers.points(64)
    y[60] = np.inf  # the step that sees it comes later
    model = nets.dense("keras2", None)
    plan = PruningPlan(**nets.DENSE, schedule="constant", criterion="taylor", frequency=1, end_step=2)
    with pytest.raises(ModelError, match="not finite"):
        fine_tune(model, helpers.batches(x, y), FineTuning(mode="gradual", epochs=1, **SGD), plan=plan, masks={})
