"""Metrics that fit the outputs of the models: the default ones, and checks of the user's."""

from collections.abc import Collection, Mapping

from tensorflow_model_analysis.proto import config_pb2  # tfma 0.52 has these at its top level only once TFX is imported

from tfx_compression.compressed_evaluator.predictors import Shape
from tfx_compression.errors import ConfigError

Outputs = Mapping[str, Shape]  # Shapes of a model's outputs, without the batch.

_ACCURACY = "SparseCategoricalAccuracy"


def with_default_metrics(
    eval_config: config_pb2.EvalConfig, outputs: Outputs, features: Collection[str]
) -> config_pb2.EvalConfig:
    """Returns a configuration that computes the accuracy of a classifier.

    For a model with several outputs, it is the accuracy of each, and its label is the feature of its name, unless the
    ModelSpec has `label_keys`.

    Args:
      eval_config: A configuration without metrics.
      outputs: The model's outputs by name.
      features: Names of the features in the examples.

    Raises:
      ConfigError: There are several outputs, and it is unknown which labels or metrics fit (code "several-outputs").
    """
    config = config_pb2.EvalConfig()
    config.CopyFrom(eval_config)
    accuracy = config_pb2.MetricConfig(class_name=_ACCURACY)
    if len(outputs) < 2:
        config.metrics_specs.add(metrics=[accuracy])
        return config
    model_spec = config.model_specs[0] if config.model_specs else config.model_specs.add()
    labels = dict(model_spec.label_keys) or {name: name for name in outputs}
    unknown = sorted(set(labels.values()) - set(features))
    problem = ""
    if model_spec.label_key:
        problem = f"there is one label, {model_spec.label_key!r}"
    elif unknown:
        problem = f"the examples have no feature {unknown[0]!r} for a label"
    elif single := [name for name, shape in outputs.items() if name in labels and _is_single(shape)]:
        problem = f"{single[0]!r} has one value per row, so its accuracy is not that of a classifier"
    if problem:
        raise _several_outputs(f"the default metrics don't fit, because {problem}", outputs)
    for name in outputs:
        if name in labels:
            model_spec.label_keys[name] = labels[name]
            config.metrics_specs.add(output_names=[name], metrics=[accuracy])
    return config


def require_output_names(eval_config: config_pb2.EvalConfig, outputs: Outputs) -> None:
    """Checks that the metrics of models with several outputs say which output they are for.

    Raises:
      ConfigError: They don't (code "several-outputs"), or name an output that there is not (code "unknown-output").
    """
    if len(outputs) < 2:
        return
    for spec in eval_config.metrics_specs:
        names = {*spec.output_names, *spec.output_weights}
        metrics = [metric.class_name for metric in spec.metrics if metric.class_name != "ExampleCount"]
        if metrics and not names:
            raise _several_outputs(f"{metrics[0]} has no output_names", outputs)
        if unknown := sorted(names - set(outputs)):
            raise ConfigError(
                f"The eval_config's metrics are for the output {unknown[0]!r}, and the models' outputs are: "
                f"{', '.join(outputs)}. Remedy: output_names of these.",
                field="eval_config.metrics_specs",
                code="unknown-output",
            )


def outputs_of_classes(eval_config: config_pb2.EvalConfig, outputs: Mapping[str, Outputs]) -> tuple[str, ...]:
    """Returns the outputs whose metrics take labels that are numbers of classes; "" is a model's only one.

    Args:
      eval_config: The user's configuration.
      outputs: By model, its outputs.

    Raises:
      ConfigError: Such an output has only one value per row, so that every row would be of class 0 (code "one-output").
    """
    sparse: dict[str, str] = {}
    for spec in eval_config.metrics_specs:
        for metric in spec.metrics:
            if metric.class_name.startswith("Sparse"):
                sparse |= dict.fromkeys(spec.output_names or [""], metric.class_name)
    for model, shapes in outputs.items():
        for name, shape in shapes.items():
            metric = sparse.get(name) or (sparse.get("") if len(shapes) == 1 else None)
            if metric and _is_single(shape):
                raise ConfigError(
                    f"{metric} needs one output per class, and {model!r} has one value per row"
                    f"{f' in {name!r}' if len(shapes) > 1 else ''}, so every row would be of class 0. "
                    "Remedy: use an eval_config with BinaryAccuracy, or another metric that fits one value.",
                    field="eval_config.metrics_specs",
                    code="one-output",
                )
    return tuple(sparse)


def _is_single(shape: Shape) -> bool:
    return tuple(shape) in ((1,), ())


def _several_outputs(problem: str, outputs: Outputs) -> ConfigError:
    labels = ", ".join(f"{name!r}: 'FEATURE'" for name in outputs)
    metrics = ", ".join(
        f"tfma.MetricsSpec(output_names=[{name!r}], metrics=[tfma.MetricConfig("
        f"class_name={('BinaryAccuracy' if _is_single(shape) else _ACCURACY)!r})])"
        for name, shape in outputs.items()
    )
    return ConfigError(
        f"The models have several outputs ({', '.join(outputs)}), and {problem}. Remedy: an eval_config with a label "
        f"and metrics for each output that is to be evaluated: tfma.EvalConfig(model_specs=[tfma.ModelSpec("
        f"label_keys={{{labels}}})], metrics_specs=[{metrics}]).",
        field="eval_config.metrics_specs",
        code="several-outputs",
    )
