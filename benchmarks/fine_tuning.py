"""Measures the accuracy that fine-tuning recovers after pruning, and the time of a training step.

Three parts, chosen by letter in `--only`, with a small CNN on Fashion-MNIST and several seeds:

  a  recipes: four kinds of pruning, each with suitable fine-tuning, compared with the dense network trained for
     as many epochs; and the drop at 95 % by the number of epochs
  b  methods: distillation, gradual pruning and dynamic sparse training, compared with fixed masks at 90, 95 and 98 %
  c  time of a step: gradual pruning compared with an equivalent tfmot script; and a SavedModel without layers, trained
     through its signature, compared with Keras' `fit` of the dense network

Prints one JSON object. `--out FOLDER` also writes each part to `fine_tuning-<part>.json`, from which
`fine_tuning_figures.py` makes the tables and the plots of docs/fine_tuning.md. Every run is a separate process. Runs of
a and b are stored in `--cache` by their settings and are not repeated.
"""

import hashlib
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import running
import typer

CACHE = Path(__file__).parents[1] / ".cache" / "benchmarks" / "fine_tuning"
PARTS = {"a": "recipes", "b": "methods", "c": "time"}
PACKAGES = ("tensorflow", "tf-keras", "tensorflow-model-optimization", "tfx-compression")

BATCH = 128
STEPS = 469  # Per epoch of 60,000 rows.
NET = {"units": 192, "dropout": 0.1}
START: Mapping[str, Any] = {"start": True, "plan": None, "tuning": {"epochs": 6, "learning_rate": 2e-3}}
TUNING = {"learning_rate": 2e-3, "learning_rate_schedule": "cosine"}
EPOCHS = 8
DISTILLATION = {"temperature": 2.0, "alpha": 0.5}

# Part b.
METHOD_EPOCHS = 4
SPARSITIES = (0.9, 0.95, 0.98)
METHODS = ("fixed", "distillation", "gradual", "dynamic")

# Part a's curve.
CURVE = (2, 4, 8)

# Part c.
PAIRS = {"gradual": "tfmot", "signature": "keras"}

app = typer.Typer(add_completion=False)
Spec = Mapping[str, Any]


@app.callback(invoke_without_command=True, help=__doc__.splitlines()[0])
def main(
    context: typer.Context,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of parts a and b.")] = 3,
    repeats: Annotated[int, typer.Option(min=1, help="Repeats of part c.")] = 5,
    only: Annotated[str, typer.Option(help="Letters of the parts to run.")] = "abc",
    data: Annotated[Path, typer.Option(help="Folder with Fashion-MNIST's idx files, gzipped or not.")] = running.DATA,
    parallel: Annotated[int, typer.Option(min=1, help="Parallel runs of parts a and b, each on one thread.")] = 2,
    cache: Annotated[Path, typer.Option(help="Folder for trained networks, runs and the log.")] = CACHE,
    out: Annotated[Path | None, typer.Option(help="Folder for fine_tuning-<part>.json.")] = None,
) -> None:
    """Measure and print."""
    if context.invoked_subcommand:
        return
    if not only or set(only) - set(PARTS):
        raise typer.BadParameter(f"{only!r}: the parts are a, b and c.")
    running.require_data(data)
    trainings = _Trainings(cache, data.resolve(), range(1, seeds + 1), parallel)
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "a": lambda: _recipes(trainings),
        "b": lambda: _methods(trainings),
        "c": lambda: _times(running.Children(__file__, cache / "log.txt"), repeats),
    }
    report: dict[str, Any] = {}
    machine = running.machine(PACKAGES)
    for letter in sorted(set(only)):
        report[PARTS[letter]] = parts[letter]()
        if out is not None:
            running.write(out / f"fine_tuning-{PARTS[letter]}.json", {**report[PARTS[letter]], **machine})
    print(json.dumps({**report, **machine}, indent=1))


# Settings.


def _plan(sparsity: float, **more: Any) -> dict[str, Any]:
    return {"sparsity": sparsity, "allocation": "lamp", **more}


def _gradual_plan(sparsity: float) -> dict[str, Any]:
    return _plan(sparsity, schedule="cubic", frequency=50)


def _dense(epochs: int) -> Spec:
    return {"plan": None, "tuning": {"epochs": epochs, **TUNING}}


def _gradual_with_distillation(sparsity: float, epochs: int) -> Spec:
    return {
        "plan": _gradual_plan(sparsity),
        "tuning": {"mode": "gradual", "epochs": epochs, "distillation": DISTILLATION, **TUNING},
    }


RECIPES: dict[str, Spec] = {
    "80 % of the weights": _gradual_with_distillation(0.8, EPOCHS),
    "95 % of the weights": _gradual_with_distillation(0.95, EPOCHS),
    "2:4": {"plan": {"pattern": "2:4"}, "tuning": {"epochs": EPOCHS, **TUNING}},
    "filters, half of the MACs": {
        "plan": {"technique": "filter", "target": "macs", "sparsity": 0.5, "allocation": "global"},
        "tuning": {"epochs": EPOCHS, "distillation": DISTILLATION, **TUNING},
    },
}


def _method(name: str, sparsity: float) -> Spec:
    tuning = {"epochs": METHOD_EPOCHS, **TUNING}
    if name == "gradual":
        return {"plan": _gradual_plan(sparsity), "tuning": {"mode": "gradual", **tuning}}
    if name == "dynamic":
        return {"plan": _plan(sparsity), "tuning": {"mode": "dynamic", **tuning}}
    if name == "distillation":
        tuning["distillation"] = DISTILLATION
    return {"plan": _plan(sparsity), "tuning": tuning}


# Evaluation of the runs.


class _Trainings:
    """Trainings for every seed, several in parallel. Stored results are read instead of computed again."""

    def __init__(self, cache: Path, data: Path, seeds: Iterable[int], parallel: int):
        self._cache, self._data, self.seeds, self._parallel = cache, data, list(seeds), parallel
        self._run = running.Children(__file__, cache / "log.txt")

    def __call__(self, specs: Sequence[Spec]) -> list[list[dict[str, Any]]]:
        """Returns the results of each training, in the order of the seeds."""
        self._train([START])
        self._train(specs)
        return [[self._found(spec, seed) for seed in self.seeds] for spec in specs]

    def starts(self) -> list[float]:
        """Returns the accuracies of the networks before pruning."""
        return [self._found(START, seed)["accuracy"] for seed in self.seeds]

    def _train(self, specs: Sequence[Spec]) -> None:
        """Distributes the missing trainings over processes. Each runs many, since tracing the first takes long."""
        jobs = {self._kept(spec, seed): (spec, seed) for spec in specs for seed in self.seeds}
        lacking = [
            {"spec": spec, "seed": seed, "result": str(kept), "net": str(self._net(seed))}
            for kept, (spec, seed) in jobs.items()
            if not kept.exists() or not self._net(seed).exists()
        ]
        shares = [lacking[place :: self._parallel] for place in range(self._parallel)]
        with ThreadPoolExecutor(self._parallel) as pool:
            list(pool.map(self._child, range(self._parallel), shares))

    def _child(self, number: int, share: Sequence[Mapping[str, Any]]) -> None:
        if share:
            jobs = self._cache / f"jobs-{number}.json"
            running.write(jobs, share)
            self._run("train", str(jobs), str(self._data))

    def _found(self, spec: Spec, seed: int) -> dict[str, Any]:
        return dict(json.loads(self._kept(spec, seed).read_text()))

    def _net(self, seed: int) -> Path:
        return self._cache / f"{self._name(START, seed)}.keras"

    def _kept(self, spec: Spec, seed: int) -> Path:
        return self._cache / "runs" / f"{self._name(spec, seed)}.json"

    def _name(self, spec: Spec, seed: int) -> str:
        settings = json.dumps([NET, START, BATCH, spec, seed], sort_keys=True)
        return hashlib.sha256(settings.encode()).hexdigest()[:16]


def _recipes(trainings: _Trainings) -> dict[str, Any]:
    curve = {epochs: _gradual_with_distillation(0.95, epochs) for epochs in CURVE}
    results = _compared(trainings, [*RECIPES.values(), *curve.values()])
    return {
        **_setting(trainings),
        "recipes": dict(zip(RECIPES, results, strict=False)),
        "by_epochs": results[len(RECIPES) :],
    }


def _methods(trainings: _Trainings) -> dict[str, Any]:
    names = list(itertools.product(METHODS, SPARSITIES))
    results = _compared(trainings, [_method(*name) for name in names])
    return {
        **_setting(trainings),
        "table": [
            {"method": method, "sparsity": sparsity, **run}
            for (method, sparsity), run in zip(names, results, strict=True)
        ],
    }


def _setting(trainings: _Trainings) -> dict[str, Any]:
    return {
        "net": {"builder": "nets.cnn", **NET, **START["tuning"], "batch_size": BATCH},
        "seeds": trainings.seeds,
        "accuracy_before": trainings.starts(),
    }


def _compared(trainings: _Trainings, specs: Sequence[Spec]) -> list[dict[str, Any]]:
    """Compares each training with the dense network's of as many epochs, by seed. Drops are in percentage points."""
    dense = {epochs: _dense(epochs) for epochs in sorted({spec["tuning"]["epochs"] for spec in specs})}
    baselines, results = trainings(list(dense.values())), trainings(specs)
    by_epochs = dict(zip(dense, baselines, strict=True))
    return [_drops(spec, runs, by_epochs[spec["tuning"]["epochs"]]) for spec, runs in zip(specs, results, strict=True)]


def _drops(spec: Spec, runs: Sequence[Mapping[str, Any]], dense: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    drops = [round(100 * (other["accuracy"] - run["accuracy"]), 2) for run, other in zip(runs, dense, strict=True)]
    return {
        **spec,
        "epochs": spec["tuning"]["epochs"],
        "accuracies": [run["accuracy"] for run in runs],
        "dense_accuracies": [run["accuracy"] for run in dense],
        "drops": drops,
        "drop": statistics.median(drops),
        "sparsity_of_prunable": runs[0]["sparsity_of_prunable"],
        "parameters": runs[0]["parameters"],
        "nonzero_parameters": runs[0]["nonzero_parameters"],
        "macs": runs[0]["macs"],
        "seconds": statistics.median(run["seconds"] for run in runs),
    }


def _times(run: running.Children, repeats: int) -> dict[str, Any]:
    """Returns ms per step of each interleaved training, and the median of the ratios within a turn."""
    turns = [{training: run("step", training) for training in _TRAININGS} for _ in range(repeats)]
    return {
        "batch_size": BATCH,
        "threads": 1,
        "turns": turns,
        **{
            clock: {
                "milliseconds": {
                    training: statistics.median(turn[training][clock] for turn in turns) for training in _TRAININGS
                },
                "ratios": {
                    f"{training}_over_{other}": _ratios([turn[training][clock] / turn[other][clock] for turn in turns])
                    for training, other in PAIRS.items()
                },
            }
            for clock in ("wall", "cpu")
        },
    }


def _ratios(ratios: Sequence[float]) -> dict[str, float]:
    results = {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
    return {name: round(ratio, 3) for name, ratio in results.items()}


# Child processes.


def _one_thread() -> None:
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def _batches(rows: Sequence[Any], seed: int) -> Callable[[int], Any]:
    """Returns a function from the number of a pass to its batches."""
    import numpy as np
    import tensorflow as tf

    images, labels = (tf.constant(column) for column in rows)

    def batches_of_pass(number: int) -> Any:
        order = np.random.default_rng((seed, number)).permutation(len(rows[1]))
        places = tf.data.Dataset.from_tensor_slices(order).batch(BATCH)
        return places.map(lambda some: (tf.gather(images, some), tf.gather(labels, some))).prefetch(2)

    return batches_of_pass


def _fit(model: Any, data: Callable[[int], Any], epochs: int, learning_rate: float, **_: Any) -> None:
    """Trains with Adam and cosine decay of the learning rate to zero."""
    import tf_keras

    schedule = tf_keras.optimizers.schedules.CosineDecay(learning_rate, epochs * STEPS)
    model.compile(tf_keras.optimizers.Adam(schedule), "sparse_categorical_crossentropy", metrics=["accuracy"])
    for number in range(epochs):
        model.fit(data(number), verbose=2)


def _accuracy(model: Any, test: Sequence[Any]) -> float:
    answers = model.predict(test[0], batch_size=500, verbose=0).argmax(axis=1)
    return round(float((answers == test[1]).mean()), 4)


@app.command(hidden=True)
def train(jobs: Path, data: Path) -> None:
    """Parts a and b: trains networks and writes the result of each as soon as it is known."""
    _one_thread()
    import nets
    import tf_keras

    rows, test = (nets.fashion_mnist(data, split) for split in nets.IDX)
    for job in json.loads(jobs.read_text()):
        tf_keras.backend.clear_session()
        results = _trained(job["spec"], job["seed"], Path(job["net"]), rows, test)
        print(time.strftime("%H:%M:%S"), results, job["spec"], file=sys.stderr, flush=True)
        running.write(Path(job["result"]), {**results, **job["spec"], "seed": job["seed"]})
    print("{}")


def _trained(spec: Spec, seed: int, net: Path, rows: Sequence[Any], test: Sequence[Any]) -> dict[str, Any]:
    """Trains the initial dense network, trains it further, or prunes and fine-tunes it; returns its figures."""
    import nets
    import tf_keras
    from tfx_compression.keras_models import model_size

    batches = _batches(rows, seed if spec == START else 1000 + seed)
    tf_keras.utils.set_random_seed(seed)
    started = time.perf_counter()
    zeros = 0.0
    if spec == START:
        model = nets.cnn(**NET)
        _fit(model, batches, **spec["tuning"])
        unfinished = net.with_name(f"unfinished-{net.name}")
        model.save(unfinished)
        unfinished.rename(net)
    elif spec["plan"] is None:
        model = tf_keras.models.load_model(net)
        _fit(model, batches, **spec["tuning"])
    else:
        model, zeros = _pruned_and_tuned(net, batches, {**spec["tuning"], "seed": seed}, spec["plan"])
    size = model_size.measure(model)
    return {
        "accuracy": _accuracy(model, test),
        "sparsity_of_prunable": round(zeros, 4),
        "parameters": size.parameters,
        "nonzero_parameters": round(size.parameters * (1 - size.sparsity)),
        "macs": size.macs,
        "seconds": round(time.perf_counter() - started, 1),
    }


def _pruned_and_tuned(
    net: Path, batches: Callable[[int], Any], tuning: Mapping[str, Any], fields: Mapping[str, Any]
) -> tuple[Any, float]:
    """Returns the pruned and fine-tuned network and the fraction of zeros among its prunable weights."""
    import tf_keras
    import tfx_compression as tfc

    plan = tfc.PruningPlan(**fields)
    pruned = tfc.prune(tf_keras.models.load_model(net), plan, batches(0).take(-(-plan.sample_rows // BATCH)))
    config = tfc.FineTuning(**tuning)
    teacher = tf_keras.models.load_model(net) if config.distillation else None
    tuned = tfc.fine_tune(
        pruned.model,
        batches,
        config,
        teacher,
        plan=pruned.plan,
        target_sparsity=pruned.target_sparsity,
        masks=pruned.masks,
    )
    masks = tuned.masks.values()
    zeros = sum(int((~mask).sum()) for mask in masks) / max(1, sum(mask.size for mask in masks))
    return tuned.model, zeros


@app.command(hidden=True)
def step(training: str) -> None:
    """Part c: measures ms per step of one training, without the first epoch, which compiles it."""
    _one_thread()
    import nets
    import numpy as np
    import tf_keras

    epochs, steps = 4, 300
    generator = np.random.default_rng(0)
    rows = steps * BATCH
    images, labels = generator.random((rows, 28, 28, 1), np.float32), generator.integers(0, 10, rows)
    batches = _batches((images, labels), 0)
    tf_keras.utils.set_random_seed(1)
    model = nets.cnn(**NET)
    model.compile(tf_keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    clock = _clock()
    _TRAININGS[training](model, batches, epochs, epochs * steps, clock)
    results = {name: round(1000 * statistics.median(times[1:]) / steps, 3) for name, times in clock.seconds.items()}
    print(json.dumps(results))


def _clock() -> Any:
    import tf_keras

    class Clock(tf_keras.callbacks.Callback):
        """Records wall time and CPU time of each epoch, in seconds; other processes hardly affect CPU time."""

        def __init__(self) -> None:
            super().__init__()
            self.seconds: dict[str, list[float]] = {"wall": [], "cpu": []}

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self._started = time.perf_counter(), time.process_time()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            for times, now, before in zip(
                self.seconds.values(), (time.perf_counter(), time.process_time()), self._started, strict=True
            ):
                times.append(now - before)

    return Clock()


def _ours_gradual(model: Any, batches: Callable[[int], Any], epochs: int, steps: int, clock: Any) -> None:
    import tfx_compression as tfc

    plan = tfc.PruningPlan(sparsity=0.8, schedule="cubic", end_step=steps, frequency=100)
    config = tfc.FineTuning(mode="gradual", epochs=epochs, learning_rate=1e-3)
    tfc.fine_tune(model, batches, config, plan=plan, callbacks=[clock])


def _tfmot(model: Any, batches: Callable[[int], Any], epochs: int, steps: int, clock: Any) -> None:
    import tensorflow_model_optimization as tfmot
    import tf_keras

    sparsity = tfmot.sparsity.keras
    schedule = sparsity.PolynomialDecay(0.0, 0.8, begin_step=0, end_step=steps, power=3, frequency=100)

    def wrap(layer: Any) -> Any:
        kernels = {"conv1", "conv2", "dense"}  # The first and the last layer stay dense.
        return sparsity.prune_low_magnitude(layer, schedule) if layer.name in kernels else layer

    pruned = tf_keras.models.clone_model(model, clone_function=wrap)
    pruned.compile(tf_keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    pruned.fit(batches(0), epochs=epochs, callbacks=[sparsity.UpdatePruningStep(), clock], verbose=0)


def _signature(model: Any, batches: Callable[[int], Any], epochs: int, steps: int, clock: Any) -> None:
    import tensorflow as tf
    import tfx_compression as tfc
    from tfx_compression import model_handle

    @tf.function(input_signature=[tf.TensorSpec([None, *model.input_shape[1:]], tf.float32, name="image")])
    def serve(image: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"probabilities": model(image, training=False)}

    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(model, folder, signatures={"serving_default": serve})
        loaded = model_handle.load(folder)
        if loaded.kind != "saved_model":
            raise SystemExit(f"The SavedModel was read as {loaded.kind}: it would not train through its signature.")
        pruned = tfc.prune(loaded, tfc.PruningPlan(sparsity=0.8))

        def named(number: int) -> Any:
            return batches(number).map(lambda image, label: ({"image": image}, label))

        config = tfc.FineTuning(
            epochs=epochs, learning_rate=1e-3, loss="sparse_categorical_crossentropy", metrics=("accuracy",)
        )
        tfc.fine_tune(pruned, named, config, callbacks=[clock])


def _keras(model: Any, batches: Callable[[int], Any], epochs: int, steps: int, clock: Any) -> None:
    model.fit(batches(0), epochs=epochs, callbacks=[clock], verbose=0)


_TRAININGS = {"gradual": _ours_gradual, "tfmot": _tfmot, "signature": _signature, "keras": _keras}


if __name__ == "__main__":
    app()
