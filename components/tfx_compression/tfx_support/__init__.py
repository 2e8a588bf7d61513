"""Code for TFX that the components share: declarations, artifacts, inputs, user modules and checkpoints."""
