"""Records, found in folders and read."""
