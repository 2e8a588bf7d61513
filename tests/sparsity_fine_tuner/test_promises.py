"""What is promised of a fine-tuned model, each broken on purpose in the files that were written."""

import dataclasses
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
from tfx_compression.sparsity_fine_tuner import promises
from tfx_compression.sparsity_fine_tuner.training import Tuned

from tests.support import helpers

UNITS = 16


class Written:
    """A pruned model with its files, before and after a training that did nothing but move what stays.

    Args:
      folder: for both.
      plan: of the pruning.
    """

    def __init__(self, folder: Any, plan: PruningPlan):
        self.original, self.path = str(folder / "pruned"), str(folder / "tuned")
        network = helpers.small_dense()
        network.compile("adam", "mse")
        pruned = prune(network, plan)
        self.record, self.masks = pruned.record, dict(pruned.masks)
        self.network = pruned.model
        self.save(self.original)
        for name, mask in self.masks.items():
            kernel = self.network.get_layer(name).kernel
            kernel.assign(kernel * 1.5 + 0.1 * tf.cast(mask, tf.float32))

    def save(self, path: str, **signatures: Any) -> None:
        """Writes the network with the given signatures, or one as it had before."""
        given = signatures or {"serving_default": serving(self.network)}
        self.network.save(path, save_format="tf", signatures=given)

    def check(self, **changes: Any) -> Any:
        """Checks what is at `path`, promised what the network in memory is."""
        size = model_size.measure(self.network)
        tuned = Tuned(
            model=self.network,
            summary=Summary(before=size, after=size),
            masks=self.masks,
            trained=model_handle.wrap(self.network),
        )
        return promises.check(self.path, dataclasses.replace(tuned, **changes), self.record, self.original, {})


def serving(network: Any, argument: str = "x", output: str = "y", change: Any = lambda y: y) -> Any:
    spec = tf.TensorSpec([None, 4], tf.float32, name=argument)
    return tf.function(lambda x: {output: change(network(x))}, input_signature=[spec])


@pytest.fixture
def written(tmp_path):
    return Written(tmp_path, PruningPlan(sparsity=0.5, protect=()))


def test_a_model_that_keeps_everything_is_let_through_and_measured(written):
    written.save(written.path)
    size = written.check()
    assert size == model_size.measure(written.network)
    assert size.sparsity == pytest.approx(0.5)


def test_a_pruned_weight_that_came_back(written):
    kernel = written.network.get_layer("hidden").kernel
    place = tuple(np.argwhere(written.masks["hidden"] == 0)[0])
    kernel.assign(tf.tensor_scatter_nd_update(kernel, [place], [0.5]))
    written.save(written.path)
    with pytest.raises(ModelError, match=r"as written: 1 pruned weights .*'hidden'"):
        written.check()


def test_a_kernel_that_is_less_sparse_than_planned(written):
    """As where masks let more live than the plan."""
    written.masks["hidden"] = written.masks["hidden"] | (np.arange(UNITS) < 4)
    kernel = written.network.get_layer("hidden").kernel
    kernel.assign(tf.where(written.masks["hidden"] & (kernel == 0), 0.3, kernel))
    written.save(written.path)
    with pytest.raises(ModelError, match=r"Layer 'hidden' is 0\.\d+ sparse after training; it was to be 0\.5000"):
        written.check()


@pytest.mark.slow
def test_a_kernel_that_did_not_reach_its_schedules_end(tmp_path):
    written = Written(tmp_path, PruningPlan(sparsity=0.75, protect=(), schedule="cubic", initial_sparsity=0.5))
    written.save(written.path)
    with pytest.raises(ModelError, match=r"is 0\.5000 sparse after training; it was to be 0\.7500"):
        written.check()


def test_a_mask_of_nothing_hides_no_lost_sparsity(written):
    written.network.get_layer("hidden").kernel.assign_add(tf.ones([4, UNITS]) * 9)
    written.save(written.path)
    with pytest.raises(ModelError, match=r"'hidden' is 0\.0000 sparse"):
        written.check(masks={})


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["2:4", "2x2"])
def test_zeros_that_are_no_longer_whole_in_the_pattern(tmp_path, pattern):
    written = Written(tmp_path, PruningPlan(pattern=pattern, sparsity=0.5, protect=()))
    written.save(written.path)
    written.check()
    mask = written.masks["hidden"].copy()
    pruned, kept = np.argwhere(mask == 0)[0], np.argwhere(mask)[-1]
    mask[tuple(pruned)], mask[tuple(kept)] = 1, 0  # as sparse as before, elsewhere
    kernel = written.network.get_layer("hidden").kernel
    kernel.assign(tf.where(mask.astype(bool), kernel + 0.2, 0.0))
    written.masks["hidden"] = mask
    written.save(written.path)
    with pytest.raises(ModelError, match=rf"zeros of 'hidden' are no longer whole in the pattern '{pattern}'"):
        written.check()


@pytest.mark.slow
def test_a_weight_that_is_zero_by_chance_breaks_no_block(tmp_path):
    written = Written(tmp_path, PruningPlan(pattern="2x2", sparsity=0.5, protect=()))
    kernel = written.network.get_layer("hidden").kernel
    place = tuple(np.argwhere(written.masks["hidden"])[0])
    kernel.assign(tf.tensor_scatter_nd_update(kernel, [place], [0.0]))
    written.save(written.path)
    written.check()


@pytest.mark.slow
def test_other_weights_on_disk_than_in_memory(written):
    kernel = written.network.get_layer("hidden").kernel
    written.save(written.path)
    kernel.assign(kernel * tf.cast(np.arange(UNITS) > 7, tf.float32))
    with pytest.raises(ModelError, match=r"has sparsity 0\.5.*, in memory it had 0\.\d+\. Remedy"):
        written.check()


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
def test_a_signature_that_is_another(written, signatures):
    made = {name: serving(written.network, **how) for name, how in signatures.items()}
    written.save(written.path, **made)
    with pytest.raises(ModelError, match=r"signature 'serving_default' of the fine-tuned.*Remedy: a signatures_fn"):
        written.check()


@pytest.mark.slow
def test_a_signature_more_does_no_harm(written):
    made = {"serving_default": serving(written.network), "more": serving(written.network, output="probabilities")}
    written.save(written.path, **made)
    written.check()


@pytest.mark.slow
def test_answers_that_are_no_numbers(written):
    written.save(written.path, serving_default=serving(written.network, change=lambda y: tf.math.log(-tf.abs(y))))
    with pytest.raises(ModelError, match=r"'serving_default' of .* answers 'y' with what is not finite"):
        written.check()


@pytest.mark.slow
def test_a_signature_that_takes_what_can_not_be_made_is_compared_by_what_it_declares(written, caplog):
    def serve(network: Any, output: str = "y") -> Any:
        spec = tf.TensorSpec([None], tf.string, name="pictures")

        def decoded(pictures: Any) -> Any:
            pixels = tf.map_fn(lambda png: tf.reshape(tf.io.decode_png(png), [4]), pictures, tf.uint8)
            return {output: network(tf.cast(pixels, tf.float32))}

        return tf.function(decoded, input_signature=[spec])

    written.save(written.original, serving_default=serve(written.network))
    written.save(written.path, serving_default=serve(written.network))
    written.check()
    assert "compared by what they declare only" in caplog.text
    written.save(written.path, serving_default=serve(written.network, "other"))
    with pytest.raises(ModelError, match="'serving_default'"):
        written.check()


@pytest.mark.slow
def test_zeros_that_int8_would_not_keep(written, monkeypatch):
    """Of a quantization-aware network: TFLite's conversion is asked, which here gives it no zeros."""
    from tfx_compression.sparsity_fine_tuner import quantization
    from tfx_compression.tflite import conversion

    written.network = quantization.aware(written.network).network
    written.save(written.path)
    written.check(network=written.network)
    real = conversion.convert_in_worker

    def dense(path: str, mode: str) -> bytes:
        """Of the network before it was pruned."""
        network = helpers.small_dense()
        spec = tf.TensorSpec([None, 4], tf.float32, name="x")
        helpers.save_function(lambda x: {"y": network(x)}, [spec], f"{path}-dense", weights=network.weights)
        return real(f"{path}-dense", mode)

    monkeypatch.setattr(conversion, "convert_in_worker", dense)
    with pytest.raises(ModelError, match="are zero after conversion to int8"):
        written.check(network=written.network)


@pytest.mark.slow
def test_channels_that_came_back(tmp_path):
    written = Written(tmp_path, PruningPlan(technique="neuron", sparsity=0.5, protect=()))
    assert written.network.get_layer("hidden").units == UNITS // 2
    written.save(written.path)
    written.check()
    size = model_size.measure(written.network)
    grown = helpers.small_dense()
    grown.save(written.path, save_format="tf", signatures={"serving_default": serving(grown)})
    with pytest.raises(ModelError, match=rf"has parameters {grown.count_params()}, in memory it had {size.parameters}"):
        written.check()
