"""The TFLiteQuantizer component."""

from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.orchestration import data_types
from tfx.types import standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from tfx_compression.errors import ConfigError
from tfx_compression.tflite_quantizer import executor
from tfx_compression.tflite_quantizer.config import Quantization
from tfx_compression.tfx_support import declaration


class TFLiteQuantizerSpec(ComponentSpec):
    """Inputs, outputs and parameters of TFLiteQuantizer."""

    PARAMETERS = {
        "config": ExecutionParameter(type=str),
        "mode": ExecutionParameter(type=str, optional=True),
        declaration.CODE_VERSION: ExecutionParameter(type=str),
    }
    INPUTS = {
        "model": ChannelParameter(type=standard_artifacts.Model),
        "examples": ChannelParameter(type=standard_artifacts.Examples, optional=True),
        "schema": ChannelParameter(type=standard_artifacts.Schema, optional=True),
    }
    OUTPUTS = {"tflite_model": ChannelParameter(type=standard_artifacts.Model)}


class TFLiteQuantizer(base_component.BaseComponent):
    """Converts a model to TFLite, quantized.

    What is converted are signatures of the SavedModel; where one takes serialized tf.Examples, what it does after
    parsing them, so that the model's inputs are features, by name. A Transform layer becomes part of the TFLite model,
    or stays before it, by `config.transform`. A model that can't run on `config.target` is an error.

    ```python
    int8 = tfc.TFLiteQuantizer(
        model=tuner.outputs["fine_tuned_model"],
        examples=example_gen.outputs["examples"],
        config=tfc.Quantization(mode="int8"),
    ).with_id("TFLiteQuantizer.int8")
    ```

    Outputs:
      tflite_model: a Model whose file is `Format-Serving/tflite`. Beside it `report.html` for people,
        `quantization.json` (all of the report's figures), `tflite.json` (operators, inputs, outputs), `self_test.npz`
        (rows, and what the model makes of them, for devices to compare with), and for microcontrollers `model.cc` and
        `model.h`.
    """

    SPEC_CLASS = TFLiteQuantizerSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(executor.Executor)

    def __init__(
        self,
        model: types.BaseChannel,
        examples: types.BaseChannel | None = None,
        schema: types.BaseChannel | None = None,
        config: Quantization | None = None,
        *,
        mode: str | data_types.RuntimeParameter | None = None,
    ):
        """Declares the conversion of `model`.

        Args:
          model: a Model channel: a SavedModel.
          examples: for modes that are calibrated, rows to calibrate on: what the model's `serving_default` takes, so
            the ExampleGen's.
          schema: of the examples, for mode `auto` without `config.auto.label_key`: which feature is the label.
          config: the mode and how it is calibrated; the default otherwise.
          mode: overrides the configuration's, also at run time.

        Raises:
          ConfigError: where `mode` is none, or the mode needs examples and there are none.
        """
        config = config or Quantization()
        properties = declaration.config_properties("config", config, {"mode": mode})
        chosen = config.merged(config.to_json(), {"mode": mode if isinstance(mode, str) else None})
        if chosen.needs_data and examples is None:
            raise ConfigError(
                f"Quantization mode {chosen.mode!r} is calibrated on data. "
                "Remedy: examples=example_gen.outputs['examples'], or mode 'dynamic' or 'float16'."
            )
        if chosen.needs_labels and chosen.auto.label_key is None and schema is None:
            raise ConfigError(
                "Quantization mode 'auto' measures a metric against the labels. Remedy: auto.label_key, or "
                "schema=schema_gen.outputs['schema'], or auto.metric='agreement'."
            )
        super().__init__(
            TFLiteQuantizerSpec(
                model=model,
                examples=examples,
                schema=schema,
                tflite_model=types.Channel(type=standard_artifacts.Model),
                code_version=declaration.code_version(__name__),
                **properties,
            )
        )
