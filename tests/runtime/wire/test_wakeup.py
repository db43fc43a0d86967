"""Callbacks that other threads post."""

from __future__ import annotations

import os

import pytest

from aegaeon.runtime.wire.wakeup import Wakeup


def test_what_is_posted_after_the_end_concerns_nobody() -> None:
    """Above all not whoever has the descriptor by then."""
    wakeup, ran = Wakeup(), []
    wakeup.post(lambda: ran.append("before"))
    wakeup.run()
    number = wakeup.fd
    wakeup.close()
    others = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    os.dup2(others, number)
    wakeup.post(lambda: ran.append("after"))
    with pytest.raises(BlockingIOError):
        os.eventfd_read(others)  # nobody has rung
    for descriptor in {others, number}:
        os.close(descriptor)
    assert ran == ["before"]
