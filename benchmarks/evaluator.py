"""Measures the speed of CompressedEvaluator compared with TFX's own Evaluator, on Fashion-MNIST and a small CNN.

Four parts, chosen by letter in `--only`:

  a  rows per second beyond the fixed cost of both evaluators, on the same int8 TFLite model and the same files
  b  one run of ours over a SavedModel and its four TFLite models, compared with five runs of the stock Evaluator
  c  peak memory of ours by the number of rows
  d  the share of our pass that the interpreter takes, and our speed relative to a bare loop around the interpreter

Prints one JSON object: medians of `--repeats` runs, and the figures of each run. Every run is a separate process and
times the evaluation alone, after its imports. Data, models and the log are in `--cache`.
"""

import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import running
import typer

CACHE = Path(__file__).parents[1] / ".cache" / "benchmarks" / "evaluator"
PACKAGES = ("tfx", "tensorflow", "tfx-compression")
MEMORY_ROWS = [10_000, 100_000, 1_000_000]
SHARD = 10_000  # Rows of a file.
SHARDS = 7  # Different files; more rows repeat them.
MODES = ("float32", "float16", "dynamic", "int8")
BATCH = 1024
SAME_ACCURACY = 0.02  # The stock Evaluator truncates int8 inputs instead of rounding them.
SCHEMA = """
feature { name: "image" type: FLOAT presence { min_fraction: 1 min_count: 1 } shape { dim { size: 784 } } }
feature { name: "label" type: INT presence { min_fraction: 1 min_count: 1 } shape { dim { size: 1 } } }
"""

Results = Mapping["Run", Sequence[dict[str, Any]]]
app = typer.Typer(add_completion=False)


class Run(NamedTuple):
    """One evaluation: `ours`, `stock` or the `bare` loop, of a model (or `all`), on a number of rows."""

    side: str
    model: str
    rows: int


@app.callback(invoke_without_command=True, help=__doc__.splitlines()[0])
def main(
    context: typer.Context,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each kind.")] = 3,
    only: Annotated[str, typer.Option(help="Letters of the parts to run.")] = "abcd",
    data: Annotated[Path, typer.Option(help="Folder with the idx files, gzipped or not.")] = running.DATA,
    cache: Annotated[Path, typer.Option(help="Folder for data and models.")] = CACHE,
    rows_small: Annotated[int, typer.Option(min=1)] = 10_000,
    rows_large: Annotated[int, typer.Option(min=1)] = 70_000,
    memory_rows: Annotated[
        list[int], typer.Option(min=1, help="Rows of part c; can be given several times.")
    ] = MEMORY_ROWS,
) -> None:
    """Measure and print."""
    if context.invoked_subcommand:
        return
    if not only or set(only) - set("abcd"):
        raise typer.BadParameter(f"{only!r}: the parts are a, b, c and d.")
    if rows_small >= rows_large:
        raise typer.BadParameter("--rows-small must be smaller than --rows-large.")
    running.require_data(data)
    folder = cache / str(data.resolve()).strip("/").replace("/", "-")
    wanted = _wanted(only, rows_small, rows_large, memory_rows)
    print(f"Data and models are in {folder}", file=sys.stderr)
    run_child = running.Children(__file__, folder / "log.txt")
    run_child(
        "prepare", str(folder), str(data.resolve()), *(str(rows) for rows in sorted({run.rows for run in wanted}))
    )
    results: dict[Run, list[dict[str, Any]]] = {run: [] for run in wanted}
    for repeat in range(repeats):
        for run in wanted:
            results[run].append(run_child("measure", str(folder), *(str(part) for part in run)))
            print(f"{repeat + 1}/{repeats} {_name(run)}: {results[run][-1]}", file=sys.stderr)
    print(json.dumps(_report(results, only, rows_small, rows_large, memory_rows), indent=1))


def _wanted(only: str, small: int, large: int, memory_rows: Sequence[int]) -> list[Run]:
    """Returns the runs that the parts need, ours and stock interleaved. A run that several parts need is made once."""
    ours, stock, bare = ([Run(side, "int8", rows) for rows in (small, large)] for side in ("ours", "stock", "bare"))
    parts = {
        "a": [ours[0], stock[0], ours[1], stock[1]],
        "b": [Run("ours", "all", large), *(Run("stock", model, large) for model in ("saved_model", *MODES))],
        "c": [Run("ours", "int8", rows) for rows in memory_rows],
        "d": [*ours, bare[1]],
    }
    return list(dict.fromkeys(run for part in "abcd" if part in only for run in parts[part]))


# Evaluation of the runs.


def _report(results: Results, only: str, small: int, large: int, memory_rows: Sequence[int]) -> dict[str, Any]:
    parts: dict[str, Callable[[], object]] = {
        "a": lambda: _speed(results, small, large),
        "b": lambda: _five_models(results, large),
        "c": lambda: {rows: _median(results, Run("ours", "int8", rows), "memory_mb") for rows in memory_rows},
        "d": lambda: _interpreter(results, small, large),
    }
    names = {"a": "rows_per_second", "b": "five_models", "c": "memory_mb", "d": "interpreter"}
    return {
        **{names[part]: report() for part, report in parts.items() if part in only},
        "rows": {"small": small, "large": large},
        **running.machine(PACKAGES),
        "runs": {_name(run): _columns(measured) for run, measured in results.items()},
    }


def _speed(results: Results, small: int, large: int) -> dict[str, Any]:
    _require_same_numbers(results, large)
    ours, stock = (_rows_per_second(results, side, small, large) for side in ("ours", "stock"))
    return {
        "ours": ours,
        "stock": stock,
        "ratio": _ratio(ours, stock),
        "fixed_seconds": {side: _fixed_seconds(results, side, small, large) for side in ("ours", "stock")},
        "accuracy": {side: results[Run(side, "int8", large)][0]["accuracy"] for side in ("ours", "stock")},
        "example_count": {side: results[Run(side, "int8", large)][0]["example_count"] for side in ("ours", "stock")},
    }


def _require_same_numbers(results: Results, rows: int) -> None:
    """Raises SystemExit if ours and stock did not evaluate the same model and rows: their times would not compare."""
    ours, stock = (results[Run(side, "int8", rows)][0] for side in ("ours", "stock"))
    counts = {ours["example_count"], stock["example_count"]}
    if counts != {rows} or abs(ours["accuracy"] - stock["accuracy"]) > SAME_ACCURACY:
        raise SystemExit(f"Ours and stock did not evaluate the same model on {rows} rows: ours {ours}, stock {stock}")


def _five_models(results: Results, rows: int) -> dict[str, Any]:
    ours = _median(results, Run("ours", "all", rows), "seconds")
    stock = {model: _median(results, Run("stock", model, rows), "seconds") for model in ("saved_model", *MODES)}
    total = sum(stock.values())
    return {"ours_seconds": ours, "stock_seconds": stock, "stock_sum": round(total, 2), "ratio": _ratio(total, ours)}


def _interpreter(results: Results, small: int, large: int) -> dict[str, Any]:
    ours = _rows_per_second(results, "ours", small, large)
    bare = round(large / _median(results, Run("bare", "int8", large), "seconds"))
    run = Run("ours", "int8", large)
    known = all(measured["interpreter_seconds"] is not None for measured in results[run])
    in_interpreter, in_pass = (
        _median(results, run, f"{name}_seconds") if known else None for name in ("interpreter", "pass")
    )
    return {
        "pass_seconds": in_pass,
        "interpreter_seconds": in_interpreter,
        "share_of_pass": _ratio(in_interpreter, in_pass),
        "ours_rows_per_second": ours,
        "bare_rows_per_second": bare,
        "bare_runtime": results[Run("bare", "int8", large)][0]["runtime"],
        "share_of_bare": _ratio(ours, bare),
    }


def _rows_per_second(results: Results, side: str, small: int, large: int) -> int | None:
    """Returns the rate of the rows beyond the first `small`, so that fixed costs cancel; None if noise exceeds it."""
    seconds = _median(results, Run(side, "int8", large), "seconds") - _median(
        results, Run(side, "int8", small), "seconds"
    )
    return round((large - small) / seconds) if seconds > 0 else None


def _fixed_seconds(results: Results, side: str, small: int, large: int) -> float | None:
    rate = _rows_per_second(results, side, small, large)
    return round(_median(results, Run(side, "int8", small), "seconds") - small / rate, 2) if rate else None


def _median(results: Results, run: Run, field: str) -> float:
    return statistics.median(measured[field] for measured in results[run])


def _ratio(numerator: float | None, denominator: float | None) -> float | None:
    return round(numerator / denominator, 3) if numerator is not None and denominator else None


def _columns(measured: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [values[name] for values in measured] for name in measured[0]}


def _name(run: Run) -> str:
    return " ".join(str(part) for part in run)


# Child processes. The parent imports nothing large, because a child's peak memory starts at its parent's.


@app.command(hidden=True)
def measure(folder: Path, side: str, model: str, rows: int) -> None:
    """Times one evaluation."""
    measured = {"ours": _ours, "stock": _stock, "bare": _bare}[side](folder, model, folder / "rows" / str(rows))
    measured["memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    digits = {"memory_mb": None, "accuracy": 5}
    rounded = {name: round(value, digits.get(name, 3)) for name, value in measured.items() if isinstance(value, float)}
    print(json.dumps({**measured, **rounded}))


def _ours(folder: Path, model: str, rows: Path) -> dict[str, Any]:
    import tensorflow_model_analysis as tfma
    import tfx_compression as tfc
    from google.protobuf import text_format
    from tensorflow_metadata.proto.v0 import schema_pb2

    names = MODES if model == "all" else (model,)
    arguments = {
        "examples": str(rows / "Split-eval" / "*"),
        "label_key": "label",
        "baseline": str(_serving(folder, "saved_model")) if model == "all" else None,
        "schema": text_format.Parse(SCHEMA, schema_pb2.Schema()),
        "eval_config": tfma.EvalConfig(metrics_specs=_metrics_specs()),
        "budget": tfc.Budget(),
    }
    evaluate = tfc.evaluate  # The first use imports it.
    started = time.perf_counter()
    evaluation = evaluate({name: str(_serving(folder, name) / "tflite") for name in names}, **arguments)
    seconds = time.perf_counter() - started
    metrics = evaluation.metrics[names[-1]]
    seconds_by_step = getattr(evaluation, "seconds", {})
    return {
        "seconds": seconds,
        "pass_seconds": seconds_by_step.get("pass"),
        "interpreter_seconds": seconds_by_step.get("interpreter"),
        "accuracy": metrics["sparse_categorical_accuracy"],
        "example_count": metrics["example_count"],
    }


def _stock(folder: Path, model: str, rows: Path) -> dict[str, Any]:
    import tensorflow_model_analysis as tfma
    from tfx.components.evaluator import executor
    from tfx.types import standard_artifacts
    from tfx.utils import proto_utils

    kind = {"model_type": "tf_generic", "signature_name": "serving_default"}
    spec = tfma.ModelSpec(label_key="label", **(kind if model == "saved_model" else {"model_type": "tf_lite"}))
    config = tfma.EvalConfig(model_specs=[spec], metrics_specs=_metrics_specs())
    artifacts = {
        "model": _artifact(standard_artifacts.Model(), folder / "models" / model),
        "examples": _artifact(standard_artifacts.Examples(), rows),
        "schema": _artifact(standard_artifacts.Schema(), folder / "schema"),
    }
    artifacts["examples"][0].split_names = '["eval"]'
    with tempfile.TemporaryDirectory() as output:
        evaluation = {"evaluation": _artifact(standard_artifacts.ModelEvaluation(), Path(output))}
        started = time.perf_counter()
        executor.Executor().Do(artifacts, evaluation, {"eval_config": proto_utils.proto_to_json(config)})
        seconds = time.perf_counter() - started
        metrics = tfma.load_eval_result(output).get_metrics_for_all_slices()[()]
    return {
        "seconds": seconds,
        "accuracy": metrics["sparse_categorical_accuracy"]["doubleValue"],
        "example_count": metrics["example_count"]["doubleValue"],
    }


def _artifact(artifact: Any, path: Path) -> list[Any]:
    artifact.uri = str(path)
    return [artifact]


def _metrics_specs() -> list[Any]:
    import tensorflow_model_analysis as tfma

    names = ("SparseCategoricalAccuracy", "ExampleCount")
    return [tfma.MetricsSpec(metrics=[tfma.MetricConfig(class_name=name) for name in names])]


def _bare(folder: Path, model: str, rows: Path) -> dict[str, Any]:
    """Times the interpreter alone, on rows that are already in memory in the model's types: an upper bound."""
    import numpy as np
    import tensorflow as tf

    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        from tensorflow.lite import Interpreter
    interpreter = Interpreter(str(_serving(folder, model) / "tflite"), num_threads=os.cpu_count())
    (model_input,), (model_output,) = interpreter.get_input_details(), interpreter.get_output_details()
    scale, zero_point = model_input["quantization"]
    files = tf.data.TFRecordDataset(sorted(str(path) for path in (rows / "Split-eval").iterdir()), "GZIP")
    spec = {"image": tf.io.FixedLenFeature([784], tf.float32)}
    parsed = files.batch(BATCH).map(lambda batch: tf.io.parse_example(batch, spec)["image"])
    batches = [
        np.round(batch / scale + zero_point).astype(model_input["dtype"]) for batch in parsed.as_numpy_iterator()
    ]
    started = time.perf_counter()
    size = 0
    for batch in batches:
        if len(batch) != size:
            size = len(batch)
            interpreter.resize_tensor_input(model_input["index"], batch.shape)
            interpreter.allocate_tensors()
        interpreter.set_tensor(model_input["index"], batch)
        interpreter.invoke()
        interpreter.get_tensor(model_output["index"])
    return {"seconds": time.perf_counter() - started, "runtime": Interpreter.__module__}


def _serving(folder: Path, model: str) -> Path:
    return folder / "models" / model / "Format-Serving"


# Preparation.


@app.command(hidden=True)
def prepare(folder: Path, data: Path, rows: list[int]) -> None:
    """Writes the rows as TFX's ExampleGen does, the schema, and the models as its Trainer and Rewriter do."""
    (folder / "schema").mkdir(exist_ok=True)
    (folder / "schema" / "schema.pbtxt").write_text(SCHEMA)
    for number in rows:
        _link_rows(folder, data, number)
    if not (folder / "models").exists():
        with tempfile.TemporaryDirectory(dir=folder) as unfinished:
            _make_models(Path(unfinished) / "models", data)
            (Path(unfinished) / "models").rename(folder / "models")
    print("{}")


def _link_rows(folder: Path, data: Path, rows: int) -> None:
    """Makes an Examples artifact of `rows` rows: links to files of 10,000 rows, and to one with the remainder."""
    split = folder / "rows" / str(rows) / "Split-eval"
    split.mkdir(parents=True, exist_ok=True)
    for position, first in enumerate(range(0, rows, SHARD)):
        shard = _shard(folder, data, position % SHARDS, min(SHARD, rows - first))
        link = split / f"part-{position:05}.gz"
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(shard, split))


def _shard(folder: Path, data: Path, position: int, rows: int) -> Path:
    import nets
    import numpy as np
    import tensorflow as tf

    path = folder / "shards" / f"{position}-{rows}.gz"
    if path.exists():
        return path
    path.parent.mkdir(exist_ok=True)
    splits = [nets.fashion_mnist(data, split) for split in nets.IDX]
    chosen = np.arange(position * SHARD, position * SHARD + rows)
    images, labels = (np.concatenate(parts).take(chosen, axis=0, mode="wrap") for parts in zip(*splits, strict=True))
    unfinished = path.with_suffix(".unfinished")
    with tf.io.TFRecordWriter(str(unfinished), "GZIP") as writer:
        for image, label in zip(images, labels, strict=True):
            example = tf.train.Example()
            example.features.feature["image"].float_list.value.extend(image.ravel())
            example.features.feature["label"].int64_list.value.append(label)
            writer.write(example.SerializeToString())
    return unfinished.rename(path)


def _make_models(folder: Path, data: Path) -> None:
    import nets
    import tensorflow as tf
    import tfx_compression as tfc

    images, labels = nets.fashion_mnist(data, "train")
    images = images.reshape(len(images), -1)
    path = folder / "saved_model" / "Format-Serving"
    _save_trained(images, labels, path)
    rows = tf.data.Dataset.from_tensor_slices({"image": images[:1000]}).batch(100)
    for mode in MODES:
        serving = folder / mode / "Format-Serving"
        serving.mkdir(parents=True)
        tfc.quantize(str(path), tfc.Quantization(mode=mode), rows).save(serving / "tflite")


def _save_trained(images: Any, labels: Any, path: Path) -> None:
    import tensorflow as tf
    import tf_keras

    tf_keras.utils.set_random_seed(1)
    layers = tf_keras.layers
    model = tf_keras.Sequential(
        [
            tf_keras.Input((784,), name="image"),
            layers.Reshape((28, 28, 1)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(images, labels, batch_size=128, epochs=1, verbose=2)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def serve(examples: tf.Tensor) -> dict[str, tf.Tensor]:
        parsed = tf.io.parse_example(examples, {"image": tf.io.FixedLenFeature([784], tf.float32)})
        return {"probabilities": model(parsed["image"])}

    model.save(str(path), save_format="tf", signatures={"serving_default": serve})


if __name__ == "__main__":
    app()
