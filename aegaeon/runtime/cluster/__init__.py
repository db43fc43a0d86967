"""Ray: starts it, finds it, and runs nodes and instances as its actors."""
