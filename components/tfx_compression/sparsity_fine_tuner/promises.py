"""What a fine-tuned model has to be, checked on the SavedModel as it was written."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfx_compression import model_handle
from tfx_compression.errors import ModelError
from tfx_compression.keras_models.model_size import ModelSize
from tfx_compression.model_handle.compressed import require_masked_zeros
from tfx_compression.pruning.masks import check_pattern
from tfx_compression.pruning.record import PruningRecord
from tfx_compression.saved_models import equivalence, saved_model
from tfx_compression.sparsity_fine_tuner import quantization
from tfx_compression.sparsity_fine_tuner.training import Tuned
from tfx_compression.tflite.conversion import ConversionError

_log = logging.getLogger(__name__)
_ROUNDING = 1e-3  # of a sparsity, beside one weight of the kernel


def check(
    path: str, tuned: Tuned, record: PruningRecord, original: str, custom_objects: Mapping[str, object]
) -> ModelSize:
    """Checks a fine-tuned model as it was written; its size.

    What was pruned is zero, also after conversion to int8 where it is quantization-aware; each kernel is as sparse as
    Pruner's plan has it, in whole patterns; no channel came back; the signatures are the original's and answer.

    Args:
      path: of the SavedModel.
      tuned: what was written there.
      record: of the pruning.
      original: the path of the model that was fine-tuned.
      custom_objects: the user's.

    Raises:
      ModelError: naming the layer, what was promised and what is there.
    """
    written = model_handle.load(path, custom_objects)
    size = written.measure()
    require_masked_zeros(written, tuned.masks, "the fine-tuned model as written")
    if not record.plan.structured:
        _require_sparsity(written, tuned, record)
    promised = tuned.summary.after
    for what in ("parameters", "macs", "sparsity"):
        if not np.isclose(getattr(size, what), getattr(promised, what), rtol=1e-6):
            raise ModelError(
                f"The fine-tuned model in {path} has {what} {getattr(size, what)}, in memory it had "
                f"{getattr(promised, what)}. Remedy: report this; a layer of the model doesn't save all of its state."
            )
    _require_signatures(path, original)
    if tuned.network is not None and not record.plan.structured:
        try:
            quantization.zeros_after_conversion(path, written.kernels, tuned.masks)
        except ConversionError as error:
            _log.warning("The zeros were counted on the SavedModel only, which can't be converted to int8: %s", error)
    return size


def _require_sparsity(written: model_handle.ModelHandle, tuned: Tuned, record: PruningRecord) -> None:
    """Each kernel is as sparse as its mask, in whole patterns, and as what Pruner left of it or planned for the end.

    Rounds share out the sparsity anew: there the last one's masks are the plan.
    """
    for name, mask in tuned.masks.items():
        kernel = written.kernels[name]
        if not check_pattern(kernel, mask, record.plan):  # beyond it, a weight may be zero by chance
            raise ModelError(f"The zeros of {name!r} are no longer whole in the pattern {record.plan.pattern!r}.")
        _require_as_sparse(name, kernel.values, 1 - float(np.mean(mask)))
    if tuned.rounds:
        return
    at_once = record.plan.schedule == "one_shot"
    for group in record.groups:
        promised = 1 - group.kept / group.elements if at_once else group.target_sparsity
        if promised:
            _require_as_sparse(group.name, written.kernels[group.name].values, promised)


def _require_as_sparse(name: str, values: np.ndarray, promised: float) -> None:
    zeros = 1 - np.count_nonzero(values) / values.size
    if zeros < promised - _ROUNDING - 1 / values.size:
        raise ModelError(f"Layer {name!r} is {zeros:.4f} sparse after training; it was to be {promised:.4f}.")


def _require_signatures(path: str, original: str) -> None:
    """The signatures take and answer what the original's do: by the same names, in the same shapes and types."""
    after, before = saved_model.load(path), saved_model.load(original)
    for name, signature in before.signatures.items():
        found = _declared(after.signatures[name]) if name in after.signatures else None
        if found != _declared(signature):
            raise ModelError(_another(name, path, found, _declared(signature)))
    try:
        expected = equivalence.drawn_answers(before)
    except ModelError as error:  # it takes what can't be made, such as encoded images
        _log.warning("The signatures are compared by what they declare only: %s", error)
        return
    answers = equivalence.drawn_answers(after)
    for name, outputs in expected.items():
        shapes = [{output: value.shape for output, value in answer.items()} for answer in (answers[name], outputs)]
        if shapes[0] != shapes[1]:
            raise ModelError(_another(name, path, *shapes))
        for output, value in answers[name].items():
            if value.dtype.kind == "f" and np.isfinite(outputs[output]).all() and not np.isfinite(value).all():
                raise ModelError(
                    f"The signature {name!r} of the fine-tuned model in {path} answers {output!r} with what is not "
                    "finite, the model that was pruned with numbers. Remedy: a smaller FineTuning.learning_rate."
                )


def _declared(signature: Any) -> tuple[dict[str, str], dict[str, str]]:
    """What a signature takes and answers: types by name."""
    taken, given = signature.structured_input_signature[1], signature.structured_outputs
    return {name: taken[name].dtype.name for name in taken}, {name: given[name].dtype.name for name in sorted(given)}


def _another(name: str, path: str, found: Any, expected: Any) -> str:
    return (
        f"The signature {name!r} of the fine-tuned model in {path} is {found or 'not there'}, that of the model that "
        f"was pruned {expected}. Remedy: a signatures_fn(model, tf_transform_output) in the module file that makes all "
        "of them alike."
    )
