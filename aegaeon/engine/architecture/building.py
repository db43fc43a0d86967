"""One model is built at a time in a process.

Transformers and torch build models under context managers that change the whole process, whatever thread they are in:
``from_pretrained`` puts nothing in the place of every model's ``tie_weights`` and of torch's initialisers, a model's
dtype is torch's default one meanwhile, verbosity is a global. A model that another thread builds at that moment comes
out wrong: untied, uninitialised, of another type. So everything here that builds modules does it under this lock.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.RLock()  # of the process, as what it guards


@contextmanager
def building() -> Iterator[None]:
    """Wait until no other thread builds a model, and keep them waiting."""
    with _lock:
        yield
