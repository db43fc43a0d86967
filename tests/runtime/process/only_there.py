"""Is imported in a forked process only."""


class OnlyThereError(Exception):
    """Something that whoever waits for the process does not know."""
