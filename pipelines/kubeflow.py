"""Compiles the digits pipeline for Kubeflow Pipelines v2: `python pipelines/kubeflow.py --output SPEC.json`.

Every step runs in one image with the pipelines in /pipeline and tfx_compression installed (deploy/Dockerfile).
Sparsity, epochs, learning rate and the largest drop are parameters of the run.
"""

import dataclasses
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

# A script has its own folder on the path, but not the folder above.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

app = typer.Typer(add_completion=False)


@app.command()
def main(
    output: Annotated[Path, typer.Option(help="File to write: a PipelineJob as JSON.")],
    image: Annotated[str, typer.Option(help="Image of every step.")] = "tfx-compression:latest",
    root: Annotated[str, typer.Option(help="Root of the artifacts and the served models.")] = "gs://YOUR-BUCKET",
    data: Annotated[str | None, typer.Option(help="Folder with train/ and eval/. The default is ROOT/data.")] = None,
    store: Annotated[str, typer.Option(help="TFLite store: a directory that the steps mount.")] = "/mnt/store",
    module_file: Annotated[
        str, typer.Option(help="Functions of Transform and Trainer, in the image.")
    ] = "/pipeline/pipelines/digits/trainer/digits.py",
) -> None:
    """Compile the pipeline that trains, compresses, evaluates and releases a model of scikit-learn's digits."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.simplefilter("ignore", FutureWarning)  # Google's clients warn about the age of Python 3.10.
    # The image has the module file. Packing it into a wheel would write to the pipeline root from this machine.
    os.environ["UNSUPPORTED_DO_NOT_PACKAGE_USER_MODULES"] = "1"
    from tfx import v1 as tfx

    from pipelines import builder
    from pipelines.digits import settings

    base = settings.settings(Path("unused"), Path(module_file))
    defaults: dict[str, float] = {
        "sparsity": base.plan.sparsity,
        "epochs": base.fine_tuning.epochs,
        "learning_rate": base.fine_tuning.learning_rate,
        "max_metric_drop": base.edge.max_metric_drop[settings.METRIC],
    }
    parameters = {
        name: tfx.dsl.experimental.RuntimeParameter(name=name, ptype=type(value), default=value)
        for name, value in defaults.items()
    }
    run_settings = dataclasses.replace(
        base, serving_directory=f"{root}/serving/{base.name}", store=store, module_file=module_file, **parameters
    )
    pipeline = tfx.dsl.Pipeline(
        pipeline_name=base.name,
        pipeline_root=f"{root}/pipeline_root",
        components=builder.components(run_settings, data or f"{root}/data"),
        enable_cache=True,
        beam_pipeline_args=["--runner=DirectRunner"],
    )
    config = tfx.orchestration.experimental.KubeflowV2DagRunnerConfig(default_image=image)
    runner = tfx.orchestration.experimental.KubeflowV2DagRunner(
        config, output_dir=str(output.resolve().parent), output_filename=output.name
    )
    # The compiler drops the defaults of the parameters, so the run gets them as values.
    runner.run(pipeline, parameter_values=defaults)
    typer.echo(f"{output}: {len(pipeline.components)} steps in {image}")


if __name__ == "__main__":
    app()
