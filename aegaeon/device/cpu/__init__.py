"""The CPU as a device, and a lazy one that breaks whoever forgets to wait."""
