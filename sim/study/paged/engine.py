"""One engine under virtual time, which batches by iterations: first come, first served, as vLLM's scheduler does it.

An iteration first gives running groups their next token's place, oldest first, and preempts the newest where there is
none; then swapped groups come back, then waiting ones are admitted. Nothing happens to most groups in most iterations,
so each says when it is to be looked at again: an iteration costs as much as there is to do in it.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sim.study.paged.step_cost import StepCost, StepWork
from sim.study.paged.step_log import StepLog
from sim.systems.errors import InputError
from sim.systems.kv.group import SequenceGroup
from sim.systems.kv.manager import KvManager
from sim.systems.kv.paged import PagedKv

MAX_BATCHED_TOKENS = 2560


@dataclass(slots=True)
class _RunningGroup:
    """A group while it runs. ``tokens``: of a sequence in the iteration in which it joined."""

    joined: int
    tokens: int
    last: int  # its last iteration, if it is left alone

    def tokens_at(self, step: int) -> int:
        return self.tokens + step - self.joined


class FcfsEngine:
    """Serves groups that come in order of arrival.

    A preempted group of one sequence is computed again, unless ``always_swap``; those of several are swapped out, for
    only one sequence can be computed again as one prompt.
    """

    def __init__(
        self, kv: KvManager, cost: StepCost, groups: Sequence[SequenceGroup], always_swap: bool = False
    ) -> None:
        self.log = StepLog()
        self._kv = kv
        self._swap_kv = kv if isinstance(kv, PagedKv) else None
        self._always_swap = always_swap
        self._cost = cost
        self._coming = deque(groups)
        self._waiting: deque[SequenceGroup] = deque()
        self._swapped: deque[SequenceGroup] = deque()
        self._running: dict[SequenceGroup, _RunningGroup] = {}  # oldest first
        self._due: defaultdict[int, dict[SequenceGroup, _RunningGroup]] = defaultdict(dict)  # who needs a block when
        self._ending: defaultdict[int, list[tuple[SequenceGroup, _RunningGroup]]] = defaultdict(list)
        self._forking: defaultdict[int, list[tuple[SequenceGroup, _RunningGroup]]] = defaultdict(list)
        self._widest = max((group.sequences for group in groups), default=1)
        self._step = 0
        self._now_s = 0.0
        self._sequences = self._context = self._logical = self._promised = 0  # of running groups

    def run(self, until_s: float = float("inf")) -> StepLog:
        """Serve all groups, or as long as there is time."""
        while self._now_s < until_s and (self._coming or self._waiting or self._swapped or self._running):
            if not (self._waiting or self._swapped or self._running):
                self._now_s = max(self._now_s, self._coming[0].arrival_s)
            while self._coming and self._coming[0].arrival_s <= self._now_s:
                self._waiting.append(self._coming.popleft())
            self._iterate()
        return self.log

    def _iterate(self) -> None:
        preempted, out_blocks = self._grow()
        in_blocks = 0 if out_blocks else self._return(preempted)
        decoding, context = self._sequences, self._context
        prompts = self._admit(preempted)
        if not (self._running or preempted):
            group = (self._swapped or self._waiting)[0]
            raise InputError(f"a request of {group.tokens} tokens does not fit {self._kv.blocks} blocks")
        lengths = [self._running[group].tokens for group in prompts]
        tokens = sum(lengths)
        self._write_log(decoding + tokens, in_blocks, out_blocks, len(preempted))
        joining, pairs = self._sequences - decoding, sum(n * n for n in lengths)
        self._now_s += self._cost.step_s(StepWork(tokens, pairs, joining, decoding, context, in_blocks + out_blocks))
        self._end_step()
        self._step += 1

    # --- the parts of an iteration

    def _grow(self) -> tuple[list[SequenceGroup], int]:
        """Give running groups places for their next tokens; returns who had to leave, and the blocks swapped out."""
        due = {group: run for group, run in self._due.pop(self._step, {}).items() if self._running.get(group) is run}
        needed = sum(self._kv.missing_blocks(group, run.tokens_at(self._step)) for group, run in due.items())
        preempted: list[SequenceGroup] = []
        out_blocks = 0
        if needed + self._widest > self._kv.spare_blocks:  # else all find what they ask for, whatever the order
            preempted, out_blocks = self._preempt_newest(due)
        else:
            for group, run in due.items():
                self._grow_one(group, run)
        self._kv.write(self._sequences)
        self._context += self._sequences
        return preempted, out_blocks

    def _preempt_newest(self, due: dict[SequenceGroup, _RunningGroup]) -> tuple[list[SequenceGroup], int]:
        preempted: list[SequenceGroup] = []
        out_blocks = 0
        left = deque(self._running)
        while left:
            group = left.popleft()
            while self._kv.spare_blocks < group.sequences and group in self._running:
                preempted.append(left.pop() if left else group)
                out_blocks += self._preempt(preempted[-1])
            if group in due and group in self._running:
                self._grow_one(group, due[group])
        return preempted, out_blocks

    def _grow_one(self, group: SequenceGroup, run: _RunningGroup) -> None:
        tokens = run.tokens_at(self._step)
        self._kv.grow(group, tokens)
        if self._begins_block(tokens):
            self._logical += group.sequences
            self._look_again(group, run, self._step + self._kv.block_tokens)

    def _preempt(self, group: SequenceGroup) -> int:
        run, group.preemptions = self._running[group], group.preemptions + 1
        written = run.tokens_at(self._step - 1)
        self._leave(group, run, written)
        if group.sequences > 1 or self._always_swap:
            assert self._swap_kv is not None, "reservations are never given up"
            self._swapped.appendleft(group)
            return self._swap_kv.swap_out(group, written)
        self._kv.release(group, written)
        self._waiting.appendleft(group)
        return 0

    def _return(self, preempted: Iterable[SequenceGroup]) -> int:
        """Let swapped groups come back; returns their blocks."""
        blocks = 0
        while self._swapped and self._swap_kv is not None:
            group = self._swapped[0]
            full = len(self._running) + group.sequences > self._kv.max_sequences
            if full or group in preempted or not self._swap_kv.fits_again(group):
                break
            self._swapped.popleft()
            blocks += self._swap_kv.swap_in(group, group.tokens - 1)
            self._swap_kv.grow(group, group.tokens)
            self._swap_kv.write(group.sequences)
            self._join(group)
        return blocks

    def _admit(self, preempted: Iterable[SequenceGroup]) -> list[SequenceGroup]:
        """Admit waiting groups, none while somebody is swapped out."""
        prompts: list[SequenceGroup] = []
        batched = self._sequences
        while self._waiting and not self._swapped:
            group = self._waiting[0]
            batched += group.tokens
            full = len(self._running) + group.sequences > self._kv.max_sequences or batched > MAX_BATCHED_TOKENS
            if full or group in preempted or not self._kv.fits(group, group.tokens):
                break
            prompts.append(self._waiting.popleft())
            self._kv.admit(group, group.tokens)
            self._join(group)
        return prompts

    def _end_step(self) -> None:
        for group, run in self._forking.pop(self._step, ()):
            if self._running.get(group) is run and group.fork is not None:
                self._kv.fork(group, group.fork[1])
                group.fork = None
                self._look_again(group, run, self._step + 1)
                self._plan_fork(group, run)
        for group, run in self._ending.pop(self._step, ()):
            if self._running.get(group) is run:
                tokens = run.tokens_at(self._step)
                self._leave(group, run, tokens)
                self._kv.release(group, tokens)
                group.finish_s = self._now_s

    # --- who runs

    def _join(self, group: SequenceGroup) -> None:
        run = _RunningGroup(self._step, group.tokens, self._step + group.output_tokens - group.made_tokens - 1)
        self._running[group] = run
        self._count(group, group.tokens, 1)
        self._ending[run.last].append((group, run))
        self._look_again(group, run, self._step + 1 + -group.tokens % self._kv.block_tokens)
        if group.sequences > 1:
            self._look_again(group, run, self._step + 1)  # the prompt's last block is everybody's
            self._plan_fork(group, run)

    def _leave(self, group: SequenceGroup, run: _RunningGroup, tokens: int) -> None:
        del self._running[group]
        group.made_tokens += tokens - run.tokens + 1
        self._count(group, tokens, -1)

    def _count(self, group: SequenceGroup, tokens: int, sign: int) -> None:
        sequences = sign * group.sequences
        self._sequences += sequences
        self._context += sequences * tokens
        self._logical += sequences * -(-tokens // self._kv.block_tokens)
        self._promised += sequences * (group.prompt_tokens + group.output_tokens)

    def _look_again(self, group: SequenceGroup, run: _RunningGroup, step: int) -> None:
        if step <= run.last:
            self._due[step][group] = run

    def _plan_fork(self, group: SequenceGroup, run: _RunningGroup) -> None:
        """When the group forks next; what was to be forked before it was stopped still is."""
        if group.fork is None and group.forks is not None:
            group.fork = next(group.forks, None)
        if group.fork is not None:
            self._forking[run.joined + group.fork[0] - group.made_tokens - 1].append((group, run))

    def _begins_block(self, tokens: int) -> bool:
        return tokens % self._kv.block_tokens == 1 or self._kv.block_tokens == 1

    def _write_log(self, input_tokens: int, in_blocks: int, out_blocks: int, preempted: int) -> None:
        kv = self._kv
        host_blocks = self._swap_kv.used_host_blocks if self._swap_kv is not None else 0
        self.log.rows.append(
            (
                self._now_s,
                input_tokens,
                in_blocks,
                out_blocks,
                preempted,
                len(self._waiting),
                len(self._running),
                len(self._swapped),
                kv.used_blocks,
                host_blocks,
                self._logical,
                self._context,
                kv.tokens,
                self._promised - self._context,
                kv.useless_tokens,
            )
        )
