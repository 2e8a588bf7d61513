"""Which Keras library an object belongs to: Keras 2 (`tf_keras`) or Keras 3 (`keras`).

Both can live in one process. Neither is imported before it is needed.
"""

from typing import Any

from tensorflow.python.autograph.core import config as autograph

from tfx_compression.errors import ModelError

# AutoGraph skips Keras' own source, but only knows it as `keras`. Without this rule it rewrites all of tf_keras, which
# takes 20 s in every process that traces such a model. User code is converted as before.
autograph.CONVERSION_RULES = (autograph.DoNotConvert("tf_keras"), *autograph.CONVERSION_RULES)


def is_keras3(thing: Any) -> bool:
    """Returns whether a model, layer or variable belongs to Keras 3."""
    return any(base.__module__.split(".")[0] == "keras" for base in type(thing).__mro__)


def keras_library(layer: Any) -> Any:
    """Returns the module, `tf_keras` or `keras`, that a layer or model belongs to.

    Raises:
      ModelError: The layer belongs to Keras 3, which runs on another backend than TensorFlow.
    """
    if any(base.__module__.startswith("tf_keras.") for base in type(layer).__mro__):
        import tf_keras

        return tf_keras
    return import_keras3()


def import_keras3() -> Any:
    """Returns the module `keras`.

    Raises:
      ModelError: Keras runs on another backend than TensorFlow (code `keras-backend`).
    """
    import keras

    if keras.backend.backend() != "tensorflow":
        raise ModelError(
            f"Keras runs on {keras.backend.backend()!r}, the components on TensorFlow. "
            "Remedy: KERAS_BACKEND=tensorflow in the environment, before Keras is imported.",
            code="keras-backend",
        )
    return keras
