"""The example: scikit-learn's digits, a small convolutional network."""
