"""TFRecord files and tf.Examples: reading, parsing and serializing."""
