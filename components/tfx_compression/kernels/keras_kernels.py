"""The kernels of Keras 2 and Keras 3 models, and the layers that hold them."""

from typing import Any

from tfx_compression.kernels.kernel import Kernel, KernelKind

# Attributes of layers. The kernel of an inner layer (a cell of an RNN, the query projection of an attention layer)
# belongs to that inner layer.
KERNEL_ATTRIBUTES = ("kernel", "depthwise_kernel", "pointwise_kernel", "recurrent_kernel", "embeddings")


def find_kernels(model: Any) -> dict[str, Kernel]:
    """Returns the kernels of rank 2 or more by name, in the model's order."""
    unrounded = {
        id(layer.layer): _unrounded_variables(layer)
        for layer in model._flatten_layers(include_self=False)
        if is_quantize_wrapper(layer)
    }
    kernels = {}
    for layer_name, layer in leaf_layers(model).items():
        attributes = [name for name in KERNEL_ATTRIBUTES if len(getattr(getattr(layer, name, None), "shape", ())) >= 2]
        for attribute in attributes:
            name = layer_name if len(attributes) == 1 else f"{layer_name}/{attribute}"
            kind, input_axes, output_axes = _axes(layer, attribute)
            variable = unrounded.get(id(layer), {}).get(attribute, getattr(layer, attribute))
            kernels[name] = Kernel(name, variable, kind, input_axes, output_axes, layer, attribute)
    return kernels


def leaf_layers(model: Any) -> dict[str, Any]:
    """Returns the layers that have weights of their own or no inner layers, each once, in the model's order.

    They go by their names after those of the models and layers that they are nested in: `encoder/dense`,
    `lstm/lstm_cell`. For a quantization-aware layer, this is the layer that tfmot wraps, under the wrapper's name.
    """
    leaves: dict[str, Any] = {}
    visited: set[int] = set()

    def visit(layer: Any, name: str) -> None:
        if id(layer) in visited:
            return
        visited.add(id(layer))
        if is_quantize_wrapper(layer):
            leaves[name] = layer.layer
            return
        inner = sublayers(layer)
        if not inner or direct_weights(layer):
            leaves[name] = layer
        for sublayer in inner:
            visit(sublayer, f"{name}/{sublayer.name}")

    for layer in sublayers(model):
        visit(layer, layer.name)
    return leaves


def sublayers(layer: Any) -> list[Any]:
    """Returns the layers directly inside a layer or model."""
    return list(layer._flatten_layers(include_self=False, recursive=False))


def direct_weights(layer: Any) -> list[Any]:
    """Returns the weights of a layer without those of the layers inside it."""
    inner = {id(weight) for sublayer in sublayers(layer) for weight in sublayer.weights}
    return [weight for weight in layer.weights if id(weight) not in inner]


def is_quantize_wrapper(layer: Any) -> bool:
    """Returns whether a layer is tfmot's wrapper that makes another layer quantization-aware.

    Such a wrapper's own weights are only ranges.
    """
    return any(base.__name__ == "QuantizeWrapper" for base in type(layer).__mro__)


def quantization_variables(model: Any) -> list[Any]:
    """Returns the variables that tfmot adds to a quantization-aware model: ranges and counts of steps."""
    added: list[Any] = []
    for layer in model._flatten_layers(include_self=False):
        if type(layer).__name__ == "QuantizeLayer":
            added += layer.weights
        elif is_quantize_wrapper(layer):
            original = {id(weight) for weight in (*layer.layer.weights, *_unrounded_variables(layer).values())}
            added += [weight for weight in layer.weights if id(weight) not in original]
    return added


def _unrounded_variables(wrapper: Any) -> dict[str, Any]:
    """Returns the variables that tfmot's wrapper rounds, by attribute of its layer, which holds the rounded tensor."""
    return {wrapper._weight_name(weight.name): weight for weight, _, _ in wrapper._weight_vars}


def _axes(layer: Any, attribute: str) -> tuple[KernelKind, tuple[int, ...], tuple[int, ...]]:
    """Returns the kind of a layer's kernel, the axes that it sums over, and the others."""
    rank = len(getattr(layer, attribute).shape)
    class_name = type(layer).__name__
    axes = tuple(range(rank))
    if attribute == "embeddings":
        return "embedding", (), axes
    if attribute == "recurrent_kernel":
        return "recurrent", axes[:-1], axes[-1:]
    if attribute == "depthwise_kernel" or class_name.startswith("DepthwiseConv"):
        return "depthwise", axes[:-2], axes[-2:]
    if class_name.endswith("Transpose"):
        return "transposed", (*axes[:-2], rank - 1), (rank - 2,)
    if class_name == "EinsumDense":
        kernel, result = layer.equation.replace(" ", "").split(",")[1].split("->")
        output_axes = tuple(axis for axis, letter in enumerate(kernel) if letter in result)
        return "einsum", tuple(axis for axis in axes if axis not in output_axes), output_axes
    return ("dense" if rank == 2 else "convolution"), axes[:-1], axes[-1:]
