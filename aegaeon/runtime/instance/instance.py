"""The loop of an instance process: it brings its core the driver's messages, and sends what the core says.

A plain class: it knows nothing of Ray.
"""

from __future__ import annotations

import select

from aegaeon.runtime.instance.core.instance_core import InstanceCore
from aegaeon.runtime.instance.core.outbox import Report
from aegaeon.runtime.instance.ordered_reports import OrderedReports
from aegaeon.runtime.instance.token_sinks import TokenSinks
from aegaeon.runtime.wire import messages as m
from aegaeon.runtime.wire.clock import Clock
from aegaeon.runtime.wire.link import Link
from aegaeon.runtime.wire.pulse import LoopPulse

# How soon a turn that cannot step is looked at again (its quota may end, a copy may land), and a full ring retried.
_RECHECK_S = 0.002


class Instance:
    """An instance with its rings."""

    def __init__(
        self,
        core: InstanceCore,
        driver: Link[m.ToInstance, m.FromInstance],
        sinks: TokenSinks,
        clock: Clock,
        pulse: LoopPulse,
    ) -> None:
        self.core = core
        self._driver = OrderedReports(driver, sinks)
        self._sinks = sinks
        self._clock = clock
        self._pulse = pulse
        self._running = True

    def run(self) -> None:
        """Take messages and step until told to shut down."""
        may_go_on = False
        while self._running:
            self._pulse.wait()
            self._wait(0.0 if may_go_on else None)
            self._pulse.work()
            may_go_on = self.go_on()
        self.core.close()

    def go_on(self) -> bool:
        """Take the messages that are there and make a step; False when there is nothing to do but wait for more."""
        for message in self._driver.drain():
            self._take(message)
        self.core.return_leases()
        self._send()
        self._sinks.flush()
        self._driver.flush()
        may_go_on = self.core.step(self._clock.now_s())
        self._send()
        return may_go_on

    def _take(self, message: m.ToInstance) -> None:
        match message:
            case m.AttachFrontend():
                self._sinks.attach(message.frontend_id, message.address)
            case m.DetachFrontend():
                self._sinks.detach(message.frontend_id)
            case m.Shutdown():
                self._running = False
            case _:
                self.core.receive(message, self._clock.now_s())
                self._send()  # before a frontend comes or goes

    def _send(self) -> None:
        for send in self.core.take_sends():
            if isinstance(send, Report):
                self._driver.send(send.message)
            else:
                self._sinks.send(send.frontend_id, send.message)

    def _wait(self, timeout_s: float | None) -> None:
        fds = [self._driver.data_fd, *self._sinks.blocked_fds]
        if self._driver.pending:
            fds.append(self._driver.room_fd)
        if timeout_s is None and (self.core.restless or len(fds) > 1):
            timeout_s = _RECHECK_S
        poll = select.poll()  # select() takes no descriptor above 1023
        for fd in fds:
            poll.register(fd, select.POLLIN)
        poll.poll(None if timeout_s is None else timeout_s * 1000)
