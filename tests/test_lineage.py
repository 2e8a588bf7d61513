"""Errors of reading ML Metadata. The pipeline tests trace a release of a whole run."""

import pytest
from ml_metadata.metadata_store import metadata_store
from ml_metadata.proto import metadata_store_pb2 as mlmd
from tfx_compression import lineage
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
