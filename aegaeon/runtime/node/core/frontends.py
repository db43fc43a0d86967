"""The frontends of a node, as its driver's core sees them."""

from __future__ import annotations

from aegaeon.runtime.node.core import driver_outputs as o
from aegaeon.runtime.node.core.desk import Desk
from aegaeon.runtime.node.core.driver_request import DriverRequest
from aegaeon.runtime.wire import messages as m


class Frontends:
    """Who is there, and where they take tokens (``attached``)."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._present: dict[str, None] = {}
        self.attached: dict[str, m.AttachFrontend] = {}

    def __contains__(self, frontend_id: object) -> bool:
        return frontend_id in self._present

    def add(self, frontend_id: str) -> None:
        self._present[frontend_id] = None
        self._desk.changed = True

    def remove(self, frontend_id: str) -> bool:
        """It has gone; False where that was known."""
        if frontend_id not in self._present:
            return False
        del self._present[frontend_id]
        self.attached.pop(frontend_id, None)
        self._desk.put(o.CloseFrontend(frontend_id))
        self._desk.changed = True
        return True

    def tell(self, request: DriverRequest, message: m.ToFrontend) -> None:
        """Say something of a request, unless its frontend has gone: then its requests are being released."""
        self.tell_one(request.submit.frontend_id, message)

    def tell_one(self, frontend_id: str, message: m.ToFrontend) -> None:
        if frontend_id in self._present:
            self._desk.put(o.TellFrontend(frontend_id, message))

    def tell_all(self, message: m.ToFrontend) -> None:
        for frontend_id in self._present:
            self.tell_one(frontend_id, message)
