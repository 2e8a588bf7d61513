"""Builds the pipeline from examples to a compressed, evaluated and released model."""

import tensorflow_model_analysis as tfma
import tfx_compression as tfc
from tfx import v1 as tfx
from tfx.dsl.components.base import executor_spec
from tfx.dsl.components.base.base_node import BaseNode

from pipelines.settings import Settings

MODES = ("dynamic", "float16", "int8")


def components(settings: Settings, input_base: str) -> list[BaseNode]:
    """Returns the nodes of the pipeline.

    Args:
      settings: Settings of the run.
      input_base: Folder with `train/` and `eval/`, which hold TFRecord files of tf.Examples.
    """
    splits = [tfx.proto.Input.Split(name=name, pattern=f"{name}/*") for name in ("train", "eval")]
    example_gen = tfx.components.ImportExampleGen(input_base=input_base, input_config=tfx.proto.Input(splits=splits))
    examples = example_gen.outputs["examples"]
    statistics_gen = tfx.components.StatisticsGen(examples=examples)
    schema_gen = tfx.components.SchemaGen(statistics=statistics_gen.outputs["statistics"], infer_feature_shape=True)
    schema = schema_gen.outputs["schema"]
    validator = tfx.components.ExampleValidator(statistics=statistics_gen.outputs["statistics"], schema=schema)
    transform = tfx.components.Transform(examples=examples, schema=schema, module_file=settings.module_file)
    trainer = tfx.components.Trainer(
        examples=transform.outputs["transformed_examples"],
        transform_graph=transform.outputs["transform_graph"],
        schema=transform.outputs["post_transform_schema"],
        module_file=settings.module_file,
        train_args=tfx.proto.TrainArgs(num_steps=settings.train_steps),
    )
    pruner = tfc.Pruner(
        model=trainer.outputs["model"],
        plan=settings.plan,
        examples=transform.outputs["transformed_examples"],  # For plans that require data.
        schema=transform.outputs["post_transform_schema"],
        transform_graph=transform.outputs["transform_graph"],
        sparsity=settings.sparsity,
    )
    tuner = tfc.SparsityFineTuner(
        model=pruner.outputs["pruned_model"],
        pruning_plan=pruner.outputs["pruning_plan"],
        teacher_model=trainer.outputs["model"],  # For distillation and the accuracy guard.
        examples=transform.outputs["transformed_examples"],
        schema=transform.outputs["post_transform_schema"],
        config=settings.fine_tuning,
        epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        module_file=settings.module_file,
    )
    quantizers = {
        mode: tfc.TFLiteQuantizer(
            model=tuner.outputs["fine_tuned_model"],
            examples=examples,
            schema=schema,
            config=tfc.Quantization(mode=mode),
        ).with_id(f"TFLiteQuantizer.{mode}")
        for mode in MODES
    }
    eval_config = tfma.EvalConfig(
        model_specs=[tfma.ModelSpec(label_key=settings.label)],
        metrics_specs=[tfma.MetricsSpec(metrics=[tfma.MetricConfig(class_name="SparseCategoricalAccuracy")])],
    )
    edge = tfc.CompressedEvaluator(
        candidates={mode: quantizer.outputs["tflite_model"] for mode, quantizer in quantizers.items()},
        baseline_model=trainer.outputs["model"],
        examples=examples,
        schema=schema,
        eval_config=eval_config,
        budget=settings.edge,
        max_metric_drop=settings.max_metric_drop,
    ).with_id("CompressedEvaluator.edge")
    serving = tfc.CompressedEvaluator(
        candidates={"pruned": tuner.outputs["fine_tuned_model"]},
        baseline_model=trainer.outputs["model"],
        examples=examples,
        schema=schema,
        eval_config=eval_config,
        budget=settings.serving,
        max_metric_drop=settings.max_metric_drop,
    ).with_id("CompressedEvaluator.serving")
    pusher = tfx.components.Pusher(
        model=serving.outputs["best_model"],
        model_blessing=serving.outputs["blessing"],
        push_destination=tfx.proto.PushDestination(
            filesystem=tfx.proto.PushDestination.Filesystem(base_directory=settings.serving_directory)
        ),
        custom_executor_spec=executor_spec.ExecutorClassSpec(tfc.VerifyingPusherExecutor),
    )
    store_pusher = tfc.TFLiteStorePusher(
        model=edge.outputs["best_model"],
        model_blessing=edge.outputs["blessing"],
        target=tfc.StoreTarget(uri=settings.store, name=settings.name, channel=settings.channel),
    )
    return [
        example_gen,
        statistics_gen,
        schema_gen,
        validator,
        transform,
        trainer,
        pruner,
        tuner,
        *quantizers.values(),
        edge,
        serving,
        pusher,
        store_pusher,
    ]
