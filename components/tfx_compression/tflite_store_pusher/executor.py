"""Runs the TFLiteStorePusher: obeys the blessing, publishes, says on the artifact where the model went."""

import json
import os
from typing import Any

import tensorflow as tf
from absl import logging
from tfx import types
from tfx.components.util import model_utils
from tfx.dsl.components.base import base_executor

from tfx_compression import files
from tfx_compression.errors import ModelError
from tfx_compression.store import StoreTarget
from tfx_compression.store import open as open_store
from tfx_compression.tflite import flatbuffer
from tfx_compression.tfx_support import artifacts


class Executor(base_executor.BaseExecutor):
    """See the component."""

    def Do(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Publishes.

        Args:
          input_dict: `model`, `model_blessing` (optional).
          output_dict: `pushed_model`.
          exec_properties: `target` (JSON).
        """
        pushed = artifacts.single(output_dict, "pushed_model")
        blessing = artifacts.optional(input_dict, "model_blessing")
        tf.io.gfile.makedirs(pushed.uri)
        if blessing is not None and not model_utils.is_model_blessed(blessing):
            logging.info("Nothing is pushed: %s was not blessed.", artifacts.single(input_dict, "model").uri)
            artifacts.set_properties(pushed, pushed=0)
            return
        model = artifacts.single(input_dict, "model")
        target = StoreTarget.merged(exec_properties["target"], {})
        path = os.path.join(artifacts.model_path(model), flatbuffer.MODEL_FILE)
        if not tf.io.gfile.exists(path):
            raise ModelError(
                f"{model.uri} holds no TFLite model. Remedy: give TFLiteStorePusher an evaluator whose candidates are "
                "TFLite models; a SavedModel goes to Pusher."
            )
        with tf.io.gfile.GFile(path, "rb") as file:
            content = file.read()
        store = open_store(target.uri)
        store.require_writable()
        version = store.publish(target.name, content, self._manifest(model, blessing))
        store.promote(target.name, version, target.channel)
        manifest = store.manifest(target.name, version)
        files.write_text(os.path.join(pushed.uri, "manifest.json"), json.dumps(manifest, indent=1, sort_keys=True))
        artifacts.set_properties(
            pushed,
            pushed=1,
            pushed_destination=store.uri,
            pushed_version=str(version),
            store_name=target.name,
            channel=target.channel,
            sha256=manifest["sha256"],
        )

    def _manifest(self, model: types.Artifact, blessing: types.Artifact | None) -> dict[str, Any]:
        """What the artifacts know of the model: recipe, metrics, operators, inputs and outputs, origin."""
        properties = artifacts.custom_properties(model)
        described = os.path.join(model.uri, "tflite.json")
        return {
            **(files.read_json(described) if tf.io.gfile.exists(described) else {}),
            "properties": {name: value for name, value in properties.items() if isinstance(value, str | int | float)},
            "model_uri": model.uri,
            "blessing_uri": blessing.uri if blessing else None,
        }
