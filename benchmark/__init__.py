"""Drives real servers with generated or recorded traffic, over HTTP like any client, and writes records.

Does not know: how requests are scheduled or run, how figures are drawn.
"""
