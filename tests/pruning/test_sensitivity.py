import contextlib
import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tfx_compression.errors import ConfigError, ModelError
from tfx_compression.pruning.record import SensitivityCurve
from tfx_compression.pruning.sensitivity import STEPS, measure, solve

LEVELS = (0.25, 0.5, 0.75)


class Bench:
    """A model whose loss is known: `apply` and `metric` for `measure`, and what was measured."""

    def __init__(self, fails_after=None):
        self.now, self.measured, self.fails_after = None, [], fails_after

    @contextlib.contextmanager
    def apply(self, name, level):
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


def test_each_part_is_measured_alone_at_each_level():
    bench, told = Bench(), []
    curves = measure(["a", "bb"], LEVELS, bench.apply, bench.metric, progress=lambda *what: told.append(what))
    assert curves == [
        SensitivityCurve(name="a", levels=(0, *LEVELS), values=(1, 1.25, 1.5, 1.75)),
        SensitivityCurve(name="bb", levels=(0, *LEVELS), values=(1, 1.5, 2, 2.5)),
    ]
    assert bench.measured == [None, *itertools.product(["a", "bb"], LEVELS)]
    assert told == [
        (1, 7, ""),
        *((2 + i, 7, name) for i, (name, _) in enumerate(itertools.product(["a", "bb"], LEVELS))),
    ]


@pytest.mark.parametrize("after", [0, 1, 4, 6])
def test_an_interrupted_measurement_goes_on_where_it_stopped(tmp_path, after):
    path, names = str(tmp_path / "sensitivity.json"), ["a", "bb"]
    broken, resumed, whole = Bench(fails_after=after), Bench(), Bench()
    with pytest.raises(KeyboardInterrupt):
        measure(names, LEVELS, broken.apply, broken.metric, path, "model 1")
    told = []
    curves = measure(names, LEVELS, resumed.apply, resumed.metric, path, "model 1", lambda *what: told.append(what[0]))
    assert curves == measure(names, LEVELS, whole.apply, whole.metric)
    assert broken.measured + resumed.measured == whole.measured
    assert told == list(range(1, 8))
    assert [file.name for file in tmp_path.iterdir()] == ["sensitivity.json"]


def test_values_of_another_model_are_not_used(tmp_path):
    path, bench = str(tmp_path / "sensitivity.json"), Bench()
    measure(["a"], LEVELS, bench.apply, bench.metric, path, "model 1")
    measure(["a"], LEVELS, bench.apply, bench.metric, path, "model 2")
    assert len(bench.measured) == 8
    assert json.loads((tmp_path / "sensitivity.json").read_text())["fingerprint"] == "model 2"


def test_a_level_more_is_all_that_is_measured(tmp_path):
    path, bench = str(tmp_path / "sensitivity.json"), Bench()
    measure(["a"], LEVELS, bench.apply, bench.metric, path, "model")
    measure(["a"], (*LEVELS, 0.9), bench.apply, bench.metric, path, "model")
    assert bench.measured[4:] == [("a", 0.9)]


def test_a_file_that_is_something_else_is_refused(tmp_path):
    (tmp_path / "sensitivity.json").write_text("half a fi")
    with pytest.raises(ConfigError, match=r"sensitivity.json holds no stored sensitivity.*Remedy"):
        measure(["a"], LEVELS, Bench().apply, Bench().metric, str(tmp_path / "sensitivity.json"))


def test_a_metric_that_is_no_number_is_told_with_its_place():
    bench = Bench()
    with pytest.raises(ModelError, match="nan for the model before pruning"):
        measure(["a"], LEVELS, bench.apply, lambda: float("nan"))
    with pytest.raises(ModelError, match="nan for 'a' pruned to 0.5"):
        measure(["a"], LEVELS, bench.apply, lambda: float("nan") if bench.now == ("a", 0.5) else 1.0)


def curve(name, losses, levels=LEVELS):
    return SensitivityCurve(name=name, levels=(0.0, *levels), values=(1.0, *(1.0 + loss for loss in losses)))


def shares(weights):
    total = sum(weights.values())
    return (
        lambda name, level: weights[name] * level / total,
        lambda sparsities: sum(weights[name] * level for name, level in sparsities.items()) / total,
    )


def envelope(made, level):
    worse = np.maximum.accumulate(np.maximum(np.array(made.values) - made.values[0], 0))
    return float(np.interp(level, made.levels, worse))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(*[st.floats(-0.2, 2).map(lambda x: round(x, 3))] * 3), min_size=1, max_size=3),
    st.lists(st.integers(1, 50), min_size=3, max_size=3),
    st.floats(0.05, 0.74),
)
def test_the_least_loss_is_that_of_trying_everything(losses, weights, sparsity):
    curves = [curve(str(i), values) for i, values in enumerate(losses)]
    saving, achieved = shares({one.name: weight for one, weight in zip(curves, weights, strict=False)})
    grid = sorted({*(0.75 * i / STEPS for i in range(STEPS + 1)), *LEVELS})
    table = [[(envelope(one, level), saving(one.name, level)) for level in grid] for one in curves]
    best = min(
        sum(loss for loss, _ in picked)
        for picked in itertools.product(*table)
        if sum(gain for _, gain in picked) >= sparsity - 1e-9
    )
    found = solve(curves, saving, sparsity, achieved, higher_is_better=False)
    assert achieved(found) >= sparsity - 1e-9
    assert sum(envelope(one, found[one.name]) for one in curves) == pytest.approx(best, abs=1e-4)


def test_the_part_that_bears_it_is_pruned():
    saving, achieved = shares({"hard": 10, "soft": 10})
    found = solve([curve("hard", [1, 2, 3]), curve("soft", [0, 0, 0.1])], saving, 0.37, achieved, False)
    assert found == {"hard": 0.0, "soft": 0.75}


def test_an_accuracy_is_better_when_higher():
    saving, achieved = shares({"falls": 10, "rises": 10})
    curves = [curve("falls", [-0.1, -0.2, -0.3]), curve("rises", [0.1, 0.1, 0.1])]
    assert solve(curves, saving, 0.37, achieved, higher_is_better=True)["falls"] == 0.0
    assert solve(curves, saving, 0.37, achieved, higher_is_better=False)["rises"] == 0.0


def test_savings_of_neighbours_that_do_not_add_up_still_reach_the_target():
    kept = lambda sparsities, name: 1 - sparsities.get(name, 0.0)  # noqa: E731
    # a chain of three layers, each with as many weights as its inputs times its outputs
    achieved = lambda s: 1 - (kept(s, "a") + kept(s, "a") * kept(s, "b") + kept(s, "b") * kept(s, "c")) / 3  # noqa: E731
    curves = [curve(name, [0.1, 0.3, 1.0]) for name in "abc"]
    found = solve(curves, lambda name, level: achieved({name: level}), 0.6, achieved, False)
    assert 0.6 <= achieved(found) < 0.63


def test_the_highest_that_can_be_reached_is_told():
    saving, achieved = shares({"a": 10})
    with pytest.raises(ConfigError, match=r"sparsity = 0.9 of the macs can't be reached .* highest is 0.75"):
        solve([curve("a", [1, 2, 3])], saving, 0.9, achieved, False, "macs")
    assert solve([curve("a", [1, 2, 3])], saving, 0.75, achieved, False) == {"a": 0.75}


def test_nothing_to_choose_is_no_problem_where_rules_do_all():
    assert solve([], lambda name, level: 0.0, 0.5, lambda sparsities: 0.6, False) == {}


@pytest.mark.slow
def test_sixty_parts_are_solved_in_seconds():
    generator = np.random.default_rng(0)
    curves = [curve(str(i), np.sort(generator.random(3)).tolist()) for i in range(60)]
    saving, achieved = shares({str(i): int(generator.integers(1, 100_000)) for i in range(60)})
    found = solve(curves, saving, 0.5, achieved, False)
    assert 0.5 <= achieved(found) < 0.501
