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
      batch_size: Rows at once; None is any number.
      temporary: Folder for a SavedModel.
    """

    def __init__(self, net: Net, calibration: Rows, batch_size: int | None, temporary: str):
        self._net, self._calibration = net, calibration
        self._batch_size, self._temporary = batch_size, temporary

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
        if self._net.keras == 2 and self._batch_size is None:
            return tf.lite.TFLiteConverter.from_keras_model(self._net.model)
        path = self._net.path or os.path.join(self._temporary, "exported")
        if not os.path.exists(path):
            self._export(path)
        return tf.lite.TFLiteConverter.from_saved_model(path, signature_keys=["serving_default"])

    def _export(self, path: str) -> None:
        model = self._net.model
        if self._batch_size is None:
            model.export(path)
            return
        specs = [
            tf.TensorSpec((self._batch_size, *values.shape[1:]), values.dtype, name=name)
            for name, values in self._calibration.items()
        ]
        call = tf.function(lambda *inputs: {"output": model(inputs if len(inputs) > 1 else inputs[0], training=False)})
        tf.saved_model.save(model, path, signatures=call.get_concrete_function(*specs))


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
