"""What is told of an error of Ray's."""

from __future__ import annotations


def last_line(error: BaseException) -> str:
    """The last line of an error, which says what went wrong; the ones before it say where."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1]
