"""Methods of pruning, which Pruner and SparsityFineTuner share: importance, allocation, masks, removal of channels."""
