"""Nouns of the system: frozen data with units in their names, invariants asserted at birth.

Does not know: how anything is done. Imports the standard library only.
"""
