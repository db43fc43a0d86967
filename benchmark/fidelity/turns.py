"""What turns cost in a real pool, against what the profiles say; from its log.

A profile is measured with one instance that has nothing else to do. In a pool each step sends its tokens to clients,
and the server and the driver want their share of the caches.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

import numpy as np
from numpy.typing import NDArray

from aegaeon.core.command import StartTurn
from aegaeon.core.event import RequestArrived, RequestFinished, RequestPrefilled, TurnEnded
from aegaeon.core.profile import LatencyProfile
from aegaeon.core.record import RequestRecord
from aegaeon.core.turn_timing import StepSums, TurnTiming
from aegaeon.scheduler.log import LogEntry


@dataclass(frozen=True, slots=True)
class TurnCosts:
    """``*_ratio``: of what steps take to what the profiles say; what is added to that for each prompt or member.

    ``gap_s``: from a step's end to the next one's begin. ``hand_over_s``: of a turn, what makes its first step slower
    included. ``mixed_overlap``: see ``sim.world.constants``.
    """

    prefill_ratio: float
    prompt_s: float
    decode_ratio: float
    member_s: float
    gap_s: float = 0.0
    hand_over_s: float = 0.0
    mixed_overlap: float = 0.0

    @classmethod
    def of(cls, log: Iterable[LogEntry], profiles: Mapping[str, LatencyProfile]) -> TurnCosts:
        """Raises ``ValueError`` where the log has no timed turn of each kind."""
        turns = list(_turns(log))
        prompts, steps = [], []
        for turn in turns:
            profile, timing = profiles[turn.start.model], turn.timing
            if timing.prefill is not None:
                prompts.append((_prefill_s(profile, timing.prefill), timing.prefill.steps, timing.prefill.seconds))
            if timing.decode is not None:
                steps.append((_decode_s(profile, timing.decode), timing.decode.second, timing.decode.seconds))
        rates = cls(*_line(prompts), *_line(steps))
        bare = {name: rates.in_pool(profile) for name, profile in profiles.items()}
        plain = [(1.0, turn.steps, turn.beside_s()) for turn in turns if not turn.mixed_prompts]
        hand_over_s, gap_s = _solve(np.array(plain))
        rates = replace(rates, gap_s=gap_s, hand_over_s=max(0.0, hand_over_s))
        mixed = [turn for turn in turns if turn.mixed_prompts and turn.timing.decode is not None]
        overlap = _overlap([turn.mixed_s(bare[turn.start.model], rates) for turn in mixed])
        return replace(rates, mixed_overlap=overlap)

    def in_pool(self, profile: LatencyProfile) -> LatencyProfile:
        """The profile, as slow as in the pool."""
        prefill, decode = self.prefill_ratio, self.decode_ratio
        return LatencyProfile(
            profile.p0_s * prefill + self.prompt_s + self.gap_s,
            profile.p1_s * prefill,
            profile.p2_s * prefill,
            profile.d0_s * decode + self.gap_s,
            profile.d1_s * decode,
            profile.d2_s * decode + self.member_s,
        )

    def slower(self, factor: float) -> TurnCosts:
        """The costs of a machine on which everything takes ``factor`` times as long."""
        return replace(
            self,
            prefill_ratio=self.prefill_ratio * factor,
            prompt_s=self.prompt_s * factor,
            decode_ratio=self.decode_ratio * factor,
            member_s=self.member_s * factor,
            gap_s=self.gap_s * factor,
            hand_over_s=self.hand_over_s * factor,
        )

    def slowness(self, log: Iterable[LogEntry], profiles: Mapping[str, LatencyProfile]) -> float:
        """What all timed steps of the log took, over what these costs say.

        Raises ``ValueError`` where the log has none.
        """
        steps = replace(self, gap_s=0.0)
        took_s = said_s = 0.0
        for turn in _turns(log):
            profile, timing = steps.in_pool(profiles[turn.start.model]), turn.timing
            if timing.prefill is not None:
                took_s, said_s = took_s + timing.prefill.seconds, said_s + _prefill_s(profile, timing.prefill)
            if timing.decode is not None:
                took_s, said_s = took_s + timing.decode.seconds, said_s + _decode_s(profile, timing.decode)
        if not said_s:
            raise ValueError("the log has no timed turn")
        return took_s / said_s


def way_s(log: Iterable[LogEntry], records: Sequence[RequestRecord]) -> float:
    """What a client waits for its first token beyond what the driver sees: HTTP, the frontend, and back; median.

    ``records`` are those of all requests of the log; equal ones are told apart by their order.
    """
    seen_s: dict[tuple[str, int], deque[float]] = defaultdict(deque)
    arrived: dict[str, tuple[float, str, int]] = {}
    for entry in log:
        event = entry.event
        if isinstance(event, RequestArrived):
            arrived[event.request.request_id] = entry.now_s, event.request.model, event.request.prompt_tokens
        elif isinstance(event, RequestPrefilled | RequestFinished) and event.request_id in arrived:
            arrived_s, model, tokens = arrived.pop(event.request_id)
            seen_s[model, tokens].append(entry.now_s - arrived_s)
    ways_s = [
        record.ttft_s - seen_s[record.model, record.prompt_tokens].popleft()
        for record in sorted(records, key=lambda record: record.arrival_s)
        if record.ttft_s is not None
    ]
    return max(0.0, median(ways_s))


_UNTIMED = TurnTiming("", None, None)


@dataclass(slots=True)
class _Turn:
    """``prompts``: tokens of those that were processed. ``seconds``: from its command to its end."""

    start: StartTurn
    began_s: float
    prompts: list[int] = field(default_factory=list)
    seconds: float = 0.0
    timing: TurnTiming = _UNTIMED

    @property
    def mixed_prompts(self) -> list[int]:
        """The prompts that were processed beside decoding members: these steps are in no sum."""
        if not self.start.keep_prefilled:
            return []
        return self.prompts if self.start.decode else self.prompts[1:]

    @property
    def steps(self) -> int:
        """How many steps are timed."""
        return sum(sums.steps for sums in (self.timing.prefill, self.timing.decode) if sums is not None)

    def beside_s(self) -> float:
        """The hand-over, the gaps between steps, and mixed steps, if any.

        A first step that decodes is not timed; it counts as long as the others of the turn, so that a moment in which
        the machine is slow makes no longer hand-over.
        """
        decode = self.timing.decode
        timed_s = sum(sums.seconds for sums in (self.timing.prefill, decode) if sums is not None)
        if decode is not None and self.start.decode and not self.start.prefill:
            timed_s += decode.seconds / decode.steps
        return self.seconds - timed_s

    def mixed_s(self, profile: LatencyProfile, costs: TurnCosts) -> tuple[float, float]:
        """(what its mixed steps saved over one kind of step after the other, the smaller fixed costs in them)."""
        decode, prompts = self.timing.decode, self.mixed_prompts
        members = decode.second / decode.steps if decode is not None else 0.0
        apart_s = sum(profile.prefill_s([tokens]) + self._step_s(profile) for tokens in prompts)
        took_s = self.beside_s() - costs.hand_over_s - costs.gap_s * (self.steps + len(prompts))
        smaller_s = min(profile.p0_s, profile.d0_s + profile.d2_s * members)
        return apart_s - took_s, len(prompts) * smaller_s

    def _step_s(self, profile: LatencyProfile) -> float:
        """The mean of its decode steps in the profile, 0 without any."""
        decode = self.timing.decode
        return _decode_s(profile, decode) / decode.steps if decode is not None else 0.0


def _prefill_s(profile: LatencyProfile, sums: StepSums) -> float:
    return profile.p0_s * sums.steps + profile.p1_s * sums.first + profile.p2_s * sums.second


def _decode_s(profile: LatencyProfile, sums: StepSums) -> float:
    return profile.d0_s * sums.steps + profile.d1_s * sums.first + profile.d2_s * sums.second


def _line(steps: Sequence[tuple[float, int, float]]) -> tuple[float, float]:
    """Ratio and seconds for each of them, from (seconds in the profile, how many, seconds taken)."""
    if not steps:
        raise ValueError("the log has no timed turn of each kind")
    table = np.array(steps, dtype=np.float64)
    return _solve(table / np.sqrt(table[:, 2:]))  # the noise of a sum grows with the root of its length


def _solve(table: NDArray[np.float64]) -> tuple[float, float]:
    """(a, b) with a * first column + b * second column nearest to the third."""
    a, b = np.linalg.lstsq(table[:, :2], table[:, 2], rcond=None)[0].tolist()
    return a, b


def _overlap(turns: Sequence[tuple[float, float]]) -> float:
    """The share of the smaller fixed costs that mixed steps saved; 0 where there were none."""
    saved_s, smaller_s = (sum(values) for values in zip(*turns, strict=True)) if turns else (0.0, 1.0)
    return min(1.0, max(0.0, saved_s / smaller_s))


def _turns(log: Iterable[LogEntry]) -> Iterator[_Turn]:
    """Timed turns that began and ended in the log."""
    running: dict[tuple[str, int], _Turn] = {}
    for entry in log:
        event = entry.event
        if isinstance(event, RequestPrefilled) and (event.instance_id, event.turn_id) in running:
            running[event.instance_id, event.turn_id].prompts.append(event.context_tokens - 1)
        elif isinstance(event, TurnEnded) and event.timing is not None:
            turn = running.pop((event.instance_id, event.turn_id), None)
            if turn is not None and (event.timing.prefill or event.timing.decode):
                turn.seconds, turn.timing = entry.now_s - turn.began_s, event.timing
                yield turn
        for command in entry.commands:
            if isinstance(command, StartTurn):
                running[command.instance_id, command.turn_id] = _Turn(command, entry.now_s)
