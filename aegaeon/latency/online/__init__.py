"""Latency as schedulers ask for it, corrected by the turns that run."""
