"""SparsityFineTuner: trains a pruned model so that what was removed stays removed."""
