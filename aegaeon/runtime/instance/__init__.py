"""An instance: the process that runs one device, one turn at a time."""
