"""A pool of real processes under traffic: start it, replay a load, keep what clients saw."""
