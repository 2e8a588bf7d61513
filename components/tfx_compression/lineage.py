"""The origin of a released model, read from ML Metadata. Imports no TFX."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_metadata import errors as mlmd_errors
from ml_metadata.metadata_store import metadata_store
from ml_metadata.proto import metadata_store_pb2 as mlmd

from tfx_compression.errors import LineageError
from tfx_compression.store.uris import local_path

_OUTPUT = (mlmd.Event.OUTPUT, mlmd.Event.DECLARED_OUTPUT)
_INPUT = (mlmd.Event.INPUT, mlmd.Event.DECLARED_INPUT)
_FINISHED = (mlmd.Execution.COMPLETE, mlmd.Execution.CACHED)  # A killed execution stays RUNNING forever.

# By component class: the step's title, and the exec property with its configuration.
_STEPS = {
    "CompressedEvaluator": ("chosen", "budget"),
    "TFLiteQuantizer": ("quantized", "config"),
    "SparsityFineTuner": ("fine-tuned", "config"),
    "Pruner": ("pruned", "plan"),
    "Trainer": ("trained", ""),
}


@dataclasses.dataclass(frozen=True)
class Step:
    """A component that a model went through.

    Attributes:
      title: Past participle of the component's work, such as "pruned".
      node: Id of the component in its pipeline.
      details: Facts by name.
    """

    title: str
    node: str
    details: dict[str, Any]


class MetadataReader:
    """Reads the ML Metadata in an SQLite file.

    Raises:
      LineageError: There is no such file (code "no-metadata"), or it holds no ML Metadata that this version reads
        ("unreadable-metadata").
    """

    def __init__(self, path: str | Path):
        if not Path(path).is_file():
            raise LineageError(
                f"There is no ML Metadata at {path}. Remedy: --metadata with the path of its SQLite file.",
                field="metadata",
                code="no-metadata",
            )
        config = mlmd.ConnectionConfig()
        config.sqlite.filename_uri = str(path)
        config.sqlite.connection_mode = mlmd.SqliteMetadataSourceConfig.READONLY
        try:
            self._store = metadata_store.MetadataStore(config)
        except (RuntimeError, mlmd_errors.StatusError) as error:
            raise LineageError(
                f"{path} holds no ML Metadata of this version, or is damaged: {error}",
                field="metadata",
                code="unreadable-metadata",
            ) from error

    def artifacts(self, type_name: str) -> list[mlmd.Artifact]:
        """Returns all artifacts of a type, oldest first."""
        return sorted(self._store.get_artifacts_by_type(type_name), key=lambda artifact: artifact.id)

    def run(self, run_id: str) -> dict[str, mlmd.Execution]:
        """Returns the executions of a pipeline run by node id, none if there is no such run."""
        run = self._store.get_context_by_type_and_name("pipeline_run", run_id)
        executions = self._store.get_executions_by_context(run.id) if run else []
        return {self.node(execution): execution for execution in executions}

    def last_run(self) -> str:
        """Returns the id of the newest pipeline run.

        Raises:
          LineageError: There is no run (code "no-run").
        """
        runs = self._store.get_contexts_by_type("pipeline_run")
        if not runs:
            raise LineageError("ML Metadata has no pipeline run.", code="no-run")
        return str(max(runs, key=lambda run: run.id).name)

    def producer(self, artifact: mlmd.Artifact) -> mlmd.Execution:
        """Returns the execution that made an artifact: the first finished one, since later ones reused the artifact.

        Raises:
          LineageError: No finished execution has the artifact as an output (code "no-producer").
        """
        events = self._store.get_events_by_artifact_ids([artifact.id])
        ids = sorted({event.execution_id for event in events if event.type in _OUTPUT})
        executions = self._store.get_executions_by_id(ids)
        finished = [execution for execution in executions if execution.last_known_state in _FINISHED]
        if not finished:
            raise LineageError(
                f"No finished execution made artifact {artifact.id} ({artifact.uri}).", code="no-producer"
            )
        return min(finished, key=lambda execution: execution.id)

    def outputs(self, execution: mlmd.Execution) -> dict[str, mlmd.Artifact]:
        """Returns the artifacts that an execution made or reused, by output name."""
        return dict(self._artifacts_by_key(execution, _OUTPUT))

    def inputs(self, execution: mlmd.Execution) -> dict[str, mlmd.Artifact]:
        """Returns the artifacts that an execution read, by input name."""
        return dict(self._artifacts_by_key(execution, _INPUT))

    def _artifacts_by_key(
        self, execution: mlmd.Execution, event_types: Sequence[int]
    ) -> Iterator[tuple[str, mlmd.Artifact]]:
        events = self._store.get_events_by_execution_ids([execution.id])
        events = [event for event in events if event.type in event_types]
        artifacts = self._store.get_artifacts_by_id([event.artifact_id for event in events])
        by_id = {artifact.id: artifact for artifact in artifacts}
        for event in events:
            key = next((step.key for step in event.path.steps if step.HasField("key")), "")
            yield key, by_id[event.artifact_id]

    def node(self, execution: mlmd.Execution) -> str:
        """Returns the id of the pipeline node that an execution ran."""
        contexts = self._store.get_contexts_by_execution(execution.id)
        names = [context.name for context in contexts if context.type == "node"]
        return names[0].split(".", 1)[1] if names else str(execution.id)


def properties(source: mlmd.Artifact | mlmd.Execution) -> dict[str, Any]:
    """Returns the properties and custom properties of an artifact or execution."""
    return {
        name: getattr(value, value.WhichOneof("value"))
        for fields in (source.properties, source.custom_properties)
        for name, value in fields.items()
        if value.WhichOneof("value")
    }


def trace(metadata: str | Path, store_uri: str, name: str, version: int) -> list[Step]:
    """Returns the steps of a released model, from its release back to the data.

    Args:
      metadata: Path of ML Metadata's SQLite file.
      store_uri: Root of the TFLite store: the URI that the pusher used, or a path of the same place.
      name: Name of the model.
      version: Version of the model.

    Raises:
      LineageError: ML Metadata can't be read, or has no such release (code "unknown-release").
    """
    reader = MetadataReader(metadata)
    pushed = _pushed_model(reader, store_uri, name, version)
    known = properties(pushed)
    release = reader.producer(pushed)
    steps = [
        Step(
            "released",
            reader.node(release),
            {"store": known["pushed_destination"], "name": name, "version": version, "sha256": known["sha256"]},
        )
    ]
    model = reader.inputs(release)["model"]
    while True:
        execution = reader.producer(model)
        inputs = reader.inputs(execution)
        steps.append(_model_step(reader, execution, model, inputs))
        parent = next((inputs[key] for key in _parent_keys(model) if key in inputs), None)
        if parent is None:
            break
        model = parent
    while "examples" in inputs:
        examples = inputs["examples"]
        execution = reader.producer(examples)
        inputs = reader.inputs(execution)
        if "examples" not in inputs:
            steps.append(_data_step(reader, execution, examples))
    return steps


def _pushed_model(reader: MetadataReader, store_uri: str, name: str, version: int) -> mlmd.Artifact:
    """Returns the PushedModel artifact of a release."""
    releases = []
    for artifact in reader.artifacts("PushedModel"):
        known = properties(artifact)
        if known.get("pushed") == 1 and "store_name" in known:
            releases.append(f"{known['store_name']} {known['pushed_version']} in {known['pushed_destination']}")
            same_store = _resolved(known["pushed_destination"]) == _resolved(store_uri)
            if same_store and known["store_name"] == name and known["pushed_version"] == str(version):
                return artifact
    raise LineageError(
        f"ML Metadata has no release of {name} {version} in {store_uri}. Releases: {'; '.join(releases) or 'none'}.",
        code="unknown-release",
    )


def _resolved(uri: str) -> str:
    path = local_path(uri)
    return uri if path is None else str(Path(path).resolve())


def _parent_keys(model: mlmd.Artifact) -> list[str]:
    """Returns the input names under which a model's producer may have read the parent model, likeliest first."""
    candidate = properties(model).get("candidate")
    return [f"candidate_{candidate}", "model"] if candidate else ["model"]


def _model_step(
    reader: MetadataReader, execution: mlmd.Execution, model: mlmd.Artifact, inputs: dict[str, mlmd.Artifact]
) -> Step:
    """Returns the step that made a model."""
    title, configuration = _STEPS.get(execution.type.rpartition(".")[2], ("made", ""))
    known = properties(model)
    settings = properties(execution)
    details: dict[str, Any] = {"model": model.uri, "id": model.id}
    details |= {key: known[key] for key in ("candidate", "sparsity", "bytes", "bytes_gzip") if key in known}
    details |= {key: value for key, value in known.items() if key.startswith(("metric_", "drop_"))}
    if "baseline_model" in inputs:
        baseline = inputs["baseline_model"]
        details["compared_with"] = f"{baseline.uri} (id {baseline.id})"
        details["evaluated_on"] = f"{inputs['examples'].uri}, split {settings['example_split']}"
    if configuration in settings:
        details[configuration] = _configuration(settings, configuration)
    return Step(title, reader.node(execution), details)


def _configuration(settings: dict[str, Any], key: str) -> dict[str, Any]:
    """Returns the fields of a configuration that are set: its JSON, with the exec properties that override it."""
    config = json.loads(settings[key])
    config.update({name: value for name, value in settings.items() if name in config})
    return {name: value for name, value in config.items() if value not in (None, [], {})}


def _data_step(reader: MetadataReader, execution: mlmd.Execution, examples: mlmd.Artifact) -> Step:
    """Returns the step that made the examples."""
    known = properties(examples)
    keys = ("split_names", "span", "input_fingerprint")
    return Step(
        "data",
        reader.node(execution),
        {"examples": examples.uri, "id": examples.id, **{key: known[key] for key in keys if key in known}},
    )
