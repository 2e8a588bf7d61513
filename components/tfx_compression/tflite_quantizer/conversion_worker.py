"""The worker process of a conversion, started by `quantize`."""

import json
import os
from collections.abc import Mapping
from typing import Any

from tfx_compression.tflite_quantizer import conversion_folder, result_checks
from tfx_compression.tflite_quantizer.config import Quantization
from tfx_compression.tflite_quantizer.conversion_steps import Conversion


def main(request: Mapping[str, Any]) -> None:
    """Converts the SavedModel in a folder, and writes the file, its record and its self-test there.

    Args:
      request: `folder`, the path; `config`, the configuration as JSON; `strata`, the number of calibration rows by
        value of the feature that was stratified by.
    """
    folder = request["folder"]
    config = Quantization(**json.loads(request["config"]))
    rows = conversion_folder.read_rows(folder, request["strata"])
    conversion = Conversion(os.path.join(folder, conversion_folder.SAVED_MODEL), config, rows)
    content = conversion.convert()
    record = result_checks.check(content, conversion, folder)
    conversion_folder.write_result(folder, content, record)
