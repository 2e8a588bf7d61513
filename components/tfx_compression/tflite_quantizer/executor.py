"""Runs the TFLiteQuantizer: reads the Model and calibration rows, converts, writes the TFLite model."""

import json
import os
from typing import Any

import tensorflow as tf
from tfx import types
from tfx.dsl.components.base import base_executor

from tfx_compression.models import examples, serving, tflite
from tfx_compression.models.compressed import write_text
from tfx_compression.models.errors import ModelError
from tfx_compression.tflite_quantizer.config import Quantization
from tfx_compression.tflite_quantizer.quantization import Rows, quantize_signature
from tfx_compression.tfx_support import artifacts, inputs


class Executor(base_executor.BaseExecutor):
    """See the component."""

    def Do(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Converts.

        Args:
          input_dict: `model`, and for `int8` `examples`.
          output_dict: `tflite_model`.
          exec_properties: `config` (JSON), `mode` (overrides it).
        """
        model = artifacts.single(input_dict, "model")
        output = artifacts.single(output_dict, "tflite_model")
        config = Quantization.merged(exec_properties["config"], {"mode": exec_properties.get("mode")})
        signature = serving.feature_signature(artifacts.model_path(model))
        rows = self._calibration_rows(signature, config, input_dict)
        quantized = quantize_signature(signature, config, rows)
        folder = artifacts.model_path(output)
        tf.io.gfile.makedirs(folder)
        with tf.io.gfile.GFile(os.path.join(folder, tflite.FILE), "wb") as file:
            file.write(quantized.content)
        details = {
            "inputs": [tensor.describe() for tensor in quantized.inputs.values()],
            "outputs": [tensor.describe() for tensor in quantized.outputs.values()],
            "ops": quantized.contents.ops,
            "float_ops": quantized.contents.float_ops,
            "calibration_rows": quantized.calibration_rows,
            "tensorflow": tf.__version__,
        }
        write_text(os.path.join(output.uri, "tflite.json"), json.dumps(details, indent=1))
        weights = quantized.contents.weights.values()
        artifacts.describe_model(
            output,
            model,
            mode=config.mode,
            sparsity=quantized.contents.sparsity,
            parameters=sum(weight.size for weight in weights),
            calibration_rows=quantized.calibration_rows,
            float_ops=sum(quantized.contents.float_ops.values()),
        )

    def _calibration_rows(
        self, signature: serving.FeatureSignature, config: Quantization, input_dict: dict[str, list[types.Artifact]]
    ) -> Rows | None:
        examples_input = artifacts.optional(input_dict, "examples")
        if not config.needs_data or examples_input is None:
            return None
        files = inputs.example_files(examples_input, config.calibration_split)
        place = f"split {config.calibration_split!r} of {examples_input.uri}"
        examples.require_rows(files, place)
        try:
            return examples.sample(files, signature.features, config.calibration_rows, config.seed)
        except examples.ExamplesError as error:
            raise ModelError(
                f"{error} (in {place}). Remedy: give TFLiteQuantizer the examples that the model serves, "
                "example_gen.outputs['examples']."
            ) from error
