"""The instances of a node: those that have a process, whether it is stuck, and those that are to get one again."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

from aegaeon.core.instance import InstanceSpec
from aegaeon.runtime.node.core import driver_outputs as o
from aegaeon.runtime.node.core.desk import Desk
from aegaeon.runtime.node.core.driver_request import DriverRequest
from aegaeon.runtime.node.core.incarnation import Incarnation
from aegaeon.runtime.process.backoff import INSTANCE_PAUSES, Backoff
from aegaeon.runtime.recovery.absence import Absence
from aegaeon.runtime.recovery.vigil import Vigil, look_interval_s
from aegaeon.runtime.wire import messages as m
from aegaeon.runtime.wire.pulse_reading import PulseReading

logger = logging.getLogger(__name__)


class Instances:
    """The node's instances by their ids. One that is stuck for ``timeout_s`` is killed."""

    def __init__(self, desk: Desk, timeout_s: float) -> None:
        self._desk = desk
        self._timeout_s = timeout_s
        self._present: dict[str, Incarnation] = {}
        self._absent: dict[str, Absence] = {}
        self._restarts: defaultdict[str, Backoff] = defaultdict(lambda: Backoff(INSTANCE_PAUSES))
        desk.timers.at(float("-inf"), self._look_at_pulses)

    def __iter__(self) -> Iterator[Incarnation]:
        """Those that have a process."""
        return iter(self._present.values())

    def get(self, instance_id: str | None) -> Incarnation | None:
        """The present incarnation of an instance, if it has one."""
        return None if instance_id is None else self._present.get(instance_id)

    def by_key(self, key: str) -> Incarnation | None:
        """An incarnation, unless it has died."""
        return next((incarnation for incarnation in self if incarnation.key == key), None)

    @property
    def ready(self) -> int:
        """How many are up; any thread may ask."""
        return sum(incarnation.alive for incarnation in tuple(self._present.values()))

    def running(self, request: DriverRequest) -> Incarnation | None:
        """The one whose turn a request is in."""
        return self.get(request.running_on)

    # --- what they are told -----------------------------------------------------------------------------------------

    def tell(self, incarnation: Incarnation, message: m.ToInstance) -> None:
        self._desk.put(o.TellInstance(incarnation.key, message))

    def tell_all(self, message: m.ToInstance) -> None:
        for incarnation in self:
            self.tell(incarnation, message)

    # --- coming and going -------------------------------------------------------------------------------------------

    def add(self, spec: InstanceSpec, number: int, watched: bool) -> Incarnation:
        """A new process is on its way; it says ``Started`` when it is up."""
        vigil = Vigil(self._timeout_s, self._desk.now_s) if watched else None
        incarnation = self._present[spec.instance_id] = Incarnation(spec, number, self._desk.now_s, vigil)
        self._desk.changed = True
        return incarnation

    def started(self, incarnation: Incarnation, pid: int) -> None:
        """It is up."""
        incarnation.start(pid, self._desk.now_s)
        self._absent.pop(incarnation.instance_id, None)
        self._watch_process(incarnation, pid)
        logger.info("instance %s is ready (process %d)", incarnation.key, pid)

    def part_with(self, incarnation: Incarnation, reason: str) -> None:
        """It has no process any more: close what led there, and settle when it is started again."""
        now_s = self._desk.now_s
        self._desk.put(o.CloseInstance(incarnation.key))
        del self._present[incarnation.instance_id]
        pause_s = self._restarts[incarnation.instance_id].pause_s(incarnation.ran_well(now_s))
        self._absent[incarnation.instance_id] = Absence(incarnation.spec, now_s, reason, now_s + pause_s)
        self._desk.changed = True

    def start_again(self, instance_id: str) -> None:
        """Now, or when its pause is over."""
        absence, now_s = self._absent[instance_id], self._desk.now_s
        if now_s < absence.restart_s:
            logger.warning("instance %s starts again in %.0f s", instance_id, absence.restart_s - now_s)
            self._desk.timers.at(absence.restart_s, lambda: self.start_again(instance_id))
        else:
            self._desk.put(o.StartInstance(absence.spec))

    def not_started(self, instance_id: str, reason: str) -> None:
        """No descriptor is left for its link: it is tried again."""
        pause_s = self._restarts[instance_id].pause_s(ran_well=False)
        restart_s = self._desk.now_s + max(1.0, pause_s)
        self._absent[instance_id] = replace(self._absent[instance_id], reason=reason, restart_s=restart_s)
        self.start_again(instance_id)

    # --- who is stuck -----------------------------------------------------------------------------------------------

    def look_at(self, incarnation: Incarnation, reading: PulseReading) -> None:
        """An instance's pulse says this."""
        vigil, now_s = incarnation.vigil, self._desk.now_s
        if vigil is None or incarnation.verdict:
            return
        vigil.look(reading, now_s)
        if reading.pid:
            self._watch_process(incarnation, reading.pid)
        if vigil.trouble != incarnation.trouble:
            incarnation.trouble, self._desk.changed = vigil.trouble, True
            if incarnation.trouble:
                logger.warning("instance %s %s (%.1f s so far)", incarnation.key, incarnation.trouble, vigil.for_s)
        if vigil.stuck:
            self._kill(incarnation, vigil)

    def _look_at_pulses(self) -> None:
        self._desk.put(o.ReadPulses())
        # How long it has been so, and how long it will be, is news as long as it lasts.
        self._desk.changed |= bool(self._absent) or any(incarnation.trouble for incarnation in self)
        self._desk.timers.at(self._desk.now_s + look_interval_s(self._timeout_s), self._look_at_pulses)

    def _kill(self, incarnation: Incarnation, vigil: Vigil) -> None:
        """Its end is heard of as any other's. One that even SIGKILL does not end in time never runs again (the kernel
        holds it): then it is as good as dead."""
        verdict = incarnation.verdict = f"it was killed: it {vigil.trouble} ({vigil.for_s:.0f} s)"
        logger.error("instance %s %s (%.0f s): it is killed", incarnation.key, vigil.trouble, vigil.for_s)
        self._desk.put(o.KillProcess(incarnation.key))
        give_up = o.GiveUpInstance(incarnation.key, verdict)
        self._desk.timers.at(self._desk.now_s + self._timeout_s, lambda: self._desk.put(give_up))

    def _watch_process(self, incarnation: Incarnation, pid: int) -> None:
        if not incarnation.watched:
            incarnation.watched = True
            self._desk.put(o.WatchProcess(incarnation.key, pid))

    # --- reports ----------------------------------------------------------------------------------------------------

    def states(self) -> tuple[m.InstanceState, ...]:
        """The state of each instance that has a process, or is to get one again."""
        now_s = self._desk.now_s
        states = {key: absence.state(now_s) for key, absence in self._absent.items()}
        for incarnation in self:
            state = incarnation.state(now_s)
            absence = states.get(incarnation.instance_id)
            # One that comes up again is absent until it has: with the reason, which is what people look for.
            states[incarnation.instance_id] = state if absence is None or state.trouble else absence
        return tuple(states.values())
