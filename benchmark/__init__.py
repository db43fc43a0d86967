"""Drives real servers with generated or recorded traffic, over HTTP like any client, and writes records."""
