"""What is raised for a model that can't be used; importing it imports nothing."""


class ModelError(ValueError):
    """A model that can't be used as asked; the message names the model and the remedy."""
