"""CompressedEvaluator: measures candidates against a baseline and decides which one may be released."""
