"""Ray: starts it, finds it, and runs drivers as its actors."""
