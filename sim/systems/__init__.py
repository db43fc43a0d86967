"""Baseline systems, as schedulers of the same contract as the production policy.

Does not know: how commands are carried out.
"""
