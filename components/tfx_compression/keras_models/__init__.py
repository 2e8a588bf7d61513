"""Keras 2 and Keras 3 models: loading, saving, walking the graph of layers, measuring and cloning layers."""
