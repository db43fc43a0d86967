"""Latency profiles as files, and the book of them."""
