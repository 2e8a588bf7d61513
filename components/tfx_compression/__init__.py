"""TFX components that make a trained model smaller and faster, prove that it is still good, and release it.

The public names load on first use, so that importing this package costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

from tfx_compression.version import __version__

_HOME = {
    "Pruner": "pruner.component",
    "SparsityFineTuner": "sparsity_fine_tuner.component",
    "TFLiteQuantizer": "tflite_quantizer.component",
    "CompressedEvaluator": "compressed_evaluator.component",
    "TFLiteStorePusher": "tflite_store_pusher.component",
    "PruningPlan": "pruning.plan",
    "LayerRule": "pruning.plan",
    "FineTuning": "sparsity_fine_tuner.config",
    "Distillation": "sparsity_fine_tuner.config",
    "AccuracyGuard": "sparsity_fine_tuner.config",
    "EarlyStopping": "sparsity_fine_tuner.config",
    "Quantization": "tflite_quantizer.config",
    "AutoPrecision": "tflite_quantizer.config",
    "Calibration": "tflite_quantizer.config",
    "Metadata": "tflite_quantizer.config",
    "Normalization": "tflite_quantizer.config",
    "PrecisionRule": "tflite_quantizer.config",
    "Budget": "compressed_evaluator.budget",
    "StoreTarget": "store.target",
    "PruningPlanArtifact": "tfx_support.artifacts",
    "EvaluationReport": "tfx_support.artifacts",
    "VerifyingPusherExecutor": "tfx_support.verifying_pusher",
    "Compressed": "model_handle.compressed",
    "QuantizedModel": "tflite_quantizer.quantized_model",
    "Evaluation": "compressed_evaluator.evaluation",
    "CompressionError": "errors",
    "CompressionWarning": "errors",
    "ConfigError": "errors",
    "ModelError": "errors",
    "DataError": "errors",
    "StoreError": "errors",
    "LineageError": "errors",
    "WorkerError": "errors",
    "prune": "pruning.prune",
    "fine_tune": "sparsity_fine_tuner.fine_tune",
    "quantize": "tflite_quantizer.quantize",
    "evaluate": "compressed_evaluator.evaluate",
}

__all__ = ["__version__", *_HOME]

if TYPE_CHECKING:
    from tfx_compression.compressed_evaluator.budget import Budget
    from tfx_compression.compressed_evaluator.component import CompressedEvaluator
    from tfx_compression.compressed_evaluator.evaluate import evaluate
    from tfx_compression.compressed_evaluator.evaluation import Evaluation
    from tfx_compression.errors import (
        CompressionError,
        CompressionWarning,
        ConfigError,
        DataError,
        LineageError,
        ModelError,
        StoreError,
        WorkerError,
    )
    from tfx_compression.model_handle.compressed import Compressed
    from tfx_compression.pruner.component import Pruner
    from tfx_compression.pruning.plan import LayerRule, PruningPlan
    from tfx_compression.pruning.prune import prune
    from tfx_compression.sparsity_fine_tuner.component import SparsityFineTuner
    from tfx_compression.sparsity_fine_tuner.config import AccuracyGuard, Distillation, EarlyStopping, FineTuning
    from tfx_compression.sparsity_fine_tuner.fine_tune import fine_tune
    from tfx_compression.store.target import StoreTarget
    from tfx_compression.tflite_quantizer.component import TFLiteQuantizer
    from tfx_compression.tflite_quantizer.config import (
        AutoPrecision,
        Calibration,
        Metadata,
        Normalization,
        PrecisionRule,
        Quantization,
    )
    from tfx_compression.tflite_quantizer.quantize import quantize
    from tfx_compression.tflite_quantizer.quantized_model import QuantizedModel
    from tfx_compression.tflite_store_pusher.component import TFLiteStorePusher
    from tfx_compression.tfx_support.artifacts import EvaluationReport, PruningPlanArtifact
    from tfx_compression.tfx_support.verifying_pusher import VerifyingPusherExecutor


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
