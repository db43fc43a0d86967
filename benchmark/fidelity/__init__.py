"""The simulator beside a real pool, load by load."""
