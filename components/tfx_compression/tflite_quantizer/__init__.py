"""TFLiteQuantizer: converts a model to TFLite, quantized."""
