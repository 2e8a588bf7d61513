"""TFLite models: converting to them, reading and writing the flatbuffer, running the interpreter."""
