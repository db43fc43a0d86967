"""Whole studies: scenarios, sweeps, bounds, and the command line of them."""
