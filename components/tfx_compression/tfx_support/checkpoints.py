"""Checkpoints of executors, which survive a killed attempt."""

import hashlib
import os
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
from tfx.types import artifact
from tfx.utils import io_utils

from tfx_compression.tfx_support.artifacts import Artifacts

# Exec properties that differ between attempts without changing the result.
_ATTEMPT_PROPERTIES = frozenset(["checkpoint_uri", "module_path", "module_file"])


def fingerprint(inputs: Artifacts, exec_properties: Mapping[str, Any]) -> str:
    """Returns a digest of everything that an executor's result depends on.

    The digest covers the files of models, the URIs and splits of other inputs, the configuration with `code_version`,
    and the content of the user's module. It doesn't cover ids of executions, runs or artifacts.
    """
    digest = hashlib.sha256()
    for key in sorted(inputs):
        for each in inputs[key]:
            is_model = each.type_name == "Model"
            parts = _file_digests(each.uri) if is_model else [each.uri, str(getattr(each, "split_names", ""))]
            digest.update("\0".join([key, *parts]).encode())
    for name in sorted(exec_properties):
        if name not in _ATTEMPT_PROPERTIES:
            digest.update(f"\0{name}={exec_properties[name]!r}".encode())
    digest.update(_module_digest(exec_properties))
    return digest.hexdigest()[:32]


def folder(output: artifact.Artifact, key: str, checkpoint_uri: str | None) -> str:
    """Returns the folder of the checkpoints of a fingerprint.

    It is below `checkpoint_uri` or, without one, below `<node>/.checkpoints`, which the next attempt finds: when TFX
    runs locally, the URI of an output is `<node>/<output>/<execution>`.

    Args:
      output: An output of the executor.
      key: The fingerprint.
      checkpoint_uri: The exec property of that name.
    """
    node = os.path.dirname(os.path.dirname(output.uri.rstrip("/")))
    return os.path.join(checkpoint_uri or os.path.join(node, ".checkpoints"), key)


def remove(path: str) -> None:
    """Deletes the checkpoints of a successful attempt."""
    if tf.io.gfile.exists(path):
        tf.io.gfile.rmtree(path)


def _file_digests(uri: str) -> list[str]:
    names = [os.path.join(top, name) for top, _, files in tf.io.gfile.walk(uri) for name in files]
    return [f"{os.path.relpath(name, uri)}:{_digest(name)}" for name in sorted(names)]


def _digest(path: str) -> str:
    digest = hashlib.sha256()
    with tf.io.gfile.GFile(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _module_digest(exec_properties: Mapping[str, Any]) -> bytes:
    """Returns the digest of the user's module file, or the name of its wheel, which TFX derives from its content."""
    if path := exec_properties.get("module_file"):
        return _digest(io_utils.ensure_local(path)).encode()
    return str(exec_properties.get("module_path") or "").encode()
