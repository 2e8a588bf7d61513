"""What is pruned and how: importance, allocation, masks, removal of channels. Pruner and SparsityFineTuner share it."""
