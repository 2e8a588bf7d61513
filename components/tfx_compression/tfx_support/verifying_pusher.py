"""An executor for TFX's Pusher that pushes nothing but the bytes that were blessed."""

from typing import Any

from tfx import types
from tfx.components.pusher import executor
from tfx.types import standard_component_specs

from tfx_compression.tfx_support import artifacts, blessings


class VerifyingPusherExecutor(executor.Executor):
    """TFX's Pusher, which compares the model with its blessing first.

    ```python
    pusher = tfx.components.Pusher(
        model=evaluator.outputs["best_model"],
        model_blessing=evaluator.outputs["blessing"],
        push_destination=…,
        custom_executor_spec=executor_spec.ExecutorClassSpec(tfc.VerifyingPusherExecutor),
    )
    ```
    """

    def CheckBlessing(self, input_dict: dict[str, list[types.Artifact]]) -> bool:
        """Returns whether the model is blessed.

        Raises:
          ModelError: The blessing is about other bytes.
        """
        blessing = artifacts.optional(input_dict, standard_component_specs.MODEL_BLESSING_KEY)
        if blessing is not None and blessings.is_blessed(blessing):
            blessings.require_match(blessing, artifacts.single(input_dict, standard_component_specs.MODEL_KEY))
        pushes: Any = super().CheckBlessing(input_dict)
        return bool(pushes)
