"""Runs an example's pipeline on this machine: `python -m pipelines.local`, or `make pipeline`.

LocalDagRunner, ML Metadata in SQLite, Beam's DirectRunner, a TFLite store and a TensorFlow Serving directory, all below
one folder.
"""

import contextlib
import fcntl
import gc
import traceback
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from tfx_compression import store
from tfx_compression.cli.terminal import output_to, working

from pipelines.digits import settings
from pipelines.quiet import Progress
from pipelines.settings import Settings

HERE = Path(__file__).parent

app = typer.Typer(add_completion=False)


class Technique(str, Enum):
    """What is pruned."""

    weight = "weight"
    filter = "filter"
    neuron = "neuron"


@app.command()
def main(
    folder: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("runs/digits"),
    technique: Annotated[
        Technique, typer.Option(help="Prune single weights, or remove filters or neurons.")
    ] = Technique.weight,
    sparsity: Annotated[
        float | None, typer.Option(help="Fraction of the weights, filters or neurons to prune.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of fine-tuning.")] = None,
    max_drop: Annotated[float | None, typer.Option(help="Largest drop in accuracy, absolute.")] = None,
    max_bytes: Annotated[int | None, typer.Option(help="Largest TFLite file.")] = None,
    module_file: Annotated[
        Path, typer.Option(help="Transform's and Trainer's functions.", exists=True, dir_okay=False)
    ] = HERE / "digits/trainer/digits.py",
) -> None:
    """Train, compress, evaluate and release a model of scikit-learn's digits."""
    folder = folder.resolve()
    log = folder / "pipeline.log"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder), output_to(log) as console:
            released = _run(
                console,
                folder,
                lambda: settings.settings(
                    folder, module_file.resolve(), sparsity, epochs, max_drop, max_bytes, technique.value
                ),
            )
    except OSError as error:
        message = (
            f"[bold red]error:[/] {folder}: {error}. Remedy: --folder with another one, that this user may write to."
        )
        Console(stderr=True, soft_wrap=True).print(message, highlight=False)
        raise typer.Exit(1) from error
    raise typer.Exit(0 if released else 1)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One run at a time in a folder: two would share log, data and ML Metadata."""
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OSError("another pipeline is running in it") from error
        yield


def _run(console: Console, folder: Path, choose: Callable[[], Settings]) -> bool:
    """Runs, and shows what came of it; False where a component failed."""
    progress = Progress(console)
    try:
        # What a run that is broken off leaves must not look like its result.
        for old in ("summary.json", "report.html", "pruning.html", "quantization.html"):
            (folder / old).unlink(missing_ok=True)
        # What can be wrong with the settings is told at once, before TFX has loaded.
        chosen = choose()
        store.open(chosen.store).require_writable()
        with working(console, "Loading TFX …"):
            from absl import logging as absl_logging
            from tfx import v1 as tfx

            from pipelines import builder, results
            from pipelines.digits import data

            gc.freeze()  # what was imported stays: don't search it for garbage again and again
            absl_logging.set_verbosity(absl_logging.INFO)
            absl_logging.get_absl_logger().addHandler(progress)
            data.write(folder / "data")
            metadata = folder / "metadata.sqlite"
            pipeline = tfx.dsl.Pipeline(
                pipeline_name=chosen.name,
                pipeline_root=str(folder / "pipeline_root"),
                components=builder.components(chosen, str(folder / "data")),
                enable_cache=True,
                metadata_connection_config=tfx.orchestration.metadata.sqlite_metadata_connection_config(str(metadata)),
                # Without a state cache: measuring what it holds takes Beam longer than these small runs themselves.
                beam_pipeline_args=["--runner=DirectRunner", "--max_cache_memory_usage_mb=0"],
            )
        console.print(f"[bold]{chosen.name}[/] in {_shown(folder)}", highlight=False)
        with working(console, "Running …"):
            tfx.orchestration.LocalDagRunner().run(pipeline)
        found = results.Results(metadata)
        summary = results.write(found, folder)
    except KeyboardInterrupt:
        _explain(console, progress, InterruptedError("stopped; the next run goes on from what was finished"), folder)
        return False
    except Exception as error:  # whatever a component raises is reported with its name, and ends with status 1
        traceback.print_exc()
        _explain(console, progress, error, folder)
        return False
    found.print(console, summary)
    console.print(f"Report              {_shown(folder / 'report.html')}", highlight=False)
    console.print(f"What was pruned     {_shown(folder / 'pruning.html')}", highlight=False)
    console.print(f"What was quantized  {_shown(folder / 'quantization.html')}", highlight=False)
    console.print(f"Log                 {_shown(folder / 'pipeline.log')}", highlight=False)
    return True


def _explain(console: Console, progress: Progress, error: Exception, folder: Path) -> None:
    """The component, the error in one paragraph, the log's path."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = text if len(text) < 900 else f"{text[:440]} … {text[-440:]}"
    place = "The run's results could not be read" if progress.started else "The pipeline could not be started"
    if progress.running:
        place = f"{progress.running} failed"
    console.print(f"  [red]✗[/] [bold]{place}[/]: ", end="")
    console.print(f"{type(error).__name__}: {text}", markup=False, highlight=False)
    console.print(f"Log  {_shown(folder / 'pipeline.log')}", highlight=False)


def _shown(path: Path) -> str:
    """Relative to this folder where it is below it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


if __name__ == "__main__":
    app()
