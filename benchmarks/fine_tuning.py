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
START_EPOCHS = 6
START_RATE = 2e-3  # Adam's, falling to zero along a cosine
TUNING = {"learning_rate": 1e-3, "learning_rate_schedule": "cosine"}
EPOCHS = 6
TEACHING = {"temperature": 4.0, "alpha": 0.7}

# Part b.
SPARSITIES = (0.9, 0.95, 0.98)
METHODS = ("fixed", "distillation", "gradual", "dynamic")

# Part a's curve.
CURVE = (2, 4, 6, 10)

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
    return {"sparsity": sparsity, "allocation": "erdos_renyi", **more}


def _gradually(sparsity: float, epochs: int) -> dict[str, Any]:
    """Pruning until half of the training is over: it ends while the learning rate is still high."""
    return _plan(sparsity, schedule="cubic", frequency=50, end_step=epochs * STEPS // 2)


def _dense(epochs: int) -> Spec:
    return {"plan": None, "tuning": {"epochs": epochs, **TUNING}}


def _all_means(sparsity: float, epochs: int) -> Spec:
    return {
        "plan": _gradually(sparsity, epochs),
        "tuning": {"mode": "gradual", "epochs": epochs, "distillation": TEACHING, **TUNING},
    }


RECIPES: dict[str, Spec] = {
    "80 % of the weights": _all_means(0.8, EPOCHS),
    "95 % of the weights": _all_means(0.95, 10),
    "2:4": {"plan": {"pattern": "2:4"}, "tuning": {"epochs": EPOCHS, "distillation": TEACHING, **TUNING}},
    "filters, half of the MACs": {
        "plan": {
            "technique": "filter",
            "target": "macs",
            "sparsity": 0.5,
            "allocation": "global",
            "criterion": "taylor",
        },
        "tuning": {"epochs": EPOCHS, "distillation": TEACHING, **TUNING},
    },
}


def _method(name: str, sparsity: float) -> Spec:
    tuning = {"epochs": EPOCHS, **TUNING}
    if name == "gradual":
        return {"plan": _gradually(sparsity, EPOCHS), "tuning": {"mode": "gradual", **tuning}}
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
        with ThreadPoolExecutor(self._at_once) as pool:
            list(pool.map(self._start, self.seeds))
            found = list(pool.map(self._one, *zip(*itertools.product(specs, self.seeds), strict=True)))
        size = len(self.seeds)
        return [found[place : place + size] for place in range(0, len(found), size)]

    def starts(self) -> list[float]:
        """The accuracies of the nets that are pruned."""
        return [json.loads(self._kept("start", {}, seed).read_text())["accuracy"] for seed in self.seeds]

    def _start(self, seed: int) -> None:
        kept = self._kept("start", {}, seed)
        if not (kept.exists() and self._net(seed).exists()):
            running.write(kept, self._run("start", str(self._net(seed)), str(self._data), str(seed)))

    def _one(self, spec: Spec, seed: int) -> dict[str, Any]:
        kept = self._kept("run", spec, seed)
        if not kept.exists():
            found = self._run("train", str(self._net(seed)), str(self._data), str(seed), json.dumps(spec))
            running.write(kept, {**found, **spec, "seed": seed})
        return dict(json.loads(kept.read_text()))

    def _net(self, seed: int) -> Path:
        return self._cache / f"start-{START_EPOCHS}-{START_RATE}-{seed}.keras"

    def _kept(self, kind: str, spec: Spec, seed: int) -> Path:
        settings = json.dumps([START_EPOCHS, START_RATE, BATCH, spec, seed], sort_keys=True)
        return self._cache / "runs" / f"{kind}-{hashlib.sha256(settings.encode()).hexdigest()[:16]}.json"


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
        "net": {"builder": "nets.cnn", "epochs": START_EPOCHS, "learning_rate": START_RATE, "batch_size": BATCH},
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
    ways = ("gradual", "tfmot", "signature", "keras")
    turns = [{way: run("step", way)["milliseconds"] for way in ways} for _ in range(repeats)]
    pairs = {"gradual": "tfmot", "signature": "keras"}
    return {
        "batch_size": BATCH,
        "threads": 1,
        "milliseconds": {way: statistics.median(turn[way] for turn in turns) for way in ways},
        "ratios": {
            f"{way}_over_{other}": round(statistics.median(turn[way] / turn[other] for turn in turns), 3)
            for way, other in pairs.items()
        },
        "turns": turns,
    }


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


def _fit(model: Any, data: Callable[[int], Any], epochs: int, learning_rate: float) -> None:
    import tf_keras

    schedule = tf_keras.optimizers.schedules.CosineDecay(learning_rate, epochs * STEPS)
    model.compile(tf_keras.optimizers.Adam(schedule), "sparse_categorical_crossentropy", metrics=["accuracy"])
    for number in range(epochs):
        model.fit(data(number), verbose=2)


def _accuracy(model: Any, test: Sequence[Any]) -> float:
    answers = model.predict(test[0], batch_size=500, verbose=0).argmax(axis=1)
    return round(float((answers == test[1]).mean()), 4)


@app.command(hidden=True)
def start(path: Path, data: Path, seed: int) -> None:
    """The dense net that everything begins with."""
    _one_thread()
    import nets
    import tf_keras

    tf_keras.utils.set_random_seed(seed)
    model = nets.cnn()
    _fit(model, _batches(nets.fashion_mnist(data, "train"), seed), START_EPOCHS, START_RATE)
    unfinished = path.with_name(f"unfinished-{path.name}")
    model.save(unfinished)
    unfinished.rename(path)
    print(json.dumps({"accuracy": _accuracy(model, nets.fashion_mnist(data, "test"))}))


@app.command(hidden=True)
def train(path: Path, data: Path, seed: int, spec: str) -> None:
    """Parts a and b: prunes and fine-tunes the net, or trains it on as it is."""
    _one_thread()
    import nets
    import tf_keras
    from tfx_compression.models import layers

    rows, test = (nets.fashion_mnist(data, split) for split in nets.IDX)
    settings = json.loads(spec)
    batches = _batches(rows, 1000 + seed)
    model = tf_keras.models.load_model(path)
    tf_keras.utils.set_random_seed(seed)
    started = time.perf_counter()
    if settings["plan"] is None:
        _fit(model, batches, settings["tuning"]["epochs"], settings["tuning"]["learning_rate"])
        zeros = 0.0
    else:
        model, zeros = _pruned_and_tuned(model, path, batches, {**settings["tuning"], "seed": seed}, settings["plan"])
    seconds = time.perf_counter() - started
    size = layers.measure(model)
    report = {
        "accuracy": _accuracy(model, test),
        "sparsity_of_prunable": round(zeros, 4),
        "parameters": size.parameters,
        "nonzero_parameters": round(size.parameters * (1 - size.sparsity)),
        "macs": size.macs,
        "seconds": round(seconds, 1),
    }
    print(json.dumps(report))


def _pruned_and_tuned(
    model: Any, path: Path, batches: Callable[[int], Any], tuning: Mapping[str, Any], fields: Mapping[str, Any]
) -> tuple[Any, float]:
    """The net in the end, and the fraction of its prunable weights that are zero."""
    import tf_keras
    import tfx_compression as tfc

    plan = tfc.PruningPlan(**fields)
    pruned = tfc.prune(model, plan, batches(0).take(-(-plan.sample_rows // BATCH)))
    config = tfc.FineTuning(**tuning)
    teacher = tf_keras.models.load_model(path) if config.distillation else None
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
    model = nets.cnn()
    model.compile(tf_keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    clock = _clock()
    _WAYS[way](model, batches, epochs, epochs * steps, clock)
    print(json.dumps({"milliseconds": round(1000 * statistics.median(clock.seconds[1:]) / steps, 3)}))


def _clock() -> Any:
    import tf_keras

    class Clock(tf_keras.callbacks.Callback):
        """The seconds of each epoch."""

        def __init__(self) -> None:
            super().__init__()
            self.seconds: list[float] = []

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self._started = time.perf_counter()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.seconds.append(time.perf_counter() - self._started)

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
    from tfx_compression.models import trained

    @tf.function(input_signature=[tf.TensorSpec([None, *model.input_shape[1:]], tf.float32, name="image")])
    def serve(image: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"probabilities": model(image, training=False)}

    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(model, folder, signatures={"serving_default": serve})
        loaded = trained.load(folder)
        if loaded.kind != "saved_model":
            raise SystemExit(f"The SavedModel was read as {loaded.kind}: nothing goes through its signature.")
        masks = tfc.prune(loaded, tfc.PruningPlan(sparsity=0.8)).masks
        named = lambda number: batches(number).map(lambda image, label: ({"image": image}, label))  # noqa: E731
        config = tfc.FineTuning(
            epochs=epochs, learning_rate=1e-3, loss="sparse_categorical_crossentropy", metrics=("accuracy",)
        )
        tfc.fine_tune(loaded, named, config, masks=masks, callbacks=[clock])


def _keras(model: Any, batches: Callable[[int], Any], epochs: int, steps: int, clock: Any) -> None:
    model.fit(batches(0), epochs=epochs, callbacks=[clock], verbose=0)


_WAYS = {"gradual": _ours_gradual, "tfmot": _tfmot, "signature": _signature, "keras": _keras}


if __name__ == "__main__":
    app()
