"""Measures size, latency and accuracy of pruned ResNets and MobileNets, and the time to prune 25 million weights.

Four parts, chosen by letter in `--only`:

  a  sizes: half of the filters removed, compared with a network of half the width and with zeroed weights:
     parameters, multiply-accumulates, bytes of the float TFLite file, its latency on one thread
  b  accuracy on Fashion-MNIST by criterion, allocation and sparsity, one-shot and after short fine-tuning
  c  resnet50: time and peak memory of pruning half of the filters of ResNet-50
  d  weights: the same for 80 % of its weights, compared with tfmot, and a check that both zero the same weights

Prints one JSON object. `--out FOLDER` also writes each part to `pruning-<part>.json`, from which
`pruning_figures.py` makes the tables and the plot of docs/pruning.md. Every run is a separate process.
"""

import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import running
import typer

CACHE = Path(__file__).parents[1] / ".cache" / "benchmarks" / "pruning"
PARTS = {"a": "sizes", "b": "accuracy", "c": "resnet50", "d": "weights"}
PACKAGES = ("tensorflow", "tf-keras", "tensorflow-model-optimization", "ai-edge-litert", "tfx-compression")
NETS = ("resnet", "mobilenet")

# Part b uses a ResNet that trains in minutes.
SMALL = {"widths": (16, 32, 64), "stem_strides": 2}
CRITERIA = ("l1", "geometric_median", "bn_scale", "taylor", "random")
ALLOCATIONS = ("uniform", "global", "lamp")
SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
TUNED = (0.3, 0.5, 0.7)  # The sparsities that are also fine-tuned.
TUNING_ROWS = 20_000  # A third of an epoch.
BATCH = 128
WEIGHT_DECAY = 0.2  # Without it, all filters keep their initial norms.

app = typer.Typer(add_completion=False)


@app.callback(invoke_without_command=True, help=__doc__.splitlines()[0])
def main(
    context: typer.Context,
    repeats: Annotated[int, typer.Option(min=1, help="Repeats of everything that is timed.")] = 3,
    only: Annotated[str, typer.Option(help="Letters of the parts to run.")] = "abcd",
    data: Annotated[Path, typer.Option(help="Folder with Fashion-MNIST's idx files, gzipped or not.")] = running.DATA,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of training before part b.")] = 6,
    rows: Annotated[int, typer.Option(min=BATCH, help="Rows of data in part b.")] = 60_000,
    cache: Annotated[Path, typer.Option(help="Folder for the trained network and the log.")] = CACHE,
    out: Annotated[Path | None, typer.Option(help="Folder for pruning-<part>.json.")] = None,
) -> None:
    """Measure and print."""
    if context.invoked_subcommand:
        return
    if not only or set(only) - set(PARTS):
        raise typer.BadParameter(f"{only!r}: the parts are a, b, c and d.")
    if "b" in only:
        running.require_data(data)
    run = running.Children(__file__, cache / "log.txt")
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "a": lambda: _sizes(run, repeats),
        "b": lambda: run("accuracy", str(cache), str(data.resolve()), str(epochs), str(rows)),
        "c": lambda: {each: _resnet50(run, repeats, "filter", each, "0.5") for each in ("global", "uniform")},
        "d": lambda: _weights(run, repeats),
    }
    report: dict[str, Any] = {}
    machine = running.machine(PACKAGES)
    for letter in sorted(set(only)):
        report[PARTS[letter]] = parts[letter]()
        if out is not None:
            running.write(out / f"pruning-{PARTS[letter]}.json", {**report[PARTS[letter]], **machine})
    print(json.dumps({**report, **machine}, indent=1))


# Evaluation of the runs.


def _sizes(run: running.Children, repeats: int) -> dict[str, Any]:
    return {net: _ratios(run("sizes", net, str(repeats))) for net in NETS}


def _ratios(measured: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Returns each model's figures and how many times smaller and faster it is than the original."""
    original = measured["whole"]
    return {
        name: {
            **model,
            "latency_ms": round(statistics.median(model["latency_ms"]), 4),
            "latencies_ms": model["latency_ms"],
            "times_smaller": {
                name: round(original[name] / model[name], 3) for name in ("parameters", "macs", "tflite_bytes")
            },
            # The median over repeats of the ratio within a repeat, in which all models are interleaved.
            "times_faster": round(
                statistics.median(
                    before / after for before, after in zip(original["latency_ms"], model["latency_ms"], strict=True)
                ),
                3,
            ),
        }
        for name, model in measured.items()
    }


def _resnet50(run: running.Children, repeats: int, *plan: str) -> dict[str, Any]:
    runs = [run("resnet50", *plan) for _ in range(repeats)]
    return {
        **runs[0],
        "seconds": statistics.median(each["seconds"] for each in runs),
        "memory_times_weights": max(each["memory_times_weights"] for each in runs),
        "runs": [{name: each[name] for name in ("seconds", "memory_times_weights")} for each in runs],
    }


def _weights(run: running.Children, repeats: int) -> dict[str, Any]:
    ours = {each: _resnet50(run, repeats, "weight", each, "0.8") for each in ("global", "uniform")}
    tfmot = _resnet50(run, repeats, "tfmot", "uniform", "0.8")
    return {
        **ours,
        "tfmot_uniform": tfmot,
        "tfmot_over_ours": round(tfmot["seconds"] / ours["uniform"]["seconds"], 3),
        "same_zeros": run("same-zeros"),
    }


# Child processes. The parent imports nothing large, because a child's peak memory starts at its parent's.


@app.command(hidden=True)
def sizes(net: str, repeats: int) -> None:
    """Part a for one network: builds its five models and measures their interleaved latency."""
    import numpy as np
    from tfx_compression.compressed_evaluator import latency
    from tfx_compression.tflite.interpreter import Interpreter

    rows = {"image": np.random.default_rng(0).random((1, 28, 28, 1), np.float32)}
    results: dict[str, dict[str, Any]] = {}
    calls = {}
    for name, (model, size) in _variants(net).items():
        content = _tflite(model)
        results[name] = {
            "parameters": size.parameters,
            "macs": size.macs,
            "nonzero_macs": size.nonzero_macs,
            "tflite_bytes": len(content),
            "latency_ms": [],
        }
        interpreter = Interpreter(content)
        calls[name] = interpreter.prepare(rows)
        results[name]["runtime"] = interpreter.runtime
    for _ in range(repeats):
        for name, measured in latency.measure(calls).items():
            results[name]["latency_ms"].append(round(measured.median, 4))
    print(json.dumps(results))


def _variants(net: str) -> dict[str, tuple[Any, Any]]:
    """Returns the original network, three pruned ones and the one built by hand, each with its size."""
    import nets
    import tf_keras
    import tfx_compression as tfc
    from tfx_compression.keras_models import model_size

    def built(halve: bool = False) -> Any:
        tf_keras.utils.set_random_seed(1)
        widths = getattr(nets, net.upper())
        return getattr(nets, net)(nets.halved(widths) if halve else widths)

    def pruned(**plan: Any) -> tuple[Any, Any]:
        result = tfc.prune(built(), tfc.PruningPlan(criterion="l1", **plan))
        for note in result.record.notes:
            print(note, file=sys.stderr)
        return result.model, result.summary.after

    original, half = built(), built(halve=True)
    removed = pruned(technique="filter", sparsity=0.5, protect=("last",))
    zeros = 1 - removed[1].parameters / model_size.measure(original).parameters  # As many as removal removes.
    return {
        "whole": (original, model_size.measure(original)),
        "classifier_protected": removed,
        "default_protection": pruned(technique="filter", sparsity=0.5, protect=("first", "last")),
        "half_width_by_hand": (half, model_size.measure(half)),
        "only_zeroed": pruned(technique="weight", sparsity=round(zeros, 3), protect=("last",)),
    }


def _tflite(model: Any) -> bytes:
    import tfx_compression as tfc

    with tempfile.TemporaryDirectory() as folder:
        model.save(folder, save_format="tf")
        return bytes(tfc.quantize(folder, tfc.Quantization(mode="float32")))


@app.command(hidden=True)
def accuracy(cache: Path, data: Path, epochs: int, rows: int) -> None:
    """Part b: trains a small network, then prunes it with every recipe."""
    import nets

    train, test = (tuple(column[:rows] for column in nets.fashion_mnist(data, split)) for split in nets.IDX)
    path = _trained(cache / f"small-{epochs}-{rows}.keras", train, epochs)
    original = _load(path)
    before = _accuracy(original, test)
    longer = _tuned(original, train, test)
    table = []
    for criterion, allocation in _recipes():
        for sparsity in SPARSITIES:
            table.append(_pruned_accuracy(path, train, test, criterion, allocation, sparsity))
            print(table[-1], file=sys.stderr, flush=True)
    report = {
        "net": {"builder": "nets.resnet", **SMALL, "epochs": epochs, "rows": rows, "test_rows": len(test[1])},
        "fine_tuning": {"epochs": 1, "rows": min(rows, TUNING_ROWS), "batch_normalization_momentum": 0.9},
        "whole": {"accuracy": before, "fine_tuned": longer},
        "table": table,
    }
    print(json.dumps(report))


def _recipes() -> list[tuple[str, str]]:
    """Returns criteria and allocations. `sensitivity` measures, so one criterion suffices for it."""
    return [*itertools.product(CRITERIA, ALLOCATIONS), ("l1", "sensitivity")]


def _trained(path: Path, train: Sequence[Any], epochs: int) -> Path:
    import nets
    import tf_keras

    if not path.exists():
        tf_keras.utils.set_random_seed(1)
        model = nets.resnet(**SMALL)
        _fit(model, train, epochs, 2e-3)
        unfinished = path.with_name(f"unfinished-{path.name}")
        model.save(unfinished)
        unfinished.rename(path)
    return path


def _fit(model: Any, train: Sequence[Any], epochs: int, learning_rate: float) -> None:
    """Trains with AdamW and cosine decay of the learning rate to zero."""
    import tf_keras

    steps = epochs * -(-len(train[0]) // BATCH)
    schedule = tf_keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    optimizer = tf_keras.optimizers.AdamW(schedule, weight_decay=WEIGHT_DECAY)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(*train, batch_size=BATCH, epochs=epochs, verbose=2)


def _load(path: Path) -> Any:
    import tf_keras

    return tf_keras.models.load_model(path)


def _accuracy(model: Any, test: Sequence[Any]) -> float:
    answers = model.predict(test[0], batch_size=500, verbose=0).argmax(axis=1)
    return round(float((answers == test[1]).mean()), 4)


def _tuned(model: Any, train: Sequence[Any], test: Sequence[Any]) -> float:
    """Returns the accuracy after a little more training."""
    import tf_keras

    tf_keras.utils.set_random_seed(1)
    for layer in model.layers:
        if isinstance(layer, tf_keras.layers.BatchNormalization):
            layer.momentum = 0.9  # The default would keep the averages of the original network for so few steps.
    _fit(model, [column[:TUNING_ROWS] for column in train], 1, 1e-3)
    return _accuracy(model, test)


def _pruned_accuracy(
    path: Path, train: Sequence[Any], test: Sequence[Any], criterion: str, allocation: str, sparsity: float
) -> dict[str, Any]:
    import tensorflow as tf
    import tf_keras
    import tfx_compression as tfc
    from tfx_compression.pruning.sensitivity import SensitivityOptions

    tf_keras.backend.clear_session()
    plan = tfc.PruningPlan(
        **{"technique": "filter", "criterion": criterion, "allocation": allocation, "sparsity": sparsity},
        **{"protect": ("first", "last"), "recalibrate_batches": 0},
    )
    rows = tf.data.Dataset.from_tensor_slices(tuple(column[: plan.sample_rows] for column in train)).batch(BATCH)
    options = SensitivityOptions(
        str(path.with_suffix(".sensitivity.json")), path.stem
    )  # Measurements are the same at every sparsity.
    started = time.perf_counter()
    pruned = tfc.prune(_load(path), plan, rows, sensitivity_options=options)
    seconds = time.perf_counter() - started
    before, after = pruned.summary.before, pruned.summary.after
    return {
        "criterion": criterion,
        "allocation": allocation,
        "sparsity": sparsity,
        "parameters_left": round(after.parameters / before.parameters, 4),
        "macs_left": round(after.macs / before.macs, 4),
        "accuracy": _accuracy(pruned.model, test),
        "fine_tuned": _tuned(pruned.model, train, test) if sparsity in TUNED else None,
        "seconds": round(seconds, 2),
    }


@app.command(hidden=True)
def resnet50(technique: str, allocation: str, sparsity: float) -> None:
    """Parts c and d: prunes ResNet-50's filters, or its weights with our masks or tfmot's."""
    import tf_keras
    import tfx_compression as tfc

    tf_keras.utils.set_random_seed(1)
    model = tf_keras.applications.ResNet50(weights=None)
    weights = sum(weight.numpy().nbytes for weight in model.weights)
    kind = "weight" if technique == "tfmot" else technique
    plan = tfc.PruningPlan(
        technique=kind, criterion="l1", allocation=allocation, sparsity=sparsity, protect=("first", "last")
    )
    prune = _prune_with_tfmot if technique == "tfmot" else tfc.prune  # The first use imports it.
    Path("/proc/self/clear_refs").write_text("5")  # Resets the peak of memory to the current use (proc(5)).
    loaded = _memory("VmRSS")
    started = time.perf_counter()
    result = prune(model, plan)
    seconds = time.perf_counter() - started
    report = {
        "seconds": round(seconds, 2),
        "memory_times_weights": round((_memory("VmHWM") - loaded) / weights, 3),
        "weights_bytes": weights,
    }
    if result is not None:
        before, after = result.summary.before, result.summary.after
        report |= {
            "parameters": [before.parameters, after.parameters],
            "macs": [before.macs, after.macs],
            "sparsity": round(after.sparsity, 4),
        }
    print(json.dumps(report))


def _memory(field: str) -> int:
    """Returns this process's memory in bytes: resident (VmRSS) or its peak (VmHWM)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[field].split()[0])


def _prune_with_tfmot(model: Any, plan: Any) -> None:
    """Prunes each layer with tfmot's wrapper at its first step."""
    for layer in model.layers:
        if hasattr(layer, "kernel"):
            _masked_by_tfmot(layer, plan.sparsity)


def _masked_by_tfmot(layer: Any, sparsity: float, pattern: str = "unstructured") -> None:
    import tensorflow_model_optimization as tfmot

    schedule = tfmot.sparsity.keras.ConstantSparsity(sparsity, begin_step=0, frequency=1)
    n_of_m = {} if pattern == "unstructured" else {"sparsity_m_by_n": (2, 4)}
    wrapper = tfmot.sparsity.keras.prune_low_magnitude(layer, pruning_schedule=schedule, **n_of_m)
    wrapper.build(layer.get_input_shape_at(0))
    wrapper.pruning_step.assign(1 if n_of_m else 0)
    wrapper.pruning_obj.conditional_mask_update()
    wrapper.pruning_obj.weight_mask_op()


@app.command(hidden=True)
def same_zeros() -> None:
    """Part d: counts the positions at which tfmot's zeros and ours differ, on the small network."""
    import nets
    import numpy as np
    import tf_keras
    import tfx_compression as tfc

    report = {}
    for pattern in ("unstructured", "2:4"):
        tf_keras.utils.set_random_seed(1)
        model = nets.resnet(**SMALL)
        other = tf_keras.models.clone_model(model)
        other.set_weights(model.get_weights())
        plan = {"sparsity": 0.8} if pattern == "unstructured" else {"pattern": pattern}
        masks = tfc.prune(model, tfc.PruningPlan(technique="weight", protect=(), **plan)).masks
        different = 0
        for name, mask in masks.items():
            layer = other.get_layer(name)
            _masked_by_tfmot(layer, 0.8, pattern)
            different += int(np.count_nonzero((layer.kernel.numpy() != 0) != mask))
        report[pattern] = {"kernels": len(masks), "zeros": sum(int((~m).sum()) for m in masks.values())}
        report[pattern]["at_other_places"] = different
    print(json.dumps(report))


if __name__ == "__main__":
    app()
