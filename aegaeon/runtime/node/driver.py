"""The driver of a node: turns messages into events, asks the scheduler, and carries out its commands.

One thread, one loop. It owns the scheduler, the ledger of the slab cache and the host weight cache; the instances and
frontends are at the other ends of its links. It decides nothing: what to run where is the scheduler's.
"""

from __future__ import annotations

import logging
import selectors
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, assert_never

from aegaeon.core import command as c
from aegaeon.core import event as e
from aegaeon.core.generation import FinishReason
from aegaeon.core.instance import InstanceSpec
from aegaeon.core.kv_shape import KvShape
from aegaeon.core.model import ModelSpec
from aegaeon.engine.sampling.stop import finish_reason
from aegaeon.memory.slab_ledger import OutOfSlabsError
from aegaeon.runtime.node.driver_request import DriverRequest
from aegaeon.runtime.node.host_weights import Fail, HostWeightCache, Post
from aegaeon.runtime.node.instance_handle import InstanceHandle
from aegaeon.runtime.node.node_kv import NodeKv
from aegaeon.runtime.node.timers import Timers
from aegaeon.runtime.process.backoff import INSTANCE_PAUSES, Backoff
from aegaeon.runtime.process.os_process import OsProcess
from aegaeon.runtime.recovery.absence import Absence
from aegaeon.runtime.recovery.suspicion import ModelSuspicion
from aegaeon.runtime.recovery.vigil import Vigil, look_interval_s
from aegaeon.runtime.wire import messages as m
from aegaeon.runtime.wire.clock import Clock
from aegaeon.runtime.wire.link import Link
from aegaeon.runtime.wire.model_failure import FailureKind, ModelFailure, ModelFailures, ModelProblem
from aegaeon.runtime.wire.pulse import PulseReader
from aegaeon.runtime.wire.wakeup import Wakeup
from aegaeon.scheduler.scheduler import Scheduler

logger = logging.getLogger(__name__)

FrontendLink = Link[m.FromFrontend, m.ToFrontend]

_REPORT_INTERVAL_S = 0.25
# A suspect has a turn to itself, but the others of its model wait no longer than this for the next.
_ALONE_QUOTA_S = 1.0
# KV that another driver has left gives way to anybody at once; who has not come for it by then will not come.
_KEEP_REST_S = 300.0
_NOBODY = ""  # leases for no instance
# A model whose turn is still under way where it failed is tried again only after that.
_TURN_POLL_S = 1.0

Examine = Callable[[ModelFailure, Callable[[ModelProblem | None], None]], None]
"""``examine(failure, done)``: look, elsewhere, whether a model could be used again, and have ``done`` called on the
driver's thread with what is still wrong, or None."""


def _take_their_word(_failure: ModelFailure, done: Callable[[ModelProblem | None], None]) -> None:
    """Nothing can be looked at beforehand: the next request tells."""
    done(None)


_InstanceCommand = c.StartTurn | c.ExtendTurn | c.EndTurn | c.LoadWeights | c.EvictWeights | c.EvictKv


@dataclass(frozen=True, slots=True)
class _Loss:
    """An incarnation that died, and of what: the members of the turn that it was in or that the scheduler has given it
    since, those of them that it died with, and those whose frontends have yet to answer."""

    handle: InstanceHandle
    reason: str
    members: dict[str, None]
    involved: frozenset[str]
    unanswered: set[str]


class Driver:
    """The control loop of one node.

    ``restart(spec)`` is asked for a new process when an instance has died; it may raise ``OSError`` and is asked again.
    An instance that is stuck for ``instance_timeout_s`` is killed. ``examine``: whether a model that failed is mended.
    ``eos_ids``: the tokens that end an output, by model.
    """

    def __init__(
        self,
        models: Mapping[str, ModelSpec],
        scheduler: Scheduler,
        kv: NodeKv,
        weights: Callable[[Post, Fail], HostWeightCache],
        clock: Clock,
        restart: Callable[[InstanceSpec], None],
        eos_ids: Mapping[str, Collection[int]] = MappingProxyType({}),
        *,
        instance_timeout_s: float = 10.0,
        examine: Examine = _take_their_word,
        open_process: Callable[[int], OsProcess] = OsProcess,
    ) -> None:
        self._models = models
        self._scheduler = scheduler
        self._kv = kv
        self._clock = clock
        self._restart = restart
        self._eos_ids = eos_ids
        self._instance_timeout_s = instance_timeout_s
        self._examine = examine
        self._open_process = open_process
        self._timers = Timers()
        self._failures = ModelFailures()
        self._restarts: defaultdict[str, Backoff] = defaultdict(lambda: Backoff(INSTANCE_PAUSES))
        self._absent: dict[str, Absence] = {}
        self.wakeup = Wakeup()
        self.weights = weights(self.wakeup.post, self._model_failed)
        self._requests: dict[str, DriverRequest] = {}
        self._starved: dict[str, int] = {}
        self._instances: dict[str, InstanceHandle] = {}
        self._frontends: dict[str, FrontendLink] = {}
        self._attached: dict[str, m.AttachFrontend] = {}
        self._lost: dict[str, _Loss] = {}
        self._model_suspicions: defaultdict[str, ModelSuspicion] = defaultdict(ModelSuspicion)
        self._events: deque[e.Event] = deque()
        self._handling = False
        self._changed = True
        self._reported_s = float("-inf")
        self._running = True
        self._selector = selectors.DefaultSelector()
        self._selector.register(self.wakeup.fd, selectors.EVENT_READ, self.wakeup.run)

    # --- the loop ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Handle messages until ``stop``."""
        self._look_at_pulses()
        self._timers.at(self._clock.now_s() + _KEEP_REST_S, self._kv.forget_rest)
        while self._running:
            self.go_on(self._timeout_s())
        self._close()

    def go_on(self, timeout_s: float | None = 0.0) -> None:
        """Handle what is there, or comes within ``timeout_s`` (None: whenever it comes)."""
        for key, _ in self._selector.select(timeout_s):
            key.data()
        self._timers.run(self._clock.now_s())
        self._flush()
        self._report()

    def stop(self) -> None:
        """End the loop, shutting the instances down; any thread may call this."""
        self.wakeup.post(self._stop)

    def _stop(self) -> None:
        self._running = False
        for handle in self._instances.values():
            handle.link.send(m.Shutdown())

    def _close(self) -> None:
        self._selector.close()
        self.wakeup.close()
        self.weights.close()
        for handle in self._instances.values():
            handle.close()
        for link in self._frontends.values():
            link.close()

    def _timeout_s(self) -> float | None:
        if any(link.pending for link in self._links()):
            return 0.005
        dues_s = [] if self._timers.next_s is None else [self._timers.next_s]
        if self._changed:
            dues_s.append(self._reported_s + _REPORT_INTERVAL_S)
        return max(0.0, min(dues_s) - self._clock.now_s()) if dues_s else None

    def _links(self) -> Iterable[Link[Any, Any]]:
        yield from (handle.link for handle in self._instances.values())
        yield from self._frontends.values()

    def _flush(self) -> None:
        for link in self._links():
            if link.pending:
                link.flush()

    # --- who is there -----------------------------------------------------------------------------------------------

    def add_instance(self, handle: InstanceHandle) -> None:
        """A new process is on its way; it reports ``Started`` over its link."""
        now_s = self._clock.now_s()
        handle.since_s = now_s
        if handle.pulse is not None:
            handle.vigil = Vigil(self._instance_timeout_s, now_s)
        self._instances[handle.instance_id] = handle
        self._changed = True
        self._selector.register(handle.link.data_fd, selectors.EVENT_READ, lambda: self._drain_instance(handle))
        for message in self._attached.values():
            handle.link.send(message)

    def add_frontend(self, frontend_id: str, link: FrontendLink) -> None:
        """A frontend is opening its link; it is there until it says otherwise, or its end of the link is closed."""
        self._frontends[frontend_id] = link
        self._selector.register(link.peer_fd, selectors.EVENT_READ, lambda: self._lose_frontend(frontend_id))
        self._selector.register(link.data_fd, selectors.EVENT_READ, lambda: self._drain_frontend(frontend_id, link))
        for failure in self._failures.current:
            link.send(_model_state(failure))
        self._changed = True

    def _attach_frontend(self, message: m.AttachFrontend) -> None:
        """It can take tokens."""
        self._attached[message.frontend_id] = message
        for handle in self._instances.values():
            handle.link.send(message)

    def _lose_frontend(self, frontend_id: str) -> None:
        """A frontend has gone or died: its requests are cancelled, also those that it was to say something about."""
        link = self._frontends.pop(frontend_id, None)
        if link is None:
            return
        self._selector.unregister(link.data_fd)
        self._selector.unregister(link.peer_fd)
        link.close()
        self._attached.pop(frontend_id, None)
        for handle in self._instances.values():
            handle.link.send(m.DetachFrontend(frontend_id))
        for request in [r for r in self._requests.values() if r.submit.frontend_id == frontend_id]:
            self._dispatch(e.RequestCancelled(request.request_id))
        self._changed = True

    def instance_died(self, key: str, reason: str) -> None:
        """The process of an incarnation has ended unasked."""
        handle = next((h for h in self._instances.values() if h.key == key), None)
        if handle is None or not self._running:
            return
        reason = handle.verdict or reason
        logger.warning("instance %s died: %s", key, reason)
        turn_id = handle.turn_id
        self._drain_instance(handle)  # what it said before it died counts
        self._part_with(handle, reason)
        self.weights.forget_instance(key)
        # A turn that was given to it meanwhile has never reached it.
        involved = self._involved(handle) if handle.turn_id == turn_id else ()
        self._interrupt(handle, reason, involved)
        self._tell_frontends(m.InstanceGone(key))

    @property
    def ready_instances(self) -> int:
        """How many instances are up; any thread."""
        return sum(handle.alive for handle in tuple(self._instances.values()))

    def _part_with(self, handle: InstanceHandle, reason: str) -> None:
        """It has no process any more: close what led there, and settle when it is started again."""
        self._selector.unregister(handle.link.data_fd)
        if handle.process is not None and handle.process.fd is not None:
            self._selector.unregister(handle.process.fd)
        del self._instances[handle.instance_id]
        handle.close()
        now_s = self._clock.now_s()
        pause_s = self._restarts[handle.instance_id].pause_s(handle.ran_well(now_s))
        self._absent[handle.instance_id] = Absence(handle.spec, now_s, reason, now_s + pause_s)
        self._changed = True

    def _start_again(self, instance_id: str) -> None:
        """Now, or when its pause is over."""
        absence = self._absent[instance_id]
        now_s = self._clock.now_s()
        if now_s < absence.restart_s:
            logger.warning("instance %s starts again in %.0f s", instance_id, absence.restart_s - now_s)
            self._timers.at(absence.restart_s, lambda: self._start_again(instance_id))
            return
        try:
            self._restart(absence.spec)
        except OSError as error:  # no descriptor left for its link
            pause_s = self._restarts[instance_id].pause_s(ran_well=False)
            reason = f"cannot be started: {error}"
            self._absent[instance_id] = Absence(absence.spec, absence.since_s, reason, now_s + max(1.0, pause_s))
            self._start_again(instance_id)

    # --- who is stuck -----------------------------------------------------------------------------------------------

    def _look_at_pulses(self) -> None:
        now_s = self._clock.now_s()
        for handle in tuple(self._instances.values()):
            if handle.pulse is not None and handle.vigil is not None and not handle.verdict:
                self._look_at(handle, handle.pulse, handle.vigil, now_s)
        # How long it has been so, and how long it will be, is news as long as it lasts.
        self._changed |= bool(self._absent) or any(handle.trouble for handle in self._instances.values())
        self._timers.at(now_s + look_interval_s(self._instance_timeout_s), self._look_at_pulses)

    def _look_at(self, handle: InstanceHandle, pulse: PulseReader, vigil: Vigil, now_s: float) -> None:
        reading = pulse.read()
        vigil.look(reading, now_s)
        if reading.pid and handle.process is None:
            self._watch_process(handle, reading.pid)
        if vigil.trouble != handle.trouble:
            handle.trouble, self._changed = vigil.trouble, True
            if handle.trouble:
                logger.warning("instance %s %s (%.1f s so far)", handle.key, handle.trouble, vigil.for_s)
        if vigil.stuck:
            self._kill(handle, vigil, now_s)

    def _kill(self, handle: InstanceHandle, vigil: Vigil, now_s: float) -> None:
        """Its end is heard of as any other's. One that even SIGKILL does not end in time never runs again (the kernel
        holds it): then it is as good as dead."""
        verdict = handle.verdict = f"it was killed: it {vigil.trouble} ({vigil.for_s:.0f} s)"
        logger.error("instance %s %s (%.0f s): it is killed", handle.key, vigil.trouble, vigil.for_s)
        if handle.process is not None:
            handle.process.kill()
        self._timers.at(now_s + self._instance_timeout_s, lambda: self.instance_died(handle.key, verdict))

    def _watch_process(self, handle: InstanceHandle, pid: int) -> None:
        """Hear of its end from the kernel: Ray takes a second or more to tell."""
        if handle.process is not None:
            return
        handle.process = self._open_process(pid)
        if handle.process.fd is not None:
            ended = "its process ended"
            self._selector.register(
                handle.process.fd, selectors.EVENT_READ, lambda: self.instance_died(handle.key, ended)
            )

    def _involved(self, handle: InstanceHandle) -> Collection[str]:
        """The requests that an instance died with; where it was binding a model, that is noted instead."""
        if handle.attempted is None:
            return tuple(handle.members)
        if not handle.attempted and handle.model is not None:
            suspicion = self._model_suspicions[handle.model]
            suspicion.note_death_in_binding()
            self._judge_model(handle.model)
        return [request_id for request_id in handle.attempted if request_id in handle.members]

    def _judge_model(self, model: str) -> None:
        """Fail a model that instances die of, whoever asks it."""
        if self._model_suspicions[model].proven:
            del self._model_suspicions[model]
            self._model_failed(model, f"model {model} ended one instance after the other, and no request explains it")

    # --- recovery: the frontend knows which tokens the client has ----------------------------------------------------

    def _interrupt(self, handle: InstanceHandle, reason: str, involved: Collection[str]) -> None:
        """Ask the frontends how far the requests had come; the scheduler hears of the loss when all have answered."""
        members = [r for r in self._requests.values() if r.running_on == handle.instance_id]
        for request in self._requests.values():
            if request.home == handle.instance_id:
                request.home = None
        asked = [request for request in members if not request.releasing]
        names = [request.request_id for request in asked]
        self._lost[handle.key] = _Loss(handle, reason, dict.fromkeys(names), frozenset(involved), set(names))
        for request in members:
            request.running_on = None
        for request in asked:
            self._send_frontend(request, m.Interrupted(request.request_id, handle.key))
        for request in members:
            if request.releasing:
                self._let_go(request)
        self._settle_loss(handle.key)

    def _resume(self, message: m.Resume) -> None:
        request = self._requests.get(message.request_id)
        for key, loss in tuple(self._lost.items()):
            if message.request_id in loss.unanswered:
                loss.unanswered.discard(message.request_id)
                if request is not None:
                    request.go_on_from(message.generated_ids)
                    self._note_kv(request)
                self._settle_loss(key)

    def _unanswered(self, request_id: str) -> bool:
        return any(request_id in loss.unanswered for loss in self._lost.values())

    def _settle_loss(self, key: str) -> None:
        loss = self._lost.get(key)
        if loss is None:
            return
        loss.unanswered.intersection_update(self._requests)
        if loss.unanswered:
            return
        del self._lost[key]
        for request in self._present(loss.involved):
            request.suspicion.note_death(len(request.generated_ids), request.kv_tokens)
        for request in self._present(loss.members):
            self._end_if_over(loss, request)
        left = self._present(loss.members)
        survivors = tuple((r.request_id, r.context_tokens) for r in left if r.prefilled and r.free)
        self._dispatch(e.InstanceLost(loss.handle.instance_id, survivors))
        for request in self._present(loss.members):
            if request.dropping:
                self._let_go(request)
        # Only now: until the scheduler knows of the loss, its commands to the instance must find nobody.
        self._start_again(loss.handle.instance_id)

    def _present(self, request_ids: Iterable[str]) -> list[DriverRequest]:
        return [self._requests[request_id] for request_id in request_ids if request_id in self._requests]

    def _end_if_over(self, loss: _Loss, request: DriverRequest) -> None:
        """End a request that has all its tokens, or that instances have died of."""
        reason = self._finish_reason(request)
        if reason is not None:
            self._finish_for(loss.handle, request, reason)
        elif loss.handle.alone == request.request_id and request.suspicion.proven:
            self._condemn(loss, request)

    def _finish_reason(self, request: DriverRequest) -> FinishReason | None:
        return finish_reason(request.submit.sampling, self._eos_ids.get(request.model, ()), request.generated_ids)

    def _finish_for(self, handle: InstanceHandle, request: DriverRequest, reason: FinishReason) -> None:
        """Say in place of an instance that died that a request is done."""
        self._send_frontend(request, m.Finished(request.request_id, reason, len(request.generated_ids)))
        self._delete(request)
        if not request.releasing:
            self._dispatch(e.RequestFinished(handle.instance_id, handle.turn_id or 0, request.request_id))

    def _condemn(self, loss: _Loss, request: DriverRequest) -> None:
        """It was in the step at each of several deaths, the last time alone: the model and the others go on."""
        reason = (
            f"{request.suspicion.deaths} instances died while they ran this request, the last one while it ran alone: "
            f"{loss.reason}"
        )
        logger.error("request %s of model %s fails: %s", request.request_id, request.model, reason)
        self._send_frontend(request, m.Failed(request.request_id, reason))
        self._delete(request)
        self._dispatch(e.RequestFailed(request.request_id, reason))
        self._model_suspicions[request.model].note_death_alone(request.request_id)
        self._judge_model(request.model)

    # --- messages from frontends ------------------------------------------------------------------------------------

    def _drain_frontend(self, frontend_id: str, link: FrontendLink) -> None:
        if self._frontends.get(frontend_id) is not link:
            return  # it was lost in this very round
        gone = False
        for message in link.drain():
            match message:
                case m.Submit():
                    self._submit(message)
                case m.Cancel():
                    if message.request_id in self._requests:
                        self._dispatch(e.RequestCancelled(message.request_id))
                case m.Resume():
                    self._resume(message)
                case m.AttachFrontend():
                    self._attach_frontend(message)
                case m.DetachFrontend():
                    gone = True
                case _:
                    assert_never(message)
        if gone:
            self._lose_frontend(frontend_id)

    def _submit(self, message: m.Submit) -> None:
        request = DriverRequest(message)
        known = self._requests.get(request.request_id)
        if known is not None:
            self._submitted_again(known, message)
            return
        reason = self._finish_reason(request)
        if reason is not None:
            self._send_frontend(request, m.Finished(request.request_id, reason, len(request.generated_ids)))
            return
        self._requests[request.request_id] = request
        self._dispatch(e.RequestArrived(request.arrival))
        if request.request_id in self._requests:
            self._send_frontend(request, m.Accepted(request.request_id))

    def _submitted_again(self, known: DriverRequest, message: m.Submit) -> None:
        """A frontend that did not know that we have its request; another's would take the tokens of the first."""
        if known.submit.frontend_id == message.frontend_id and not known.releasing:
            self._send_frontend(known, m.Accepted(known.request_id))
        else:
            reason = f"a request with the id {known.request_id} is under way already"
            self._send_frontend(DriverRequest(message), m.Failed(known.request_id, reason))

    # --- messages from instances ------------------------------------------------------------------------------------

    def _drain_instance(self, handle: InstanceHandle) -> None:
        if self._instances.get(handle.instance_id) is not handle:
            return  # it died in this very round, and has been heard
        for message in handle.link.drain():
            self._changed = True
            match message:
                case m.Prefilled():
                    self._prefilled(handle, message)
                case m.SequenceFinished():
                    self._finished(handle, message.turn_id, message.request_id, None)
                case m.SequenceFailed():
                    self._finished(handle, message.turn_id, message.request_id, message)
                case m.TurnOver():
                    self._turn_over(handle, message)
                case m.NeedBlocks():
                    self._need_blocks(handle, message)
                case m.Forgotten():
                    self._forgotten(message)
                case _:
                    self._drain_other(handle, message)

    def _drain_other(
        self, handle: InstanceHandle, message: m.Started | m.Attempt | m.WeightsReturned | m.WeightsRefused
    ) -> None:
        match message:
            case m.Started():
                handle.alive, handle.pid, handle.since_s = True, message.pid, self._clock.now_s()
                self._absent.pop(handle.instance_id, None)
                self._watch_process(handle, message.pid)
                logger.info("instance %s is ready (process %d)", handle.key, message.pid)
                self._dispatch(e.InstanceJoined(handle.spec))
            case m.Attempt():
                self._attempted(handle, message)
            case m.WeightsReturned():
                self.weights.give_back(message.lease_id)
            case m.WeightsRefused():
                handle.models.pop(message.model, None)
                if message.lease_id is not None:
                    self.weights.give_back(message.lease_id)
                self._model_failed(message.model, message.reason, message.kind)
            case _:
                assert_never(message)

    def _attempted(self, handle: InstanceHandle, message: m.Attempt) -> None:
        if handle.turn_id == message.turn_id:
            handle.attempted = message.request_ids
            if message.request_ids and handle.model is not None:
                self._model_suspicions[handle.model].note_bound()

    def _note_output(self, model: str) -> None:
        """It works: deaths and failures before this count no more."""
        self._model_suspicions[model].note_output()
        self._failures.works(model)

    def _prefilled(self, handle: InstanceHandle, message: m.Prefilled) -> None:
        request = self._requests.get(message.progress.request_id)
        if request is None:
            return
        self._advance(request, message.progress)
        request.prefilled = True
        self._note_output(request.model)
        if not handle.keep_prefilled and request.free:  # else the instance has yet to say that it has forgotten it
            request.running_on = None
            handle.members.discard(request.request_id)
        if request.free:
            self._dispatch(
                e.RequestPrefilled(handle.instance_id, message.turn_id, request.request_id, request.context_tokens)
            )

    def _finished(
        self, handle: InstanceHandle, turn_id: int, request_id: str, failure: m.SequenceFailed | None
    ) -> None:
        request = self._requests.get(request_id)
        if request is None:
            return
        handle.members.discard(request_id)
        request.running_on = None
        if failure is None:
            self._note_output(request.model)
        if failure is not None:
            self._send_frontend(request, m.Failed(request_id, failure.reason, failure.cause))
        self._delete(request)
        if request.releasing:
            return
        if failure is not None:
            self._dispatch(e.RequestFailed(request_id, failure.reason))
        else:
            self._dispatch(e.RequestFinished(handle.instance_id, turn_id, request_id))

    def _turn_over(self, handle: InstanceHandle, message: m.TurnOver) -> None:
        members = handle.members
        handle.end(message.switched)
        for progress in message.progress:
            if progress.request_id in self._requests:
                self._advance(self._requests[progress.request_id], progress)
            if progress.new_ids and handle.model is not None:
                self._note_output(handle.model)
        for request in self._present(members):
            if request.free:
                request.running_on = None
        contexts = tuple(
            (progress.request_id, self._requests[progress.request_id].context_tokens)
            for progress in message.progress
            if progress.request_id not in message.unfinished and self._idle(progress.request_id)
        )
        self._dispatch(e.TurnEnded(handle.instance_id, message.turn_id, message.reason, contexts, message.timing))

    def _idle(self, request_id: str) -> bool:
        request = self._requests.get(request_id)
        return request is not None and request.free

    def _need_blocks(self, handle: InstanceHandle, message: m.NeedBlocks) -> None:
        request = self._requests.get(message.request_id)
        if request is None or request.running_on != handle.instance_id or not request.free:
            return
        if not self._grant(request, message.tokens):
            self._starved[request.request_id] = message.tokens
            self._dispatch(e.KvExhausted(handle.instance_id, message.turn_id, request.request_id))

    def _forgotten(self, message: m.Forgotten) -> None:
        for progress in message.progress:
            if progress.request_id in self._requests:
                self._advance(self._requests[progress.request_id], progress)
        for request_id in message.request_ids:
            request = self._requests.get(request_id)
            if request is not None and not request.free:
                self._let_go(request)

    def _let_go(self, request: DriverRequest) -> None:
        """No instance touches the request's blocks any more: carry out what waited for that."""
        if request.running_on is not None and request.running_on in self._instances:
            self._instances[request.running_on].members.discard(request.request_id)
        request.running_on = request.home = None
        if request.releasing:
            self._delete(request)
        else:
            self._drop(request)

    def _advance(self, request: DriverRequest, progress: m.Progress) -> None:
        request.advance(progress.new_ids, progress.kv_tokens)
        self._note_kv(request)

    def _note_kv(self, request: DriverRequest) -> None:
        self._kv.note(request.table_key, request.model, request.token_ids, request.kv_tokens)

    # --- blocks -----------------------------------------------------------------------------------------------------

    def _grant(self, request: DriverRequest, tokens: int) -> bool:
        """Give a running member more blocks; False when there are none."""
        try:
            new = self._kv.extend(request.table_key, tokens)
        except OutOfSlabsError:
            return False
        if new and request.running_on is not None and request.running_on in self._instances:
            self._instances[request.running_on].link.send(m.GrantBlocks(request.request_id, new))
        return True

    def _feed_starved(self) -> None:
        """Blocks came free: the earliest arrived go first."""
        for request_id in sorted(self._starved, key=self._arrival_s):
            request = self._requests.get(request_id)
            if request is None or request.running_on is None or self._grant(request, self._starved[request_id]):
                del self._starved[request_id]
            else:
                return

    def _arrival_s(self, request_id: str) -> float:
        request = self._requests.get(request_id)
        return request.submit.request.arrival_s if request is not None else float("-inf")

    def _free_table(self, request: DriverRequest) -> None:
        self._kv.free(request.table_key)
        self._starved.pop(request.request_id, None)
        self._feed_starved()

    def _delete(self, request: DriverRequest) -> None:
        self._discard_at_home(request)
        del self._requests[request.request_id]
        self._free_table(request)
        for key in tuple(self._lost):
            self._settle_loss(key)

    def _drop(self, request: DriverRequest) -> None:
        self._discard_at_home(request)
        self._free_table(request)
        request.home, request.kv_tokens, request.prefilled, request.dropping = None, 0, False, False
        request.epoch += 1
        self._dispatch(e.KvDropped(request.request_id, request.context_tokens))
        for starved in self._present(tuple(self._starved)):
            if starved.request_id in self._starved:  # what was decided for one before it may have ended it
                self._report_starved(starved)

    def _report_starved(self, request: DriverRequest) -> None:
        """What was freed was not enough for it (or of another shape)."""
        handle = None if request.running_on is None else self._instances.get(request.running_on)
        if handle is not None and handle.turn_id is not None:
            self._dispatch(e.KvExhausted(handle.instance_id, handle.turn_id, request.request_id))

    # --- events and commands ----------------------------------------------------------------------------------------

    def _dispatch(self, event: e.Event) -> None:
        """Let the scheduler handle an event. What a command causes at once is handled after it."""
        self._events.append(event)
        if self._handling:
            return
        self._handling = True
        try:
            while self._events:
                self._decide(self._events.popleft())
        finally:
            self._handling = False
        self._changed = True

    def _decide(self, event: e.Event) -> None:
        try:
            for command in self._scheduler.handle(event, self._clock.now_s()):
                self._execute(command)
        except Exception as error:
            self._fail_for(event, error)
            raise

    def _fail_for(self, event: e.Event, error: Exception) -> None:
        """What is known of requests cannot be trusted any more: this driver ends, and the next gets them all again.
        But not the one whose event this was, of which that one would end, too."""
        about = event.request if isinstance(event, e.RequestArrived) else event
        request = self._requests.get(getattr(about, "request_id", ""))
        if request is not None:
            reason = f"the driver failed over this request ({type(error).__name__}: {error})"
            self._send_frontend(request, m.Failed(request.request_id, reason))

    def _execute(self, command: c.Command) -> None:
        match command:
            case c.DropKv():
                self._give_up(command.request_id, release=False)
            case c.ReleaseRequest():
                self._give_up(command.request_id, release=True)
            case c.RejectRequest():
                self._reject(command)
            case c.FetchWeights():
                self._fetch_weights(command)
            case _:
                handle = self._instances.get(command.instance_id)
                if handle is not None:
                    self._execute_on(handle, command)
                elif isinstance(command, c.StartTurn | c.ExtendTurn):
                    self._miss(command)

    def _miss(self, command: c.StartTurn | c.ExtendTurn) -> None:
        """The instance has died, and the scheduler is about to hear of it: what it was to take loses nothing."""
        for loss in self._lost.values():
            if loss.handle.instance_id == command.instance_id:
                loss.members.update(dict.fromkeys((*command.prefill, *command.decode)))

    def _execute_on(self, handle: InstanceHandle, command: _InstanceCommand) -> None:
        match command:
            case c.StartTurn():
                self._start_turn(handle, command)
            case c.ExtendTurn():
                self._extend_turn(handle, command)
            case c.EndTurn():
                handle.link.send(m.StopTurn(command.turn_id))
            case c.LoadWeights():
                self._load_weights(handle, command.model)
                self._fetch_kv(handle, command)
            case c.EvictWeights():
                self._evict_weights(handle, command.model)
            case c.EvictKv():
                handle.link.send(m.EvictDeviceKv(command.request_ids))
            case _:
                assert_never(command)

    def _start_turn(self, handle: InstanceHandle, command: c.StartTurn) -> None:
        prefill, decode = self._known(command.prefill), self._known(command.decode)
        if not (prefill or decode):
            self._events.append(e.TurnEnded(handle.instance_id, command.turn_id, e.TurnEndReason.DRAINED))
            return
        suspect = next((r.request_id for r in self._present((*prefill, *decode)) if r.suspicion.suspected), None)
        if suspect is None:
            self._run_turn(handle, replace(command, prefill=prefill, decode=decode))
        else:
            self._run_turn(handle, _for_one(command, suspect))
            handle.alone = suspect

    def _run_turn(self, handle: InstanceHandle, command: c.StartTurn) -> None:
        handle.begin(command.turn_id, command.model, command.keep_prefilled, (*command.prefill, *command.decode))
        self._load_weights(handle, command.model)
        handle.link.send(
            m.RunTurn(
                command.turn_id,
                command.model,
                self._members(handle, command.turn_id, command.prefill),
                self._members(handle, command.turn_id, command.decode),
                command.quota_s,
                command.keep_prefilled,
                self._clock.now_s(),
            )
        )

    def _extend_turn(self, handle: InstanceHandle, command: c.ExtendTurn) -> None:
        """Who does not get in is waiting still when the turn ends, as if it had ended before they came."""
        if handle.turn_id != command.turn_id or handle.model is None or handle.alone is not None:
            return
        prefill, decode = self._known(command.prefill), self._known(command.decode)
        suspects = {r.request_id for r in self._present((*prefill, *decode)) if r.suspicion.suspected}
        if suspects:
            handle.link.send(m.StopTurn(command.turn_id))  # the next may be its own
            prefill, decode = _without(prefill, suspects), _without(decode, suspects)
        if prefill or decode:
            handle.members.update((*prefill, *decode))
            joining = (self._members(handle, command.turn_id, ids) for ids in (prefill, decode))
            handle.link.send(m.JoinTurn(command.turn_id, handle.model, *joining))

    def _known(self, request_ids: tuple[str, ...]) -> tuple[str, ...]:
        """Without those that were over before the scheduler heard of it."""
        return tuple(request_id for request_id in request_ids if request_id in self._requests)

    def _members(self, handle: InstanceHandle, turn_id: int, request_ids: tuple[str, ...]) -> tuple[m.Member, ...]:
        return tuple(self._member(handle, turn_id, self._requests[request_id]) for request_id in request_ids)

    def _member(self, handle: InstanceHandle, turn_id: int, request: DriverRequest) -> m.Member:
        request.running_on = handle.instance_id
        key, shape = request.table_key, self._models[request.model].kv_shape
        if not request.begun:
            request.begun = True
            self._send_frontend(request, m.Begun(request.request_id))
            self._find_kv(request, shape)
        self._kv.open(key, shape)
        wanted = request.context_tokens + shape.block_tokens
        for tokens in (wanted, request.context_tokens):
            try:
                self._kv.extend(key, tokens)
                break
            except OutOfSlabsError:
                continue
        else:
            self._starved[request.request_id] = request.context_tokens
            self._events.append(e.KvExhausted(handle.instance_id, turn_id, request.request_id))
        return self._member_for(handle, request)

    def _find_kv(self, request: DriverRequest, shape: KvShape) -> None:
        """What another driver has left of it."""
        token_ids = request.token_ids(0, request.context_tokens)
        request.kv_tokens = self._kv.adopt(request.table_key, shape, request.model, token_ids)
        if request.kv_tokens:
            found = f"the KV of {request.kv_tokens} of its {request.context_tokens} tokens"
            logger.info("request %s finds %s", request.request_id, found)

    def _member_for(self, handle: InstanceHandle, request: DriverRequest) -> m.Member:
        """The instance becomes its home; the one that was has no use for what it knows of it."""
        if request.home is not None and request.home != handle.instance_id:
            self._discard_at_home(request)
        return request.member_for(handle.instance_id, self._kv.blocks(request.table_key))

    def _discard_at_home(self, request: DriverRequest) -> None:
        if request.home is not None and request.home in self._instances:
            self._instances[request.home].link.send(m.Discard((request.request_id,)))

    def _load_weights(self, handle: InstanceHandle, model: str) -> None:
        if model in handle.models:
            return
        handle.models[model] = None

        def deliver(weights: m.HostWeights) -> None:
            handle.link.send(weights)

        self.weights.lease(model, handle.key, deliver)

    def _fetch_weights(self, command: c.FetchWeights) -> None:
        def deliver(weights: m.HostWeights) -> None:
            self.weights.give_back(weights.lease_id)
            self._dispatch(e.WeightsFetched(command.model))

        self.weights.drop(command.instead_of)
        self.weights.lease(command.model, _NOBODY, deliver)

    def _fetch_kv(self, handle: InstanceHandle, command: c.LoadWeights) -> None:
        found = (self._requests.get(request_id) for request_id in command.kv)
        free = [request for request in found if request is not None and request.running_on is None]
        if free:
            members = [self._member_for(handle, request) for request in free]
            handle.link.send(m.FetchKv(command.model, tuple(members)))

    def _evict_weights(self, handle: InstanceHandle, model: str) -> None:
        handle.models.pop(model, None)
        self.weights.cancel(model, handle.key)
        handle.link.send(m.EvictModel(model))

    def _give_up(self, request_id: str, release: bool) -> None:
        request = self._requests.get(request_id)
        if request is None:
            return
        request.releasing |= release
        request.dropping |= not release
        if request.running_on is not None and request.running_on in self._instances:
            self._instances[request.running_on].link.send(m.Forget((request_id,)))
        elif release:
            self._delete(request)
        elif not self._unanswered(request_id):  # else it is recomputed from what its client has, which we do not know
            self._drop(request)

    def _reject(self, command: c.RejectRequest) -> None:
        request = self._requests.get(command.request_id)
        if request is not None:
            retry_after_s = command.retry_after_s
            if command.reason is c.RejectReason.MODEL_FAILED:
                retry_after_s = self._failures.retry_after_s(request.model, self._clock.now_s())
            self._send_frontend(request, m.Rejected(command.request_id, command.reason, command.detail, retry_after_s))
            self._give_up(command.request_id, release=True)

    # --- reports ----------------------------------------------------------------------------------------------------

    def _model_failed(self, model: str, reason: str, kind: FailureKind = FailureKind.KILLS) -> None:
        """Quarantine a model until there is hope for it; one that is quarantined already stays so."""
        for handle in self._instances.values():
            handle.models.pop(model, None)
        if model in self._failures:
            return
        logger.error("%s", reason)
        # What is in memory may be older than what has to change.
        self.weights.drop((model,))
        self._set_back(model, ModelProblem(reason, kind))
        self._dispatch(e.ModelFailed(model, reason))

    def _set_back(self, model: str, problem: ModelProblem) -> None:
        """Say why it cannot be used, and look at it again after a pause."""
        failure = self._failures.fail(model, problem, self._clock.now_s())
        self._tell_frontends(_model_state(failure))
        self._timers.at(failure.retry_s, lambda: self._try_again(failure))

    def _try_again(self, failure: ModelFailure) -> None:
        if any(handle.turn_id is not None and handle.model == failure.model for handle in self._instances.values()):
            self._timers.at(self._clock.now_s() + _TURN_POLL_S, lambda: self._try_again(failure))
            return
        self._examine(failure, lambda wrong: self._examined(failure, wrong))

    def _examined(self, failure: ModelFailure, problem: ModelProblem | None) -> None:
        if problem is not None:
            self._set_back(failure.model, problem)
            return
        logger.info("model %s may be used again", failure.model)
        self._failures.recover(failure.model)
        self._tell_frontends(m.ModelState(failure.model, None))
        self._dispatch(e.ModelRecovered(failure.model))

    def _tell_frontends(self, message: m.ToFrontend) -> None:
        for link in self._frontends.values():
            link.send(message)

    def _send_frontend(self, request: DriverRequest, message: m.ToFrontend) -> None:
        link = self._frontends.get(request.submit.frontend_id)
        if link is not None:  # else it has gone, and its requests are being released
            link.send(message)

    def _report(self) -> None:
        now_s = self._clock.now_s()
        if not self._changed or now_s - self._reported_s < _REPORT_INTERVAL_S:
            return
        self._changed, self._reported_s = False, now_s
        state = self._state(now_s)
        for link in self._frontends.values():
            link.send(state)

    def _state(self, now_s: float) -> m.NodeState:
        waiting = Counter(r.model for r in self._requests.values() if r.running_on is None)
        running = Counter(r.model for r in self._requests.values() if r.running_on is not None)
        return m.NodeState(
            now_s,
            self._instance_states(now_s),
            tuple(waiting.items()),
            tuple(running.items()),
            self._kv.used_bytes,
            self._kv.assigned_bytes,
            self._kv.total_bytes,
            self.weights.cached,
            self.weights.used_bytes,
        )

    def _instance_states(self, now_s: float) -> tuple[m.InstanceState, ...]:
        """Those that have a process, and those that are to get one again."""
        states = {key: absence.state(now_s) for key, absence in self._absent.items()}
        for handle in self._instances.values():
            state = handle.state(now_s)
            absence = states.get(handle.instance_id)
            # One that comes up again is absent until it has: with the reason, which is what people look for.
            states[handle.instance_id] = state if absence is None or state.trouble else absence
        return tuple(states.values())


def _model_state(failure: ModelFailure) -> m.ModelState:
    return m.ModelState(failure.model, failure.reason, failure.retry_s, failure.kind is FailureKind.FILES)


def _for_one(command: c.StartTurn, request_id: str) -> c.StartTurn:
    """A turn with this member alone; the others are waiting still when it ends."""
    quota_s = _ALONE_QUOTA_S if command.quota_s is None else min(command.quota_s, _ALONE_QUOTA_S)
    prefill = tuple(name for name in command.prefill if name == request_id)
    decode = tuple(name for name in command.decode if name == request_id)
    return replace(command, prefill=prefill, decode=decode, quota_s=quota_s)


def _without(request_ids: tuple[str, ...], others: Collection[str]) -> tuple[str, ...]:
    return tuple(request_id for request_id in request_ids if request_id not in others)
