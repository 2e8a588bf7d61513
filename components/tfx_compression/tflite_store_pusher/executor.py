"""Runs the TFLiteStorePusher."""

import hashlib
import json
import os
from typing import Any

import tensorflow as tf
from absl import logging
from tfx import types
from tfx.dsl.components.base import base_executor

from tfx_compression import files
from tfx_compression.errors import ModelError
from tfx_compression.store import StoreTarget
from tfx_compression.store import open as open_store
from tfx_compression.tflite import flatbuffer
from tfx_compression.tfx_support import artifacts, blessings

_MANIFEST = "manifest.json"
_TFLITE_DETAILS = "tflite.json"  # TFLiteQuantizer writes it next to its model.


class Executor(base_executor.BaseExecutor):
    """Publishes a blessed model, promotes it, and records the release on the artifact. See the component."""

    def Do(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Publishes the model, unless its blessing refuses it.

        Args:
          input_dict: `model`, `model_blessing` (optional).
          output_dict: `pushed_model`.
          exec_properties: `target` (JSON).

        Raises:
          ModelError: The artifact has no TFLite model (code "no-tflite-model"), or its blessing is about other bytes.
          StoreError: The store can't be written.
        """
        pushed = artifacts.single(output_dict, "pushed_model")
        blessing = artifacts.optional(input_dict, "model_blessing")
        tf.io.gfile.makedirs(pushed.uri)
        if blessing is not None and not blessings.is_blessed(blessing):
            logging.info("Nothing is pushed: %s was not blessed.", artifacts.single(input_dict, "model").uri)
            artifacts.set_properties(pushed, pushed=0)
            return
        model = artifacts.single(input_dict, "model")
        if blessing is not None:
            blessings.require_match(blessing, model)
        target = StoreTarget.merged(exec_properties["target"], {})
        content = _read_tflite(model)
        store = open_store(target.uri)
        store.require_writable()
        version = store.publish(target.name, content, _manifest(model, blessing))
        store.promote(target.name, version, target.channel)
        manifest = store.manifest(target.name, version)
        files.write_text(os.path.join(pushed.uri, _MANIFEST), json.dumps(manifest, indent=1, sort_keys=True))
        artifacts.set_properties(
            pushed,
            pushed=1,
            pushed_destination=store.uri,
            pushed_version=str(version),
            store_name=target.name,
            channel=target.channel,
            sha256=manifest["sha256"],
        )


def _read_tflite(model: types.Artifact) -> bytes:
    path = os.path.join(artifacts.model_path(model), flatbuffer.MODEL_FILE)
    if not tf.io.gfile.exists(path):
        raise ModelError(
            f"{model.uri} holds no TFLite model. Remedy: give TFLiteStorePusher an evaluator whose candidates are "
            "TFLite models; a SavedModel goes to Pusher.",
            code="no-tflite-model",
        )
    with tf.io.gfile.GFile(path, "rb") as file:
        return bytes(file.read())


def _manifest(model: types.Artifact, blessing: types.Artifact | None) -> dict[str, Any]:
    """Returns the description of a model in its artifacts: configuration, metrics, operators, inputs, outputs, URIs."""
    path = os.path.join(model.uri, _TFLITE_DETAILS)
    details = files.read_json(path) if tf.io.gfile.exists(path) else {}
    properties = artifacts.custom_properties(model)
    return {
        **details,
        "recipe": hashlib.sha256(json.dumps(details, sort_keys=True).encode()).hexdigest(),
        "properties": {name: value for name, value in properties.items() if isinstance(value, str | int | float)},
        "model_uri": model.uri,
        "blessing_uri": blessing.uri if blessing else None,
    }
