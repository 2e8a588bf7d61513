"""What a fine-tuned model has to be, checked on the SavedModel as it was written."""

from collections.abc import Mapping

import numpy as np

from tfx_compression.models import saved_model, signatures, trained
from tfx_compression.models.compressed import require_zeros
from tfx_compression.models.errors import ModelError
from tfx_compression.models.layers import ModelSize
from tfx_compression.pruning.masks import check_pattern
from tfx_compression.pruning.record import Record
from tfx_compression.sparsity_fine_tuner import quantization
from tfx_compression.sparsity_fine_tuner.training import Tuned

_ROUNDING = 1e-3  # of a sparsity, beside one weight of the kernel


def check(path: str, tuned: Tuned, record: Record, original: str, custom_objects: Mapping[str, object]) -> ModelSize:
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
    written = trained.load(path, custom_objects)
    size = written.measure()
    require_zeros(written, tuned.masks, "the fine-tuned model as written")
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
        quantization.zeros_after_conversion(path, written.kernels, tuned.masks)
    return size


def _require_sparsity(written: trained.Trained, tuned: Tuned, record: Record) -> None:
    """Each kernel is as sparse as its mask, in whole patterns, and as what Pruner left of it or planned for the end.

    Rounds share out the sparsity anew: there the last one's masks are the plan.
    """
    for name, mask in tuned.masks.items():
        kernel = written.kernels[name]
        if not check_pattern(kernel, kernel.values, record.plan):
            raise ModelError(f"The zeros of {name!r} are no longer whole in the pattern {record.plan.pattern!r}.")
        _require_as_sparse(name, kernel.values, 1 - float(np.mean(mask)))
    if tuned.rounds:
        return
    at_once = record.plan.schedule == "one_shot"
    for part in record.parts:
        promised = 1 - part.kept / part.elements if at_once else part.target
        if promised:
            name = tuned.name_of(part.name)
            _require_as_sparse(name, written.kernels[name].values, promised)


def _require_as_sparse(name: str, values: np.ndarray, promised: float) -> None:
    zeros = 1 - np.count_nonzero(values) / values.size
    if zeros < promised - _ROUNDING - 1 / values.size:
        raise ModelError(f"Layer {name!r} is {zeros:.4f} sparse after training; it was to be {promised:.4f}.")


def _require_signatures(path: str, original: str) -> None:
    """The signatures answer what the original's do: by the same names, in the same shapes and types, finite."""
    answers = signatures.answers(saved_model.load(path))
    before = signatures.answers(saved_model.load(original))
    described = {
        name: {output: (value.dtype, value.shape) for output, value in answer.items()}
        for name, answer in answers.items()
    }
    expected = {
        name: {output: (value.dtype, value.shape) for output, value in answer.items()}
        for name, answer in before.items()
    }
    for name, outputs in expected.items():
        if described.get(name) != outputs:
            raise ModelError(
                f"The signature {name!r} of the fine-tuned model in {path} answers {described.get(name)}, that of the "
                f"model that was pruned {outputs}. Remedy: a signatures_fn(model, tf_transform_output) in the module "
                "file."
            )
        for output, value in answers[name].items():
            if value.dtype.kind == "f" and np.isfinite(before[name][output]).all() and not np.isfinite(value).all():
                raise ModelError(f"The signature {name!r} in {path} answers {output!r} with what is not finite.")
