"""Measure this engine on this machine, and make latency profiles of what was measured."""
