"""Runs the digits pipeline on this machine: `python -m pipelines.local`, or `make pipeline`.

LocalDagRunner runs the components on Beam's DirectRunner. ML Metadata (SQLite), the TFLite store and the directory of
TensorFlow Serving are all below one folder.
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
from tfx_compression.cli.output import shown
from tfx_compression.cli.terminal import output_to, working

from pipelines.digits import settings
from pipelines.progress import Progress
from pipelines.settings import Settings

HERE = Path(__file__).parent

app = typer.Typer(add_completion=False)


class Technique(str, Enum):
    """Pruning techniques."""

    weight = "weight"
    filter = "filter"
    neuron = "neuron"


@app.command()
def main(
    folder: Annotated[Path, typer.Option(help="Folder of all results.")] = Path("runs/digits"),
    technique: Annotated[
        Technique, typer.Option(help="Prune single weights, or remove filters or neurons.")
    ] = Technique.weight,
    sparsity: Annotated[
        float | None, typer.Option(help="Fraction of the weights, filters or neurons to prune.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of fine-tuning.")] = None,
    max_drop: Annotated[float | None, typer.Option(help="Largest absolute drop in accuracy.")] = None,
    max_bytes: Annotated[int | None, typer.Option(help="Largest TFLite file in bytes.")] = None,
    module_file: Annotated[
        Path, typer.Option(help="Functions of Transform and Trainer.", exists=True, dir_okay=False)
    ] = HERE / "digits/trainer/digits.py",
) -> None:
    """Train, compress, evaluate and release a model of scikit-learn's digits."""
    folder = folder.resolve()
    log = folder / "pipeline.log"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder), output_to(log) as console:
            released = _run(
                console,
                folder,
                lambda: settings.settings(
                    folder, module_file.resolve(), sparsity, epochs, max_drop, max_bytes, technique.value
                ),
            )
    except OSError as error:
        remedy = "Remedy: --folder with a folder that this user can write to."
        message = f"[bold red]error:[/] {shown(folder)}: {shown(error)}. {remedy}"
        Console(stderr=True, soft_wrap=True).print(message, highlight=False)
        raise typer.Exit(1) from error
    raise typer.Exit(0 if released else 1)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Allows one run at a time in a folder: two would share log, data and ML Metadata."""
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OSError("another pipeline is running there") from error
        yield


def _run(console: Console, folder: Path, make_settings: Callable[[], Settings]) -> bool:
    """Runs the pipeline and prints its results; returns False if a component failed."""
    progress = Progress(console)
    try:
        # An interrupted run must not leave older results that look like its own.
        for old in ("summary.json", "report.html", "pruning.html", "quantization.html"):
            (folder / old).unlink(missing_ok=True)
        # Errors in the settings show at once, before TFX has loaded.
        run_settings = make_settings()
        store.open(run_settings.store).require_writable()
        with working(console, "Loading TFX …"):
            from absl import logging as absl_logging
            from tfx import v1 as tfx

            from pipelines import builder, results
            from pipelines.digits import data

            gc.freeze()  # Imported modules stay, so the collector doesn't need to search them.
            absl_logging.set_verbosity(absl_logging.INFO)
            absl_logging.get_absl_logger().addHandler(progress)
            data.write(folder / "data")
            metadata = folder / "metadata.sqlite"
            pipeline = tfx.dsl.Pipeline(
                pipeline_name=run_settings.name,
                pipeline_root=str(folder / "pipeline_root"),
                components=builder.components(run_settings, str(folder / "data")),
                enable_cache=True,
                metadata_connection_config=tfx.orchestration.metadata.sqlite_metadata_connection_config(str(metadata)),
                # No state cache: Beam takes longer to measure its size than these small runs take.
                beam_pipeline_args=["--runner=DirectRunner", "--max_cache_memory_usage_mb=0"],
            )
        console.print(f"[bold]{shown(run_settings.name)}[/] in {shown(_relative(folder))}", highlight=False)
        with working(console, "Running …"):
            tfx.orchestration.LocalDagRunner().run(pipeline)
        run_results = results.Results(metadata)
        summary = results.write(run_results, folder)
    except KeyboardInterrupt:
        _explain(
            console,
            progress,
            InterruptedError("stopped; the next run continues after the last finished component"),
            folder,
        )
        return False
    except Exception as error:  # Any error of a component is reported with the component's name.
        traceback.print_exc()
        _explain(console, progress, error, folder)
        return False
    run_results.print(console, summary)
    console.print(f"Report              {shown(_relative(folder / 'report.html'))}", highlight=False)
    console.print(f"Pruning report      {shown(_relative(folder / 'pruning.html'))}", highlight=False)
    console.print(f"Quantization report {shown(_relative(folder / 'quantization.html'))}", highlight=False)
    console.print(f"Log                 {shown(_relative(folder / 'pipeline.log'))}", highlight=False)
    return True


def _explain(console: Console, progress: Progress, error: Exception, folder: Path) -> None:
    """Prints the component that failed, its error as one paragraph, and the path of the log."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = text if len(text) < 900 else f"{text[:440]} … {text[-440:]}"
    place = "The run's results could not be read" if progress.started else "The pipeline could not be started"
    if progress.running:
        place = f"{progress.running} failed"
    console.print(f"  [red]✗[/] [bold]{place}[/]: ", end="")
    console.print(shown(f"{type(error).__name__}: {text}"), highlight=False)
    console.print(f"Log  {shown(_relative(folder / 'pipeline.log'))}", highlight=False)


def _relative(path: Path) -> str:
    """Returns a path relative to the working directory, if it is below that."""
    working_directory = Path.cwd()
    return str(path.relative_to(working_directory) if path.is_relative_to(working_directory) else path)


if __name__ == "__main__":
    app()
