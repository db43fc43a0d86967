"""Decides: an event and the time in, commands out.

Does not know: the clock (callers pass the time), randomness, tensors, processes, whether it is simulated.
"""
