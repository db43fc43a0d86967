"""What is told of an error of Ray's."""

from __future__ import annotations


def last_line(error: BaseException) -> str:
    """Its last line, which says what went wrong; the ones before it are where."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1]
