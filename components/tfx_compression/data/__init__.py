"""Examples as data: reading TFRecords and tf.Examples."""
