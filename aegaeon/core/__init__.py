"""Nouns of the system: frozen data with units in their names, invariants asserted at birth.

Imports the standard library only.
"""
