"""Systems that switch models between requests, not tokens: what the pool is compared with.

Does not know: the simulator, the runtime.
"""
