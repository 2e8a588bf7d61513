"""Targets: which models run on a device, and what its accelerators take, told from the file alone."""
