"""The origin of a release in ML Metadata, and errors of reading it."""

import sys

import pytest
from ml_metadata.metadata_store import metadata_store
from ml_metadata.proto import metadata_store_pb2 as mlmd
from tfx_compression import cli, lineage
from tfx_compression.errors import LineageError

from tests.support.errors import raises


@pytest.fixture
def metadata(tmp_path) -> tuple[str, metadata_store.MetadataStore]:
    """A file of ML Metadata, and a store that writes to it."""
    config = mlmd.ConnectionConfig()
    config.sqlite.filename_uri = str(tmp_path / "metadata.sqlite")
    config.sqlite.connection_mode = mlmd.SqliteMetadataSourceConfig.READWRITE_OPENCREATE
    return config.sqlite.filename_uri, metadata_store.MetadataStore(config)


def put_artifact(store: metadata_store.MetadataStore, type_name: str, **properties: str | int) -> mlmd.Artifact:
    """Adds an artifact with custom properties; returns it with its id."""
    artifact = mlmd.Artifact(type_id=store.put_artifact_type(mlmd.ArtifactType(name=type_name)), uri="/artifact")
    for name, value in properties.items():
        field = "int_value" if isinstance(value, int) else "string_value"
        setattr(artifact.custom_properties[name], field, value)
    (artifact.id,) = store.put_artifacts([artifact])
    return artifact


def test_a_missing_file_is_named(tmp_path):
    with raises(LineageError, code="no-metadata", field="metadata", match=str(tmp_path / "missing")):
        lineage.MetadataReader(tmp_path / "missing")


def test_a_file_that_is_no_metadata_is_named(tmp_path):
    (tmp_path / "letter").write_text("Dear all")
    with raises(LineageError, code="unreadable-metadata", field="metadata", match=str(tmp_path / "letter")):
        lineage.MetadataReader(tmp_path / "letter")


def test_an_unknown_release_is_refused_and_the_known_ones_are_named(metadata):
    path, store = metadata
    put_artifact(
        store, "PushedModel", pushed=1, store_name="digits", pushed_version="3", pushed_destination="/srv/models"
    )
    put_artifact(store, "PushedModel", pushed=0)
    with raises(LineageError, code="unknown-release", match="digits 3 in /srv/models"):
        lineage.trace(path, "/srv/models", "digits", 4)


def test_a_release_that_no_execution_made_is_refused(metadata):
    path, store = metadata
    release = {"pushed": 1, "store_name": "digits", "pushed_version": "3", "pushed_destination": "/srv/models"}
    artifact = put_artifact(store, "PushedModel", **release)
    with raises(LineageError, code="no-producer", match=f"artifact {artifact.id}"):
        lineage.trace(path, "/srv/models", "digits", 3)


def test_metadata_without_a_run_has_no_last_run(metadata):
    path, store = metadata
    put_artifact(store, "Model")
    with raises(LineageError, code="no-run"):
        lineage.MetadataReader(path).last_run()


def test_an_unknown_run_has_no_executions(metadata):
    path, store = metadata
    put_artifact(store, "Model")
    assert lineage.MetadataReader(path).run("yesterday") == {}


class Recorder:
    """Writes executions of a pipeline run and their artifacts to ML Metadata."""

    def __init__(self, store: metadata_store.MetadataStore):
        self._store = store
        self._contexts = {
            name: store.put_context_type(mlmd.ContextType(name=name)) for name in ("pipeline_run", "node")
        }

    def run(
        self,
        component: str,
        inputs: dict[str, mlmd.Artifact],
        output: mlmd.Artifact,
        state: mlmd.Execution.State = mlmd.Execution.COMPLETE,
        **properties: str,
    ) -> None:
        """Adds the execution of a component with one output."""
        execution_type = self._store.put_execution_type(mlmd.ExecutionType(name=f"package.{component}"))
        execution = mlmd.Execution(type_id=execution_type, last_known_state=state)
        for name, value in properties.items():
            execution.custom_properties[name].string_value = value
        events = [self._event(mlmd.Event.INPUT, key, artifact) for key, artifact in inputs.items()]
        events.append(self._event(mlmd.Event.OUTPUT, "output", output))
        contexts = [
            mlmd.Context(type_id=self._contexts["pipeline_run"], name="today"),
            mlmd.Context(type_id=self._contexts["node"], name=f"pipeline.{component}"),
        ]
        self._store.put_execution(
            execution, [(artifact, event) for artifact, event in events], contexts, reuse_context_if_already_exist=True
        )

    def _event(self, kind: mlmd.Event.Type, key: str, artifact: mlmd.Artifact) -> tuple[mlmd.Artifact, mlmd.Event]:
        event = mlmd.Event(artifact_id=artifact.id, type=kind)
        event.path.steps.add().key = key
        event.path.steps.add().index = 0
        return artifact, event


@pytest.fixture
def release(metadata) -> str:
    """ML Metadata with a release of a model that was trained and quantized. Returns its path."""
    path, store = metadata
    examples = put_artifact(store, "Examples", span=7)
    trained = put_artifact(store, "Model")
    quantized = put_artifact(store, "Model", bytes=1000)
    best = put_artifact(store, "Model", candidate="int8", metric_accuracy=1)
    pushed = put_artifact(
        store,
        "PushedModel",
        pushed=1,
        store_name="digits",
        pushed_version="3",
        pushed_destination="/srv/models",
        sha256="abc",
    )
    recorder = Recorder(store)
    recorder.run("ImportExampleGen", {}, examples)
    recorder.run("Trainer", {"examples": examples}, trained)
    quantization = '{"mode": "float16", "target": null, "signatures": []}'
    recorder.run("TFLiteQuantizer", {"model": trained}, quantized, config=quantization, mode="int8")
    inputs = {"candidate_int8": quantized, "baseline_model": trained, "examples": examples}
    recorder.run("CompressedEvaluator", inputs, best, budget="{}", example_split="eval")
    recorder.run("TFLiteStorePusher", {"model": best}, pushed)
    return path


def test_a_release_is_traced_back_to_the_data(release):
    steps = lineage.trace(release, "file:///srv/models", "digits", 3)
    assert [(step.title, step.node) for step in steps] == [
        ("released", "TFLiteStorePusher"),
        ("chosen", "CompressedEvaluator"),
        ("quantized", "TFLiteQuantizer"),
        ("trained", "Trainer"),
        ("data", "ImportExampleGen"),
    ]
    details = {step.title: step.details for step in steps}
    assert details["released"] == {"store": "/srv/models", "name": "digits", "version": 3, "sha256": "abc"}
    assert details["chosen"]["candidate"] == "int8"
    assert details["chosen"]["metric_accuracy"] == 1
    assert details["chosen"]["evaluated_on"] == "/artifact, split eval"
    assert details["chosen"]["compared_with"] == f"/artifact (id {details['trained']['id']})"
    assert details["quantized"]["config"] == {"mode": "int8"}
    assert details["quantized"]["bytes"] == 1000
    assert details["data"]["span"] == 7


def test_the_command_prints_the_steps(release, monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["tfx-compression", "lineage", "/srv/models", "digits", "3", "--metadata", release]
    )
    with pytest.raises(SystemExit) as exited:
        cli.main()
    printed = capsys.readouterr().out
    assert exited.value.code == 0
    assert printed.startswith("digits 3\n\nreleased by TFLiteStorePusher\n")
    assert "quantized by TFLiteQuantizer" in printed
    assert "config (mode=int8)" in printed


def test_the_first_finished_execution_is_the_producer(metadata):
    path, store = metadata
    model = put_artifact(store, "Model")
    recorder = Recorder(store)
    recorder.run("Killed", {}, model, state=mlmd.Execution.RUNNING)
    recorder.run("Trainer", {}, model)
    recorder.run("Reuser", {}, model, state=mlmd.Execution.CACHED)
    reader = lineage.MetadataReader(path)
    assert reader.node(reader.producer(model)) == "Trainer"
    assert reader.last_run() == "today"
    assert set(reader.run("today")) == {"Killed", "Trainer", "Reuser"}
    assert reader.outputs(reader.run("today")["Trainer"])["output"].id == model.id
