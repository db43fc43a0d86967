"""The simulated world: carries out the commands of the same schedulers on a virtual clock, and holds the baselines.

Does not know: engine, devices, runtime, wall time.
"""
