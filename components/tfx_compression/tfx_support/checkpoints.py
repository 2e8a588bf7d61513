"""Where an executor keeps what outlives a killed attempt, and under which key."""

import hashlib
import os
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
from tfx.types import artifact
from tfx.utils import io_utils

from tfx_compression.tfx_support.artifacts import Artifacts

# What names or places an attempt, not what it computes.
_OF_THE_ATTEMPT = frozenset(["checkpoint_uri", "module_path", "module_file"])


def fingerprint(inputs: Artifacts, exec_properties: Mapping[str, Any]) -> str:
    """A digest of what an executor's result depends on; never of execution, run or artifact ids.

    That is the models' files, the URIs and splits of everything else, the configuration (`code_version` included) and
    the contents of the user's module.
    """
    digest = hashlib.sha256()
    for key in sorted(inputs):
        for each in inputs[key]:
            parts = (
                _contents(each.uri) if each.type_name == "Model" else [each.uri, str(getattr(each, "split_names", ""))]
            )
            digest.update("\0".join([key, *parts]).encode())
    for name in sorted(exec_properties):
        if name not in _OF_THE_ATTEMPT:
            digest.update(f"\0{name}={exec_properties[name]!r}".encode())
    digest.update(_module(exec_properties))
    return digest.hexdigest()[:32]


def folder(output: artifact.Artifact, key: str, checkpoint_uri: str | None) -> str:
    """Where the checkpoints of a fingerprint lie: below `checkpoint_uri`, or beside the node's outputs.

    An output's URI is `<node>/<output>/<execution>` when TFX runs locally; what lies in `<node>/.checkpoints` is there
    at the next attempt.
    """
    node = os.path.dirname(os.path.dirname(output.uri.rstrip("/")))
    return os.path.join(checkpoint_uri or os.path.join(node, ".checkpoints"), key)


def remove(path: str) -> None:
    """Deletes the checkpoints of an attempt that succeeded."""
    if tf.io.gfile.exists(path):
        tf.io.gfile.rmtree(path)


def _contents(uri: str) -> list[str]:
    names = [os.path.join(top, name) for top, _, files in tf.io.gfile.walk(uri) for name in files]
    return [f"{os.path.relpath(name, uri)}:{_digest(name)}" for name in sorted(names)]


def _digest(path: str) -> str:
    digest = hashlib.sha256()
    with tf.io.gfile.GFile(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _module(exec_properties: Mapping[str, Any]) -> bytes:
    """The user's module: TFX names a wheel by its contents."""
    if path := exec_properties.get("module_file"):
        return _digest(io_utils.ensure_local(path)).encode()
    return str(exec_properties.get("module_path") or "").encode()
