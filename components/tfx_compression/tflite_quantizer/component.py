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
    """Converts a model to a quantized TFLite model.

    It converts signatures of the SavedModel. If a signature takes serialized tf.Examples, it converts the part after
    parsing, so that the model's inputs are features by name. `config.transform` decides whether a Transform layer
    becomes part of the TFLite model or stays before it. A model that can't run on `config.target` is an error.

    ```python
    int8 = tfc.TFLiteQuantizer(
        model=tuner.outputs["fine_tuned_model"],
        examples=example_gen.outputs["examples"],
        config=tfc.Quantization(mode="int8"),
    ).with_id("TFLiteQuantizer.int8")
    ```

    Outputs:
      tflite_model: Model whose file is `Format-Serving/tflite`. Beside it are `report.html`, `quantization.json` (all
        figures of the report), `tflite.json` (operators, inputs, outputs), `self_test.npz` (rows and the model's
        outputs for them, for devices to compare with), and for microcontrollers `model.cc` and `model.h`.
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
          model: Model channel with a SavedModel.
          examples: Examples channel with rows to calibrate on, which calibrated modes need. They are the examples that
            the model's `serving_default` takes, usually the ExampleGen's.
          schema: Schema channel that tells the label in mode `auto` without `config.auto.label_key`.
          config: Mode and calibration; the default if None.
          mode: Mode that overrides the configuration's, also at run time.

        Raises:
          ConfigError: If the mode is unknown, or needs examples or a schema that aren't given.
        """
        config = config or Quantization()
        properties = declaration.config_properties("config", config, {"mode": mode})
        chosen = config.merged(config.to_json(), {"mode": mode if isinstance(mode, str) else None})
        if chosen.needs_data and examples is None:
            raise ConfigError(
                f"Quantization mode {chosen.mode!r} is calibrated on data. "
                "Remedy: examples=example_gen.outputs['examples'], or mode 'dynamic' or 'float16'.",
                field="TFLiteQuantizer.examples",
                code="missing-input",
            )
        if chosen.needs_labels and chosen.auto.label_key is None and schema is None:
            raise ConfigError(
                f"Quantization mode {chosen.mode!r} measures a metric against the labels. Remedy: auto.label_key, or "
                "schema=schema_gen.outputs['schema'], or auto.metric='agreement'.",
                field="TFLiteQuantizer.schema",
                code="missing-input",
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
