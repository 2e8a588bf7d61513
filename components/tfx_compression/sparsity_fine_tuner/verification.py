"""Verifies a fine-tuned model as it was written: sparsity, size, signatures, and zeros after conversion to int8."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfx_compression import model_handle
from tfx_compression.errors import ModelError
from tfx_compression.keras_models.model_size import ModelSize
from tfx_compression.kernels import Kernel
from tfx_compression.model_handle.compressed import Masks, require_masked_zeros
from tfx_compression.pruning.masks import check_pattern
from tfx_compression.pruning.record import PruningRecord
from tfx_compression.saved_models import equivalence, saved_model
from tfx_compression.sparsity_fine_tuner.results import FineTunedModel
from tfx_compression.tflite import contents, conversion
from tfx_compression.tflite.conversion import ConversionError

_log = logging.getLogger(__name__)
_TOLERANCE = 1e-3  # of a sparsity, in addition to one weight of the kernel
_REMEDY = "another FineTuning.mode, and TFLiteQuantizer after it"


def verify(
    path: str, tuned: FineTunedModel, record: PruningRecord, original: str, custom_objects: Mapping[str, object]
) -> ModelSize:
    """Verifies a fine-tuned model as it was written.

    Pruned weights are zero, also after conversion to int8 if the model is quantization-aware. Each kernel is as sparse
    as Pruner's plan says, in complete patterns. No channel came back. The signatures are the original's, and their
    answers are finite.

    Args:
      path: Path of the SavedModel.
      tuned: Model that was written there.
      record: Record of the pruning.
      original: Path of the model that was fine-tuned.
      custom_objects: The user's classes by name.

    Returns:
      The size of the model.

    Raises:
      ModelError: Naming the layer, or the signature, with the expected and the actual value.
    """
    written = model_handle.load(path, custom_objects)
    size = written.measure()
    require_masked_zeros(written, tuned.masks, "the fine-tuned model as written")
    if not record.plan.structured:
        _require_sparsity(written, tuned, record)
    expected = tuned.summary.after
    for field in ("parameters", "macs", "sparsity"):
        if not np.isclose(getattr(size, field) or 0, getattr(expected, field) or 0, rtol=1e-6):
            raise ModelError(
                f"The fine-tuned model in {path} has {field} {getattr(size, field)}; in memory, it had "
                f"{getattr(expected, field)}. Remedy: report this; a layer of the model doesn't save all of its state.",
                field=field,
                code="size-changed",
            )
    _require_signatures(path, original)
    if tuned.network is not None and not record.plan.structured:
        try:
            zeros_after_conversion(path, written.kernels, tuned.masks)
        except ConversionError as error:
            _log.warning("Zeros were only counted in the SavedModel, which can't be converted to int8: %s", error)
    return size


def zeros_after_conversion(path: str, kernels: Mapping[str, Kernel], masks: Masks) -> dict[str, int]:
    """Converts a quantization-aware SavedModel to TFLite and counts the zeros of each pruned kernel there.

    Args:
      path: Path of the SavedModel. Its `serving_default` is converted in a worker process, with the ranges that it was
        trained with; layers that are float get int8 weights.
      kernels: Kernels of the SavedModel by name.
      masks: Masks by kernel name, 0 where a weight is pruned.

    Returns:
      The number of zeros in TFLite among the pruned weights, by kernel name.

    Raises:
      ModelError: If a pruned weight is not zero.
      ConversionError: If the model can't be converted.
    """
    model = conversion.convert_in_worker(path, "dynamic")  # uncalibrated: the model has ranges
    weights = list(contents.read_contents(model).weights.values())
    zeros, unmatched = {}, {}
    for name, mask in masks.items():
        pruned = int(mask.size - np.count_nonzero(mask))
        count = _masked_zeros(kernels[name], mask.astype(bool), weights)
        if count is None:
            unmatched[name] = pruned
        elif count < pruned:
            raise ModelError(
                f"{path}: of the {pruned} pruned weights of layer {name!r}, {count} are zero after conversion to int8. "
                f"Remedy: {_REMEDY}.",
                code="zeros-lost-in-conversion",
            )
        else:
            zeros[name] = count
    others = sum(int(weight.size - np.count_nonzero(weight)) for weight in weights) - sum(zeros.values())
    if sum(unmatched.values()) > others:
        raise ModelError(
            f"{path}: of the {sum(unmatched.values())} pruned weights of the layers {', '.join(unmatched)}, at most "
            f"{others} are zero after conversion to int8. Remedy: {_REMEDY}.",
            code="zeros-lost-in-conversion",
        )
    return zeros | unmatched


def _masked_zeros(kernel: Kernel, mask: np.ndarray, weights: list[np.ndarray]) -> int | None:
    """Returns how many pruned weights are zero in the TFLite constant that matches best; None if none has the size.

    In TFLite, the axes that are summed over come last. A depthwise kernel has the layout of Keras.
    """
    pruned = ~kernel.to_matrix(mask)
    counts = [
        int(np.count_nonzero(weight.ravel()[order.ravel()] == 0))
        for weight in weights
        if weight.size == mask.size
        for order in (pruned.T, pruned)
    ]
    return max(counts, default=None)


def _require_sparsity(written: model_handle.ModelHandle, tuned: FineTunedModel, record: PruningRecord) -> None:
    """Requires each kernel to be as sparse as its mask, in complete patterns, and as Pruner left it or planned it.

    Rounds allocate sparsity anew. There, the masks of the last round are the plan.
    """
    for name, mask in tuned.masks.items():
        kernel = written.kernels[name]
        if not check_pattern(kernel, mask, record.plan):  # the mask, as a kept weight may be zero by chance
            raise ModelError(
                f"The zeros of {name!r} no longer form complete patterns {record.plan.pattern!r}.",
                code="pattern-broken",
            )
        _require_as_sparse(name, kernel.values, 1 - float(np.mean(mask)))
    if tuned.rounds:
        return
    one_shot = record.plan.schedule == "one_shot"
    for group in record.groups:
        expected = 1 - group.kept / group.elements if one_shot else group.target_sparsity
        if expected:
            _require_as_sparse(group.name, written.kernels[group.name].values, expected)


def _require_as_sparse(name: str, values: np.ndarray, expected: float) -> None:
    sparsity = 1 - np.count_nonzero(values) / values.size
    if sparsity < expected - _TOLERANCE - 1 / values.size:
        raise ModelError(
            f"Layer {name!r} has a sparsity of {sparsity:.4f} after training; {expected:.4f} is expected.",
            code="sparsity-lost",
        )


def _require_signatures(path: str, original: str) -> None:
    """Requires the signatures to have the original's names, shapes and types, and finite answers."""
    after, before = saved_model.load(path), saved_model.load(original)
    for name, signature in before.signatures.items():
        actual = _declaration(after.signatures[name]) if name in after.signatures else None
        if actual != _declaration(signature):
            raise _signature_changed(name, path, actual, _declaration(signature))
    try:
        expected = equivalence.drawn_answers(before)
    except ModelError as error:  # inputs that can't be generated, such as encoded images
        _log.warning("Signatures are compared by their declarations only: %s", error)
        return
    answers = equivalence.drawn_answers(after)
    for name, outputs in expected.items():
        shapes = [{output: value.shape for output, value in answer.items()} for answer in (answers[name], outputs)]
        if shapes[0] != shapes[1]:
            raise _signature_changed(name, path, *shapes)
        for output, value in answers[name].items():
            if value.dtype.kind == "f" and np.isfinite(outputs[output]).all() and not np.isfinite(value).all():
                raise ModelError(
                    f"The signature {name!r} of the fine-tuned model in {path} returns values of {output!r} that are "
                    "not finite; the model that was pruned returns finite ones. Remedy: a smaller "
                    "FineTuning.learning_rate.",
                    field="FineTuning.learning_rate",
                    code="answers-not-finite",
                )


def _declaration(signature: Any) -> tuple[dict[str, str], dict[str, str]]:
    """Returns the types of a signature's inputs and outputs, by name."""
    inputs, outputs = signature.structured_input_signature[1], signature.structured_outputs
    return (
        {name: inputs[name].dtype.name for name in inputs},
        {name: outputs[name].dtype.name for name in sorted(outputs)},
    )


def _signature_changed(name: str, path: str, actual: Any, expected: Any) -> ModelError:
    return ModelError(
        f"The signature {name!r} of the fine-tuned model in {path} is {actual or 'missing'}; the model that was "
        f"pruned has {expected}. Remedy: a signatures_fn(model, tf_transform_output) in the module file that makes all "
        "of them.",
        code="signature-changed",
    )
