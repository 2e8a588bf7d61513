"""Recipes of litert-quantizer: supported precisions, and models that the quantizer refuses."""

import pytest
from tfx_compression.errors import ModelError
from tfx_compression.tflite.modes import PRECISIONS
from tfx_compression.tflite_quantizer.precision_graph import PrecisionGraph
from tfx_compression.tflite_quantizer.recipe import PrecisionChoice, Recipe, supports

from tests.support.errors import raises


@pytest.mark.parametrize("precision", PRECISIONS)
def test_dense_layers_support_every_precision(precision):
    assert supports("FULLY_CONNECTED", PrecisionChoice(precision), per_channel=True)


def test_convolutions_support_no_2_bit_weights_and_no_blocks():
    assert not supports("CONV_2D", PrecisionChoice("int2_dynamic"), per_channel=True)
    assert not supports("CONV_2D", PrecisionChoice("int4_dynamic", 32), per_channel=True)
    assert supports("FULLY_CONNECTED", PrecisionChoice("int4_dynamic", 32), per_channel=True)


def test_unknown_operators_support_float32_only():
    assert supports(None, PrecisionChoice("float32"), per_channel=True)
    assert not supports(None, PrecisionChoice("int8"), per_channel=True)


@pytest.mark.slow  # converts a model
def test_an_operator_without_a_range_is_refused_by_the_quantizer(float_cnn):
    graph = PrecisionGraph(float_cnn)
    index = next(iter(graph.kernels))
    recipe = Recipe()
    assert not recipe
    recipe.add(graph.scope(index), graph.kind(index), PrecisionChoice("int8"), per_channel=True)
    assert recipe
    with raises(ModelError, code="refused-by-quantizer"):
        recipe.apply(float_cnn, {})
