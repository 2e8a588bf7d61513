"""Pruner: sets the least important weights of a trained model to zero, or removes filters, units and heads."""
