"""The TFLiteStorePusher component."""

from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from tfx_compression.store import StoreTarget
from tfx_compression.tflite_store_pusher import executor
from tfx_compression.tfx_support import declaration


class TFLiteStorePusherSpec(ComponentSpec):
    """Inputs, outputs and parameters of TFLiteStorePusher."""

    PARAMETERS = {
        "target": ExecutionParameter(type=str),
        declaration.CODE_VERSION: ExecutionParameter(type=str),
    }
    INPUTS = {
        "model": ChannelParameter(type=standard_artifacts.Model),
        "model_blessing": ChannelParameter(type=standard_artifacts.ModelBlessing, optional=True),
    }
    OUTPUTS = {"pushed_model": ChannelParameter(type=standard_artifacts.PushedModel)}


class TFLiteStorePusher(base_component.BaseComponent):
    """Publishes a blessed TFLite model as the next version in a store, and points a channel at it.

    ```python
    pusher = tfc.TFLiteStorePusher(
        model=evaluator.outputs["best_model"],
        model_blessing=evaluator.outputs["blessing"],
        target=tfc.StoreTarget(uri="/srv/models", name="digits", channel="stable"),
    )
    ```

    Outputs:
      pushed_model: PushedModel with the custom property `pushed`, 0 if the blessing refuses the model and otherwise 1,
        with `pushed_destination`, `pushed_version`, `store_name`, `channel`, `sha256` and the file `manifest.json`.
    """

    SPEC_CLASS = TFLiteStorePusherSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(self, model: types.BaseChannel, target: StoreTarget, model_blessing: types.BaseChannel | None = None):
        """Declares the release of `model`.

        Args:
          model: Channel of a Model artifact with a TFLite model.
          target: Store, name of the model in it, and channel.
          model_blessing: Channel of the model's blessing. Without one every model is pushed.
        """
        super().__init__(
            TFLiteStorePusherSpec(
                model=model,
                model_blessing=model_blessing,
                pushed_model=types.Channel(type=standard_artifacts.PushedModel),
                target=target.to_json(),
                code_version=declaration.code_version(__name__),
            )
        )
