"""The pipeline compiled for Kubeflow, and its steps run from the wheel as in Kubeflow's containers."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from google.protobuf import json_format

REPOSITORY = Path(__file__).parents[2]
ENTRYPOINT = "tfx.orchestration.kubeflow.v2.container.kubeflow_v2_run_executor"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    """The compiled pipeline, made by the command in the README."""
    output = tmp_path_factory.mktemp("kubeflow") / "spec.json"
    command = [sys.executable, "pipelines/kubeflow.py", "--output", str(output), "--image", "registry/tfx:1"]
    process = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert process.stdout == f"{output}: 15 steps in registry/tfx:1\n"
    return json.loads(output.read_text())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The folder of the unpacked wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    build = "import hatchling.build as b, sys; print(b.build_wheel(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", build, str(folder)], cwd=REPOSITORY, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        names = archive.namelist()
        archive.extractall(folder / "unpacked")
    assert {name.split("/")[0].split("-")[0] for name in names} == {"tfx_compression"}
    return folder / "unpacked"


def run_without_repository(wheel: Path, code: str, *arguments: str) -> subprocess.CompletedProcess:
    """Runs Python code that finds tfx_compression in the wheel: the editable install's folder is off the path."""
    prefix = f"import sys; sys.path = [p for p in sys.path if p != {str(REPOSITORY / 'components')!r}]\n"
    environment = {**os.environ, "PYTHONPATH": str(wheel)}
    command = [sys.executable, "-c", prefix + code, *arguments]
    return subprocess.run(command, cwd=wheel, env=environment, capture_output=True, text=True, check=False)


def test_the_compiled_pipeline_is_valid_for_kubeflow(spec):
    from kfp.pipeline_spec import pipeline_spec_pb2

    parsed = json_format.ParseDict(spec["pipelineSpec"], pipeline_spec_pb2.PipelineSpec())
    assert "Pruner" in parsed.root.dag.tasks
    upstream = parsed.root.dag.tasks["TFLiteStorePusher"].dependent_tasks
    assert list(upstream) == ["CompressedEvaluator.edge"]
    candidates = parsed.components["CompressedEvaluator.edge"].input_definitions.artifacts
    assert {"candidate_dynamic", "candidate_float16", "candidate_int8", "baseline_model"} <= set(candidates)


def test_the_parameters_of_a_run_have_the_values_of_the_example(spec):
    assert spec["runtimeConfig"]["parameters"] == {
        "sparsity": {"doubleValue": 0.8},
        "epochs": {"intValue": "15"},
        "learning_rate": {"doubleValue": 0.001},
        "max_metric_drop": {"doubleValue": 0.04},
    }
    assert set(spec["pipelineSpec"]["root"]["inputDefinitions"]["parameters"]) == {
        *("sparsity", "epochs", "learning_rate", "max_metric_drop")
    }


def test_every_executor_and_artifact_type_imports_from_the_wheel(spec, wheel):
    executors = spec["pipelineSpec"]["deploymentSpec"]["executors"].values()
    paths = {step["container"]["args"][1] for step in executors}
    types = {
        line.removeprefix("title: ")
        for component in spec["pipelineSpec"]["components"].values()
        for output in component["outputDefinitions"]["artifacts"].values()
        for line in output["artifactType"]["instanceSchema"].splitlines()
        if line.startswith("title: tfx_compression")
    }
    ours = sorted(path for path in paths if path.startswith("tfx_compression"))
    assert len(ours) == 6
    assert types == {"tfx_compression.PruningPlanArtifact", "tfx_compression.EvaluationReport"}
    code = """
from tfx.utils import import_utils
for path in sys.argv[1:]:
    imported = import_utils.import_class_by_path(path)
    print(path, sys.modules[imported.__module__].__file__)
"""
    process = run_without_repository(wheel, code, *sorted(paths), *sorted(types))
    assert process.returncode == 0, process.stderr[-2000:]
    files = dict(line.split(" ") for line in process.stdout.splitlines())
    assert set(files) == paths | types
    assert all(files[path].startswith(str(wheel)) for path in [*ours, *types])


def test_a_step_runs_as_in_kubeflows_container(wheel, tmp_path):
    """Kubeflow passes types, URIs and properties of artifacts as JSON."""
    from tests.support.helpers import small_cnn

    model = small_cnn()
    model.save(tmp_path / "trained" / "Format-Serving", save_format="tf")
    artifact = {"type": {"instanceSchema": "title: tfx.Model\ntype: object\n"}}
    plan_type = {"type": {"instanceSchema": "title: tfx_compression.PruningPlanArtifact\ntype: object\n"}}
    executor_input = {
        "inputs": {
            "artifacts": {
                "model": {"artifacts": [{**artifact, "name": "a/b/1", "uri": str(tmp_path / "trained")}]},
            },
            "parameters": {
                "plan": {"stringValue": '{"sparsity": 0.5, "protect": []}'},
                "sparsity": {"doubleValue": 0.75},
                "code_version": {"stringValue": "1"},
            },
        },
        "outputs": {
            "artifacts": {
                "pruned_model": {"artifacts": [{**artifact, "name": "a/b/2", "uri": str(tmp_path / "pruned")}]},
                "pruning_plan": {"artifacts": [{**plan_type, "name": "a/b/3", "uri": str(tmp_path / "plan")}]},
            },
            "outputFile": str(tmp_path / "task" / "executor_output.json"),
        },
    }
    code = f"import runpy; sys.argv[0] = 'x'; runpy.run_module({ENTRYPOINT!r}, run_name='__main__')"
    process = run_without_repository(
        wheel,
        code,
        "--executor_class_path=tfx_compression.pruner.executor.Executor",
        f"--json_serialized_invocation_args={json.dumps(executor_input)}",
    )
    assert process.returncode == 0, process.stderr[-3000:]
    output = json.loads((tmp_path / "task" / "executor_output.json").read_text())["artifacts"]
    pruned = output["pruned_model"]["artifacts"][0]["metadata"]
    assert pruned["parent_uri"] == str(tmp_path / "trained")
    assert pruned["sparsity"] == pytest.approx(0.75, abs=0.01)
    assert json.loads(output["pruning_plan"]["artifacts"][0]["metadata"]["plan"])["sparsity"] == 0.75
    assert (tmp_path / "pruned" / "Format-Serving" / "saved_model.pb").exists()
    assert (tmp_path / "plan" / "masks.npz").exists()
