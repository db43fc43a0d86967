"""One thing after the other, also where handling one brings up the next."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class InTurn(Generic[T]):
    """What is put while ``handle`` is at work is handled when that is done, in order."""

    def __init__(self, handle: Callable[[T], None]) -> None:
        self._handle = handle
        self._waiting: deque[T] = deque()
        self._handling = False

    def put(self, item: T) -> None:
        """Have something handled: before this returns, unless something else is being handled."""
        self._waiting.append(item)
        if self._handling:
            return
        self._handling = True
        try:
            while self._waiting:
                self._handle(self._waiting.popleft())
        finally:
            self._handling = False
