"""Whole filters, units and heads, removed from a network with all that depends on them."""

import contextlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfx_compression.errors import ModelError
from tfx_compression.keras_models import graph
from tfx_compression.keras_models.model_size import ModelSize
from tfx_compression.model_handle import ModelHandle
from tfx_compression.pruning import criteria, surgery
from tfx_compression.pruning.dependency_graph import ChannelGroup, DependencyGraph
from tfx_compression.pruning.plan import PruningPlan
from tfx_compression.pruning.pruning_group import PruningGroup
from tfx_compression.pruning.statistics import Statistics
from tfx_compression.pruning.technique import Technique, assigned

_KINDS = {"filter": ("filter",), "neuron": ("neuron", "head")}


class ChannelPruner(Technique):
    """The techniques `filter` and `neuron`: the parts are groups of coupled channels.

    Raises:
      ModelError: for a model without a graph of layers, or with a layer that isn't supported where the plan is strict.
      ConfigError: where a rule matches no layer or nothing is left.
    """

    rounding = "what stays of each layer is a whole number of channels, a multiple of round_to, and at least one"

    def __init__(self, trained: ModelHandle, whole: ModelSize, plan: PruningPlan):
        if trained.network is None:
            what = f"{trained.path} is a SavedModel" if trained.path else f"{trained.model.name!r} is"
            raise ModelError(
                f"Technique {plan.technique!r} removes channels, which needs the graph of layers, and the model "
                f"{what} without one. Remedy: in Trainer's run_fn, save a tf_keras model "
                'with model.save(fn_args.serving_model_dir, save_format="tf", signatures=…), or a Keras 3 model also '
                "with model.save(os.path.join(fn_args.serving_model_dir, 'model.keras')); or use technique 'weight'."
            )
        _require_no_loss_inside(trained.model)
        self.structure = DependencyGraph(trained.network)
        if plan.strict:
            self.structure.require_supported()
        groups = {name: group for name, group in self.structure.groups.items() if group.kind in _KINDS[plan.technique]}
        locked = {name: group.blocked for name, group in groups.items() if group.blocked}
        locked |= _tied(groups, trained)
        why = {name: reason for name, group in groups.items() if (reason := self._left_alone(group, trained, plan))}
        super().__init__(
            trained, whole, plan, {name: group.layers for name, group in groups.items()}, {**why, **locked}
        )
        self._note_blocked(locked)
        self.follow_rules(locked)
        self._size = _Size(self.structure, trained, whole)

    def score(self, statistics: Statistics | None) -> None:
        """See the base class. A unit's score is the mean of what the kernels that make it say, each of mean 1."""
        producers = [producer for name in self.names for producer in self.structure.groups[name].producers]
        axes = {producer.kernel: (producer.axis,) for producer in producers}
        scores = criteria.score(self.trained.kernels, list(axes), self.plan, statistics, axes)
        for name in self.names:
            group = self.structure.groups[name]
            shapes = [self.trained.kernels[producer.kernel].shape for producer in group.producers]
            density = sum(map(sum, shapes)) / sum(map(math.prod, shapes))
            multiple = self.plan.round_to // math.gcd(self.plan.round_to, group.width)
            self.parts[name] = PruningGroup(name, self._scores(group, scores), density, min(multiple, group.size))

    def choices(self, sparsities: Mapping[str, float]) -> dict[str, np.ndarray]:
        """Which units stay, of the groups of which some go."""
        chosen = {}
        for name, sparsity in sparsities.items():
            part = self.parts[name]
            kept = part.kept(sparsity)
            if kept < part.scores.size:
                chosen[name] = np.zeros(part.scores.size, bool)
                chosen[name][np.argsort(-part.scores, kind="stable")[:kept]] = True
        return chosen

    def apply(self, choices: Mapping[str, np.ndarray]) -> Any:
        """A new network without what goes."""
        return surgery.remove(self.structure, choices)

    def size(self, name: str) -> int:
        """See the base class."""
        return self.structure.groups[name].size

    def saved(self, sparsities: Mapping[str, float]) -> float:
        """See the base class. Exact for what layers' configurations say: weights, and the MACs that they take."""
        return self._size.saved(self.plan.target, self.choices(sparsities))

    def ablated(self, name: str, sparsity: float) -> contextlib.AbstractContextManager[None]:
        """See the base class: what goes is zero wherever it is made or used, which is the same as its removal."""
        kept = self.structure.kept(self.choices({name: sparsity}))
        values: dict[int, tuple[Any, np.ndarray]] = {}
        for each in self.structure.channels.slices.values():
            stays = kept(each.channel_ids)
            if not stays.all():
                variable, value = values.get(id(each.variable), (each.variable, None))
                value = np.asarray(variable.numpy()) if value is None else value
                shape = [-1 if axis == each.axis else 1 for axis in range(value.ndim)]
                values[id(variable)] = (variable, value * stays.reshape(shape).astype(value.dtype))
        return assigned(list(values.values()))

    def _scores(self, group: ChannelGroup, scores: Mapping[str, np.ndarray]) -> np.ndarray:
        found = []
        for producer in group.producers:
            if producer.kernel in scores:
                of = scores[producer.kernel]
                units = (
                    producer.units if producer.outputs is None or of.size == producer.units.size else producer.outputs
                )
                summed = np.bincount(units[units >= 0], of[units >= 0], group.size)
                found.append(criteria.normalize(summed))
        if not found:
            raise criteria.unscored(self.plan, group.name)
        return np.mean(found, axis=0)

    def _left_alone(self, group: ChannelGroup, trained: ModelHandle, plan: PruningPlan) -> str:
        """Why the plan, or the user, leaves a group alone; empty where they don't."""
        first = [layer for layer in group.layers if layer in self.structure.firsts]
        if first and "first" in plan.protect:
            return f"first layer ({first[0]}), protected by default"
        if frozen := [producer.kernel for producer in group.producers if producer.kernel in trained.frozen]:
            return f"frozen ({frozen[0]}): fine-tuning could not make up for it"
        return ""

    def _note_blocked(self, locked: Mapping[str, str]) -> None:
        self.notes += [f"Left as it is: layer {name!r} {why}." for name, why in self.structure.unsupported.items()]
        for name, why in locked.items():
            if "is an output" not in why:
                self.notes.append(f"The channels of {name!r} are left alone: one of them {why}.")
        for name, why in self.protected.items():
            coupled = [layer for layer in self.layers[name] if layer not in self.structure.firsts]
            if why.startswith("first") and coupled:
                self.notes.append(
                    f"Protecting the first layer locks what is coupled to its channels, {len(coupled)} more layers: "
                    f"{', '.join(coupled)}. protect=('last',) prunes them all."
                )


def _require_no_loss_inside(model: Any) -> None:
    """Raises ModelError for a loss on symbolic tensors, which a network built anew would not have."""
    if graph.add_loss_layers(model):
        raise ModelError(
            f"The model {model.name!r} has a loss of its own (add_loss on a tensor), which a narrower network would "
            "lose. Remedy: add it in a layer's call, or compile the model with it; or use technique 'weight'."
        )


class _Size:
    """What removal saves, worked out without building anything."""

    def __init__(self, structure: DependencyGraph, trained: ModelHandle, measured: ModelSize):
        self._structure = structure
        self._slices: dict[int, list[Any]] = {}
        for (variable, _), each in structure.channels.slices.items():
            self._slices.setdefault(variable, []).append(each)
        macs = {layer.name: layer.macs or 0 for layer in measured.layers}
        self._macs = {id(kernel.variable): macs.get(name, 0) for name, kernel in trained.kernels.items()}
        self._whole = {"parameters": measured.parameters, "bytes": measured.bytes, "macs": max(1, measured.macs)}

    def saved(self, target: str, choices: Mapping[str, np.ndarray]) -> float:
        """The fraction of the target that goes."""
        kept = self._structure.kept(choices)
        gone = 0.0
        for key, slices in self._slices.items():
            variable = slices[0].variable
            share = 1 - math.prod(float(kept(each.channel_ids).mean()) for each in slices)
            size = math.prod(int(size) for size in variable.shape)
            if target == "macs":
                gone += share * self._macs.get(key, 0)
            else:
                gone += share * size * (np.dtype(_dtype(variable)).itemsize if target == "bytes" else 1)
        return gone / self._whole[target]


def _dtype(variable: Any) -> str:
    return getattr(variable.dtype, "name", variable.dtype)


def _tied(groups: Mapping[str, ChannelGroup], trained: ModelHandle) -> dict[str, str]:
    """The groups that touch a variable which two layers share: they could not be built anew with one."""
    shared = {*trained.tied, *trained.tied.values()}
    return {
        name: f"shares the weights of {producer.kernel!r} between layers"
        for name, group in groups.items()
        for producer in group.producers
        if producer.kernel in shared
    }
