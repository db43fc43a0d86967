"""Policies beside each other, simulated and in real pools."""
