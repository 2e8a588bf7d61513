"""What the components share: configuration, loading and saving models, signatures, examples, sizes. No TFX in here."""
