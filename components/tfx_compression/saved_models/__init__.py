"""SavedModels of any origin: their variables and kernels, their signatures, and rewritten copies of both."""
