"""TensorFlow graphs, whoever built them: walking, inlining, rewriting and cutting out functions."""
