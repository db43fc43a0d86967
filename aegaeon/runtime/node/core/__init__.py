"""A driver's core: what it decides, without any I/O."""
