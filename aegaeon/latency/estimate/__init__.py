"""Latency from what models and devices are made of."""
