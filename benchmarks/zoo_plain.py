"""What the tools beneath the library make of a net on their own: TensorFlow's converter, and litert-quantizer."""

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from zoo_comparison import Net, Rows


class Plain:
    """Converts one net, as the tools' documentation does.

    Args:
      net: The net.
      calibration: Rows that calibrate.
      temporary: Folder for a SavedModel.
    """

    def __init__(self, net: Net, calibration: Rows, temporary: str):
        self._net, self._calibration, self._temporary = net, calibration, temporary

    def __call__(self, name: str) -> bytes:
        """Returns the TFLite model."""
        return CONVERSIONS[name](self)

    def convert(self, prepare: Callable[["Plain", Any], None] | None = None) -> bytes:
        """Returns what TensorFlow's converter makes, after `prepare` has set its options."""
        converter = self._converter()
        if prepare:
            prepare(self, converter)
        return converter.convert()

    def samples(self) -> Iterator[dict[str, np.ndarray]]:
        """Yields the calibration rows, one at a time."""
        for row in range(len(next(iter(self._calibration.values())))):
            yield {name: values[row : row + 1] for name, values in self._calibration.items()}

    def quantize(self, configure: Callable[[Any], None]) -> bytes:
        """Returns what litert-quantizer makes of the float TFLite model."""
        import numpy.typing  # noqa: F401  # litert-quantizer 0.11 needs it and doesn't import it.
        from litert_quantizer import quantizer

        tool = quantizer.Quantizer(bytearray(self.convert()))
        configure(tool)
        ranges = tool.calibrate({"serving_default": list(self.samples())}) if tool.need_calibration else None
        return bytes(tool.quantize(ranges).quantized_model)

    def _converter(self) -> Any:
        if self._net.keras == 2:
            return tf.lite.TFLiteConverter.from_keras_model(self._net.model)
        path = self._net.path
        if not path:
            path = os.path.join(self._temporary, "exported")
            if not os.path.exists(path):
                self._net.model.export(path)
        return tf.lite.TFLiteConverter.from_saved_model(path, signature_keys=["serving_default"])


def _float16(_: Plain, converter: Any) -> None:
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]


def _dynamic(_: Plain, converter: Any) -> None:
    converter.optimizations = [tf.lite.Optimize.DEFAULT]


def _int8(plain: Plain, converter: Any) -> None:
    _calibrated(plain, converter, tf.lite.OpsSet.TFLITE_BUILTINS_INT8)
    converter.inference_input_type = converter.inference_output_type = tf.int8


def _int16x8(plain: Plain, converter: Any) -> None:
    _calibrated(plain, converter, tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8)
    converter.inference_input_type = converter.inference_output_type = tf.int16


def _calibrated(plain: Plain, converter: Any, operators: Any) -> None:
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = plain.samples
    converter.target_spec.supported_ops = [operators]


def _static(weights: int) -> Callable[[Plain], bytes]:
    return lambda plain: plain.quantize(
        lambda tool: tool.add_static_config(".*", "*", activation_num_bits=8, weight_num_bits=weights)
    )


def _dynamic_int4(granularity: str) -> Callable[[Plain], bytes]:
    return lambda plain: plain.quantize(
        lambda tool: tool.add_dynamic_config(".*", "*", num_bits=4, granularity=granularity)
    )


CONVERSIONS: Mapping[str, Callable[[Plain], bytes]] = {
    "float32": Plain.convert,
    "float16": lambda plain: plain.convert(_float16),
    "dynamic": lambda plain: plain.convert(_dynamic),
    "int8": lambda plain: plain.convert(_int8),
    "int16x8": lambda plain: plain.convert(_int16x8),
    "int4": _static(4),
    "int4_dynamic": _dynamic_int4("CHANNELWISE"),
    "int4_dynamic, blocks of 32": _dynamic_int4("BLOCKWISE_32"),
    "int4_weight_only": lambda plain: plain.quantize(lambda tool: tool.add_weight_only_config(".*", "*", num_bits=4)),
    "mixed, all int8": _static(8),
}
