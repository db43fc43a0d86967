"""Holds the memory of a driver on this machine, so that it outlives that one, and hands it to the next."""

from __future__ import annotations

import logging
import threading

from aegaeon.runtime.node.estate import ESTATE, Estate
from aegaeon.runtime.wire.fd_exchange import FdExchangeError, FdServer

logger = logging.getLogger(__name__)


class EstateHolder:
    """Any thread may use it."""

    def __init__(self) -> None:
        self._estate: Estate | None = None
        self._lock = threading.Lock()
        self._server: FdServer | None = FdServer(self._provide)

    @property
    def address(self) -> str | None:
        """The descriptor server that has it; None where nothing is held."""
        with self._lock:
            return None if self._server is None or self._estate is None else self._server.address

    def hold(self, driver_address: str) -> None:
        """Hold what the driver at this address has, and nothing else any more."""
        self.drop()
        try:
            estate = Estate.fetch(driver_address)
        except FdExchangeError as error:  # it has died already
            logger.debug("a driver's memory cannot be held: %s", error)
            return
        with self._lock:
            self._estate = estate

    def drop(self) -> None:
        """Let go of it."""
        with self._lock:
            estate, self._estate = self._estate, None
        if estate is not None:
            estate.close()

    def close(self) -> None:
        """Let go of everything."""
        with self._lock:
            server, self._server = self._server, None
        if server is not None:
            server.close()
        self.drop()

    def _provide(self, name: str) -> list[int]:
        """On the descriptor server's thread."""
        with self._lock:
            if name != ESTATE or self._estate is None:
                raise KeyError(name)
            return self._estate.duplicates()
