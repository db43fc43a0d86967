"""Latency from measurements."""
