"""SparsityFineTuner: trains a pruned model so that what was pruned stays so."""
