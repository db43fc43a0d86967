"""The error of a ledger that was misused, or that is wrong.

Running out of memory is not an error of this kind: it is back pressure, and has classes of
its own beside the ledgers that run out.
"""


class LedgerError(Exception):
    """A caller asked for what its own bookkeeping forbids (a double free, say), or an integrity check failed.

    Always a bug in the caller or in the ledger, never a matter of load.
    """
