"""Channel pruning: whole filters, units and heads, removed from a network with everything that depends on them."""

import contextlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfx_compression.errors import ModelError
from tfx_compression.keras_models import graph, model_size
from tfx_compression.keras_models.model_size import ModelSize
from tfx_compression.model_handle import ModelHandle, copy_compilation
from tfx_compression.pruning import importance, surgery, unit_constants
from tfx_compression.pruning.batch_statistics import recalibrate
from tfx_compression.pruning.dependency_graph import ChannelGroup, DependencyGraph
from tfx_compression.pruning.model_pruner import AppliedPruning, Kept, ModelPruner, assigned
from tfx_compression.pruning.plan import PruningPlan
from tfx_compression.pruning.protection import protected_ends
from tfx_compression.pruning.pruning_group import PruningGroup
from tfx_compression.pruning.sample import Sample
from tfx_compression.pruning.statistics import Statistics

_KINDS = {"filter": ("filter",), "neuron": ("neuron", "head")}  # kinds of channel groups that a technique prunes


class ChannelPruner(ModelPruner):
    """The techniques `filter` and `neuron`. Each group is a group of coupled channels.

    Args:
      handle: The model, which is left as it is.
      plan: The plan.
      data: Batches of (features, labels) on which removed units are averaged and batch normalizations calibrated.

    Raises:
      ModelError: The model has no graph of layers, or an unsupported layer while the plan is strict.
      ConfigError: A rule matches no layer, or nothing is left to prune.
    """

    rounding_reason = "each layer keeps a whole number of channels, a multiple of round_to, and at least one"

    def __init__(self, handle: ModelHandle, plan: PruningPlan, data: tf.data.Dataset | None = None):
        if handle.network is None:
            model = f"{handle.path} is a SavedModel" if handle.path else f"{handle.model.name!r} is"
            raise ModelError(
                f"Technique {plan.technique!r} removes channels, which requires the graph of layers, and the model "
                f"{model} without one. Remedy: in Trainer's run_fn, save a tf_keras model "
                'with model.save(fn_args.serving_model_dir, save_format="tf", signatures=…), or a Keras 3 model also '
                "with model.save(os.path.join(fn_args.serving_model_dir, 'model.keras')); or use technique 'weight'.",
                code="no-layer-graph",
            )
        _require_no_added_loss(handle.model)
        self.dependencies = DependencyGraph(handle.network)
        if plan.strict:
            self.dependencies.require_supported()
        channel_groups = self.dependencies.groups.items()
        groups = {name: group for name, group in channel_groups if group.kind in _KINDS[plan.technique]}
        locked = {name: group.blocked for name, group in groups.items() if group.blocked}
        locked |= _tied(groups, handle)
        protected, notes = self._protected({name: groups[name] for name in groups if name not in locked}, handle, plan)
        layers = {name: group.layers for name, group in groups.items()}
        super().__init__(handle, plan, layers, {**protected, **locked})
        self.notes += notes
        self._note_blocked(locked)
        self.apply_rules(locked)
        self._data = data
        self._estimate = _SizeEstimate(self.dependencies, handle, self.size)

    def score(self, statistics: Statistics | None) -> None:
        """See the base class. The score of a unit is the mean of its producing kernels' scores, each of mean 1."""
        producers = [producer for name in self.names for producer in self.dependencies.groups[name].producers]
        axes = {producer.kernel: (producer.axis,) for producer in producers}
        scores = importance.score(self.handle.kernels, list(axes), self.plan, self.criterion, statistics, axes)
        for name in self.names:
            group = self.dependencies.groups[name]
            shapes = [self.handle.kernels[producer.kernel].shape for producer in group.producers]
            density = sum(map(sum, shapes)) / sum(map(math.prod, shapes))
            multiple = self.plan.round_to // math.gcd(self.plan.round_to, group.width)
            self.groups[name] = PruningGroup(name, self._unit_scores(group, scores), density, min(multiple, group.size))

    def select(self, sparsity: Mapping[str, float]) -> dict[str, np.ndarray]:
        """Returns the units to keep of the groups that lose some, [units] of bool."""
        kept = {}
        for name, fraction in sparsity.items():
            group = self.groups[name]
            count = group.kept(fraction)
            if count < group.scores.size:
                kept[name] = np.zeros(group.scores.size, bool)
                kept[name][np.argsort(-group.scores, kind="stable")[:count]] = True
        return kept

    def apply(self, kept: Kept) -> AppliedPruning:
        """Builds a new network without the removed units, compiled as the model is."""
        folding = unit_constants.fold(self.dependencies, kept, self._sample())
        network = surgery.remove(self.dependencies, kept, folding.values)
        copy_compilation(self.handle.model, network)
        self.notes += folding.notes
        inexact = {name: group.inexact for name, group in self.dependencies.groups.items() if group.inexact}
        inexact = folding.inexact | inexact
        if self._data is not None and any(not units.all() for units in kept.values()):
            plan = self.plan
            changed, notes = recalibrate(network, self._data, plan.recalibrate_batches, plan.batch_size)
            self.notes += notes
            if changed:
                reason = "the statistics of batch normalizations were computed anew on the data"
                inexact = {name: "; ".join(filter(None, [inexact.get(name), reason])) for name in kept}
        channels = surgery.channels_left(self.dependencies, kept)
        inexact = {name: reason for name, reason in inexact.items() if name in kept}
        return AppliedPruning(network, model_size.measure(network), channels=channels, inexact=inexact)

    def counts(self, name: str) -> bool:
        """See the base class. The network's outputs are no channels that could be removed."""
        group = self.dependencies.groups[name]
        return not group.blocked or not {*group.layers} & {*self.dependencies.last_layers}

    def elements(self, name: str) -> int:
        """See the base class."""
        return self.dependencies.groups[name].size

    def saved_fraction(self, sparsity: Mapping[str, float]) -> float:
        """See the base class. It is exact for parameters and MACs that the layers' configurations determine."""
        return self._estimate.saved(self.plan.target, self.select(sparsity))

    def ablated(self, name: str, sparsity: float) -> contextlib.AbstractContextManager[None]:
        """See the base class. Removed units have weights of zero, which equals removal with folded constants."""
        keep = self.dependencies.keep_fn(self.select({name: sparsity}))
        return assigned(unit_constants.zeroed_values(self.dependencies, keep))

    def _sample(self) -> Sample | None:
        if self._data is None:
            return None
        return Sample(self._data, self.plan.sample_rows, self.plan.batch_size, self.handle.model.name)

    def _unit_scores(self, group: ChannelGroup, scores: Mapping[str, np.ndarray]) -> np.ndarray:
        per_kernel = []
        for producer in group.producers:
            if producer.kernel in scores:
                values, outputs = scores[producer.kernel], producer.outputs
                units = producer.units if outputs is None or values.size == producer.units.size else outputs
                summed = np.bincount(units[units >= 0], values[units >= 0], group.size)
                per_kernel.append(importance.normalize(summed))
        if not per_kernel:
            raise importance.unscored(self.criterion, group.name)
        return np.mean(per_kernel, axis=0)

    def _protected(
        self, groups: Mapping[str, ChannelGroup], handle: ModelHandle, plan: PruningPlan
    ) -> tuple[dict[str, str], list[str]]:
        """Returns the reasons why the plan or the user protects groups that could be pruned, and notes."""
        ends, frozen, weights = {}, {}, {}
        for name, group in groups.items():
            kernels = dict.fromkeys(producer.kernel for producer in group.producers)
            weights[name] = sum(math.prod(handle.kernels[kernel].shape) for kernel in kernels)
            first = [layer for layer in group.layers if layer in self.dependencies.first_layers]
            if not_trained := [kernel for kernel in kernels if kernel in handle.frozen]:
                frozen[name] = f"frozen ({not_trained[0]}): fine-tuning could not make up for it"
            elif first and "first" in plan.protected_ends:
                ends[name] = f"first layer ({first[0]})"
        total = sum(math.prod(kernel.shape) for name, kernel in handle.kernels.items() if name not in handle.tied)
        reasons, notes = protected_ends(plan, ends, weights, total)
        return reasons | frozen, notes

    def _note_blocked(self, locked: Mapping[str, str]) -> None:
        unsupported = self.dependencies.unsupported.items()
        self.notes += [f"Left as it is: layer {name!r} {reason}." for name, reason in unsupported]
        for name, reason in locked.items():
            if "is an output" not in reason:
                self.notes.append(f"The channels of {name!r} are left alone: one of them {reason}.")
        for name, reason in self.protected.items():
            coupled = [layer for layer in self.layers[name] if layer not in self.dependencies.first_layers]
            if reason.startswith("first") and coupled:
                self.notes.append(
                    f"Protecting the first layer also protects the layers coupled to its channels, {len(coupled)} "
                    f"more: {', '.join(coupled)}. protect=('last',) prunes them all."
                )


def _require_no_added_loss(model: Any) -> None:
    """Raises ModelError for a loss on symbolic tensors, which a rebuilt network would lose."""
    if graph.add_loss_layers(model):
        raise ModelError(
            f"The model {model.name!r} adds a loss on a tensor (add_loss), which a narrower network would lose. "
            "Remedy: add it in a layer's call, or compile the model with it; or use technique 'weight'.",
            code="added-loss",
        )


class _SizeEstimate:
    """The savings of a removal, computed without building the network."""

    def __init__(self, dependencies: DependencyGraph, handle: ModelHandle, size: ModelSize):
        self._dependencies = dependencies
        self._axes: dict[int, list[Any]] = {}
        for (variable, _), weight_axis in dependencies.registry.weight_axes.items():
            self._axes.setdefault(variable, []).append(weight_axis)
        macs = {layer.name: layer.macs or 0 for layer in size.layers}
        self._macs = {id(kernel.variable): macs.get(name, 0) for name, kernel in handle.kernels.items()}
        self._total = {"parameters": size.parameters, "bytes": size.bytes, "macs": size.macs or 1}

    def saved(self, target: str, kept: Kept) -> float:
        """Returns the fraction of the target that is removed."""
        keep = self._dependencies.keep_fn(kept)
        removed = 0.0
        for key, axes in self._axes.items():
            variable = axes[0].variable
            share = 1 - math.prod(float(keep(axis.ids).mean()) for axis in axes)
            size = math.prod(int(size) for size in variable.shape)
            if target == "macs":
                removed += share * self._macs.get(key, 0)
            else:
                removed += share * size * (np.dtype(_dtype(variable)).itemsize if target == "bytes" else 1)
        return removed / self._total[target]


def _dtype(variable: Any) -> str:
    return getattr(variable.dtype, "name", variable.dtype)


def _tied(groups: Mapping[str, ChannelGroup], handle: ModelHandle) -> dict[str, str]:
    """Returns the groups with a variable that two layers share, which can't be rebuilt with one variable."""
    shared = {*handle.tied, *handle.tied.values()}
    return {
        name: f"shares the weights of {producer.kernel!r} between layers"
        for name, group in groups.items()
        for producer in group.producers
        if producer.kernel in shared
    }
