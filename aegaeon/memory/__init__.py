"""Ledger arithmetic: who owns which page, slab and block.

Does not know: tensors, devices. Imports the standard library and
``aegaeon.core`` only. No class here is thread-safe: each ledger has one owner, who calls it from one thread.
"""
