"""Mode `iterative`: prunes and trains in rounds, to the plan's sparsity or as far as an accuracy guard allows."""

import dataclasses
import logging
import os
from collections.abc import Mapping

import tensorflow as tf

from tfx_compression import model_handle
from tfx_compression.errors import ConfigError, ModelError
from tfx_compression.model_handle.compressed import Masks
from tfx_compression.pruning.prune import prune_step
from tfx_compression.sparsity_fine_tuner.accepted_models import AcceptedModels, Candidate
from tfx_compression.sparsity_fine_tuner.accuracy_guard import Guard
from tfx_compression.sparsity_fine_tuner.checkpoints import WeightSnapshot, read_state, write_state
from tfx_compression.sparsity_fine_tuner.results import ModeResult, Round
from tfx_compression.sparsity_fine_tuner.session import Session
from tfx_compression.sparsity_fine_tuner.training_loop import DivergedError
from tfx_compression.sparsity_fine_tuner.variables import unique

_log = logging.getLogger(__name__)
_ROUNDS = "rounds.json"
_TOLERANCE = 1e-6  # of a sparsity that is computed


def run(session: Session, masks: Masks) -> ModeResult:
    """Prunes and trains in rounds. The first round trains the model as Pruner left it.

    Raises:
      ModelError: If the first round loses more than the guard allows and there is no teacher to start from.
      ConfigError: If the guard has no baseline, no evaluation data, or no such metric.
    """
    return _Rounds(session, masks).run()


class _Rounds:
    def __init__(self, session: Session, masks: Masks):
        assert session.plan is not None
        self._session, self._plan = session, session.plan
        config = session.config.guard
        self._guard = Guard(config, session) if config is not None else None
        self._step = config.step if config is not None else 0.0  # what a guarded round adds to the sparsity
        first = self._plan.first_step_sparsity
        self._initial = Candidate(session.handle, masks, first, first, 1)
        self._accepted: Candidate | None = None
        self._models = AcceptedModels(session, self._plan.structured)
        self._rounds: list[Round] = []
        self._history: list[Mapping[str, float]] = []
        self._notes: list[str] = []
        self._file = os.path.join(session.folder, _ROUNDS)
        weights = unique(session.handle.weights)
        self._initial_weights = WeightSnapshot(os.path.join(session.folder, "start"), weights)
        if not read_state(self._file):
            self._initial_weights.save("weights")

    def run(self) -> ModeResult:
        self._restore()
        while not self._is_finished():
            self._run_round()
        accepted = self._accepted
        assert accepted is not None
        self._models.restore_weights(accepted)
        if accepted.number:
            metrics = self._rounds[accepted.number - 1].metrics
        else:
            metrics = self._session.evaluate(accepted.handle)
        metrics = {f"val_{name}": value for name, value in metrics.items()}
        return ModeResult(accepted.handle, accepted.masks, self._history, metrics, self._notes, self._rounds)

    def _run_round(self) -> None:
        number = len(self._rounds) + 1
        candidate = self._pruned() if self._rounds else self._initial
        _log.info("Round %d: sparsity %.4g", number, candidate.achieved_sparsity)
        if self._session.config.rewind is not None:
            self._rewind(candidate)
        candidate, outcome = self._train(candidate, number)
        if outcome.accepted:
            self._accepted = candidate
            self._models.save(candidate)
        else:
            if self._accepted is None:
                self._accepted = self._dense(outcome)
            self._step = (outcome.step_sparsity - self._accepted.step_sparsity) / 2
        self._rounds.append(outcome)
        self._save()

    def _train(self, candidate: Candidate, number: int) -> tuple[Candidate, Round]:
        """Trains a candidate and judges it. A training that diverges is a round that lost too much."""
        session = self._session
        outcome = Round(
            step_sparsity=candidate.step_sparsity, achieved_sparsity=candidate.achieved_sparsity, accepted=False
        )
        training = session.prepare(candidate.handle, candidate.masks)
        steps = sum(each.steps for each in self._rounds)
        try:
            result = training.run(name=f"round-{number:03d}", first_step=steps)
        except DivergedError as error:
            if self._guard is None:
                raise
            self._notes.append(f"Round {number} is rejected: {error}")
            return candidate, outcome
        candidate = dataclasses.replace(candidate, masks=training.masks)
        metrics = session.evaluate(candidate.handle) if session.validation is not None else {}
        drop = self._guard.drop(metrics) if self._guard is not None else None
        accepted = self._guard is None or drop is None or self._guard.accepts(drop)
        self._history += result.history
        self._notes += result.notes
        return candidate, outcome.model_copy(
            update={"metrics": metrics, "drop": drop, "accepted": accepted, "steps": result.steps}
        )

    def _is_finished(self) -> bool:
        if not self._rounds:
            return False
        accepted = self._accepted
        if accepted is not None and accepted.step_sparsity >= self._plan.sparsity - _TOLERANCE:
            return True
        if self._guard is None or self._rounds[-1].accepted or self._step >= self._guard.config.minimum_step:
            return False
        assert accepted is not None
        self._notes.append(
            f"The accuracy guard stopped at a sparsity of {accepted.achieved_sparsity:.4g}; the plan's is "
            f"{self._plan.sparsity:.4g}. With more, {self._guard.config.metric} drops by more than "
            f"{self._guard.config.max_drop:g}."
        )
        return True

    def _pruned(self) -> Candidate:
        """Returns the accepted model, pruned one step further."""
        accepted, plan, number = self._accepted, self._plan, len(self._rounds) + 1
        assert accepted is not None
        if self._guard is not None:
            step_sparsity = min(accepted.step_sparsity + self._step, plan.sparsity)
        else:
            step_sparsity = 1 - (1 - plan.sparsity) ** (number / plan.iterations)
        self._models.restore_weights(accepted)
        pruned = prune_step(
            accepted.handle,
            plan.model_copy(update={"schedule": "one_shot"}),
            self._session.data(0),
            loss_fn=self._session.loss_fn,
            step_sparsity=step_sparsity,
            current_sparsity=accepted.achieved_sparsity,
        )
        if not plan.structured:
            # What earlier rounds pruned stays zero, even if it ties with other weights of no importance.
            masks = {name: mask & accepted.masks.get(name, True) for name, mask in pruned.masks.items()}
            return Candidate(accepted.handle, masks, step_sparsity, pruned.record.achieved_sparsity, number)
        achieved = 1 - (1 - accepted.achieved_sparsity) * (1 - pruned.record.achieved_sparsity)
        return Candidate(model_handle.wrap(pruned.model), {}, step_sparsity, achieved, number)

    def _dense(self, failed: Round) -> Candidate:
        """Returns the teacher as a model of which nothing is pruned yet."""
        session = self._session
        if not session.teachers:
            assert self._guard is not None
            drop = "everything (training diverged)" if failed.drop is None else f"{failed.drop:.4g}"
            raise ModelError(
                f"The first round, to a sparsity of {failed.achieved_sparsity:.4g}, loses {drop} of "
                f"{self._guard.config.metric}, more than FineTuning.guard.max_drop. Remedy: connect teacher_model "
                "(teacher=), from which smaller steps can start, more epochs, or a smaller first step.",
                field="AccuracyGuard.max_drop",
                code="first-round-rejected",
            )
        if self._plan.structured:
            dense = Candidate(session.teachers[0], {}, 0.0, 0.0, 0)
        else:
            variables, values = (unique(each.weights) for each in (session.handle, session.teachers[0]))
            if [each.shape for each in variables] != [each.shape for each in values]:
                raise ModelError(
                    "The teacher has other weights than the model, so pruning can't start from it. Remedy: the model "
                    "that Pruner pruned as the first teacher.",
                    field="teacher",
                    code="teacher-weights-mismatch",
                )
            _assign(variables, values)
            dense = Candidate(session.handle, {}, 0.0, 0.0, 0)
        self._models.save(dense)
        return dense

    def _rewind(self, candidate: Candidate) -> None:
        """Resets the weights that are not pruned to their earlier values (lottery ticket)."""
        path = self._session.config.rewind
        if path == "start":
            self._initial_weights.restore("weights")
        else:
            early = model_handle.load(str(path), self._session.custom_objects)
            variables, values = (unique(each.weights) for each in (candidate.handle, early))
            if [each.shape for each in values] != [each.shape for each in variables]:
                raise ConfigError(
                    f"FineTuning.rewind = {path!r}: its weights have other shapes than the model's. Remedy: a model of "
                    "the same layers, saved early in the Trainer's training.",
                    field="FineTuning.rewind",
                    code="rewind-weights-mismatch",
                )
            _assign(variables, values)
        for name, mask in candidate.masks.items():
            (variable,) = unique([candidate.handle.kernels[name].variable])
            variable.assign(variable * tf.cast(mask, variable.dtype))

    def _save(self) -> None:
        state = {
            "rounds": [each.model_dump() for each in self._rounds],
            "step": self._step,
            "accepted": None if self._accepted is None else self._accepted.number,
            "history": self._history,
            "notes": self._notes,
        }
        write_state(self._file, state)

    def _restore(self) -> None:
        """Resumes after the rounds that are completed."""
        state = read_state(self._file)
        if state is None:
            return
        self._rounds = [Round(**each) for each in state["rounds"]]
        self._step, self._history, self._notes = state["step"], state["history"], state["notes"]
        self._accepted = self._models.load(state["accepted"], self._rounds)
        _log.info("Resuming after round %d.", len(self._rounds))


def _assign(variables: list[tf.Variable], values: list[tf.Variable]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
