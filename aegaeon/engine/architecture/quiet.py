"""Keeping Transformers off the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging

from aegaeon.engine.architecture.building import building


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hold back progress bars, warnings and load reports; the caller checks for itself what they would say.

    Nobody else builds a model meanwhile (see ``building``).
    """
    with building():
        verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            if bars:
                logging.enable_progress_bar()
