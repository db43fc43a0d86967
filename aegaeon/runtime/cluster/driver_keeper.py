"""Keeps the driver of one node running: starts it, notices when it dies or is stuck, and starts another in its place.

A new driver has the node, the options and the models of the one before; what that one knew of requests is gone, and the
frontends, which know it too, submit them again. KV and weights outlive it: the keeper holds their memory, or on another
machine the driver that stands by there. One that stands by takes over at once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import ray

from aegaeon.core.config import PoolConfig
from aegaeon.core.service import ServiceDiedError, ServiceError
from aegaeon.engine.prepared.prepared_model import Findings, PreparedModel
from aegaeon.runtime.cluster.actors import Beat, DriverActor, start_actor
from aegaeon.runtime.cluster.estate_holder import EstateHolder
from aegaeon.runtime.cluster.last_line import last_line
from aegaeon.runtime.frontend.gateway import Endpoint
from aegaeon.runtime.node.node import NodeOptions
from aegaeon.runtime.process.backoff import PROCESS_LIMIT, PROCESS_PAUSES, Backoff, ran_well
from aegaeon.runtime.process.forked_process import ProcessDiedError
from aegaeon.runtime.process.process import ProcessId
from aegaeon.runtime.process.process_log import LogPlace
from aegaeon.runtime.recovery.standbys import Standbys

logger = logging.getLogger(__name__)

_BEAT_S = 1.0
# A loop that has not turned for so long is stuck; asked twice, since the whole machine may have been asleep.
_STUCK_S = 5.0
_STUCK_BEATS = 2
_STOP_S = 10.0
# A new process imports everything, beside others on a crowded machine.
_BIRTH_S = 300.0

_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True)
class RayNode:
    """A node of the cluster that the pool uses."""

    node_id: str
    ray_id: str
    host: str
    local: bool


@dataclass(frozen=True, slots=True)
class NodeAddress:
    """Where a node's driver is to be had: at the descriptor server ``local`` on this machine, else at ``remote``."""

    node_id: str
    local: str | None
    remote: Endpoint | None


class DriverStuckError(ray.exceptions.RayError):
    """A driver process gives no sign of life."""


@dataclass(slots=True, eq=False)
class _DriverProcess:
    """An actor; ``awake``: it has imported everything, and answers from now on, or is stuck."""

    actor: Any
    awake: bool = False


class DriverKeeper:
    """One node's driver, whichever process it is at the moment.

    ``keep`` calls ``announce(address)`` whenever a driver is up, and returns the reason when there will be none again.
    """

    def __init__(self, node: RayNode, logs: LogPlace, announce: Callable[[NodeAddress], None]) -> None:
        self.node = node
        self._logs = logs
        self._announce = announce
        self._backoff = Backoff(PROCESS_PAUSES, PROCESS_LIMIT)
        self._stopping = threading.Event()
        self._options: NodeOptions | None = None
        self._models: Sequence[PreparedModel] = ()
        self._run: Any = None
        self._given_up = ""
        self._up_s: float | None = None
        self._processes: tuple[ProcessId, ProcessId] | None = None
        self._address = ""
        self._holder = EstateHolder() if node.local else None
        self._standbys: Standbys[_DriverProcess] | None = None
        self._settled = False  # whether the present driver has all that it needs, and another may be started beside it
        self._driver = self._new_process()

    def _new_process(self) -> _DriverProcess:
        name = f"{self.node.node_id}-driver"
        return _DriverProcess(start_actor(DriverActor, self.node.ray_id, name, self._logs))

    @property
    def _actor(self) -> Any:
        return self._driver.actor

    def prepare(self, config: PoolConfig) -> Findings:
        """What the node finds of the models: those that can be served, and the others. Raises ``ServiceError``."""
        return self._while_it_dies(lambda: self._prepare(config))

    def start(self, options: NodeOptions, models: Sequence[PreparedModel]) -> None:
        """Start the node's instances. Raises ``ServiceError`` where the node has not what that takes."""
        self._options, self._models = options, models
        self._standbys = Standbys(int(bool(options.config.standby_driver)), self._new_standby)
        self._while_it_dies(self._start)

    def keep(self) -> str:
        """Blocks until ``stop`` (then the reason is empty), or until drivers have died too often."""
        while (reason := self._wait_for_end()) is not None:
            logger.error("the driver of %s has ended: %s", self.node.node_id, reason)
            while self._renew(reason):
                try:
                    self._start()
                except (ServiceError, ray.exceptions.RayError) as error:
                    reason = last_line(error)
                    logger.error("the driver of %s does not start: %s", self.node.node_id, reason)
                else:
                    logger.warning("%s has a new driver", self.node.node_id)
                    break
            else:
                break
        return self._given_up

    def stop(self) -> None:
        """End the driver, and with it its instances; ``keep`` returns. Any thread; idempotent."""
        self._stopping.set()
        for standby in self._standbys.close() if self._standbys is not None else ():
            ray.kill(standby.actor)
        try:
            self._actor.stop.remote()
            if self._run is not None:
                ray.get(self._run, timeout=_STOP_S)
        except ray.exceptions.RayError as error:
            logger.warning("the driver of %s did not end in an orderly way: %s", self.node.node_id, last_line(error))
        if self._holder is not None:
            self._holder.close()

    def _while_it_dies(self, attempt: Callable[[], _Found]) -> _Found:
        """What a driver finds, which may take more than one of them."""
        while True:
            try:
                return attempt()
            except (ray.exceptions.RayActorError, DriverStuckError, ProcessDiedError) as error:
                if isinstance(error, ProcessDiedError):
                    logger.warning("node %s: %s; models are looked at anew", self.node.node_id, last_line(error))
                if not self._renew(last_line(error)):
                    raise ServiceDiedError(self._given_up or "the pool is stopping") from error

    def _prepare(self, config: PoolConfig) -> Findings:
        found: Findings = self._ask(self._actor.prepare.remote(config.models, config.block_tokens, config.cache_dir))
        return found

    def _start(self) -> None:
        assert self._options is not None
        self._processes = self._ask(self._actor.identity.remote())
        left = None if self._holder is None else self._holder.address
        try:
            self._address = address = self._ask(self._actor.start.remote(self._options, self._models, left))
        except ray.exceptions.RayError as error:
            if self._holder is not None:
                self._holder.drop()  # what was left may be at fault
            if isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, ServiceError):
                raise ServiceError(str(error.cause)) from error
            raise
        if self._holder is not None:
            self._holder.hold(address)
        self._run = self._actor.run.remote()
        local, remote = (address, None) if self.node.local else (None, self._open_gateway())
        self._announce(NodeAddress(self.node.node_id, local, remote))
        self._up_s = time.monotonic()

    def _ask(self, answer: Any) -> Any:
        """What the present driver answers, however long it takes.

        Raises ``DriverStuckError`` where it is stuck meanwhile, or never comes up.
        """
        while True:
            sign = self._actor.alive.remote()
            within_s = _STUCK_S * _STUCK_BEATS if self._driver.awake else _BIRTH_S
            done, _ = ray.wait([answer, sign], num_returns=1, timeout=within_s)
            if not done:
                raise DriverStuckError(f"the driver process has given no sign of life for {within_s:.0f} s")
            self._driver.awake = True
            if done[0] is answer or ray.wait([answer], timeout=_BEAT_S)[0]:
                return ray.get(answer)
            ray.get(sign)

    def _open_gateway(self) -> Endpoint:
        endpoint: Endpoint = self._ask(self._actor.open_gateway.remote(self.node.host))
        return endpoint

    def _wait_for_end(self) -> str | None:
        """Blocks; why the driver has ended or is as good as dead, or None where it was to end."""
        while not self._stopping.wait(_BEAT_S):
            beat = self._actor.beat.remote(_STUCK_S * _STUCK_BEATS)
            for _ in range(_STUCK_BEATS):
                done, _ = ray.wait([beat, self._run], num_returns=1, timeout=_STUCK_S)
                if done:
                    break
            reason = self._judge(beat, done)
            if reason is not None:
                return None if self._stopping.is_set() else reason
        return None

    def _judge(self, beat: Any, done: Sequence[Any]) -> str | None:
        """Why the driver is of no use, given what it answered; None: it works."""
        stuck = f"it has not answered for {_STUCK_S * _STUCK_BEATS:.0f} s"
        if not done:
            return stuck
        try:
            answer: Beat | None = ray.get(done[0])
        except ray.exceptions.RayError as error:
            return last_line(error)
        if done[0] is not beat:
            return "it returned"
        if answer is None:
            return stuck
        self._note(answer)
        return None

    def _note(self, beat: Beat) -> None:
        self._processes = beat.driver, beat.reaper  # its reaper may be another by now
        if beat.complete and not self._settled and self._standbys is not None:
            self._settled = True
            self._standbys.fill()

    def _renew(self, reason: str) -> bool:
        """Another driver process, after a pause; whether there is to be one, else ``_given_up`` says why not."""
        while True:
            pause_s = self._backoff.pause_s(ran_well(self._up_s, time.monotonic()))
            if self._backoff.hopeless:
                deaths = self._backoff.ends
                self._given_up = f"the driver of {self.node.node_id} died {deaths} times in a row, last: {reason}"
                return False
            if self._stopping.wait(pause_s):
                return False
            try:
                self._bear()
            except ray.exceptions.RayError as error:
                reason = last_line(error)
            else:
                return True

    def _bear(self) -> None:
        before, self._up_s, self._settled = self._processes, None, False
        ray.kill(self._actor)
        standby = None if self._standbys is None else self._standbys.take()
        self._driver = standby or self._new_process()
        if before is not None:
            self._ask(self._actor.supersede.remote(before))

    def _new_standby(self) -> _DriverProcess:
        """Begin to start one that stands by for the present driver."""
        standby = self._new_process()
        threading.Thread(
            target=self._watch_standby, args=(standby,), name=f"standby-{self.node.node_id}", daemon=True
        ).start()
        return standby

    def _watch_standby(self, standby: _DriverProcess) -> None:
        """Until it becomes the driver."""
        assert self._standbys is not None, "start comes first"
        try:
            ray.get(standby.actor.alive.remote())
            standby.awake = True
            address = self._address if self._holder is None else None
            ray.get(standby.actor.stand_by.remote(address))
        except ray.exceptions.RayError as error:
            logger.debug("a driver that stood by has ended: %s", last_line(error))
            self._standbys.lost(standby)
