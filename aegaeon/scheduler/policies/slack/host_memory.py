"""Which model is read from disk into the node's host memory, and which ones make room for it there.

A read takes seconds and the disk does one at a time, so this is no cache that follows whoever asks: with a tenth more
models than fit, evicting the least recently used would have every model come from disk every time. Here a model keeps
its place while anybody whom it serves can still be on time. One without work makes room first, the longest unserved
before the others, then one whose members are all late already. Of those that want to come in, the one goes first that
saves the most for the bytes it takes: requests that will still be on time when it has been read. So that nobody waits
for ever, every other read goes to the model that has waited longest, once that is ``patience_s``; then even a model
that serves the punctual makes room. Who was read stays until it was served.
"""

from __future__ import annotations

from collections.abc import Mapping

from aegaeon.core.command import Command, FetchWeights
from aegaeon.scheduler.policies.slack.room import Room
from aegaeon.scheduler.policies.slack.slack_instance import SlackInstance
from aegaeon.scheduler.policies.slack.slack_model import SlackModel

_MOST_MEMBERS = 16  # of a queue, that are looked at
_LATEST = 0.25  # what the latest read counts in the running mean
_NO_READ_S = 0.25  # before it is looked again whether room can be made, while something runs that will end


class HostModels:
    """The books of a node's host memory. ``capacity_bytes`` None: it holds every model, always.

    What is on a device is in host memory too: a model leaves the devices before it leaves the host.
    """

    def __init__(
        self, capacity_bytes: int | None, room: Room, instances: Mapping[str, SlackInstance], patience_s: float
    ) -> None:
        self._capacity_bytes = capacity_bytes
        self._room = room
        self._instances = instances
        self._patience_s = patience_s
        self._held: dict[str, SlackModel] = {}
        self._fetched_s: dict[str, float] = {}  # of those that are held
        self._wanted: dict[str, SlackModel] = {}  # with work when they were noted, and not held
        self._used_bytes = 0
        self._reading: SlackModel | None = None
        self._began_s = 0.0
        self._seconds_per_byte = 0.0  # as observed
        self._for_the_longest = False  # the latest read was
        self._no_read_until_s = 0.0

    def holds(self, model: SlackModel) -> bool:
        """Whether devices may load it: its bytes are there, or it is read for each load since it never fits."""
        capacity_bytes = self._capacity_bytes
        return capacity_bytes is None or model.name in self._held or model.facts.weight_bytes > capacity_bytes

    def want(self, model: SlackModel) -> None:
        """Somebody waits for the model."""
        if not self.holds(model) and model is not self._reading and model.name not in self._wanted:
            self._wanted[model.name] = model
            self._no_read_until_s = 0.0

    def note_fetched(self, model: SlackModel, now_s: float) -> None:
        """It is there."""
        if model is self._reading:
            self._observe(now_s)
        elif self._capacity_bytes is not None and model.name not in self._held:
            self._used_bytes += model.facts.weight_bytes
        self._held[model.name], self._fetched_s[model.name] = model, now_s
        self._wanted.pop(model.name, None)

    def note_failed(self, model: SlackModel) -> None:
        """It cannot be read, or not be used."""
        self._wanted.pop(model.name, None)
        if model is self._reading:
            self._used_bytes -= model.facts.weight_bytes
            self._reading = None

    def advance(self, now_s: float, out: list[Command]) -> None:
        """Have a model read, if one is wanted, the disk is idle and others can make room."""
        if self._reading is not None or not self._wanted or (now_s < self._no_read_until_s and self._runs()):
            return
        self._wanted = {name: model for name, model in self._wanted.items() if model.key_s is not None}
        if self._wanted and not self._read_next(now_s, out):
            self._no_read_until_s = now_s + _NO_READ_S

    def _read_next(self, now_s: float, out: list[Command]) -> bool:
        """Every other read may be for the one that has waited longest."""
        if not self._for_the_longest and self._read_longest(now_s, out):
            self._for_the_longest = True
            return True
        self._for_the_longest = False
        return self._read_most_worth(now_s, out) or self._read_longest(now_s, out)

    def _runs(self) -> bool:
        """Whether there is something to wait for: a turn that will end, or the first instance."""
        return not self._instances or any(instance.turn is not None for instance in self._instances.values())

    def _observe(self, now_s: float) -> None:
        assert self._reading is not None
        latest = (now_s - self._began_s) / self._reading.facts.weight_bytes
        known = self._seconds_per_byte
        self._seconds_per_byte = known + _LATEST * (latest - known) if known else latest
        self._reading = None

    # -- who comes in

    def _read_longest(self, now_s: float, out: list[Command]) -> bool:
        """Reads the model that has waited longest, if that is long.

        At once where nothing runs that could be waited for; then one that has KV goes first, for others may wait until
        that is freed.
        """
        runs = self._runs()
        longest = min(self._wanted.values(), key=lambda model: (not (runs or model.decoding), _waits_since_s(model)))
        if runs and now_s < _waits_since_s(longest) + self._patience_s:
            return False
        return self._read(longest, [*self._idle(), *self._working()], now_s, out)

    def _read_most_worth(self, now_s: float, out: list[Command]) -> bool:
        worth = {name: self._worth(model, now_s) for name, model in self._wanted.items()}
        best = max(self._wanted.values(), key=lambda model: worth[model.name])
        victims = self._idle()
        if worth[best.name]:
            victims += [model for model in self._working() if not _saves(model, now_s)]
        return self._read(best, victims, now_s, out)

    def _worth(self, model: SlackModel, now_s: float) -> float:
        """What its members who will be on time still are worth, for each of its bytes."""
        ready_s = now_s + self._seconds_per_byte * model.facts.weight_bytes
        return _saves(model, ready_s) / model.facts.weight_bytes

    def _read(self, model: SlackModel, victims: list[SlackModel], now_s: float, out: list[Command]) -> bool:
        """Read it in place of the first of these that suffice; False, and nothing changes, where all do not."""
        assert self._capacity_bytes is not None
        missing_bytes = self._used_bytes + model.facts.weight_bytes - self._capacity_bytes
        leaving: list[SlackModel] = []
        for victim in victims:
            if missing_bytes <= 0:
                break
            missing_bytes -= victim.facts.weight_bytes
            leaving.append(victim)
        if missing_bytes > 0:
            return False
        for victim in leaving:
            self._drop(victim, out)
        self._used_bytes += model.facts.weight_bytes
        self._reading, self._began_s = model, now_s
        del self._wanted[model.name]
        out.append(FetchWeights(model.name, tuple(victim.name for victim in leaving)))
        return True

    # -- who makes room

    def _drop(self, model: SlackModel, out: list[Command]) -> None:
        for name in list(model.homes):
            self._room.evict(self._instances[name], model.name, out)
        del self._held[model.name], self._fetched_s[model.name]
        self._used_bytes -= model.facts.weight_bytes
        if model.key_s is not None:
            self._wanted[model.name] = model

    def _idle(self) -> list[SlackModel]:
        """Held models without work, the longest unserved first."""
        idle = [model for model in self._held.values() if model.key_s is None and not model.turns]
        return sorted(idle, key=lambda model: (model.served_s, model.order))

    def _working(self) -> list[SlackModel]:
        """Held models with work that do not run now, and have run since they came: the least urgent first."""
        held = [model for model in self._held.values() if not model.turns]
        runs = self._runs()
        may_go = [model for model in held if not runs or model.served_s >= self._fetched_s[model.name]]
        working = [(model.key_s, model) for model in may_go if model.key_s is not None]
        return [model for _, model in sorted(working, key=lambda pair: (-pair[0], pair[1].order))]


def _waits_since_s(model: SlackModel) -> float:
    """When it was served last, or when somebody first became late since."""
    return max(model.served_s, min(queue.first.due_s for queue in (model.waiting, model.decoding) if queue))


def _saves(model: SlackModel, from_s: float) -> float:
    """The worth of its members whose next token is due at that time or later."""
    queues = (model.waiting, model.decoding)
    return sum(member.weight for queue in queues for member in queue.due_from(from_s, _MOST_MEMBERS))
