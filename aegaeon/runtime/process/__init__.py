"""Processes, their folder and their logs, as the kernel knows them; nothing of models or requests."""
