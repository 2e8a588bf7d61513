"""The digits example: a small convolutional network on scikit-learn's digits."""
