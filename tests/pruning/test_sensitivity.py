"""The measurement of sensitivity curves, and the allocation of least loss."""

import contextlib
import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tfx_compression.errors import ConfigError, ModelError
from tfx_compression.pruning.record import SensitivityCurve
from tfx_compression.pruning.sensitivity import STEPS, SensitivityOptions, measure, solve

from tests.support.errors import raises

LEVELS = (0.25, 0.5, 0.75)


class FakeModel:
    """A model with a known loss: `ablate` and `metric` for `measure`, and the list of measurements."""

    def __init__(self, fails_after=None):
        self.now, self.measured, self.fails_after = None, [], fails_after

    @contextlib.contextmanager
    def ablate(self, name, level):
        self.now = (name, level)
        try:
            yield
        finally:
            self.now = None

    def metric(self):
        if self.fails_after is not None and len(self.measured) == self.fails_after:
            raise KeyboardInterrupt
        self.measured.append(self.now)
        return 1.0 if self.now is None else 1.0 + len(self.now[0]) * self.now[1]


def test_each_group_is_measured_alone_at_each_level():
    model, reported = FakeModel(), []
    options = SensitivityOptions(progress=lambda *progress: reported.append(progress))
    curves = measure(["a", "bb"], LEVELS, model.ablate, model.metric, options)
    assert curves == [
        SensitivityCurve(name="a", levels=(0, *LEVELS), values=(1, 1.25, 1.5, 1.75)),
        SensitivityCurve(name="bb", levels=(0, *LEVELS), values=(1, 1.5, 2, 2.5)),
    ]
    assert model.measured == [None, *itertools.product(["a", "bb"], LEVELS)]
    assert reported == [
        (1, 7, ""),
        *((2 + i, 7, name) for i, (name, _) in enumerate(itertools.product(["a", "bb"], LEVELS))),
    ]


@pytest.mark.parametrize("after", [0, 1, 4, 6])
def test_an_interrupted_measurement_is_resumed(tmp_path, after):
    path, names = str(tmp_path / "sensitivity.json"), ["a", "bb"]
    broken, resumed, complete = FakeModel(fails_after=after), FakeModel(), FakeModel()
    with pytest.raises(KeyboardInterrupt):
        measure(names, LEVELS, broken.ablate, broken.metric, SensitivityOptions(path, "model 1"))
    reported = []
    options = SensitivityOptions(path, "model 1", lambda done, total, name: reported.append(done))
    curves = measure(names, LEVELS, resumed.ablate, resumed.metric, options)
    assert curves == measure(names, LEVELS, complete.ablate, complete.metric)
    assert broken.measured + resumed.measured == complete.measured
    assert reported == list(range(1, 8))
    assert [file.name for file in tmp_path.iterdir()] == ["sensitivity.json"]


def test_values_of_another_model_are_not_used(tmp_path):
    path, model = str(tmp_path / "sensitivity.json"), FakeModel()
    measure(["a"], LEVELS, model.ablate, model.metric, SensitivityOptions(path, "model 1"))
    measure(["a"], LEVELS, model.ablate, model.metric, SensitivityOptions(path, "model 2"))
    assert len(model.measured) == 8
    assert json.loads((tmp_path / "sensitivity.json").read_text())["fingerprint"] == "model 2"


def test_only_an_added_level_is_measured(tmp_path):
    path, model = str(tmp_path / "sensitivity.json"), FakeModel()
    measure(["a"], LEVELS, model.ablate, model.metric, SensitivityOptions(path, "model"))
    measure(["a"], (*LEVELS, 0.9), model.ablate, model.metric, SensitivityOptions(path, "model"))
    assert model.measured[4:] == [("a", 0.9)]


def test_a_store_with_other_content_is_rejected(tmp_path):
    (tmp_path / "sensitivity.json").write_text("half a fi")
    options = SensitivityOptions(str(tmp_path / "sensitivity.json"))
    with raises(ConfigError, code="unreadable-store", match=r"sensitivity\.json"):
        measure(["a"], LEVELS, FakeModel().ablate, FakeModel().metric, options)


def test_a_metric_that_is_not_finite_is_rejected_with_its_place():
    model = FakeModel()
    with raises(ModelError, code="not-finite", match="before pruning"):
        measure(["a"], LEVELS, model.ablate, lambda: float("nan"))
    with raises(ModelError, code="not-finite", match="'a' pruned to 0.5"):
        measure(["a"], LEVELS, model.ablate, lambda: float("nan") if model.now == ("a", 0.5) else 1.0)


def curve(name, losses, levels=LEVELS):
    return SensitivityCurve(name=name, levels=(0.0, *levels), values=(1.0, *(1.0 + loss for loss in losses)))


def shares(weights):
    total = sum(weights.values())
    return (
        lambda name, level: weights[name] * level / total,
        lambda sparsities: sum(weights[name] * level for name, level in sparsities.items()) / total,
    )


def loss_at(one, level):
    worse = np.maximum.accumulate(np.maximum(np.array(one.values) - one.values[0], 0))
    return float(np.interp(level, one.levels, worse))


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(*[st.floats(-0.2, 2).map(lambda x: round(x, 3))] * 3), min_size=1, max_size=3),
    st.lists(st.integers(1, 50), min_size=3, max_size=3),
    st.floats(0.05, 0.74),
)
def test_the_solution_equals_exhaustive_search(losses, weights, sparsity):
    curves = [curve(str(i), values) for i, values in enumerate(losses)]
    saving, achieved = shares({one.name: weight for one, weight in zip(curves, weights, strict=False)})
    grid = sorted({*(0.75 * i / STEPS for i in range(STEPS + 1)), *LEVELS})
    table = [[(loss_at(one, level), saving(one.name, level)) for level in grid] for one in curves]
    best = min(
        sum(loss for loss, _ in picked)
        for picked in itertools.product(*table)
        if sum(gain for _, gain in picked) >= sparsity - 1e-9
    )
    actual = solve(curves, saving, sparsity, achieved, higher_is_better=False)
    assert achieved(actual) >= sparsity - 1e-9
    assert sum(loss_at(one, actual[one.name]) for one in curves) == pytest.approx(best, abs=1e-4)


def test_the_least_sensitive_group_is_pruned():
    saving, achieved = shares({"hard": 10, "soft": 10})
    actual = solve([curve("hard", [1, 2, 3]), curve("soft", [0, 0, 0.1])], saving, 0.37, achieved, False)
    assert actual == {"hard": 0.0, "soft": 0.75}


def test_the_direction_of_the_metric_matters():
    saving, achieved = shares({"falls": 10, "rises": 10})
    curves = [curve("falls", [-0.1, -0.2, -0.3]), curve("rises", [0.1, 0.1, 0.1])]
    assert solve(curves, saving, 0.37, achieved, higher_is_better=True)["falls"] == 0.0
    assert solve(curves, saving, 0.37, achieved, higher_is_better=False)["rises"] == 0.0


def test_savings_of_neighbors_that_do_not_add_up_still_reach_the_target():
    kept = lambda sparsities, name: 1 - sparsities.get(name, 0.0)  # noqa: E731
    # A chain of three layers; the weights of each are its inputs times its outputs.
    achieved = lambda s: 1 - (kept(s, "a") + kept(s, "a") * kept(s, "b") + kept(s, "b") * kept(s, "c")) / 3  # noqa: E731
    curves = [curve(name, [0.1, 0.3, 1.0]) for name in "abc"]
    actual = solve(curves, lambda name, level: achieved({name: level}), 0.6, achieved, False)
    assert 0.6 <= achieved(actual) < 0.63


def test_an_unreachable_sparsity_is_rejected_with_the_highest():
    saving, achieved = shares({"a": 10})
    with raises(ConfigError, field="PruningPlan.sparsity", code="unreachable-sparsity", match=r"macs.*0\.75"):
        solve([curve("a", [1, 2, 3])], saving, 0.9, achieved, False, "macs")
    assert solve([curve("a", [1, 2, 3])], saving, 0.75, achieved, False) == {"a": 0.75}


def test_no_free_groups_are_no_problem_if_the_rules_suffice():
    assert solve([], lambda name, level: 0.0, 0.5, lambda sparsities: 0.6, False) == {}


@pytest.mark.slow
def test_thirty_groups_are_solved_in_seconds():
    generator = np.random.default_rng(0)
    curves = [curve(str(i), np.sort(generator.random(3)).tolist()) for i in range(30)]
    saving, achieved = shares({str(i): int(generator.integers(1, 100_000)) for i in range(30)})
    actual = solve(curves, saving, 0.5, achieved, False)
    assert 0.5 <= achieved(actual) < 0.502
