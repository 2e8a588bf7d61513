"""Digests of what the public functions make of small nets, to prove that a refactoring keeps behavior.

The script prints one JSON object of sha256 digests by case and part. Run it before and after a change, and compare:

    python benchmarks/digests.py > before.json
    python benchmarks/digests.py --against before.json > after.json

A case is named `function/what/part`. The parts of a model are `weights`, `answers` (what it returns for fixed rows),
`masks`, `summary`, `history`, `rounds`, and `saved` (what the written SavedModel answers). The parts of a TFLite model
are `file` and `answers`: where `file` alone differs, names or metadata changed, and no number that it computes with.
Notes, reasons and other prose are left out. Digests are of one machine and one environment only.

Left out as well, because it depends on the machine's speed: `sparse="auto"`, latencies and what is chosen by them.
"""

import argparse
import atexit
import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

# These are read when TensorFlow loads, by the processes that convert models too.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
import tensorflow as tf
import tensorflow_model_analysis as tfma
import tf_keras
import tfx_compression as tfc
from ai_edge_litert.interpreter import Interpreter
from tensorflow_model_analysis.proto import config_pb2

CLASSES = 3
FOLDER = tempfile.mkdtemp(prefix="digests-")
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
SCORES = os.path.join(FOLDER, "scores.npz")


# What is run. Every configuration is here, as keyword arguments.


ANY_CHANNEL = {"protect": ()}
FILTER = {"technique": "filter"}
NEURON = {"technique": "neuron"}


@dataclasses.dataclass(frozen=True)
class Pruning:
    """A case of `tfc.prune`.

    Attributes:
      net: The name of the net.
      plan: The fields of the PruningPlan.
      kind: The kind of model: a key of `KINDS`.
      saves: Whether the result is saved, and the signature of the SavedModel asked.
    """

    net: str
    plan: Mapping[str, Any]
    kind: str = "keras2"
    saves: bool = False


PRUNINGS: dict[str, Pruning] = {
    # Criteria.
    **{
        f"criterion/weight-{name}": Pruning("cnn", {"criterion": name, "allocation": "global"})
        for name in ("magnitude", "l1", "l2", "random", "taylor", "fisher")
    },
    **{
        f"criterion/filter-{name}": Pruning("residual", {**FILTER, **ANY_CHANNEL, "criterion": name})
        for name in (
            *("magnitude", "l1", "l2", "bn_scale", "geometric_median", "random"),
            *("taylor", "fisher", "activation_mean", "apoz"),
        )
    },
    **{
        f"criterion/neuron-{name}": Pruning("mlp", {**NEURON, **ANY_CHANNEL, "criterion": name})
        for name in ("l1", "l2", "geometric_median", "random", "taylor", "fisher", "activation_mean", "apoz")
    },
    "criterion/weight-scores": Pruning("mlp", {"criterion": "scores", "scores": SCORES, **ANY_CHANNEL}),
    "criterion/neuron-scores": Pruning("mlp", {**NEURON, "criterion": "scores", "scores": SCORES, **ANY_CHANNEL}),
    "criterion/random-seed": Pruning("mlp", {"criterion": "random", "seed": 5}),
    "criterion/taylor-sample": Pruning("cnn", {**FILTER, "criterion": "taylor", "sample_rows": 20, "batch_size": 8}),
    # Allocations, and what the sparsity is a fraction of.
    **{
        f"allocation/weight-{name}": Pruning("cnn", {**ANY_CHANNEL, "allocation": name, "sparsity": 0.6})
        for name in ("uniform", "global", "erdos_renyi", "lamp", "sensitivity")
    },
    **{
        f"allocation/filter-{name}": Pruning("cnn", {**FILTER, **ANY_CHANNEL, "allocation": name, "sparsity": 0.4})
        for name in ("uniform", "global", "erdos_renyi", "lamp", "sensitivity")
    },
    **{
        f"allocation/neuron-{name}": Pruning("mlp", {**NEURON, **ANY_CHANNEL, "allocation": name, "sparsity": 0.4})
        for name in ("uniform", "global", "erdos_renyi", "lamp", "sensitivity")
    },
    "allocation/sensitivity-accuracy": Pruning(
        "cnn",
        {
            **{**FILTER, **ANY_CHANNEL, "allocation": "sensitivity", "sensitivity_metric": "accuracy"},
            **{"sensitivity_levels": (0.2, 0.4, 0.8), "target": "macs", "sparsity": 0.3},
        },
    ),
    **{
        f"target/weight-{name}-{allocation}": Pruning(
            "cnn", {**ANY_CHANNEL, "target": name, "allocation": allocation, "sparsity": 0.4}
        )
        for name in ("parameters", "macs", "bytes")
        for allocation in ("uniform", "lamp")
    },
    **{
        f"target/filter-{name}-{allocation}": Pruning(
            "cnn", {**FILTER, **ANY_CHANNEL, "target": name, "allocation": allocation, "sparsity": 0.4}
        )
        for name in ("parameters", "macs", "bytes")
        for allocation in ("uniform", "global")
    },
    "target/neuron-parameters": Pruning("mlp", {**NEURON, **ANY_CHANNEL, "target": "parameters"}),
    # Patterns of zeros.
    **{
        f"pattern/{net}-{pattern}": Pruning(net, {**ANY_CHANNEL, "pattern": pattern})
        for net in ("mlp", "cnn", "conv1d", "lstm")
        for pattern in ("2:4", "4x1")
    },
    "pattern/mlp-1:4": Pruning("mlp", {"pattern": "1:4", "rules": [{"layers": "hidden", "sparsity": 0.0}]}),
    "pattern/mlp-2x4-global": Pruning("mlp", {"pattern": "2x4", "allocation": "global", **ANY_CHANNEL}),
    "pattern/cnn-4x1-taylor": Pruning("cnn", {"pattern": "4x1", "criterion": "taylor", **ANY_CHANNEL}),
    # First steps of schedules.
    **{
        f"schedule/weight-{name}": Pruning("mlp", {"schedule": name, "sparsity": 0.8, "initial_sparsity": 0.3})
        for name in ("constant", "polynomial", "cubic", "iterative")
    },
    "schedule/2:4-constant": Pruning("mlp", {"pattern": "2:4", "schedule": "constant"}),
    "schedule/filter-iterative": Pruning("cnn", {**FILTER, **ANY_CHANNEL, "schedule": "iterative", "iterations": 3}),
    "schedule/neuron-iterative": Pruning("mlp", {**NEURON, **ANY_CHANNEL, "schedule": "iterative", "sparsity": 0.8}),
    # Exceptions.
    "round_to/filter": Pruning("residual", {**FILTER, **ANY_CHANNEL, "round_to": 4, "sparsity": 0.3}),
    "round_to/neuron": Pruning("mlp", {**NEURON, **ANY_CHANNEL, "round_to": 8, "sparsity": 0.4}),
    **{
        f"protect/{technique}-{'-'.join(protect)}": Pruning("cnn", {"technique": technique, "protect": protect})
        for technique in ("weight", "filter")
        for protect in (("first",), ("last",), ("first", "last"))
    },
    "rules/weight": Pruning(
        "cnn", {"rules": [{"layers": "conv.*", "sparsity": 0.25}, {"layers": "conv_b", "sparsity": 0.75}]}
    ),
    "rules/filter": Pruning(
        "residual", {**FILTER, **ANY_CHANNEL, "rules": [{"layers": "block.*_a", "sparsity": 0.25}], "target": "macs"}
    ),
    "rules/neuron": Pruning("mlp", {**NEURON, "rules": [{"layers": "hidden", "sparsity": 0.75}]}),
    # Every net by every technique that it has something for.
    **{
        f"net/weight-{net}": Pruning(net, {**ANY_CHANNEL, "allocation": "global"})
        for net in (
            *("depthwise", "grouped", "concat", "conv1d", "lstm", "embedding", "two_inputs", "attention", "nested"),
            *("mlp", "residual", "tower"),
        )
    },
    **{
        f"net/filter-{net}": Pruning(net, {**FILTER, **ANY_CHANNEL})
        for net in ("depthwise", "grouped", "concat", "conv1d", "nested", "tower", "cnn")
    },
    **{
        f"net/neuron-{net}": Pruning(net, {**NEURON, **ANY_CHANNEL})
        for net in ("lstm", "embedding", "two_inputs", "attention", "concat", "nested", "cnn", "tower")
    },
    # Other kinds of models, and what is written.
    **{
        f"kind/keras3-{technique}-{net}": Pruning(
            net, {"technique": technique, "criterion": "taylor", **ANY_CHANNEL}, kind="keras3"
        )
        for technique, net in (
            *(("weight", "mlp"), ("weight", "cnn"), ("filter", "cnn"), ("filter", "residual"), ("filter", "depthwise")),
            *(("neuron", "mlp"), ("neuron", "attention"), ("neuron", "two_inputs")),
        )
    },
    "kind/keras3-neuron-lstm": Pruning("lstm", {**NEURON, **ANY_CHANNEL}, kind="keras3"),
    "kind/keras3-file": Pruning("cnn", {**FILTER, **ANY_CHANNEL}, kind="keras3_file", saves=True),
    "kind/module-dense": Pruning("module", {**ANY_CHANNEL, "allocation": "lamp"}, kind="module", saves=True),
    "kind/module-conv": Pruning("module_conv", {**ANY_CHANNEL, "pattern": "4x1"}, kind="module", saves=True),
    "kind/module-taylor": Pruning("module", {**ANY_CHANNEL, "criterion": "taylor"}, kind="module"),
    "kind/module-fisher": Pruning("module_conv", {**ANY_CHANNEL, "criterion": "fisher"}, kind="module"),
    "kind/module-sensitivity": Pruning("module", {**ANY_CHANNEL, "allocation": "sensitivity"}, kind="module"),
    "kind/examples-weight": Pruning("cnn", {"sparsity": 0.7}, kind="examples", saves=True),
    "kind/examples-filter": Pruning("cnn", {**FILTER, **ANY_CHANNEL}, kind="examples", saves=True),
    "kind/keras2-saved-filter": Pruning("tower", {**FILTER, **ANY_CHANNEL}, kind="keras2_saved", saves=True),
    "kind/keras2-saved-neuron": Pruning("two_inputs", {**NEURON, **ANY_CHANNEL}, kind="keras2_saved", saves=True),
}


@dataclasses.dataclass(frozen=True)
class Tuning:
    """A case of `tfc.fine_tune`.

    Attributes:
      net: The name of the net.
      config: The fields of the FineTuning, over `TUNED`.
      plan: The fields of the PruningPlan by which the net is pruned first; None leaves it whole.
      kind: The kind of model: a key of `KINDS`.
      teachers: How many teachers there are.
      validates: Whether there is evaluation data.
      saves: Whether the result is saved, and the signature of the SavedModel asked.
    """

    net: str
    config: Mapping[str, Any]
    plan: Mapping[str, Any] | None = dataclasses.field(default_factory=lambda: HALF)
    kind: str = "keras2"
    teachers: int = 0
    validates: bool = False
    saves: bool = False


TUNED = {"epochs": 2, "learning_rate": 0.05, "optimizer": "sgd"}
HALF = {**ANY_CHANNEL, "sparsity": 0.5}
MOVING = {**HALF, "frequency": 2}
GROWING = {**ANY_CHANNEL, "sparsity": 0.75, "schedule": "cubic", "initial_sparsity": 0.25, "frequency": 2}
ROUNDS = {**ANY_CHANNEL, "sparsity": 0.75, "schedule": "iterative", "iterations": 2}
NARROW = {**FILTER, **ANY_CHANNEL}
LOSS = {"module": {"loss": "sparse_categorical_crossentropy"}}
DISTILLED = {"distillation": {"temperature": 2.0, "alpha": 0.5}}
AWARE = {"mode": "quantization_aware", "epochs": 1}

TUNINGS: dict[str, Tuning] = {
    # Every mode, by every kind of model.
    **{
        f"{mode}/{kind}": Tuning(net, {"mode": mode, **LOSS.get(kind, {})}, plan, kind)
        for mode, plan in (
            ("fixed", HALF),
            ("gradual", GROWING),
            ("iterative", ROUNDS),
            ("dynamic", MOVING),
            ("cluster", HALF),
        )
        for kind, net in (("keras2", "mlp"), ("keras3", "mlp"), ("module", "module"))
    },
    "quantization_aware/mlp": Tuning("mlp", AWARE, plan=None),
    "quantization_aware/cnn-pruned": Tuning("cnn", AWARE, saves=True),
    "quantization_aware/residual": Tuning("residual", {**AWARE, **DISTILLED}, plan=None, teachers=1),
    # Pruned channels, and more nets.
    "fixed/filter": Tuning("residual", {"mode": "fixed"}, NARROW),
    "fixed/filter-keras3": Tuning("cnn", {"mode": "fixed"}, NARROW, kind="keras3"),
    "fixed/2:4-cnn": Tuning("cnn", {"mode": "fixed", "epochs": 1}, {**ANY_CHANNEL, "pattern": "2:4"}),
    "fixed/lstm": Tuning("lstm", {"mode": "fixed", "epochs": 1}),
    "fixed/embedding": Tuning("embedding", {"mode": "fixed", "epochs": 1}),
    "fixed/two_inputs": Tuning("two_inputs", {"mode": "fixed", "epochs": 1}),
    "fixed/examples": Tuning("cnn", {"mode": "fixed", "epochs": 1}, kind="examples", saves=True),
    "iterative/filter": Tuning("cnn", {"mode": "iterative", "epochs": 1}, {**ROUNDS, **FILTER}),
    "iterative/neuron": Tuning("mlp", {"mode": "iterative", "epochs": 1}, {**ROUNDS, **NEURON}),
    "iterative/rewind": Tuning("mlp", {"mode": "iterative", "epochs": 1, "rewind": "start"}, ROUNDS),
    "iterative/guard": Tuning(
        "mlp",
        {"mode": "iterative", "epochs": 1, "guard": {"metric": "loss", "max_drop": 0.3, "step": 0.3}},
        {**ROUNDS, "sparsity": 0.9},
        teachers=1,
        validates=True,
    ),
    "gradual/taylor": Tuning("mlp", {"mode": "gradual"}, {**GROWING, "criterion": "taylor"}),
    "gradual/constant-cnn": Tuning("cnn", {"mode": "gradual"}, {**MOVING, "schedule": "constant"}),
    "gradual/polynomial-global": Tuning(
        "mlp", {"mode": "gradual"}, {**GROWING, "schedule": "polynomial", "power": 2.0, "allocation": "global"}
    ),
    "dynamic/blocks": Tuning("mlp", {"mode": "dynamic"}, {**MOVING, "pattern": "4x1"}),
    "cluster/4": Tuning("mlp", {"mode": "cluster", "clusters": 4, "epochs": 1}, plan=None),
    # Distillation.
    "distilled/fixed-keras2": Tuning("mlp", DISTILLED, teachers=1),
    "distilled/fixed-keras3": Tuning("mlp", DISTILLED, kind="keras3", teachers=1),
    "distilled/fixed-module": Tuning(
        "module",
        {"distillation": {"alpha": 0.5, "outputs": "probabilities"}, **LOSS["module"]},
        kind="module",
        teachers=1,
    ),
    "distilled/gradual-ensemble": Tuning("mlp", {"mode": "gradual", **DISTILLED}, GROWING, teachers=2),
    "distilled/iterative-filter": Tuning(
        "cnn", {"mode": "iterative", "epochs": 1, **DISTILLED}, {**ROUNDS, **FILTER}, teachers=1
    ),
    "distilled/features": Tuning(
        "mlp", {"distillation": {"features": {"hidden": "hidden"}, "outputs": "values"}}, teachers=1
    ),
    # Options of training.
    "option/cosine-adam": Tuning(
        "mlp",
        {
            **{"optimizer": "adam", "learning_rate": 0.01, "learning_rate_schedule": "cosine", "warmup_steps": 2},
            "final_learning_rate": 0.1,
        },
        validates=True,
    ),
    "option/linear": Tuning("mlp", {"learning_rate_schedule": "linear", "steps_per_epoch": 3}),
    "option/compiled": Tuning("mlp", {"optimizer": None, "loss": "sparse_categorical_crossentropy"}),
    "option/class_weights": Tuning("mlp", {"class_weights": {0: 2.0, 2: 0.5}}),
    "option/early_stopping": Tuning(
        "mlp", {"epochs": 4, "learning_rate": 1.0, "early_stopping": {"patience": 0}}, validates=True
    ),
    "option/bfloat16": Tuning("mlp", {"mixed_precision": "mixed_bfloat16"}),
}


@dataclasses.dataclass(frozen=True)
class Converting:
    """A case of `tfc.quantize`.

    Attributes:
      net: The name of the net.
      config: The fields of the Quantization, over `CONVERTED`.
      kind: The kind of model: a key of `KINDS`.
      runs: Whether LiteRT runs the result.
      outlier: By how much one value of the data is too large.
    """

    net: str
    config: Mapping[str, Any]
    kind: str = "keras2"
    runs: bool = True
    outlier: float = 1.0


CONVERTED = {"calibration": {"rows": 24}}

CONVERSIONS: dict[str, Converting] = {
    **{
        f"mode/{mode}": Converting("cnn", {"mode": mode})
        for mode in (*("float32", "float16", "dynamic", "int8", "int16x8", "int4", "int4_dynamic", "int4_weight_only"),)
    },
    "mode/dynamic-mlp": Converting("mlp", {"mode": "dynamic"}),  # TFLite leaves small kernels as they are
    "io/int8-uint8": Converting("cnn", {"mode": "int8", "io": "uint8"}),
    "io/int8-float32": Converting("two_inputs", {"mode": "int8", "io": "float32"}),
    "io/int16x8-float32": Converting("mlp", {"mode": "int16x8", "io": "float32"}),
    "io/int4-uint8": Converting("mlp", {"mode": "int4", "io": "uint8"}),
    "per_tensor/int8": Converting("cnn", {"mode": "int8", "per_channel": False}),
    "per_tensor/int4": Converting("mlp", {"mode": "int4", "per_channel": False}),
    "blocks/int4_dynamic": Converting("mlp", {"mode": "int4_dynamic", "block_size": 32}),
    "ranges/percentile": Converting(
        "cnn", {"mode": "int8", "calibration": {"rows": 24, "ranges": "percentile", "percentile": 98.0}}
    ),
    "ranges/mse": Converting("cnn", {"mode": "int8", "calibration": {"rows": 24, "ranges": "mse"}}, outlier=100.0),
    "ranges/mse-int4": Converting("cnn", {"mode": "int4", "calibration": {"rows": 24, "ranges": "mse"}}, outlier=100.0),
    "equalized/int8": Converting("depthwise", {"mode": "int8", "equalize": True}),
    "equalized/int4": Converting("depthwise", {"mode": "int4", "equalize": True}),
    "sparse/float32": Converting("pruned", {"mode": "float32", "sparse": True}, "keras2"),
    "sparse/int8": Converting("pruned", {"mode": "int8", "sparse": True}, "keras2"),
    "batch/int8": Converting("residual", {"mode": "int8", "batch_size": 2}),
    "target/edge_tpu": Converting("cnn", {"mode": "int8", "batch_size": 1, "target": "edge_tpu"}),
    "target/microcontroller": Converting("mlp", {"mode": "int8", "target": "microcontroller"}),
    "mixed/all": Converting(
        "cnn",
        {
            "mode": "mixed",
            "rules": [
                {"layers": ".", "precision": "int8"},
                {"layers": "conv_b", "precision": "float16"},
                {"layers": "probabilities", "precision": "int4_weight_only"},
            ],
        },
    ),
    "mixed/dynamic": Converting(
        "mlp",
        {
            "mode": "mixed",
            "rules": [
                {"layers": "hidden", "precision": "int4_dynamic", "block_size": 32},
                {"layers": "middle", "precision": "int2_dynamic"},
                {"layers": "probabilities", "precision": "int8_weight_only"},
            ],
        },
    ),
    "auto/agreement": Converting(
        "mlp",
        {
            "mode": "auto",
            "auto": {"metric": "agreement", "max_drop": 0.1, "rows": 40, "precisions": ("int8", "int4", "float32")},
        },
    ),
    "metadata/int8": Converting(
        "mlp",
        {
            "mode": "int8",
            "metadata": {
                "name": "mlp",
                "version": "1",
                "labels": {"probabilities": ("a", "b", "c")},
                "normalization": {"x": {"mean": (0.5,), "std": (2.0,)}},
            },
        },
    ),
    "net/conv1d-int8": Converting("conv1d", {"mode": "int8"}),
    "net/grouped-int4": Converting("grouped", {"mode": "int4_dynamic"}),
    "net/concat-int8": Converting("concat", {"mode": "int8"}),
    "net/lstm-int8": Converting("lstm", {"mode": "int8", "batch_size": 1}),
    "net/embedding-dynamic": Converting("embedding", {"mode": "dynamic"}),
    "net/attention-int8": Converting("attention", {"mode": "int8", "batch_size": 1}),
    "kind/keras3-int8": Converting("cnn", {"mode": "int8"}, kind="keras3"),
    "kind/module-int8": Converting("module", {"mode": "int8"}, kind="module"),
    "kind/module-two-signatures": Converting(
        "module", {"mode": "dynamic", "signatures": ("serving_default", "hidden")}, kind="module"
    ),
    "kind/module-select_tf_ops": Converting(
        "module_exotic", {"mode": "float32", "select_tf_ops": True}, kind="module", runs=False
    ),
    "kind/examples-int8": Converting("cnn", {"mode": "int8"}, kind="examples"),
    "kind/aware-int8": Converting("cnn", {"mode": "int8"}, kind="aware"),
    "kind/aware-dynamic": Converting("cnn", {"mode": "dynamic"}, kind="aware"),
}

CANDIDATES = {"int8": {"mode": "int8"}, "dynamic": {"mode": "dynamic"}}

BUDGETS: dict[str, Mapping[str, Any]] = {
    "limits": {
        **{"max_metric_drop": {"sparse_categorical_accuracy": 0.2}, "confidence": None, "min_agreement": 0.5},
        **{"max_bytes": 8000, "max_bytes_gzip": 100_000, "max_divergence": 0.5, "min_sparsity": 0.001},
        **{"max_arena_bytes": 100_000, "objective": "most_accurate"},
    },
    "slices": {
        **{"max_metric_drop": {"sparse_categorical_accuracy": 0.1}, "min_slice_rows": 10, "confidence": 0.9},
        **{
            "max_relative_metric_drop": {"loss": 0.3},
            "max_slice_metric_drop": {"sparse_categorical_accuracy": 0.2},
        },
    },
}


# Nets, with weights of NumPy's. `library` is Keras 2 or Keras 3.

IMAGE = (8, 8, 2)
FEATURES: dict[str, dict[str, tuple[int, ...]]] = {
    **{name: {"x": (32,)} for name in ("mlp", "pruned", "module", "module_exotic")},
    **{name: {"image": IMAGE} for name in ("cnn", "residual", "depthwise", "grouped", "concat", "nested", "tower")},
    **{name: {"series": (12, 4)} for name in ("conv1d", "lstm", "attention")},
    "module_conv": {"image": IMAGE},
    "embedding": {"tokens": (6,)},
    "two_inputs": {"left": (6,), "right": (10,)},
}
WORDS = 20


def mlp(library: Any) -> Any:
    """Returns dense layers."""
    layers = library.layers
    x = library.Input((32,), name="x")
    flow = layers.Dense(64, activation="relu", name="hidden")(x)
    flow = layers.Dense(32, activation="relu", name="middle")(flow)
    return _classifier(library, x, flow, "mlp")


def pruned(library: Any) -> Any:
    """Returns the net `mlp`, for weights of which most are zero."""
    return mlp(library)


def cnn(library: Any) -> Any:
    """Returns convolutions with normalization, and a dense layer behind a flattened image."""
    layers = library.layers
    image = library.Input(IMAGE, name="image")
    flow = layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv_a")(image)
    flow = layers.BatchNormalization(name="norm_a")(flow)
    flow = layers.ReLU(name="relu_a")(flow)
    flow = layers.Conv2D(12, 3, strides=2, padding="same", activation="relu", name="conv_b")(flow)
    flow = layers.MaxPooling2D(name="pool")(flow)
    flow = layers.Flatten(name="flatten")(flow)
    flow = layers.Dense(16, activation="relu", name="dense")(flow)
    return _classifier(library, image, flow, "cnn")


def residual(library: Any) -> Any:
    """Returns a stem and two blocks whose outputs are added to their inputs."""
    layers = library.layers

    def normalized(flow: Any, width: int, name: str) -> Any:
        flow = layers.Conv2D(width, 3, padding="same", use_bias=False, name=name)(flow)
        return layers.BatchNormalization(name=f"{name}_norm")(flow)

    image = library.Input(IMAGE, name="image")
    flow = layers.ReLU(name="stem_relu")(normalized(image, 8, "stem"))
    for block in ("block0", "block1"):
        inside = layers.ReLU(name=f"{block}_relu")(normalized(flow, 16, f"{block}_a"))
        flow = layers.Add(name=f"{block}_add")([flow, normalized(inside, 8, f"{block}_b")])
        flow = layers.ReLU(name=f"{block}_out")(flow)
    return _classifier(library, image, layers.GlobalAveragePooling2D(name="pool")(flow), "residual")


def depthwise(library: Any) -> Any:
    """Returns depthwise and separable convolutions."""
    layers = library.layers
    image = library.Input(IMAGE, name="image")
    flow = layers.Conv2D(8, 1, name="stem")(image)
    flow = layers.BatchNormalization(name="stem_norm")(flow)
    flow = layers.ReLU(name="stem_relu")(flow)
    flow = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="deep")(flow)
    flow = layers.BatchNormalization(name="deep_norm")(flow)
    flow = layers.ReLU(name="deep_relu")(flow)
    flow = layers.Conv2D(12, 1, activation="relu", name="point")(flow)
    flow = layers.SeparableConv2D(8, 3, activation="relu", name="separable")(flow)
    return _classifier(library, image, layers.GlobalAveragePooling2D(name="pool")(flow), "depthwise")


def grouped(library: Any) -> Any:
    """Returns a convolution in groups, and a transposed one."""
    layers = library.layers
    image = library.Input(IMAGE, name="image")
    flow = layers.Conv2D(8, 3, padding="same", activation="relu", name="conv")(image)
    flow = layers.Conv2D(8, 3, padding="same", groups=2, activation="relu", name="groups")(flow)
    flow = layers.Conv2DTranspose(6, 2, strides=2, activation="relu", name="transposed")(flow)
    return _classifier(library, image, layers.GlobalMaxPooling2D(name="pool")(flow), "grouped")


def concat(library: Any) -> Any:
    """Returns branches that are concatenated, one of them being smaller and enlarged again."""
    layers = library.layers
    image = library.Input(IMAGE, name="image")
    wide = layers.Conv2D(6, 3, padding="same", activation="relu", name="wide")(image)
    small = layers.AveragePooling2D(name="shrink")(image)
    small = layers.Conv2D(4, 1, activation="relu", name="small")(small)
    small = layers.UpSampling2D(name="enlarge")(small)
    flow = layers.Concatenate(name="joined")([wide, small])
    flow = layers.BatchNormalization(name="norm")(flow)
    flow = layers.Conv2D(8, 3, strides=2, activation="relu", name="after")(flow)
    flow = layers.Flatten(name="flatten")(flow)
    return _classifier(library, image, layers.Dense(10, activation="relu", name="dense")(flow), "concat")


def conv1d(library: Any) -> Any:
    """Returns convolutions of a series."""
    layers = library.layers
    series = library.Input((12, 4), name="series")
    flow = layers.Conv1D(8, 3, padding="causal", activation="relu", name="conv_a")(series)
    flow = layers.Conv1D(8, 3, activation="relu", name="conv_b")(flow)
    return _classifier(library, series, layers.GlobalAveragePooling1D(name="pool")(flow), "conv1d")


def lstm(library: Any) -> Any:
    """Returns recurrent layers without loops."""
    layers = library.layers
    series = library.Input((12, 4), name="series")
    flow = layers.LSTM(8, return_sequences=True, unroll=True, name="lstm")(series)
    flow = layers.GRU(6, unroll=True, name="gru")(flow)
    return _classifier(library, series, flow, "lstm")


def embedding(library: Any) -> Any:
    """Returns an embedding of words, averaged."""
    layers = library.layers
    tokens = library.Input((6,), dtype="int32", name="tokens")
    flow = layers.Embedding(WORDS, 8, name="table")(tokens)
    flow = layers.GlobalAveragePooling1D(name="mean")(flow)
    return _classifier(library, tokens, layers.Dense(12, activation="relu", name="dense")(flow), "embedding")


def two_inputs(library: Any) -> Any:
    """Returns a net of two inputs whose layers are multiplied and added, one of them being used twice."""
    layers = library.layers
    left, right = library.Input((6,), name="left"), library.Input((10,), name="right")
    a = layers.Dense(8, activation="relu", name="left_dense")(left)
    b = layers.Dense(8, activation="sigmoid", name="right_dense")(right)
    shared = layers.Dense(8, activation="tanh", name="shared")
    flow = layers.Multiply(name="product")([a, b])
    flow = layers.Add(name="sum")([shared(flow), shared(a)])
    return _classifier(library, [left, right], flow, "two_inputs")


def attention(library: Any) -> Any:
    """Returns a transformer's block."""
    layers = library.layers
    series = library.Input((12, 4), name="series")
    flow = layers.Dense(8, name="in")(series)
    seen = layers.MultiHeadAttention(4, 2, name="attention")(flow, flow)
    flow = layers.LayerNormalization(name="norm")(layers.Add(name="sum")([flow, seen]))
    flow = layers.Dense(12, activation="relu", name="dense")(flow)
    return _classifier(library, series, layers.GlobalAveragePooling1D(name="pool")(flow), "attention")


def nested(library: Any) -> Any:
    """Returns a model inside a model."""
    layers = library.layers
    inner_image = library.Input((8, 8, 6), name="inner_image")
    inner_flow = layers.Conv2D(8, 3, activation="relu", name="inner_conv")(inner_image)
    inner_flow = layers.GlobalAveragePooling2D(name="inner_pool")(inner_flow)
    inner = library.Model(
        inner_image, layers.Dense(10, activation="relu", name="inner_dense")(inner_flow), name="inner"
    )
    image = library.Input(IMAGE, name="image")
    flow = layers.Conv2D(6, 3, padding="same", activation="relu", name="outer_conv")(image)
    return _classifier(library, image, inner(flow), "nested")


def tower(library: Any) -> Any:
    """Returns a sequential model."""
    layers = library.layers
    return library.Sequential(
        [
            library.Input(IMAGE, name="image"),
            layers.ZeroPadding2D(1, name="pad"),
            layers.Conv2D(8, 3, name="conv_a"),
            layers.LeakyReLU(name="leaky"),
            layers.Conv2D(8, 3, dilation_rate=2, activation="relu", name="conv_b"),
            layers.Dropout(0.25, name="dropout"),
            layers.Flatten(name="flatten"),
            layers.Dense(12, activation="relu", name="dense"),
            layers.Dense(CLASSES, activation="softmax", name="probabilities"),
        ],
        name="tower",
    )


def _classifier(library: Any, inputs: Any, flow: Any, name: str) -> Any:
    probabilities = library.layers.Dense(CLASSES, activation="softmax", name="probabilities")(flow)
    return library.Model(inputs, probabilities, name=name)


NETS = {
    function.__name__: function
    for function in (
        *(mlp, pruned, cnn, residual, depthwise, grouped, concat, conv1d, lstm, embedding, two_inputs, attention),
        *(nested, tower),
    )
}


def net(name: str, library: Any = tf_keras, seed: int = 0) -> Any:
    """Returns a compiled Keras model with fixed weights."""
    model = NETS[name](library)
    random = _random(name, seed)
    model.set_weights([_weights(random, _role(weight), tuple(weight.shape)) for weight in model.weights])
    if name == "pruned":
        model.set_weights([_sparse(values) for values in model.get_weights()])
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def module(name: str, path: str) -> str:
    """Writes a SavedModel that is no Keras model, and returns its path."""
    random = _random(name)
    built = tf.Module()
    conv = name == "module_conv"
    shapes = {"first": (3, 3, 2, 8) if conv else (32, 24), "scale": (1, 8 if conv else 24), "second": (8, 3)}
    if not conv:
        shapes["second"] = (3, 24)
    for weight, shape in shapes.items():
        setattr(built, weight, tf.Variable(_weights(random, weight, shape), name=weight))
    (feature,) = FEATURES[name]
    spec = tf.TensorSpec([None, *FEATURES[name][feature]], tf.float32, name=feature)

    def hidden(x: tf.Tensor) -> tf.Tensor:
        if conv:
            return tf.reduce_mean(tf.nn.relu(tf.nn.conv2d(x, built.first, 1, "SAME")), [1, 2]) * built.scale
        return tf.nn.relu(x @ built.first) * built.scale

    def probabilities(x: tf.Tensor) -> dict[str, tf.Tensor]:
        seen = hidden(x)
        if name == "module_exotic":
            seen += tf.linalg.inv(tf.eye(24) * 2.0 + seen[0, 0])[0]  # TFLite has no inverse
        return {"probabilities": tf.nn.softmax(tf.matmul(seen, built.second, transpose_b=not conv))}

    built.serve = tf.function(probabilities, input_signature=[spec])
    built.inside = tf.function(lambda x: {"seen": hidden(x)}, input_signature=[spec])
    tf.saved_model.save(built, path, signatures={"serving_default": built.serve, "hidden": built.inside})
    return path


def examples_model(name: str, path: str) -> str:
    """Writes a Keras 2 model whose signature takes serialized tf.Examples, and returns the path."""
    model = net(name)
    spec = {feature: tf.io.FixedLenFeature(shape, tf.float32) for feature, shape in FEATURES[name].items()}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def serve(examples: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"probabilities": model(tf.io.parse_example(examples, spec), training=False)}

    model.save(path, save_format="tf", signatures={"serving_default": serve})
    return path


def keras2_saved(name: str, path: str) -> str:
    """Writes a Keras 2 model with Keras' own signature, and returns the path."""
    net(name).save(path, save_format="tf")
    return path


def keras3_file(name: str, path: str) -> str:
    """Writes a Keras 3 model, and returns the path."""
    net(name, keras).save(f"{path}.keras")
    return f"{path}.keras"


def aware(name: str, path: str) -> str:
    """Writes a quantization-aware model, and returns the path."""
    tfc.fine_tune(net(name), batches(name), tfc.FineTuning(**{**TUNED, **AWARE})).save(path)
    return path


KINDS: dict[str, Callable[[str, str], Any]] = {
    "keras2": lambda name, path: net(name),
    "keras3": lambda name, path: net(name, keras),
    "keras3_file": keras3_file,
    "keras2_saved": keras2_saved,
    "module": module,
    "examples": examples_model,
    "aware": aware,
}


def _random(name: str, seed: int = 0) -> np.random.RandomState:
    return np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32)


def _role(weight: Any) -> str:
    return str(getattr(weight, "path", weight.name)).split("/")[-1].split(":")[0]


def _weights(random: np.random.RandomState, role: str, shape: tuple[int, ...]) -> np.ndarray:
    if role in ("gamma", "moving_variance", "scale"):
        values = random.uniform(0.5, 1.5, shape)
    elif len(shape) > 1:
        values = random.normal(0.0, (2.0 / np.prod(shape[:-1])) ** 0.5, shape)
    else:
        values = random.normal(0.0, 0.1, shape)
    return values.astype(np.float32)


def _sparse(values: np.ndarray) -> np.ndarray:
    return values * (np.abs(values) > np.quantile(np.abs(values), 0.9)) if values.ndim > 1 else values


# Data.


def features(name: str, rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns rows of a net's inputs by name."""
    random = _random(name, 100 + seed)
    return {
        feature: random.randint(0, WORDS, (rows, *shape)).astype(np.int32)
        if feature == "tokens"
        else random.normal(size=(rows, *shape)).astype(np.float32)
        for feature, shape in FEATURES[name].items()
    }


def labels(rows: int, seed: int = 0) -> np.ndarray:
    """Returns a class for each row."""
    return np.random.RandomState(200 + seed).randint(0, CLASSES, rows).astype(np.int64)


def fed(values: Mapping[str, np.ndarray]) -> Any:
    """Returns features as a Keras model takes them."""
    return next(iter(values.values())) if len(values) == 1 else dict(values)


def batches(name: str, rows: int = 32, seed: int = 0) -> tf.data.Dataset:
    """Returns batches of 8 rows with their labels."""
    return tf.data.Dataset.from_tensor_slices((fed(features(name, rows, seed)), labels(rows, seed))).batch(8)


def rows_by_name(name: str, rows: int = 64, outlier: float = 1.0) -> tf.data.Dataset:
    """Returns batches as conversion takes them: features by name, the first value of each multiplied by `outlier`."""
    columns = features(name, rows)
    if outlier != 1.0:
        for column in columns.values():
            column.flat[0] *= outlier
    return tf.data.Dataset.from_tensor_slices((columns, labels(rows))).batch(8)


def serialized(values: Mapping[str, np.ndarray]) -> list[bytes]:
    """Returns rows as tf.Examples."""

    def feature(row: np.ndarray) -> tf.train.Feature:
        if row.dtype.kind == "f":
            return tf.train.Feature(float_list=tf.train.FloatList(value=row.ravel()))
        return tf.train.Feature(int64_list=tf.train.Int64List(value=row.ravel()))

    return [
        tf.train.Example(
            features=tf.train.Features(feature={name: feature(column[row]) for name, column in values.items()})
        ).SerializeToString(deterministic=True)  # The evaluator seeds its resampling from these bytes.
        for row in range(len(next(iter(values.values()))))
    ]


def loss_fn(targets: Any, outputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """Returns the loss of a SavedModel that is no Keras model."""
    return tf.keras.losses.sparse_categorical_crossentropy(targets, outputs["probabilities"])


# Digests.


def digest(value: Any) -> str:
    """Returns the sha256 of bytes, of arrays with their shapes and types, or of what JSON can hold."""
    hasher = hashlib.sha256()
    for piece in _pieces(value):
        hasher.update(len(piece).to_bytes(8, "little"))
        hasher.update(piece)
    return hasher.hexdigest()


def _pieces(value: Any) -> Iterator[bytes]:
    if isinstance(value, bytes):
        yield value
    elif isinstance(value, np.ndarray | np.generic):
        yield f"{value.shape} {value.dtype}".encode()
        yield np.ascontiguousarray(value).tobytes()
    elif isinstance(value, Mapping):
        for name in sorted(value):
            yield str(name).encode()
            yield from _pieces(value[name])
    elif isinstance(value, list | tuple):
        yield str(len(value)).encode()
        for each in value:
            yield from _pieces(each)
    else:
        yield json.dumps(value).encode()


def rounded(value: Any, digits: int) -> Any:
    """Returns numbers rounded, wherever they are in lists and dictionaries."""
    if isinstance(value, Mapping):
        return {name: rounded(each, digits) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each, digits) for each in value]
    if isinstance(value, float | np.floating):
        return round(float(value), digits)
    return value.item() if isinstance(value, np.generic) else value


def plain(value: Any) -> Any:
    """Returns JSON's values in order, without the names of fields, which may change."""
    if isinstance(value, Mapping):
        return [plain(each) for each in value.values()]
    return [plain(each) for each in value] if isinstance(value, list) else value


def model_parts(compressed: Any, name: str, kind: str, saves: bool, path: str) -> dict[str, Any]:
    """Returns what is digested of what `prune` and `fine_tune` return."""
    parts = {
        "masks": {key: np.asarray(mask).astype(bool) for key, mask in compressed.masks.items()},
        "summary": plain(json.loads(compressed.summary.model_dump_json())),
    }
    if kind != "module":
        values = {key: tf.constant(value) for key, value in features(name, 4).items()}
        parts["weights"] = [np.asarray(value) for value in compressed.model.get_weights()]
        parts["answers"] = np.asarray(compressed.model(fed(values), training=False))
    if saves or kind == "module":
        compressed.save(path)
        parts["saved"] = saved_parts(path, name)
    return parts


def saved_parts(path: str, name: str) -> list[Any]:
    """Returns the variables of a SavedModel, in the order of their names, and what its signature answers."""
    loaded = tf.saved_model.load(path)
    signature = loaded.signatures["serving_default"]
    (_, arguments) = signature.structured_input_signature
    values = features(name, 4)
    if [spec.dtype for spec in arguments.values()] == [tf.string]:
        feeds = {next(iter(arguments)): tf.constant(serialized(values))}
    else:
        feeds = {key: tf.constant(values[key]) for key in arguments}
    variables = sorted(signature.variables, key=lambda variable: variable.name)
    answers = {key: value.numpy() for key, value in signature(**feeds).items()}
    return [[variable.numpy() for variable in variables], answers]


def tflite_answers(content: bytes) -> dict[str, np.ndarray]:
    """Returns what a TFLite model makes of made rows, on LiteRT's own kernels."""
    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    runner = interpreter.get_signature_runner("serving_default")
    random = np.random.RandomState(0)
    feeds = {}
    for name, details in sorted(runner.get_input_details().items()):
        shape = [3 if size < 0 else size for size in details["shape_signature"]]
        kind = np.dtype(details["dtype"])
        if kind.kind == "f":
            feeds[name] = random.normal(size=shape).astype(kind)
        else:
            third = np.iinfo(kind).max // 3  # beyond, all probabilities would be 0 or 1
            ends = (0, WORDS) if name == "tokens" else (-third, third) if kind.kind == "i" else (third, 2 * third)
            feeds[name] = random.randint(*ends, size=shape).astype(kind)
    return {name: np.asarray(value) for name, value in runner(**feeds).items()}


# Cases.


def prune(case: Pruning, path: str) -> dict[str, Any]:
    """Runs a case of `tfc.prune`."""
    if case.plan.get("scores"):
        random = _random("scores")
        kernels = [weight for weight in net(case.net).weights if len(weight.shape) > 1]
        np.savez(SCORES, **{weight.name.split("/")[0]: random.uniform(size=weight.shape) for weight in kernels})
    model = KINDS[case.kind](case.net, f"{path}/model")
    result = tfc.prune(
        model,
        tfc.PruningPlan(**case.plan),
        batches(case.net),
        loss_fn=loss_fn if case.kind == "module" else None,
    )
    return model_parts(result, case.net, case.kind, case.saves, f"{path}/result")


def fine_tune(case: Tuning, path: str) -> dict[str, Any]:
    """Runs a case of `tfc.fine_tune`."""
    make = KINDS[case.kind]
    model = make(case.net, f"{path}/model")
    if case.plan is not None:
        model = tfc.prune(model, tfc.PruningPlan(**case.plan), batches(case.net))
    library = keras if case.kind == "keras3" else tf_keras
    teachers = [
        make(case.net, f"{path}/teacher") if case.kind == "module" else net(case.net, library, seed)
        for seed in range(case.teachers)
    ]
    result = tfc.fine_tune(
        model,
        batches(case.net),
        tfc.FineTuning(**{**TUNED, **case.config}),
        teachers or None,
        validation_data=batches(case.net, 16, seed=1) if case.validates else None,
    )
    parts = model_parts(result, case.net, case.kind, case.saves, f"{path}/result")
    parts["history"] = rounded([dict(epoch) for epoch in result.history], 6)
    if result.rounds:
        parts["rounds"] = rounded([[each.achieved_sparsity, each.drop, each.accepted] for each in result.rounds], 6)
    return parts


def quantize(case: Converting, path: str) -> dict[str, Any]:
    """Runs a case of `tfc.quantize`."""
    model = KINDS[case.kind](case.net, f"{path}/model")
    data = rows_by_name(case.net, outlier=case.outlier)
    content = bytes(tfc.quantize(model, tfc.Quantization(**{**CONVERTED, **case.config}), data))
    return {"file": content, **({"answers": tflite_answers(content)} if case.runs else {})}


@functools.cache
def candidates() -> dict[str, str]:
    """Returns the paths of the models that are evaluated, and of the examples."""
    paths = {"baseline": examples_model("cnn", f"{FOLDER}/evaluated")}
    for name, fields in CANDIDATES.items():
        paths[name] = f"{FOLDER}/{name}.tflite"
        config = tfc.Quantization(**{**CONVERTED, **fields})
        tfc.quantize(paths["baseline"], config, rows_by_name("cnn")).save(paths[name])
    paths["examples"] = f"{FOLDER}/examples.tfrecord"
    columns = {**features("cnn", 200, seed=2), "label": labels(200), "side": labels(200, seed=3)}
    with tf.io.TFRecordWriter(paths["examples"]) as writer:
        for row in serialized(columns):
            writer.write(row)
    return paths


def evaluate(fields: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Runs a case of `tfc.evaluate`, with slices where the budget limits those."""
    paths = candidates()
    config = None
    if "max_slice_metric_drop" in fields:
        metrics = [
            config_pb2.MetricConfig(class_name="SparseCategoricalAccuracy"),
            config_pb2.MetricConfig(class_name="SparseCategoricalCrossentropy", config='"name": "loss"'),
        ]
        config = tfma.EvalConfig(
            metrics_specs=[config_pb2.MetricsSpec(metrics=metrics)],
            slicing_specs=[config_pb2.SlicingSpec(), config_pb2.SlicingSpec(feature_keys=["side"])],
        )
    result = tfc.evaluate(
        {name: paths[name] for name in CANDIDATES},
        paths["examples"],
        "label",
        baseline=paths["baseline"],
        eval_config=config,
        budget=tfc.Budget(**fields),
        reference_kernels=config is not None,
    )
    verdicts = {
        name: [[verdict.bound, verdict.measured, verdict.held] for verdict in each]
        for name, each in result.verdicts.items()
    }
    return {"metrics": rounded(result.metrics, 9), "verdicts": rounded(verdicts, 6), "chosen": result.chosen}


CASES: dict[str, Callable[[str], dict[str, Any]]] = {
    f"{function.__name__}/{name}": functools.partial(function, case)
    for function, cases in ((prune, PRUNINGS), (fine_tune, TUNINGS), (quantize, CONVERSIONS), (evaluate, BUDGETS))
    for name, case in cases.items()
}


def run(name: str) -> dict[str, str]:
    """Runs a case, and returns its digests by name."""
    started = time.perf_counter()
    tf.config.experimental.enable_op_determinism()
    for library in (tf_keras, keras):
        library.backend.clear_session()
        library.utils.set_random_seed(0)
    with tempfile.TemporaryDirectory(dir=FOLDER) as path, contextlib.redirect_stdout(sys.stderr):
        try:
            actual = {f"{name}/{part}": digest(value) for part, value in CASES[name](path).items()}
        except Exception as error:  # noqa: BLE001
            actual = {name: f"error: {type(error).__name__}"}
            print(f"{name}: {type(error).__name__}: {error}")
        print(f"{name}: {time.perf_counter() - started:.1f} s", flush=True)
    return actual


def differences(actual: Mapping[str, str], before: Mapping[str, str], names: list[str]) -> list[str]:
    """Returns what differs from an earlier output, among the cases that were run."""
    known = {key for key in before if any(key == name or key.startswith(f"{name}/") for name in names)}
    return [key for key in sorted(known | set(actual)) if actual.get(key) != before.get(key)]


def main() -> int:
    """Runs the cases that are asked for, and returns the exit status."""
    parser = argparse.ArgumentParser(description="Prints digests of what the public functions return.")
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="run the cases whose names contain this")
    parser.add_argument("--against", metavar="FILE", help="compare with an earlier output; status 1 where it differs")
    parser.add_argument("--jobs", type=int, default=2, help="how many processes run cases; 2 by default")
    options = parser.parse_args()
    before = json.loads(Path(options.against).read_text()) if options.against else None
    names = [name for name in CASES if options.only in name]
    actual: dict[str, str] = {}
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
        for digests in pool.map(run, names):
            actual |= digests
    print(json.dumps(actual, indent=1))
    changed = [] if before is None else differences(actual, before, names)
    for key in changed:
        print(f"differs: {key}", file=sys.stderr)
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
