"""Models, data and processes that several test modules share."""
