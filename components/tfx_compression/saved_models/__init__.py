"""SavedModels of any origin: variables, signatures, and the surgery on their graphs."""
