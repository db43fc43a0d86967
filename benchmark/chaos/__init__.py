"""Processes killed and stopped under clients that know what they must be told."""
