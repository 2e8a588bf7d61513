"""Runs the SparsityFineTuner: reads the pruned Model and the Examples, trains, writes the Model and its logs."""

import os
from typing import Any

import tensorflow as tf
import tensorflow_transform as tft
import tf_keras
from tfx import types
from tfx.components.trainer import fn_args_utils
from tfx.components.util import tfxio_utils
from tfx.dsl.components.base import base_executor

from tfx_compression.models import examples, keras2
from tfx_compression.models.compressed import SUMMARY_FILE, read_masks, require_zeros, write_text
from tfx_compression.sparsity_fine_tuner.config import FineTuning
from tfx_compression.sparsity_fine_tuner.training import fine_tune
from tfx_compression.tfx_support import artifacts, inputs


class Executor(base_executor.BaseExecutor):
    """See the component."""

    def Do(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Fine-tunes.

        Args:
          input_dict: `model`, `pruning_plan`, `examples`, `schema`, `transform_graph` (optional).
          output_dict: `fine_tuned_model`, `model_run`.
          exec_properties: `config` (JSON), `epochs` and `learning_rate` (override it), `train_split`, `eval_split`,
            `module_path` or `module_file`.
        """
        model = artifacts.single(input_dict, "model")
        tuned = artifacts.single(output_dict, "fine_tuned_model")
        logs = artifacts.single(output_dict, "model_run")
        overrides = {name: exec_properties.get(name) for name in ("epochs", "learning_rate")}
        config = FineTuning.merged(exec_properties["config"], overrides)
        masks = read_masks(os.path.join(artifacts.single(input_dict, "pruning_plan").uri, artifacts.MASKS_FILE))
        module = inputs.UserModule(exec_properties)
        objects = module.custom_objects()
        loaded = keras2.load(artifacts.model_path(model), objects)
        train, evaluation = (
            self._data(loaded, input_dict, module, exec_properties[split], config, shuffle=split == "train_split")
            for split in ("train_split", "eval_split")
        )
        compressed = fine_tune(
            loaded,
            train,
            config,
            masks=masks,
            validation_data=evaluation,
            compile_fn=module.function("compile_fn"),
            callbacks=[tf_keras.callbacks.TensorBoard(logs.uri)],
        )
        compressed.save(artifacts.model_path(tuned))
        require_zeros(keras2.load(artifacts.model_path(tuned), objects), masks, "the fine-tuned model as written")
        write_text(os.path.join(tuned.uri, SUMMARY_FILE), compressed.summary.model_dump_json(indent=1))
        after = compressed.summary.after
        artifacts.describe_model(
            tuned, model, mode=config.mode, sparsity=after.sparsity, parameters=after.parameters, macs=after.macs
        )

    def _data(
        self,
        model: tf_keras.Model,
        input_dict: dict[str, list[types.Artifact]],
        module: inputs.UserModule,
        split: str,
        config: FineTuning,
        shuffle: bool,
    ) -> tf.data.Dataset:
        """Batches of (features, label) of a split, from the user's `input_fn` or the schema."""
        artifact = artifacts.single(input_dict, "examples")
        schema = inputs.read_schema(input_dict)
        input_fn = module.function("input_fn")
        if input_fn:
            telemetry = ["SparsityFineTuner"]
            accessor = fn_args_utils.DataAccessor(
                tf_dataset_factory=tfxio_utils.get_tf_dataset_factory_from_artifact([artifact], telemetry),
                record_batch_factory=tfxio_utils.get_record_batch_factory_from_artifact([artifact], telemetry),
                data_view_decode_fn=tfxio_utils.get_data_view_decode_fn_from_artifact([artifact], telemetry),
            )
            pattern = inputs.example_pattern(artifact, split)
            graph = artifacts.optional(input_dict, "transform_graph")
            described = tft.TFTransformOutput(graph.uri) if graph is not None else schema
            return input_fn([pattern], accessor, described, config.batch_size)
        files = inputs.example_files(artifact, split)
        examples.require_rows(files, f"split {split!r} of {artifact.uri}")
        names = list(keras2.network(model).input_names)
        label = examples.label_of(schema, names, config.label_key)
        return examples.labelled(files, schema, names, label, config.batch_size, shuffle)
