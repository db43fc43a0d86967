"""Figures from records.

Does not know: where a record came from (that is written on the figure).
"""
