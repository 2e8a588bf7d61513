"""Prune, train, repeat: in the plan's number of rounds, or as far as an accuracy guard allows."""

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pydantic
import tensorflow as tf

from tfx_compression import model_handle
from tfx_compression.errors import ConfigError, ModelError
from tfx_compression.keras_models import keras3
from tfx_compression.keras_models.metric_names import smaller_is_better
from tfx_compression.model_handle import ModelHandle
from tfx_compression.model_handle.compressed import Masks, read_masks, write_masks
from tfx_compression.pruning.prune import prune_step
from tfx_compression.sparsity_fine_tuner import loop, state, trainee
from tfx_compression.sparsity_fine_tuner.config import AccuracyGuard

if TYPE_CHECKING:
    from tfx_compression.sparsity_fine_tuner.training import Session

_log = logging.getLogger(__name__)
_ROUNDS = "rounds.json"
_MASKS = "masks.npz"
_NETWORK = "model.keras"
_ENOUGH = 1e-6


class Round(pydantic.BaseModel):
    """One round of pruning and training.

    Attributes:
      asked: the sparsity (of the plan's target) that it was to reach.
      reached: what it reached.
      metrics: loss and metrics on the evaluation data after training, where there is such data.
      drop: how much worse the guard's metric is than the baseline's.
      accepted: whether the next round went on from it.
      steps: of training.
    """

    model_config = pydantic.ConfigDict(frozen=True)

    asked: float
    reached: float
    metrics: dict[str, float] = {}
    drop: float | None = None
    accepted: bool = True
    steps: int = 0


@dataclasses.dataclass(frozen=True)
class Result:
    """What a fine-tuning came to: the model as it is now, its masks, its metrics, and how it went."""

    view: ModelHandle
    masks: Masks
    history: Sequence[Mapping[str, float]]
    metrics: Mapping[str, float]
    notes: Sequence[str] = ()
    rounds: Sequence[Round] = ()


@dataclasses.dataclass(frozen=True)
class _State:
    """A model on its way: how sparse it was asked to be and is, in the plan's target."""

    view: ModelHandle
    masks: Masks
    asked: float
    reached: float
    number: int  # of the round that made it; 0 is the dense model


def run(session: "Session", masks: Masks) -> Result:
    """Prunes and trains in rounds; the first trains the model as Pruner left it.

    Raises:
      ModelError: where not even the first round keeps what the guard asks for, and there is no teacher to go back to.
      ConfigError: where there is nothing to compare with, or to measure on.
    """
    return _Rounds(session, masks).run()


class _Rounds:
    def __init__(self, session: "Session", masks: Masks):
        assert session.plan is not None
        self._session, self._plan = session, session.plan
        self._guard = session.config.guard
        _require_guarded(session)
        first = self._plan.first_step_sparsity
        self._current = _State(session.trained, masks, first, first, 1)
        self._accepted: _State | None = None
        self._rounds: list[Round] = []
        self._history: list[Mapping[str, float]] = []
        self._notes: list[str] = []
        self._step = self._guard.step if self._guard else 0.0
        self._start = state.Kept(os.path.join(session.folder, "start"), _weights(session.trained))
        if not state.read_json(self._file):
            self._start.write("weights")
        self._baseline = self._measured_baseline() if self._guard else None

    def run(self) -> Result:
        self._restore()
        while not self._over():
            self._round()
        assert self._accepted is not None
        self._load(self._accepted)
        accepted = self._accepted
        made = self._rounds[accepted.number - 1].metrics if accepted.number else self._session.evaluate(accepted.view)
        metrics = {f"val_{name}": value for name, value in made.items()}
        return Result(accepted.view, accepted.masks, self._history, metrics, self._notes, self._rounds)

    def _round(self) -> None:
        session, number = self._session, len(self._rounds) + 1
        current = self._current if not self._rounds else self._pruned()
        _log.info("Round %d: sparsity %.4g", number, current.reached)
        if session.config.rewind is not None:
            self._rewind(current)
        steps = sum(each.steps for each in self._rounds)
        done = Round(asked=current.asked, reached=current.reached, accepted=False)
        try:
            outcome, masks = session.train(current.view, current.masks, name=f"round-{number:03d}", first_step=steps)
        except loop.DivergedError as error:
            if self._guard is None:
                raise
            self._notes.append(f"Round {number} is thrown away: {error}")
        else:
            current = dataclasses.replace(current, masks=masks)
            metrics = session.evaluate(current.view) if session.validation is not None else {}
            drop, accepted = self._judged(metrics)
            done = done.model_copy(
                update={"metrics": metrics, "drop": drop, "accepted": accepted, "steps": outcome.steps}
            )
            self._history += outcome.history
            self._notes += outcome.notes
        if done.accepted:
            self._accepted = current
            self._keep(current, number)
        else:
            self._back(done)
        self._rounds.append(done)
        self._save()

    def _back(self, failed: Round) -> None:
        """After a round that lost too much: half its step, from what was accepted last."""
        if self._accepted is None:
            self._accepted = self._dense(failed)
        self._step = (failed.asked - self._accepted.asked) / 2

    def _over(self) -> bool:
        if not self._rounds:
            return False
        if self._accepted is not None and self._accepted.asked >= self._plan.sparsity - _ENOUGH:
            return True
        if self._guard is None or self._rounds[-1].accepted or self._step >= self._guard.minimum_step:
            return False
        assert self._accepted is not None
        self._notes.append(
            f"The accuracy guard ended at a sparsity of {self._accepted.reached:.4g} of the {self._plan.sparsity:.4g} "
            f"asked for: more lost over {self._guard.max_drop:g} of {self._guard.metric}."
        )
        return True

    def _pruned(self) -> _State:
        """The accepted model, pruned one step further."""
        accepted, plan = self._accepted, self._plan
        assert accepted is not None
        if self._guard is not None:
            asked = min(accepted.asked + self._step, plan.sparsity)
        else:
            asked = 1 - (1 - plan.sparsity) ** ((len(self._rounds) + 1) / plan.iterations)
        self._load(accepted)
        once = plan.model_copy(update={"schedule": "one_shot"})
        pruned = prune_step(
            accepted.view,
            once,
            self._session.data(0),
            loss_fn=self._session.loss_fn,
            step_sparsity=asked,
            current_sparsity=accepted.reached,
        )
        if not plan.structured:
            # What an earlier round pruned stays so, also where it ties with weights that are worth nothing.
            masks = {name: mask & accepted.masks.get(name, True) for name, mask in pruned.masks.items()}
            return _State(accepted.view, masks, asked, pruned.record.achieved_sparsity, len(self._rounds) + 1)
        gone = 1 - (1 - accepted.reached) * (1 - pruned.record.achieved_sparsity)
        return _State(model_handle.wrap(pruned.model), {}, asked, gone, len(self._rounds) + 1)

    def _judged(self, metrics: Mapping[str, float]) -> tuple[float | None, bool]:
        if self._guard is None or self._baseline is None:
            return None, True
        drop = _drop(self._guard, metrics, self._baseline)
        return drop, bool(drop <= self._guard.max_drop)

    def _measured_baseline(self) -> float:
        assert self._guard is not None
        if self._guard.baseline is not None:
            return self._guard.baseline
        return _metric(self._guard, self._session.evaluate(self._session.teachers[0]))

    def _dense(self, failed: Round) -> _State:
        """The teacher as a model that nothing is pruned of yet."""
        teachers = self._session.teachers
        if not teachers:
            raise ModelError(
                f"Already the first step, to a sparsity of {failed.reached:.4g}, lost {_amount(failed.drop)} of "
                f"{self._guard.metric if self._guard else ''}, more than FineTuning.guard.max_drop. Remedy: connect "
                "teacher_model (teacher=), from which smaller steps can start, more epochs, or a smaller first step."
            )
        if self._plan.structured:
            found = _State(teachers[0], {}, 0.0, 0.0, 0)
            self._keep(found, 0)
            return found
        own, dense = _weights(self._session.trained), _weights(teachers[0])
        if [each.shape for each in own] != [each.shape for each in dense]:
            raise ModelError(
                "The teacher has other weights than the model, so pruning can't start from it anew. Remedy: the model "
                "that Pruner pruned as the first teacher."
            )
        for variable, values in zip(own, dense, strict=True):
            variable.assign(values)
        found = _State(self._session.trained, {}, 0.0, 0.0, 0)
        self._keep(found, 0)
        return found

    def _rewind(self, current: _State) -> None:
        """Gives the weights that are left the values that they had."""
        path = self._session.config.rewind
        variables = _weights(current.view)
        if path == "start":
            self._start.read("weights")
        else:
            early = model_handle.load(str(path), self._session.custom_objects)
            values = _weights(early)
            if [each.shape for each in values] != [each.shape for each in variables]:
                raise ConfigError(
                    f"FineTuning.rewind = {path!r}: its weights have other shapes than the model's. Remedy: a model of "
                    "the same layers, saved early in the Trainer's training."
                )
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
        for name, mask in current.masks.items():
            (variable,) = trainee.unique([current.view.kernels[name].variable])
            variable.assign(variable * tf.cast(mask, variable.dtype))

    # What outlives a kill: the rounds that were made, and the accepted model.

    @property
    def _file(self) -> str:
        return os.path.join(self._session.folder, _ROUNDS)

    def _place(self, number: int) -> str:
        return os.path.join(self._session.folder, "accepted", f"round-{number:03d}")

    def _keep(self, accepted: _State, number: int) -> None:
        """Writes an accepted model; 0 is the dense one."""
        place = self._place(number)
        with state.writing(os.path.join(place, _MASKS)):
            write_masks(os.path.join(place, _MASKS), accepted.masks)
            if accepted.view is not self._session.trained and number:
                keras3.save(accepted.view.network, os.path.join(place, _NETWORK))
        state.Kept(os.path.join(place, "weights"), _weights(accepted.view)).write("accepted")

    def _load(self, accepted: _State) -> None:
        """Gives a model that is trained in place its accepted weights; a network of its own has them still."""
        if accepted.view is self._session.trained:
            state.Kept(os.path.join(self._place(accepted.number), "weights"), _weights(accepted.view)).read("accepted")

    def _save(self) -> None:
        accepted = None if self._accepted is None else self._accepted.number
        found = {
            "rounds": [each.model_dump() for each in self._rounds],
            "step": self._step,
            "accepted": accepted,
            "history": self._history,
            "notes": self._notes,
        }
        state.write_json(self._file, found)

    def _restore(self) -> None:
        """Goes on where the rounds that were made ended."""
        found = state.read_json(self._file)
        if found is None:
            return
        self._rounds = [Round(**each) for each in found["rounds"]]
        self._step, self._history, self._notes = found["step"], found["history"], found["notes"]
        number = found["accepted"]
        view = self._session.trained
        asked = reached = 0.0
        if number:
            asked, reached = self._rounds[number - 1].asked, self._rounds[number - 1].reached
        if self._plan.structured and number != 1:
            view = self._session.teachers[0] if not number else self._stored(number)
        masks = read_masks(os.path.join(self._place(number), _MASKS))
        self._accepted = _State(view, masks, asked, reached, number)
        _log.info("Going on after round %d.", len(self._rounds))

    def _stored(self, number: int) -> ModelHandle:
        view = model_handle.load(os.path.join(self._place(number), _NETWORK), self._session.custom_objects)
        model_handle.copy_compilation(self._session.trained.model, view.model)
        return view


def _drop(guard: AccuracyGuard, metrics: Mapping[str, float], baseline: float) -> float:
    value = _metric(guard, metrics)
    return value - baseline if smaller_is_better(guard.metric) else baseline - value


def _amount(drop: float | None) -> str:
    return "all (its training diverged)" if drop is None else f"{drop:.4g}"


def _metric(guard: AccuracyGuard, metrics: Mapping[str, float]) -> float:
    if guard.metric not in metrics:
        raise ConfigError(
            f"FineTuning.guard.metric = {guard.metric!r}: the model was not compiled with it. Remedy: one of "
            f"{', '.join(metrics)}, or a compile_fn(model) in the module file."
        )
    return float(metrics[guard.metric])


def _require_guarded(session: "Session") -> None:
    guard = session.config.guard
    if guard is None:
        return
    if session.validation is None:
        raise ConfigError("FineTuning.guard measures on evaluation data. Remedy: a split of it (validation_data=).")
    if guard.baseline is None and not session.teachers:
        raise ConfigError(
            "FineTuning.guard compares with the dense model, and there is none. Remedy: connect teacher_model "
            "(teacher=), or say guard.baseline."
        )


def _weights(view: ModelHandle) -> list[tf.Variable]:
    if view.kind == "saved_model":
        return trainee.unique(view.model.variables.values())
    return trainee.unique((view.network if view.network is not None else view.model).weights)
