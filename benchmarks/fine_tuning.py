"""What fine-tuning gives back of the accuracy that pruning costs, and what a step of it takes.

Three parts, each chosen by its letter in `--only`; a small CNN on Fashion-MNIST, several seeds:

  a  recipes: four kinds of pruning, each with the fine-tuning that suits it, against the dense net trained equally
     long; and the drop at 95 % by the epochs that it is given
  b  methods: distillation, gradual pruning and dynamic sparse training beside plain fine-tuning of fixed masks, at 90,
     95 and 98 %
  c  time of a step: gradual pruning beside a script with tfmot that does the same, and a SavedModel without layers,
     trained through its signature, beside Keras' `fit` of the dense net

Prints one JSON object; `--out FOLDER` also writes each part to `fine_tuning-<part>.json` there, from which
`fine_tuning_figures.py` makes the tables and the plots of docs/fine_tuning.md. Every run is a process of its own; those
of a and b are kept in `--cache`, by their settings, and are not run twice.
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
STEPS = 469  # of an epoch: 60,000 rows
NET = {"units": 192, "dropout": 0.1}
START: Mapping[str, Any] = {"start": True, "plan": None, "tuning": {"epochs": 6, "learning_rate": 2e-3}}
TUNING = {"learning_rate": 2e-3, "learning_rate_schedule": "cosine"}
EPOCHS = 8
TEACHING = {"temperature": 2.0, "alpha": 0.5}

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
    seeds: Annotated[int, typer.Option(min=1, help="Of parts a and b.")] = 3,
    repeats: Annotated[int, typer.Option(min=1, help="Of part c.")] = 5,
    only: Annotated[str, typer.Option(help="The letters of the parts to run.")] = "abc",
    data: Annotated[
        Path, typer.Option(help="The folder with Fashion-MNIST's idx files, gzipped or not.")
    ] = running.DATA,
    at_once: Annotated[int, typer.Option(min=1, help="Runs of parts a and b at a time, each on one thread.")] = 2,
    cache: Annotated[Path, typer.Option(help="Where trained nets, runs and the log are kept.")] = CACHE,
    out: Annotated[Path | None, typer.Option(help="The folder for fine_tuning-<part>.json.")] = None,
) -> None:
    """Measure and print."""
    if context.invoked_subcommand:
        return
    if not only or set(only) - set(PARTS):
        raise typer.BadParameter(f"{only!r}: the parts are a, b and c.")
    running.require_data(data)
    trainings = _Trainings(cache, data.resolve(), range(1, seeds + 1), at_once)
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


# The settings.


def _plan(sparsity: float, **more: Any) -> dict[str, Any]:
    return {"sparsity": sparsity, "allocation": "lamp", **more}


def _gradually(sparsity: float) -> dict[str, Any]:
    return _plan(sparsity, schedule="cubic", frequency=50)


def _dense(epochs: int) -> Spec:
    return {"plan": None, "tuning": {"epochs": epochs, **TUNING}}


def _all_means(sparsity: float, epochs: int) -> Spec:
    return {
        "plan": _gradually(sparsity),
        "tuning": {"mode": "gradual", "epochs": epochs, "distillation": TEACHING, **TUNING},
    }


RECIPES: dict[str, Spec] = {
    "80 % of the weights": _all_means(0.8, EPOCHS),
    "95 % of the weights": _all_means(0.95, EPOCHS),
    "2:4": {"plan": {"pattern": "2:4"}, "tuning": {"epochs": EPOCHS, **TUNING}},
    "filters, half of the MACs": {
        "plan": {"technique": "filter", "target": "macs", "sparsity": 0.5, "allocation": "global"},
        "tuning": {"epochs": EPOCHS, "distillation": TEACHING, **TUNING},
    },
}


def _method(name: str, sparsity: float) -> Spec:
    tuning = {"epochs": METHOD_EPOCHS, **TUNING}
    if name == "gradual":
        return {"plan": _gradually(sparsity), "tuning": {"mode": "gradual", **tuning}}
    if name == "dynamic":
        return {"plan": _plan(sparsity), "tuning": {"mode": "dynamic", **tuning}}
    if name == "distillation":
        tuning["distillation"] = TEACHING
    return {"plan": _plan(sparsity), "tuning": tuning}


# What the runs say.


class _Trainings:
    """Trainings of every seed, several at a time; what is known already is read."""

    def __init__(self, cache: Path, data: Path, seeds: Iterable[int], at_once: int):
        self._cache, self._data, self.seeds, self._at_once = cache, data, list(seeds), at_once
        self._run = running.Children(__file__, cache / "log.txt")

    def __call__(self, specs: Sequence[Spec]) -> list[list[dict[str, Any]]]:
        """What each training came to, by its seed."""
        self._train([START])
        self._train(specs)
        return [[self._found(spec, seed) for seed in self.seeds] for spec in specs]

    def starts(self) -> list[float]:
        """The accuracies of the nets that are pruned."""
        return [self._found(START, seed)["accuracy"] for seed in self.seeds]

    def _train(self, specs: Sequence[Spec]) -> None:
        """Deals what isn't known out to processes, of many trainings each: to trace the first takes long."""
        jobs = {self._kept(spec, seed): (spec, seed) for spec in specs for seed in self.seeds}
        lacking = [
            {"spec": spec, "seed": seed, "result": str(kept), "net": str(self._net(seed))}
            for kept, (spec, seed) in jobs.items()
            if not kept.exists() or not self._net(seed).exists()
        ]
        shares = [lacking[place :: self._at_once] for place in range(self._at_once)]
        with ThreadPoolExecutor(self._at_once) as pool:
            list(pool.map(self._child, range(self._at_once), shares))

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
    curve = {epochs: _all_means(0.95, epochs) for epochs in CURVE}
    found = _compared(trainings, [*RECIPES.values(), *curve.values()])
    return {
        **_setting(trainings),
        "recipes": dict(zip(RECIPES, found, strict=False)),
        "by_epochs": found[len(RECIPES) :],
    }


def _methods(trainings: _Trainings) -> dict[str, Any]:
    names = list(itertools.product(METHODS, SPARSITIES))
    found = _compared(trainings, [_method(*name) for name in names])
    return {
        **_setting(trainings),
        "table": [
            {"method": method, "sparsity": sparsity, **run}
            for (method, sparsity), run in zip(names, found, strict=True)
        ],
    }


def _setting(trainings: _Trainings) -> dict[str, Any]:
    return {
        "net": {"builder": "nets.cnn", **NET, **START["tuning"], "batch_size": BATCH},
        "seeds": trainings.seeds,
        "accuracy_before": trainings.starts(),
    }


def _compared(trainings: _Trainings, specs: Sequence[Spec]) -> list[dict[str, Any]]:
    """Each training beside the dense net's of as many epochs, seed by seed; differences in points of per cent."""
    dense = {epochs: _dense(epochs) for epochs in sorted({spec["tuning"]["epochs"] for spec in specs})}
    baselines, found = trainings(list(dense.values())), trainings(specs)
    by_epochs = dict(zip(dense, baselines, strict=True))
    return [_drops(spec, runs, by_epochs[spec["tuning"]["epochs"]]) for spec, runs in zip(specs, found, strict=True)]


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
    """Milliseconds per step of each way, which take turns; and the medians of the ratios of a turn."""
    turns = [{way: run("step", way) for way in _WAYS} for _ in range(repeats)]
    return {
        "batch_size": BATCH,
        "threads": 1,
        "turns": turns,
        **{
            clock: {
                "milliseconds": {way: statistics.median(turn[way][clock] for turn in turns) for way in _WAYS},
                "ratios": {
                    f"{way}_over_{other}": _ratios([turn[way][clock] / turn[other][clock] for turn in turns])
                    for way, other in PAIRS.items()
                },
            }
            for clock in ("wall", "cpu")
        },
    }


def _ratios(ratios: Sequence[float]) -> dict[str, float]:
    found = {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
    return {name: round(ratio, 3) for name, ratio in found.items()}


# What runs in the children.


def _one_thread() -> None:
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def _batches(rows: Sequence[Any], seed: int) -> Callable[[int], Any]:
    """The data of a pass, by its number."""
    import numpy as np
    import tensorflow as tf

    images, labels = (tf.constant(column) for column in rows)

    def of_pass(number: int) -> Any:
        order = np.random.default_rng((seed, number)).permutation(len(rows[1]))
        places = tf.data.Dataset.from_tensor_slices(order).batch(BATCH)
        return places.map(lambda some: (tf.gather(images, some), tf.gather(labels, some))).prefetch(2)

    return of_pass


def _fit(model: Any, data: Callable[[int], Any], epochs: int, learning_rate: float, **_: Any) -> None:
    """Adam, its learning rate falling to zero along a cosine."""
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
    """Parts a and b: trains nets, and writes what each came to at once."""
    _one_thread()
    import nets
    import tf_keras

    rows, test = (nets.fashion_mnist(data, split) for split in nets.IDX)
    for job in json.loads(jobs.read_text()):
        tf_keras.backend.clear_session()
        found = _trained(job["spec"], job["seed"], Path(job["net"]), rows, test)
        print(time.strftime("%H:%M:%S"), found, job["spec"], file=sys.stderr, flush=True)
        running.write(Path(job["result"]), {**found, **job["spec"], "seed": job["seed"]})
    print("{}")


def _trained(spec: Spec, seed: int, net: Path, rows: Sequence[Any], test: Sequence[Any]) -> dict[str, Any]:
    """The dense net that everything begins with, trained on as it is, or pruned and fine-tuned."""
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
    """The net in the end, and the fraction of its prunable weights that are zero."""
    import tf_keras
    import tfx_compression as tfc

    plan = tfc.PruningPlan(**fields)
    pruned = tfc.prune(tf_keras.models.load_model(net), plan, batches(0).take(-(-plan.sample_rows // BATCH)))
    config = tfc.FineTuning(**tuning)
    teacher = tf_keras.models.load_model(net) if config.distillation else None
    tuned = tfc.fine_tune(pruned.model, batches, config, teacher, plan=pruned.record, masks=pruned.masks)
    masks = tuned.masks.values()
    zeros = sum(int((~mask).sum()) for mask in masks) / max(1, sum(mask.size for mask in masks))
    return tuned.model, zeros


@app.command(hidden=True)
def step(way: str) -> None:
    """Part c: milliseconds per step of one way to train, without the first epoch, in which it is compiled."""
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
    _WAYS[way](model, batches, epochs, epochs * steps, clock)
    found = {name: round(1000 * statistics.median(times[1:]) / steps, 3) for name, times in clock.seconds.items()}
    print(json.dumps(found))


def _clock() -> Any:
    import tf_keras

    class Clock(tf_keras.callbacks.Callback):
        """The seconds of each epoch: that passed, and of the processor, which other processes hardly lengthen."""

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

    def wrapped(layer: Any) -> Any:
        kernels = {"conv1", "conv2", "dense"}  # not the first and the last layer
        return sparsity.prune_low_magnitude(layer, schedule) if layer.name in kernels else layer

    pruned = tf_keras.models.clone_model(model, clone_function=wrapped)
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
            raise SystemExit(f"The SavedModel was read as {loaded.kind}: nothing goes through its signature.")
        masks = tfc.prune(loaded, tfc.PruningPlan(sparsity=0.8)).masks

        def named(number: int) -> Any:
            return batches(number).map(lambda image, label: ({"image": image}, label))

        config = tfc.FineTuning(
            epochs=epochs, learning_rate=1e-3, loss="sparse_categorical_crossentropy", metrics=("accuracy",)
        )
        tfc.fine_tune(loaded, named, config, masks=masks, callbacks=[clock])


def _keras(model: Any, batches: Callable[[int], Any], epochs: int, steps: int, clock: Any) -> None:
    model.fit(batches(0), epochs=epochs, callbacks=[clock], verbose=0)


_WAYS = {"gradual": _ours_gradual, "tfmot": _tfmot, "signature": _signature, "keras": _keras}


if __name__ == "__main__":
    app()
