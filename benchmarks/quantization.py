"""Measures accuracy, size and latency of TFLiteQuantizer's modes, compared with TensorFlow's own converter.

Six parts, chosen by letter in `--only`. Networks are trained on 55,000 rows of Fashion-MNIST and evaluated on its
10,000 test rows. The first 200 of the 5,000 held-out rows calibrate, and mode `auto` searches on the others:

  a  modes: accuracy, difference from the float network, bytes and latency of every mode, on three networks
  b  hard: a network whose channels differ a thousandfold in range; plain, with equalization, and in mode `auto`
  c  auto: mode `auto` and the smallest uniform mode that loses no more, on networks of at least 200,000 parameters
  d  converter: bytes and time of a conversion, and of a script with TensorFlow's TFLiteConverter and the same options
  e  calibration: time and memory of sampling the calibration rows from 20,000 and from 1,000,000 rows
  f  ranges: int8 when some calibration rows are fifty times too large, by the method that computes the ranges

Prints one JSON object. `--out FOLDER` also writes each part to `quantization-<part>.json`, from which
`quantization_figures.py` makes the tables and the plot of docs/quantization.md. Every run is a separate process.
Trained networks are stored in `--cache` by their training settings.
"""

import functools
import hashlib
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import running
import typer

CACHE = Path(__file__).parents[1] / ".cache" / "benchmarks" / "quantization"
PARTS = {"a": "modes", "b": "hard", "c": "auto", "d": "converter", "e": "calibration", "f": "ranges"}
PACKAGES = ("tensorflow", "tf-keras", "ai-edge-litert", "litert-quantizer", "tfx-compression")

TRAINED_ON = 55_000  # Rows of the training split; the others are held out.
BATCH = 128
NETS: Mapping[str, Mapping[str, Any]] = {
    "cnn": {"settings": {"units": 192, "dropout": 0.1}, "epochs": 6},
    "resnet": {"settings": {"widths": [18, 36, 72], "stem_strides": 2}, "epochs": 3},
    "depthwise": {"settings": {}, "epochs": 3},
}
HARD = "depthwise"  # The network that is made hard to quantize.
LARGE = 200_000  # Parameters; part c leaves smaller networks out.
CALIBRATED = 200  # Of the held-out rows; mode `auto` searches on the others.
MAX_DROP = 0.005  # For mode `auto`.
AUTO: Mapping[str, Any] = {"mode": "auto", "auto": {"max_drop": MAX_DROP, "rows": 60_000 - TRAINED_ON - CALIBRATED}}
CONVERTED = "cnn"  # For parts d and f.

OUTLIERS, TIMES = 0.005, 50.0  # Share of the calibration rows that are too large, and their factor.
_ROWS: Mapping[str, Any] = {"rows": 1000}
SUITES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "modes": {
        "float32": {"mode": "float32"},
        "float16": {"mode": "float16"},
        "dynamic": {"mode": "dynamic"},
        "int8": {"mode": "int8"},
        "int8 per tensor": {"mode": "int8", "per_channel": False},
        "int16x8": {"mode": "int16x8"},
        "int4": {"mode": "int4"},
        "int4_dynamic": {"mode": "int4_dynamic"},
        "int4_dynamic blocks of 32": {"mode": "int4_dynamic", "block_size": 32},
        "int4_weight_only": {"mode": "int4_weight_only"},
        "auto": AUTO,
    },
    "hard": {
        "float32": {"mode": "float32"},
        "int8": {"mode": "int8"},
        "int8 equalized": {"mode": "int8", "equalize": True},
        "auto": AUTO,
    },
    "clean": {"min_max": {"mode": "int8", "calibration": _ROWS}},
    "outliers": {
        "min_max": {"mode": "int8", "calibration": _ROWS},
        "percentile 99.99": {"mode": "int8", "calibration": {**_ROWS, "ranges": "percentile"}},
        "percentile 99": {"mode": "int8", "calibration": {**_ROWS, "ranges": "percentile", "percentile": 99.0}},
        "mse": {"mode": "int8", "calibration": {**_ROWS, "ranges": "mse"}},
    },
}
CONVERTER_MODES = ("float32", "float16", "dynamic", "int8", "int16x8")
SAMPLED = (20_000, 1_000_000)  # Rows to sample from in part e.
SHARD = 20_000

app = typer.Typer(add_completion=False)
Measured = dict[str, Any]


@app.callback(invoke_without_command=True, help=__doc__.splitlines()[0])
def main(
    context: typer.Context,
    repeats: Annotated[int, typer.Option(min=1, help="Repeats of everything that is timed.")] = 3,
    only: Annotated[str, typer.Option(help="Letters of the parts to run.")] = "abcdef",
    data: Annotated[Path, typer.Option(help="Folder with Fashion-MNIST's idx files, gzipped or not.")] = running.DATA,
    cache: Annotated[Path, typer.Option(help="Folder for trained networks, rows and the log.")] = CACHE,
    out: Annotated[Path | None, typer.Option(help="Folder for quantization-<part>.json.")] = None,
) -> None:
    """Measure and print."""
    if context.invoked_subcommand:
        return
    letters = only.replace(",", "")
    if not letters or set(letters) - set(PARTS):
        raise typer.BadParameter(f"{only!r}: the parts are a, b, c, d, e and f.")
    running.require_data(data)
    run = _Runs(cache, data.resolve(), repeats)
    parts: dict[str, Callable[[], Measured]] = {
        "a": lambda: {net: run.suite("modes", net) for net in NETS},
        "b": lambda: run.suite("hard", HARD),
        "c": lambda: _auto({net: run.suite("modes", net) for net in NETS}),
        "d": lambda: _converter(run.conversions()),
        "e": lambda: {str(rows): run.sampling(rows) for rows in SAMPLED},
        "f": lambda: _ranges(run.suite("clean", CONVERTED), run.suite("outliers", CONVERTED)),
    }
    report: dict[str, Any] = {}
    machine = running.machine(PACKAGES)
    for letter in sorted(set(letters)):
        report[PARTS[letter]] = parts[letter]()
        if out is not None:
            running.write(out / f"quantization-{PARTS[letter]}.json", {**report[PARTS[letter]], **machine})
    print(json.dumps({**report, **machine}, indent=1))


class _Runs:
    """Measurements made in child processes. A measurement that two parts need is made once."""

    def __init__(self, cache: Path, data: Path, repeats: int):
        self._cache, self._data, self._repeats = cache, str(data), str(repeats)
        self._log = cache / "log.txt"
        self._child = running.Children(__file__, self._log)
        self.suite = functools.cache(self._suite)

    def _suite(self, suite: str, net: str) -> Measured:
        path = self._net(net, hard=suite == "hard")
        return self._child("measure", suite, str(path), self._data, self._repeats)

    def conversions(self) -> Measured:
        """Runs part d."""
        return self._child("conversions", str(self._net(CONVERTED)), self._data, self._repeats, str(self._log))

    def sampling(self, rows: int) -> Measured:
        """Runs part e for a number of rows."""
        folder = self._cache / "rows" / str(rows)
        self._child("link-rows", str(folder), self._data, str(rows))
        results = self._child("sampling", str(folder))
        return {**results, "rows_per_second": round(rows / results["seconds"])}

    def _net(self, net: str, hard: bool = False) -> Path:
        """Returns the folder of a network's SavedModel, and trains the network first if it is missing."""
        settings = json.dumps([net, NETS[net], TRAINED_ON, BATCH], sort_keys=True)
        path = self._cache / f"{net}-{hashlib.sha256(settings.encode()).hexdigest()[:12]}"
        if not path.exists():
            self._child("train", net, str(path), self._data)
        if not hard:
            return path
        hardened = path.with_name(f"hard-{path.name}")
        if not hardened.exists():
            self._child("hardened", str(path), str(hardened))
        return hardened


# Evaluation of the runs.


def _auto(modes: Mapping[str, Measured]) -> Measured:
    """Returns mode `auto` and the smallest other mode within the allowed drop, for each large network."""
    results = {}
    for net, measured in modes.items():
        if measured["parameters"] < LARGE:
            continue
        table = dict(measured["table"])
        auto = table.pop("auto")
        within = [name for name, run in table.items() if run["search_drop"] <= 100 * MAX_DROP]
        smallest = min(within, key=lambda name: table[name]["bytes"])
        results[net] = {
            "parameters": measured["parameters"],
            "max_drop": 100 * MAX_DROP,
            "auto": auto,
            "smallest_uniform": {"mode": smallest, **table[smallest]},
            "bytes_ratio": round(auto["bytes"] / table[smallest]["bytes"], 3),
        }
    return results


def _converter(turns: Measured) -> Measured:
    """Returns bytes, median seconds and the median of the ratios within a turn, by mode."""
    results = {}
    for mode, runs in turns.items():
        ours, script = ([run[side] for run in runs] for side in ("ours", "script"))
        ratios = [our["seconds"] / its["seconds"] for our, its in zip(ours, script, strict=True)]
        results[mode] = {
            "bytes": ours[0]["bytes"],
            "script_bytes": script[0]["bytes"],
            "seconds": _median(ours, "seconds"),
            "steps": {
                step: round(statistics.median(run["steps"][step] for run in ours), 3) for step in ours[0]["steps"]
            },
            "script_seconds": _median(script, "seconds"),
            "ratio": round(statistics.median(ratios), 3),
            "ratios": [round(ratio, 3) for ratio in ratios],
            "whole_seconds": _median(ours, "whole"),
            "script_whole_seconds": _median(script, "whole"),
            "turns": runs,
        }
    return results


def _median(runs: Sequence[Mapping[str, float]], name: str) -> float:
    return round(statistics.median(run[name] for run in runs), 3)


def _ranges(clean: Measured, outliers: Measured) -> Measured:
    return {"outliers": OUTLIERS, "times": TIMES, **_ROWS, "clean": clean, "with_outliers": outliers}


# Child processes. The parent imports nothing large, because a child's peak memory starts at its parent's.


@app.command(hidden=True)
def train(net: str, path: Path, data: Path) -> None:
    """Trains a network with cosine decay of the learning rate to zero, and writes its SavedModel."""
    import nets
    import tf_keras

    images, labels = (column[:TRAINED_ON] for column in nets.fashion_mnist(data, "train"))
    epochs = NETS[net]["epochs"]
    tf_keras.utils.set_random_seed(1)
    model = getattr(nets, net)(**NETS[net]["settings"])
    schedule = tf_keras.optimizers.schedules.CosineDecay(2e-3, epochs * -(-TRAINED_ON // BATCH))
    model.compile(tf_keras.optimizers.Adam(schedule), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(images, labels, batch_size=BATCH, epochs=epochs, verbose=2)
    _save(model, path)


@app.command(hidden=True)
def hardened(path: Path, hard: Path) -> None:
    """Writes the network that is hard to quantize."""
    import nets
    import tf_keras

    _save(nets.harden(tf_keras.models.load_model(path, compile=False)), hard)


def _save(model: Any, path: Path) -> None:
    unfinished = path.with_name(f"unfinished-{path.name}")
    model.save(unfinished, save_format="tf")
    unfinished.rename(path)
    print("{}")


@app.command(hidden=True)
def measure(suite: str, path: Path, data: Path, repeats: int) -> None:
    """Parts a, b, c and f: converts a network in several modes, and measures accuracy and interleaved latency."""
    import nets
    import numpy as np
    import tf_keras

    held_out = tuple(column[TRAINED_ON:] for column in nets.fashion_mnist(data, "train"))
    test = nets.fashion_mnist(data, "test")
    images, labels = (np.concatenate(both) for both in zip(held_out, test, strict=True))
    seen = len(held_out[1])
    model = tf_keras.models.load_model(path, compile=False)
    expected = model.predict(images, batch_size=500, verbose=0)
    rows = _with_outliers(held_out[0]) if suite == "outliers" else held_out[0], held_out[1]
    right = expected.argmax(axis=1) == labels
    table: dict[str, Measured] = {}
    contents = {}
    for name, config in SUITES[suite].items():
        contents[name], results = _quantized(path, config, rows)
        outputs = _outputs(contents[name], images)
        drops = right.astype(float) - (outputs.argmax(axis=1) == labels)
        table[name] = {
            **results,
            "accuracy": round(float(right[seen:].mean() - drops[seen:].mean()), 4),
            "drop": round(100 * float(drops[seen:].mean()), 2),
            "search_drop": round(100 * float(drops[CALIBRATED:seen].mean()), 3),
            "max_difference": round(float(np.abs(outputs - expected)[seen:].max()), 5),
        }
        print(time.strftime("%H:%M:%S"), name, table[name], file=sys.stderr, flush=True)
    for name, times in _latencies(contents, images[:1], repeats).items():
        table[name] |= {"latency_ms": round(statistics.median(times), 4), "latencies_ms": times}
    report = {
        "net": path.name.rpartition("-")[0],
        "parameters": model.count_params(),
        "accuracy": round(float(right[seen:].mean()), 4),
        "test_rows": len(test[1]),
        "held_out_rows": seen,
        "table": table,
    }
    print(json.dumps(report))


def _with_outliers(images: Any) -> Any:
    """Returns a copy in which evenly spaced rows are too large."""
    spoiled = images.copy()
    spoiled[:: round(1 / OUTLIERS)] *= TIMES
    return spoiled


def _quantized(path: Path, fields: Mapping[str, Any], rows: Sequence[Any]) -> tuple[bytes, Measured]:
    """Returns the TFLite model and figures from its record."""
    from tfx_compression.compressed_size import gzipped

    started = time.perf_counter()
    content, record = _with_record(path, fields, rows)
    results: Measured = {
        "seconds": round(time.perf_counter() - started, 2),
        "bytes": len(content),
        "bytes_gzip": gzipped(content),
        "runtime": record.runtime,
    }
    if record.auto is not None:
        precisions = list(record.auto.precisions.values())
        results["auto"] = {
            "equalized": record.auto.equalized,
            "trials": len(record.auto.trials),
            "layers": {precision: precisions.count(precision) for precision in sorted(set(precisions))},
        }
    return content, results


def _with_record(path: Path, fields: Mapping[str, Any], rows: Sequence[Any]) -> tuple[bytes, Any]:
    """Converts as the component does: the first rows calibrate, and the search uses the others."""
    from tfx_compression.tflite_quantizer.config import Quantization
    from tfx_compression.tflite_quantizer.quantize import quantize_saved_model
    from tfx_compression.tflite_quantizer.rows import Rows

    images, labels = rows
    config = Quantization(**fields)
    count = config.calibration.rows
    data = Rows(calibration={"image": images[:count]}, trial={"image": images[count:]}, labels=labels[count:])
    results = quantize_saved_model(str(path), config, lambda _: data)
    return results.content, results.record


def _outputs(content: bytes, images: Any) -> Any:
    """Returns the class probabilities, [rows, 10]."""
    import numpy as np
    from tfx_compression.tflite.interpreter import Interpreter

    interpreter = Interpreter(content, num_threads=2)
    parts = [interpreter.predict({"image": images[start : start + 500]}) for start in range(0, len(images), 500)]
    (output,) = interpreter.outputs
    return np.concatenate([part[output] for part in parts])


def _latencies(contents: Mapping[str, bytes], image: Any, repeats: int) -> dict[str, list[float]]:
    """Returns the latency of one row on one thread in ms: the median of each repeat, with the models interleaved."""
    from tfx_compression.compressed_evaluator import latency
    from tfx_compression.tflite.interpreter import Interpreter

    calls = {name: Interpreter(content).prepare({"image": image}) for name, content in contents.items()}
    results: dict[str, list[float]] = {name: [] for name in contents}
    for _ in range(repeats):
        for name, measured in latency.measure(calls).items():
            results[name].append(round(measured.median, 4))
    return results


@app.command(hidden=True)
def conversions(path: Path, data: Path, repeats: int, log: Path) -> None:
    """Part d: alternates between the script and ours, each conversion in a separate process."""
    import nets
    import numpy as np

    run = running.Children(__file__, log)
    images, _ = nets.fashion_mnist(data, "train")
    turns: dict[str, list[Measured]] = {mode: [] for mode in CONVERTER_MODES}
    with tempfile.TemporaryDirectory() as folder:
        calibration = Path(folder) / "rows.npy"
        np.save(calibration, images[TRAINED_ON:][:CALIBRATED])
        for _ in range(repeats):
            for mode, runs in turns.items():
                runs.append({side: _timed(run, side, mode, path, calibration) for side in ("ours", "script")})
    print(json.dumps(turns))


def _timed(run: running.Children, side: str, mode: str, path: Path, calibration: Path) -> Measured:
    started = time.perf_counter()
    results = run(side, mode, str(path), str(calibration))
    return {**results, "whole": time.perf_counter() - started}


@app.command(hidden=True)
def ours(mode: str, path: Path, calibration: Path) -> None:
    """Part d: cuts the signature's graph out of the SavedModel and converts it."""
    import numpy as np

    images = np.load(calibration)
    config = {"mode": mode, "calibration": {"rows": len(images)}}
    content, record = _with_record(path, config, (images, np.zeros(len(images))))
    seconds = record.seconds["cut"] + record.seconds["convert"]
    print(json.dumps({"seconds": seconds, "steps": record.seconds, "bytes": len(content)}))


@app.command(hidden=True)
def script(mode: str, path: Path, calibration: Path) -> None:
    """Part d, peer: the script that a user would write with TensorFlow's converter."""
    import numpy as np
    import tensorflow as tf

    rows = np.load(calibration)
    started = time.perf_counter()
    converter = tf.lite.TFLiteConverter.from_saved_model(str(path))
    if mode != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if mode == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if mode in ("int8", "int16x8"):
        ops = {
            "int8": (tf.lite.OpsSet.TFLITE_BUILTINS_INT8, tf.int8),
            "int16x8": (
                tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8,
                tf.int16,
            ),
        }
        converter.representative_dataset = lambda: ([row[None]] for row in rows)
        converter.target_spec.supported_ops = [ops[mode][0]]
        converter.inference_input_type = converter.inference_output_type = ops[mode][1]
    content = converter.convert()
    print(json.dumps({"seconds": time.perf_counter() - started, "bytes": len(content)}))


@app.command(hidden=True)
def link_rows(folder: Path, data: Path, rows: int) -> None:
    """Part e: makes a folder of TFRecords with `rows` rows, as links to one file that is written once."""
    import nets
    import tensorflow as tf

    shard = folder.parent / f"shard-{SHARD}"
    if not shard.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = shard.with_name("unfinished")
        with tf.io.TFRecordWriter(str(unfinished)) as writer:
            for image, label in zip(*(column[:SHARD] for column in nets.fashion_mnist(data, "train")), strict=True):
                example = tf.train.Example()
                example.features.feature["image"].float_list.value.extend(image.ravel())
                example.features.feature["label"].int64_list.value.append(label)
                writer.write(example.SerializeToString())
        unfinished.rename(shard)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(rows // SHARD):
        link = folder / f"part-{number:05}"
        if not link.is_symlink():
            link.symlink_to(shard)
    print("{}")


@app.command(hidden=True)
def sampling(folder: Path) -> None:
    """Part e: samples the calibration rows as the component does."""
    import tensorflow as tf
    from tfx_compression.tflite_quantizer import sampling

    files = sorted(str(path) for path in folder.iterdir())
    features = {"image": tf.TensorSpec([None, 28, 28, 1], tf.float32)}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    drawn = sampling.sample(files, features, CALIBRATED, seed=0)
    seconds = time.perf_counter() - started
    usage = [resource.getrusage(whose).ru_maxrss for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(
        json.dumps(
            {
                "drawn": len(drawn.columns["image"]),
                "seconds": round(seconds, 2),
                "memory_mb": round(max(usage) / 1024, 1),
                "memory_before_mb": round(before / 1024, 1),
            }
        )
    )


if __name__ == "__main__":
    app()
