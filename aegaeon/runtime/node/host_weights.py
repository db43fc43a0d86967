"""The node's host weight cache: the models that are in memory, which instances lease.

``quick_model_loader``'s store keeps the bytes, reads them from disk on threads of its own and gives up what was used
least recently; what somebody has leased stays. An instance attaches to an entry through a handle.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import count
from pathlib import Path

import quick_model_loader as qml
from aegaeon.memory.weight_chunks import chunk_bytes
from aegaeon.runtime.wire.messages import HostWeights
from aegaeon.runtime.wire.model_failure import FailureKind, failure_kind

Deliver = Callable[[HostWeights], None]
Fail = Callable[[str, str, FailureKind], None]
Post = Callable[[Callable[[], None]], None]
Changed = Callable[[str], bool]

_PREPARE_POLL_S = 0.05
_PREPARE_POLLS = 200  # without progress


def _never(_model: str) -> bool:
    """Nobody looks."""
    return False


def wait_until_prepared(store: qml.Store) -> None:
    """Block until all of a store's memory has its pages, or they stop coming."""
    before, still = -1, 0
    while still < _PREPARE_POLLS:
        stats = store.stats()
        if stats.prepared_bytes >= stats.capacity_bytes:
            return
        still = still + 1 if stats.prepared_bytes == before else 0
        before = stats.prepared_bytes
        time.sleep(_PREPARE_POLL_S)


class HostWeightCache:
    """All methods belong to the driver's thread; ``post`` has something done on it.

    ``fail(model, reason, kind)`` is called when a checkpoint cannot be read, or when ``changed(model)`` says of one
    that was just read that its files are others than before: nothing that was computed may go on with these. Raises
    ``quick_model_loader.LoaderError`` where the machine has no ``capacity_bytes`` of memory.

    ``heirlooms``: of the cache of a driver that has ended, whose memory and models this one takes over.
    """

    def __init__(
        self,
        capacity_bytes: int,
        paths: Mapping[str, Path],
        post: Post,
        fail: Fail,
        heirlooms: tuple[int, int] | None = None,
        changed: Changed = _never,
    ) -> None:
        self._paths = paths
        self._post = post
        self._fail = fail
        self._changed = changed
        if heirlooms is None:
            self._store = qml.Store(capacity_bytes, chunk_bytes=chunk_bytes(capacity_bytes))
        else:
            self._store = qml.Store.inherit(*heirlooms)
        self._waiting: dict[str, dict[str, Deliver]] = {}  # by model and instance key
        self._leases: dict[int, tuple[str, qml.Entry]] = {}  # the instance's key, and what it has leased
        self._lease_ids = count(1)

    @property
    def cached(self) -> tuple[str, ...]:
        """Models that are there, least recently used first."""
        return tuple(self._store.keys())

    @property
    def used_bytes(self) -> int:
        """Bytes of models that are there or being read."""
        stats = self._store.stats()
        return stats.capacity_bytes - stats.free_bytes

    def heirlooms(self) -> tuple[int, int]:
        """Descriptors for whoever is to take over; the caller closes them."""
        return self._store.heirlooms()

    @property
    def leased(self) -> frozenset[str]:
        """Models that somebody has a lease of."""
        return frozenset(entry.key for _, entry in self._leases.values())

    def lease(self, model: str, instance_key: str, deliver: Deliver) -> None:
        """Have ``deliver`` called as soon as the model is there, at once where it is."""
        try:
            entry = self._store.get(model)
        except KeyError:
            self._load(model, instance_key, deliver)
            return
        try:
            self._hand_over(model, entry, instance_key, deliver)
        except qml.LoaderError as error:
            # Not at once: who asks is in the middle of carrying out commands.
            self._post(partial(self._failed, model, error))

    def cancel(self, model: str, instance_key: str) -> None:
        """The instance does not wait for the model any more; a lease that was delivered is not touched."""
        self._waiting.get(model, {}).pop(instance_key, None)

    def drop(self, models: Iterable[str]) -> None:
        """Give up models; the memory of one that is leased is free when its last lease ends."""
        for model in models:
            if model in self._store:
                self._store.evict(model)

    def give_back(self, lease_id: int) -> None:
        """A lease is over; one that is unknown was over before."""
        if lease_id in self._leases:
            self._leases.pop(lease_id)[1].close()

    def forget_instance(self, instance_key: str) -> None:
        """All leases of an instance that died are over."""
        for lease_id in [lease_id for lease_id, (key, _) in self._leases.items() if key == instance_key]:
            self.give_back(lease_id)
        for model in self._waiting:
            self.cancel(model, instance_key)

    def wait_until_prepared(self) -> None:
        """Block until all of the memory has its pages, or they stop coming."""
        wait_until_prepared(self._store)

    def close(self) -> None:
        """Stop reading and let go of everything; what is mapped by others stays theirs."""
        self._store.close()
        for lease_id in tuple(self._leases):
            self.give_back(lease_id)

    def _load(self, model: str, instance_key: str, deliver: Deliver) -> None:
        """Who else waits for the model already is served by the load that is under way."""
        loading = model in self._waiting
        self._waiting.setdefault(model, {})[instance_key] = deliver
        if not loading:
            ticket = self._store.load(self._paths[model], model)
            ticket.add_done_callback(lambda done: self._post(partial(self._loaded, model, done)))

    def _loaded(self, model: str, ticket: qml.Ticket) -> None:
        waiting = self._waiting.pop(model)
        try:
            with ticket.result():
                if self._changed(model):
                    reason = f"the weights of model {model} have changed since they were read last: they are read anew"
                    self._fail(model, reason, FailureKind.TRANSIENT)
                    return
                for instance_key, deliver in waiting.items():
                    self.lease(model, instance_key, deliver)  # it may have been dropped since: then it is read again
        except qml.ClosedError:
            return  # the node stops
        except qml.LoaderError as error:
            self._failed(model, error)

    def _failed(self, model: str, error: qml.LoaderError) -> None:
        self._fail(model, f"cannot load model {model}: {error}", failure_kind(error))

    def _hand_over(self, model: str, entry: qml.Entry, instance_key: str, deliver: Deliver) -> None:
        """Raises ``LoaderError`` where there is no descriptor left for what others attach to."""
        try:
            handle = entry.handle()
        except qml.LoaderError:
            entry.close()
            raise
        lease_id = next(self._lease_ids)
        self._leases[lease_id] = (instance_key, entry)
        deliver(HostWeights(model, lease_id, handle))
