"""A node: its driver, which owns its memory and carries out what the scheduler decides."""
