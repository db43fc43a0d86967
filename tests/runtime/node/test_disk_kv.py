"""KV on disk, as the driver's core decides: what it waits for, what it does without, and what it writes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aegaeon.core.event import TurnEndReason
from aegaeon.memory.token_hash import block_names, next_name, packed
from aegaeon.runtime.node.core import driver_inputs as i
from aegaeon.runtime.node.core import driver_outputs as o
from aegaeon.runtime.node.core.disk_kv import DiskTier
from aegaeon.runtime.wire import messages as m
from tests.worlds.core_world import NAMES, PROMPT, SHAPE, CoreWorld, submission
from tests.worlds.played_disk import Files, PlayedDisk

T = TypeVar("T")
BLOCK = next_name(NAMES.root, packed(PROMPT[:16]))
FILE_BYTES = SHAPE.block_bytes + 200


class DiskWorld(CoreWorld):
    """``asked``: what the disk is to do. Computing a token takes as long as is said."""

    def __init__(self, slabs: int = 8, *, blocks: int = 4, computing_s: float = 0.1, policy: str = "slack") -> None:
        tier = DiskTier(blocks * FILE_BYTES, lambda _model, start, end: (end - start) * computing_s)
        super().__init__(slabs, policy=policy, disk=tier)
        self.asked: list[object] = []
        self.driver.disk = self.asked.append
        self.instance = self.join()

    def found(self, *names: bytes) -> None:
        self.driver.tell(i.KvFound(tuple((name, FILE_BYTES) for name in names)))

    def expect(self, kind: type[T]) -> T:
        output = self.asked.pop(0)
        assert isinstance(output, kind), output
        return output

    def read(self, reading: o.ReadKv, blocks: int = 1, took_s: float = 1e-6) -> None:
        self.driver.tell(i.KvRead(reading.reading, blocks, took_s))

    def turn(self) -> tuple[m.RunTurn, list[m.Member]]:
        turn = self.instance.expect(m.RunTurn)
        return turn, [*turn.prefill, *turn.decode]

    def run(self, token_id: int = 9) -> None:
        """A request to its end, which is after one token."""
        turn, (member,) = self.turn()
        self.instance.send(m.SequenceFinished(turn.turn_id, m.Progress(member.request_id, (token_id,), len(PROMPT))))
        self.instance.send(m.TurnOver(turn.turn_id, TurnEndReason.DRAINED, (), (), switched=True))

    def evict(self) -> None:
        """Somebody needs all room, for a moment."""
        self.kv.open("large", "one", SHAPE, m.KvNames(b"other"), PROMPT)
        self.kv.extend("large", self.kv.total_bytes // SHAPE.token_bytes)
        self.kv.free("large")

    def disk(self) -> m.DiskCounts:
        """As reported last."""
        counts = self.node_state().disk
        assert counts is not None
        return counts


@pytest.fixture
def world() -> Iterator[DiskWorld]:
    made = DiskWorld()
    yield made
    made.close()


def kv_tokens(member: m.Member) -> int:
    assert member.state is not None
    return member.state.kv_tokens


def test_a_request_begins_when_its_kv_has_been_read(world: DiskWorld) -> None:
    world.found(BLOCK)
    world.submit("a")
    assert world.frontend.has(m.Accepted)
    assert not world.instance.has(m.RunTurn)
    reading = world.expect(o.ReadKv)
    ((block,),) = (reading.blocks,)
    assert (block.name, block.before, block.tokens) == (BLOCK, NAMES.root, packed(PROMPT[:16]))
    world.read(reading)
    _, (member,) = world.turn()
    assert kv_tokens(member) == 16
    assert member.blocks[0] == block.offset
    assert world.frontend.expect(m.Begun).cached_tokens == 16


def test_a_request_goes_on_without_when_computing_would_be_done(world: DiskWorld) -> None:
    world.found(BLOCK)
    world.submit("a")
    reading = world.expect(o.ReadKv)
    world.pass_time(1.5)
    assert not world.instance.has(m.RunTurn)
    world.pass_time(0.5)
    _, (member,) = world.turn()
    assert kv_tokens(member) == 0
    world.read(reading)  # is kept for the next
    world.submit("b")
    assert world.asked == []


@pytest.mark.parametrize("message", [m.Cancel("a"), m.DetachFrontend("f")])
def test_whoever_leaves_meanwhile_leaves_nothing(world: DiskWorld, message: m.FromFrontend) -> None:
    world.found(BLOCK)
    world.submit("a")
    reading = world.expect(o.ReadKv)
    world.frontend.send(message)
    assert world.driver.core.idle
    assert world.kv.counts.used_bytes == SHAPE.block_bytes  # it is written to
    world.read(reading)
    assert (world.kv.counts.used_bytes, world.kv.counts.kept_bytes) == (0, SHAPE.block_bytes)
    world.driver.core.check_idle()
    assert not world.instance.has(m.RunTurn)
    world.pass_time(2.0)


def test_what_is_sooner_computed_is_not_read() -> None:
    world = DiskWorld(computing_s=1e-9)
    world.found(BLOCK)
    world.submit("a")
    assert world.asked == []
    _, (member,) = world.turn()
    assert kv_tokens(member) == 0
    world.close()


def test_a_slow_disk_is_left_alone_for_a_while() -> None:
    world = DiskWorld(computing_s=1e-3)
    world.found(BLOCK)
    read = []
    for number in range(60):
        world.submit(f"r{number}")
        read.append(bool(world.asked))
        if read[-1]:
            world.read(world.expect(o.ReadKv), took_s=1e-6 if number else 0.1)
        world.run()
        world.evict()
    assert read[:2] == [True, False]
    again = read.index(True, 1)
    assert all(read[again:])
    world.close()


def test_of_a_long_run_the_first_part_is_read_that_leaves_others_enough() -> None:
    world = DiskWorld(slabs=1, blocks=10)
    tokens = (*PROMPT, *range(100, 180))
    names = list(block_names(NAMES.root, tokens, 16))
    world.found(*names)
    world.submit("a", max_new_tokens=200, generated_ids=tokens[len(PROMPT) :])
    reading = world.expect(o.ReadKv)
    assert len(names) == 6
    assert [block.name for block in reading.blocks] == names[:4]
    world.read(reading, blocks=4)
    _, (member,) = world.turn()
    assert kv_tokens(member) == 64
    world.close()


def test_those_with_the_same_prompt_wait_for_one_reading(world: DiskWorld) -> None:
    world.found(BLOCK)
    for name in ("a", "b"):
        world.submit(name)
    reading = world.expect(o.ReadKv)
    assert world.asked == []
    world.read(reading)
    members = world.turn()[1]
    while world.instance.has(m.JoinTurn):
        members += world.instance.expect(m.JoinTurn).prefill
    assert {member.request_id: kv_tokens(member) for member in members} == {"a": 16, "b": 16}
    assert len({member.blocks[0] for member in members}) == 1


def test_what_cannot_be_read_is_computed_and_not_looked_for_again(world: DiskWorld) -> None:
    world.found(BLOCK)
    for name in ("a", "b"):
        world.submit(name)
    world.read(world.expect(o.ReadKv), blocks=0)
    assert world.asked == []
    assert {kv_tokens(member) for member in world.turn()[1]} == {0}
    assert world.disk().blocks == 0


def test_where_there_is_no_room_for_it_it_is_computed() -> None:
    world = DiskWorld(slabs=1)
    world.kv.open("other", "one", SHAPE, NAMES, PROMPT)
    world.kv.extend("other", 16 * 16)
    world.found(BLOCK)
    world.submit("a")
    assert world.asked == []
    world.kv.free("other")
    world.close()


# --- what ended requests leave ----------------------------------------------------------------------------------------


def leave(world: DiskWorld, name: str) -> None:
    world.submit(name)
    world.run()


def test_what_a_request_leaves_is_copied_then_written_and_found_when_it_is(world: DiskWorld) -> None:
    world.found()
    leave(world, "a")
    assert [block.name for block in world.expect(o.CopyKv).blocks] == [BLOCK]
    world.driver.tell(i.KvCopied())
    assert world.expect(o.WriteKv).names == (BLOCK,)
    leave(world, "again")
    assert world.asked == []
    assert world.disk().blocks == 0
    world.driver.tell(i.KvWritten((BLOCK,)))
    assert world.disk().blocks == 1
    leave(world, "once more")
    assert world.asked == []


def test_a_copy_of_a_block_that_was_given_up_meanwhile_is_not_written(world: DiskWorld) -> None:
    world.found()
    leave(world, "a")
    world.expect(o.CopyKv)
    world.evict()
    world.driver.tell(i.KvCopied())
    assert world.expect(o.WriteKv).names == ()
    leave(world, "again")
    assert world.asked == []
    world.driver.tell(i.KvWritten(()))
    assert [block.name for block in world.expect(o.CopyKv).blocks] == [BLOCK]
    world.driver.tell(i.KvCopied())
    assert world.expect(o.WriteKv).names == (BLOCK,)


def test_a_disk_that_takes_no_more_is_tried_again_after_a_while(
    world: DiskWorld, caplog: pytest.LogCaptureFixture
) -> None:
    world.found()
    leave(world, "a")
    for _ in range(3):
        world.expect(o.CopyKv)
        world.driver.tell(i.KvCopied())
        world.expect(o.WriteKv)
        world.driver.tell(i.KvWritten((), "/kv: No space left on device"))
        leave(world, "again")
        assert world.asked == []
        world.pass_time(60.5, step_s=5.0)
    lines = [record.getMessage() for record in caplog.records if "disk" in record.getMessage()]
    assert lines == ["cannot write KV to disk: /kv: No space left on device; it is tried again every 60 s"]


def test_what_was_used_least_recently_gives_way(world: DiskWorld) -> None:
    old = [bytes((number,)) * 16 for number in range(4)]
    world.found(*old)
    leave(world, "a")
    world.expect(o.CopyKv)
    world.driver.tell(i.KvCopied())
    assert world.expect(o.RemoveKv).names == (old[0],)
    assert world.expect(o.WriteKv).names == (BLOCK,)
    world.driver.tell(i.KvWritten((BLOCK,)))
    counts = world.disk()
    assert (counts.blocks, counts.evicted_blocks, counts.written_bytes) == (4, 1, SHAPE.block_bytes)
    assert counts.used_bytes <= counts.total_bytes


def test_a_folder_that_holds_more_than_it_may_is_cut(world: DiskWorld) -> None:
    old = [bytes((number,)) * 16 for number in range(6)]
    world.found(*old)
    assert world.expect(o.RemoveKv).names == tuple(old[:2])


def test_before_the_folder_is_open_nothing_is_written_or_counted(world: DiskWorld) -> None:
    leave(world, "a")
    assert world.asked == []
    assert world.node_state().disk is None


# --- host memory and disk together ------------------------------------------------------------------------------------

PROMPTS = st.lists(st.sampled_from((1, 1, 2)), min_size=1, max_size=5)
MOST_REQUESTS = 3  # at a time: nobody starves


class DiskMachine(RuleBasedStateMachine):
    """Requests come, wait, run and go, over a slab cache and a disk that are both too small, and services that end.

    Beside it there is a set of all prefixes that were ever computed. ``memory``: the token whose KV is at each place of
    the slab cache.
    """

    @initialize(blocks=st.sampled_from((3, 8, 100)), computing_s=st.sampled_from((0.1, 0.1, 1e-9)))
    def begin(self, blocks: int, computing_s: float) -> None:
        self.options = {"blocks": blocks, "computing_s": computing_s}
        self.files: Files = {}
        self.computed: set[tuple[int, ...]] = {()}
        self.count = 0
        self.start()

    def start(self) -> None:
        self.world = DiskWorld(slabs=2, **self.options)  # type: ignore[arg-type]
        self.memory: dict[tuple[int, int], int] = {}
        self.live: dict[str, tuple[int, ...]] = {}
        self.disk = PlayedDisk(self.memory, SHAPE.block_tokens, self.world.driver.tell, self.files)
        self.world.driver.disk = self.disk.do
        self.disk.open()

    @rule(blocks=PROMPTS)
    def ask(self, blocks: list[int]) -> None:
        if len(self.live) == MOST_REQUESTS:
            return
        self.count += 1
        name, prompt = f"r{self.count}", (*(token for token in blocks for _ in range(16)), 3)
        submit = submission(name, arrival_s=self.world.time_s)
        request = replace(submit.request, prompt_tokens=len(prompt))
        self.live[name] = tuple(blocks)
        self.world.frontend.send(replace(submit, request=request, prompt_ids=prompt))

    @rule(blocks=PROMPTS)
    def answer(self, blocks: list[int]) -> None:
        """With all the time that it needs."""
        self.ask(blocks)
        self.disk.settle()
        self.run()
        self.disk.settle()

    @rule()
    def run(self) -> None:
        """A turn to its end."""
        instance = self.world.instance
        if not instance.has(m.RunTurn):
            return
        turn = instance.expect(m.RunTurn)
        self.serve(turn)
        while instance.has(m.JoinTurn):
            self.serve(instance.expect(m.JoinTurn))
        instance.send(m.TurnOver(turn.turn_id, TurnEndReason.DRAINED, (), (), switched=False))

    def serve(self, turn: m.RunTurn | m.JoinTurn) -> None:
        for member in (*turn.prefill, *turn.decode):
            if member.request_id not in self.live:
                continue
            assert member.state is not None
            blocks, tokens = self.live.pop(member.request_id), member.state.token_ids
            places = [(member.blocks[at // 16], at % 16) for at in range(len(tokens))]
            found = member.state.kv_tokens
            assert [self.memory[place] for place in places[:found]] == list(tokens[:found])
            assert blocks[: found // 16] in self.computed
            self.memory.update(zip(places[found:], tokens[found:], strict=True))
            self.computed.update(blocks[:end] for end in range(len(blocks) + 1))
            progress = m.Progress(member.request_id, (9,), len(tokens))
            self.world.instance.send(m.SequenceFinished(turn.turn_id, progress))

    @rule(number=st.integers(0, 1))
    def disk_goes_on(self, number: int) -> None:
        for _ in range(5):
            self.disk.go_on(number)

    @rule(number=st.integers(0, 9))
    def file_is_damaged(self, number: int) -> None:
        self.disk.damage(number)

    @rule(full=st.booleans())
    def disk_is_full(self, full: bool) -> None:
        self.disk.full = full

    @rule(seconds=st.sampled_from((1.0, 70.0)))
    def pass_time(self, seconds: float) -> None:
        self.world.pass_time(seconds, step_s=seconds)

    @rule()
    def settle(self) -> None:
        self.disk.settle()

    @precondition(lambda self: not self.live)
    @rule()
    def host_memory_forgets(self) -> None:
        self.disk.settle()
        self.world.evict()

    @rule()
    def service_ends(self) -> None:
        """With whatever was under way."""
        self.world.kv.close()
        self.start()

    @invariant()
    def the_disk_holds_no_more_than_it_may(self) -> None:
        if hasattr(self, "world"):
            self.world.kv.check_integrity()
            assert len(self.files) * SHAPE.block_bytes <= self.options["blocks"] * FILE_BYTES

    def teardown(self) -> None:
        if hasattr(self, "world"):
            for _ in range(2 * MOST_REQUESTS):
                self.disk.settle()
                self.pass_time(10.0)
                self.run()
            assert self.live == {}
            self.disk.settle()
            self.world.driver.core.check_idle()
            assert self.world.kv.counts.used_bytes == 0
            self.world.close()


TestDisk = DiskMachine.TestCase
TestDisk.settings = settings(max_examples=100, stateful_step_count=40, deadline=None, derandomize=True)
