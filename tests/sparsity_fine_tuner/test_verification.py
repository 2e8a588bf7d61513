"""Verification of a fine-tuned model as it was written: each property is broken on purpose."""

import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tfx_compression import model_handle
from tfx_compression.errors import ModelError
from tfx_compression.keras_models import model_size
from tfx_compression.model_handle.compressed import Summary
from tfx_compression.pruning.plan import PruningPlan
from tfx_compression.pruning.prune import prune
from tfx_compression.sparsity_fine_tuner import verification
from tfx_compression.sparsity_fine_tuner.quantization_aware_network import quantization_aware
from tfx_compression.sparsity_fine_tuner.results import FineTunedModel
from tfx_compression.tflite import conversion

from tests.support import helpers
from tests.support.errors import raises

UNITS = 16


class Written:
    """A pruned model with its files, and the same model after its kept weights changed.

    Args:
      folder: Folder of the model that changed.
      plan: Plan of the pruning.
    """

    def __init__(self, folder: Path, plan: PruningPlan):
        self.original, self.path = _original(plan.to_json()), str(folder / "tuned")
        network = helpers.small_dense()
        network.compile("adam", "mse")
        pruned = prune(network, plan)
        self.record, self.masks = pruned.record, dict(pruned.masks)
        self.network = pruned.model
        for name, mask in self.masks.items():
            kernel = self.network.get_layer(name).kernel
            kernel.assign(kernel * 1.5 + 0.1 * tf.cast(mask, tf.float32))

    def save(self, **signatures: Any) -> None:
        """Writes the network with the given signatures; by default, with the original one."""
        given = signatures or {"serving_default": serving(self.network)}
        self.network.save(self.path, save_format="tf", signatures=given)

    def verify(self, **changes: Any) -> Any:
        """Verifies the written files, which are expected to have the size of the network in memory."""
        size = model_size.measure(self.network)
        tuned = FineTunedModel(
            model=self.network,
            summary=Summary(before=size, after=size),
            masks=self.masks,
            handle=model_handle.wrap(self.network),
        )
        return verification.verify(self.path, dataclasses.replace(tuned, **changes), self.record, self.original, {})


@functools.cache
def _original(plan: str) -> str:
    """Returns the path of a pruned model."""
    pruned = prune(helpers.small_dense(), PruningPlan.merged(plan, {}))
    path = f"{tempfile.mkdtemp()}/pruned"
    pruned.model.save(path, save_format="tf", signatures={"serving_default": serving(pruned.model)})
    return path


def serving(network: Any, argument: str = "x", output: str = "y", change: Any = lambda y: y) -> Any:
    spec = tf.TensorSpec([None, 4], tf.float32, name=argument)
    return tf.function(lambda x: {output: change(network(x))}, input_signature=[spec])


@pytest.fixture
def written(tmp_path):
    return Written(tmp_path, PruningPlan(sparsity=0.5, protect=()))


def test_intact_model_is_accepted_and_measured(written):
    written.save()
    size = written.verify()
    assert size == model_size.measure(written.network)
    assert size.sparsity == pytest.approx(0.5)


def test_revived_weight_is_refused(written):
    kernel = written.network.get_layer("hidden").kernel
    place = tuple(np.argwhere(written.masks["hidden"] == 0)[0])
    kernel.assign(tf.tensor_scatter_nd_update(kernel, [place], [0.5]))
    written.save()
    with raises(ModelError, code="revived-weights", match="1 .*'hidden'"):
        written.verify()


def test_kernel_less_sparse_than_planned_is_refused(written):
    """Its mask keeps more weights than the plan."""
    written.masks["hidden"] = written.masks["hidden"] | (np.arange(UNITS) < 4)
    kernel = written.network.get_layer("hidden").kernel
    kernel.assign(tf.where(written.masks["hidden"] & (kernel == 0), 0.3, kernel))
    written.save()
    with raises(ModelError, code="sparsity-lost", match=r"'hidden'.* 0\.5000"):
        written.verify()


@pytest.mark.slow
def test_kernel_before_the_end_of_its_schedule_is_refused(tmp_path):
    written = Written(tmp_path, PruningPlan(sparsity=0.75, protect=(), schedule="cubic", initial_sparsity=0.5))
    written.save()
    with raises(ModelError, code="sparsity-lost", match=r"0\.5000.*0\.7500"):
        written.verify()


def test_missing_masks_do_not_hide_lost_sparsity(written):
    written.network.get_layer("hidden").kernel.assign_add(tf.ones([4, UNITS]) * 9)
    written.save()
    with raises(ModelError, code="sparsity-lost", match=r"'hidden'.*0\.0000"):
        written.verify(masks={})


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["2:4", "2x2"])
def test_broken_pattern_is_refused(tmp_path, pattern):
    written = Written(tmp_path, PruningPlan(pattern=pattern, sparsity=0.5, protect=()))
    mask = written.masks["hidden"].copy()
    pruned, kept = np.argwhere(mask == 0)[0], np.argwhere(mask)[-1]
    mask[tuple(pruned)], mask[tuple(kept)] = 1, 0  # the same sparsity elsewhere
    kernel = written.network.get_layer("hidden").kernel
    kernel.assign(tf.where(mask.astype(bool), kernel + 0.2, 0.0))
    written.masks["hidden"] = mask
    written.save()
    with raises(ModelError, code="pattern-broken", match=f"'hidden'.*'{pattern}'"):
        written.verify()


@pytest.mark.slow
def test_kept_weight_that_is_zero_breaks_no_block(tmp_path):
    written = Written(tmp_path, PruningPlan(pattern="2x2", sparsity=0.5, protect=()))
    kernel = written.network.get_layer("hidden").kernel
    place = tuple(np.argwhere(written.masks["hidden"])[0])
    kernel.assign(tf.tensor_scatter_nd_update(kernel, [place], [0.0]))
    written.save()
    written.verify()


@pytest.mark.slow
def test_other_weights_on_disk_than_in_memory_are_refused(written):
    kernel = written.network.get_layer("hidden").kernel
    written.save()
    kernel.assign(kernel * tf.cast(np.arange(UNITS) > 7, tf.float32))
    with raises(ModelError, field="sparsity", code="size-changed"):
        written.verify()


@pytest.mark.slow
@pytest.mark.parametrize(
    "signatures",
    [
        {"serve": {}},
        {"serving_default": {"output": "other"}},
        {"serving_default": {"argument": "z"}},
        {"serving_default": {"change": lambda y: tf.cast(y, tf.float64)}},
        {"serving_default": {"change": lambda y: y[:, :1]}},
        {"serving_default": {"change": lambda y: y[None]}},
    ],
    ids=["missing", "output's name", "input's name", "type", "shape", "rank"],
)
def test_changed_signature_is_refused(written, signatures):
    written.save(**{name: serving(written.network, **changes) for name, changes in signatures.items()})
    with raises(ModelError, code="signature-changed", match="'serving_default'"):
        written.verify()


@pytest.mark.slow
def test_additional_signature_is_accepted(written):
    written.save(serving_default=serving(written.network), more=serving(written.network, output="probabilities"))
    written.verify()


@pytest.mark.slow
def test_infinite_answers_are_refused(written):
    written.save(serving_default=serving(written.network, change=lambda y: tf.math.log(-tf.abs(y))))
    with raises(ModelError, code="answers-not-finite", match="'serving_default'.*'y'"):
        written.verify()


@pytest.mark.slow
def test_signatures_of_images_are_compared_by_their_declarations(written, caplog):
    def serve(network: Any, output: str = "y") -> Any:
        spec = tf.TensorSpec([None], tf.string, name="pictures")

        def decoded(pictures: Any) -> Any:
            pixels = tf.map_fn(lambda png: tf.reshape(tf.io.decode_png(png), [4]), pictures, tf.uint8)
            return {output: network(tf.cast(pixels, tf.float32))}

        return tf.function(decoded, input_signature=[spec])

    written.save(serving_default=serve(written.network))
    written.original = written.path
    written.verify()
    assert "compared by their declarations only" in caplog.text
    written.path += "-other"
    written.save(serving_default=serve(written.network, "other"))
    with raises(ModelError, code="signature-changed", match="'serving_default'"):
        written.verify()


@pytest.mark.slow
def test_zeros_lost_in_conversion_are_refused(written, monkeypatch):
    """The conversion of a quantization-aware network is replaced by that of the pruned and of the dense network."""
    converted = written.network
    monkeypatch.setattr(conversion, "convert_in_worker", lambda path, mode: helpers.to_tflite(converted, mode))
    written.network = quantization_aware(written.network).network
    written.save()
    written.verify(network=written.network)
    converted = helpers.small_dense()
    with raises(ModelError, code="zeros-lost-in-conversion"):
        written.verify(network=written.network)


@pytest.mark.slow
def test_restored_channels_are_refused(tmp_path):
    written = Written(tmp_path, PruningPlan(technique="neuron", sparsity=0.5, protect=()))
    assert written.network.get_layer("hidden").units == UNITS // 2
    written.save()
    written.verify()
    size = model_size.measure(written.network)
    grown = helpers.small_dense()
    grown.save(written.path, save_format="tf", signatures={"serving_default": serving(grown)})
    with raises(
        ModelError, field="parameters", code="size-changed", match=f"{grown.count_params()}.*{size.parameters}"
    ):
        written.verify()
