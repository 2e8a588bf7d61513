"""`tfx-compression evaluate`: models measured against a baseline and a budget."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tfx_compression.cli.arguments import AsJson
from tfx_compression.cli.output import print_rich, shown
from tfx_compression.cli.terminal import evaluation_table, output_to, working
from tfx_compression.errors import ConfigError

if TYPE_CHECKING:
    from tfx_compression.compressed_evaluator.budget import Budget


def evaluate(
    candidates: Annotated[
        list[str],
        typer.Argument(
            help="TFLite models or SavedModels: a path, or NAME=PATH.", metavar="CANDIDATE...", show_default=False
        ),
    ],
    examples: Annotated[str, typer.Option(help="Pattern of TFRecord files of tf.Examples.", metavar="PATTERN")],
    label: Annotated[str | None, typer.Option(help="Label feature, unless --eval-config names it.")] = None,
    baseline: Annotated[Path | None, typer.Option(help="Model to compare the candidates with.")] = None,
    schema: Annotated[
        Path | None, typer.Option(help="Schema of the examples: schema.pbtxt.", exists=True, dir_okay=False)
    ] = None,
    eval_config: Annotated[
        Path | None,
        typer.Option(
            help="TFMA's EvalConfig, JSON or text proto. The default is a classifier's accuracy.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Limits: a Budget as JSON, or a file with one.", metavar="JSON|FILE")
    ] = None,
    reference_kernels: Annotated[bool, typer.Option(help="Run TFLite's reference kernels, not XNNPACK.")] = False,
    output: Annotated[Path, typer.Option(help="Folder for report.html, evaluation.json and TFMA's files.")] = Path(
        "evaluation"
    ),
    as_json: AsJson = False,
) -> None:
    """Measure models against a baseline and choose the one to release.

    Exit status: 0 if a model was chosen, 2 if none was, for example because there is no baseline.
    """
    paths = _paths_by_name(candidates)
    limits = _budget(budget)
    output.mkdir(parents=True, exist_ok=True)
    log = output / "log.txt"
    with output_to(log) as console, working(console, f"Evaluating {shown(', '.join(paths))} …"):
        from tfx_compression.compressed_evaluator import evaluate as evaluator
        from tfx_compression.compressed_evaluator import proto_files, report

        evaluation = evaluator.evaluate(
            paths,
            examples,
            label,
            baseline=str(baseline) if baseline else None,
            schema=proto_files.read_schema(str(schema)) if schema else None,
            eval_config=proto_files.read_eval_config(str(eval_config)) if eval_config else None,
            budget=limits,
            output_path=str(output),
            reference_kernels=reference_kernels,
        )
        page = output / "report.html"
        page.write_text(report.render({"": evaluation}), encoding="utf-8")
    if as_json:
        print(evaluation.to_json())
    else:
        print_rich(evaluation_table(f"{evaluation.rows:,} examples", evaluation))
        print_rich(f"[bold]{'→' if evaluation.chosen else '✗'}[/] {shown(evaluation.reason)}")
        print_rich(f"[dim]report[/] {shown(page)}   [dim]log[/] {shown(log)}")
    if evaluation.chosen is None:
        raise typer.Exit(2)


def _paths_by_name(candidates: list[str]) -> dict[str, str]:
    """Returns the paths by candidate name: that of `NAME=PATH`, or the file's or folder's name.

    Raises:
      ConfigError: Two candidates have the same name.
    """
    paths: dict[str, str] = {}
    for candidate in candidates:
        name, _, path = ("", "", candidate) if Path(candidate).exists() else candidate.partition("=")
        name, path = (name, path) if path else ("", name)
        name = name or Path(path).stem
        if name in paths:
            raise ConfigError(
                f"Two candidates are called {name!r}: {paths[name]} and {path}. Remedy: NAME=PATH.",
                field="candidates",
                code="duplicate-name",
            )
        paths[name] = path
    return paths


def _budget(option: str | None) -> "Budget":
    """Returns the budget in the JSON text or the file that the option names; without one, a budget of no limits."""
    from tfx_compression.compressed_evaluator.budget import Budget

    text = option or "{}"
    if not text.lstrip().startswith("{"):
        try:
            text = Path(text).read_text(encoding="utf-8")
        except OSError as error:
            message = f"--budget {text} is neither JSON nor a file that can be read: {error.strerror}."
            raise ConfigError(message, field="budget", code="unreadable-file") from error
        except UnicodeDecodeError as error:
            message = f"--budget {text} is not a JSON file: {error}"
            raise ConfigError(message, field="budget", code="json_invalid") from error
    return Budget.merged(text, {})
