"""What a driver decides: a frontend and instances that the test plays, and no process, link or thread."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from aegaeon.core.command import Command, FetchWeights, LoadWeights
from aegaeon.core.event import Event, RequestArrived, TurnEnded, TurnEndReason, WeightsFetched
from aegaeon.core.generation import FinishReason
from aegaeon.runtime.node.core import driver_inputs as i
from aegaeon.runtime.wire import messages as m
from aegaeon.runtime.wire.model_failure import FailureKind
from aegaeon.scheduler.scheduler import Scheduler
from tests.worlds.core_world import EOS, PROMPT, SHAPE, STOP, CoreWorld, FailsOver, members, prefill
from tests.worlds.played_driver import Peer


@pytest.fixture
def world() -> Iterator[CoreWorld]:
    world = CoreWorld()
    yield world
    world.close()


def test_a_request_runs_from_submission_to_its_end_and_frees_its_blocks(world: CoreWorld):
    instance = world.join()
    world.submit("a")
    assert world.frontend.expect(m.Accepted).request_id == "a"
    assert instance.expect(m.HostWeights).model == "one"
    turn, member = prefill(instance)
    assert member.state is not None
    assert member.state.token_ids == PROMPT
    assert len(member.blocks) * SHAPE.block_tokens >= len(PROMPT)
    decode = instance.expect(m.RunTurn)
    assert decode.turn_id != turn.turn_id
    assert [(x.request_id, x.state) for x in decode.decode] == [("a", None)]  # the instance has its state already
    instance.send(m.SequenceFinished(decode.turn_id, m.Progress("a", (), 0)))
    instance.send(m.TurnOver(decode.turn_id, TurnEndReason.DRAINED, (), (), switched=False))
    world.submit("b")
    instance.expect(m.RunTurn)
    assert (
        world.kv.counts.used_bytes == SHAPE.blocks_for(len(PROMPT) + SHAPE.block_tokens) * SHAPE.block_bytes
    )  # b's alone


class BringsKvIn:
    """A policy that answers the end of a turn by quota with bringing in what request "a" needs, ahead of its turn."""

    def __init__(self, inner: Scheduler) -> None:
        self._inner = inner

    def handle(self, event: Event, now_s: float) -> list[Command]:
        if isinstance(event, TurnEnded) and event.reason is TurnEndReason.QUOTA:
            return [LoadWeights("i0", "one", ("a", "gone"))]
        return self._inner.handle(event, now_s)


def test_a_driver_that_ends_over_a_request_fails_that_request():
    world = CoreWorld(wrap=FailsOver)
    world.submit("good")
    with pytest.raises(ValueError, match="math domain error"):
        world.submit("bad")
    assert world.frontend.expect(m.Accepted).request_id == "good"
    failed = world.frontend.expect(m.Failed)
    assert failed.request_id == "bad"
    assert "ValueError: math domain error" in failed.reason
    assert not world.frontend.has((m.Accepted, m.Failed))


def test_kv_is_brought_in_ahead_of_a_turn_as_a_load_asks():
    world = CoreWorld(wrap=BringsKvIn)
    instance = world.join()
    world.submit("a")
    prefill(instance)
    decode = instance.expect(m.RunTurn)
    progress = m.Progress("a", (101,), len(PROMPT) + 1)
    instance.send(m.TurnOver(decode.turn_id, TurnEndReason.QUOTA, (progress,), (), switched=False))
    fetch = instance.expect(m.FetchKv)
    assert fetch.model == "one"
    assert [(member.request_id, member.state) for member in fetch.members] == [("a", None)]
    assert len(fetch.members[0].blocks) * SHAPE.block_tokens > len(PROMPT)


class FetchesFirst:
    """A policy that has "two" read before it hears of a request, then "one" in its place."""

    def __init__(self, inner: Scheduler) -> None:
        self._inner = inner
        self._arrived: Event | None = None

    def handle(self, event: Event, now_s: float) -> list[Command]:
        match event:
            case RequestArrived():
                self._arrived = event
                return [FetchWeights("two")]
            case WeightsFetched("two"):
                return [FetchWeights("one", ("two",))]
            case WeightsFetched("one"):
                assert self._arrived is not None
                return self._inner.handle(self._arrived, now_s)
            case _:
                return self._inner.handle(event, now_s)


def test_a_model_is_read_into_host_memory_in_place_of_another():
    world = CoreWorld(wrap=FetchesFirst)
    instance = world.join()
    world.submit("a")
    assert instance.expect(m.RunTurn).model == "one"
    assert list(world.driver.host.read) == ["one"]


def test_blocks_are_granted_while_a_turn_runs(world: CoreWorld):
    instance = world.join()
    world.submit("a")
    prefill(instance)
    decode = instance.expect(m.RunTurn)
    (member,) = decode.decode
    instance.send(m.NeedBlocks(decode.turn_id, "a", 200))
    grant = instance.expect(m.GrantBlocks)
    assert (len(member.blocks) + len(grant.blocks)) * SHAPE.block_tokens >= 200
    assert not set(member.blocks) & set(grant.blocks)


def test_a_cancelled_request_leaves_its_turn_before_its_blocks_are_freed(world: CoreWorld):
    instance = world.join()
    world.submit("a")
    prefill(instance)
    instance.expect(m.RunTurn)
    world.frontend.send(m.Cancel("a"))
    assert instance.expect(m.Forget).request_ids == ("a",)
    assert world.kv.counts.used_bytes > 0  # the instance may still be writing
    instance.send(m.Forgotten(("a",), (m.Progress("a", (101, 102), 22),)))
    instance.send(m.TurnOver(2, TurnEndReason.DRAINED, (), (), switched=False))
    world.submit("b")
    (member,) = instance.expect(m.RunTurn).prefill
    assert world.kv.counts.used_bytes == len(member.blocks) * SHAPE.block_bytes


def test_after_a_crash_a_request_goes_on_where_its_client_is(world: CoreWorld):
    instance = world.join()
    world.submit("a")
    prefill(instance)
    instance.expect(m.RunTurn)
    world.die()
    asked = world.frontend.expect(m.Interrupted)
    assert (asked.request_id, asked.instance_id) == ("a", "i0:0")
    world.frontend.send(m.Resume("a", (100, 101, 102, 103)))
    world.await_restart()
    again = world.join().expect(m.RunTurn)
    (member,) = (*again.prefill, *again.decode)
    assert member.state is not None
    assert member.state.token_ids == (*PROMPT, 100, 101, 102, 103)
    assert member.state.kv_tokens == len(PROMPT)  # what was saved at the last hand-over is not computed again


def test_a_client_that_is_gone_when_its_instance_dies_costs_nothing(world: CoreWorld):
    instance = world.join()
    world.submit("a")
    prefill(instance)
    instance.expect(m.RunTurn)
    world.die()
    world.frontend.expect(m.Interrupted)
    world.frontend.send(m.Cancel("a"))
    world.await_restart()
    world.join()
    assert world.kv.counts.used_bytes == 0


def test_a_model_that_cannot_be_read_fails_its_requests_and_no_others(world: CoreWorld):
    world.driver.host.broken["two"] = "two is garbage", FailureKind.FILES
    instance = world.join()
    world.submit("bad", "two")
    rejected = world.frontend.expect(m.Rejected)
    assert rejected.request_id == "bad"
    assert "two" in rejected.detail
    assert world.frontend.expect(m.ModelState).model == "two"
    turn = instance.expect(m.RunTurn)
    assert instance.expect(m.Forget).request_ids == ("bad",)
    instance.send(m.Forgotten(("bad",), ()))
    instance.send(m.TurnOver(turn.turn_id, TurnEndReason.DRAINED, (), (), switched=False))
    world.submit("good", "one")
    assert instance.expect(m.RunTurn).model == "one"


def test_when_blocks_run_out_the_latest_request_makes_room_and_is_computed_again():
    world = CoreWorld(slabs=1)  # 16 blocks of 16 tokens
    instance = world.join()
    world.submit("a")
    prefill(instance)
    decode = instance.expect(m.RunTurn)
    world.submit("b")
    (joined,) = instance.expect(m.JoinTurn).prefill  # the same model: it joins the running turn
    instance.send(m.Prefilled(decode.turn_id, m.Progress(joined.request_id, (7,), len(PROMPT))))
    instance.send(m.NeedBlocks(decode.turn_id, "a", 15 * 16))
    assert instance.expect(m.Forget).request_ids == ("b",)
    instance.send(m.Forgotten(("b",), (m.Progress("b", (8,), len(PROMPT) + 1),)))
    assert len(instance.expect(m.GrantBlocks).blocks) >= 12  # what "a" waited for
    instance.send(m.SequenceFinished(decode.turn_id, m.Progress("a", (), 0)))
    instance.send(m.TurnOver(decode.turn_id, TurnEndReason.DRAINED, (), (), switched=False))
    (again,) = instance.expect(m.RunTurn).prefill
    assert again.state is not None
    assert again.state.token_ids == (*PROMPT, 7, 8)
    assert again.state.kv_tokens == 16  # the block of the prompt that both had was kept


# --- what a request goes on from --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clients", "kv_tokens"),
    [
        ((100,), len(PROMPT)),  # shorter: one token must be fed for the next to be chosen
        ((100, 7, 7, 7), len(PROMPT) + 1),  # KV of other tokens does not count
    ],
)
def test_a_request_goes_on_from_what_its_client_has_and_not_from_what_was_reported(
    world: CoreWorld, clients: tuple[int, ...], kv_tokens: int
):
    instance = world.join()
    world.submit("a")
    prefill(instance)
    decode = instance.expect(m.RunTurn)
    progress = m.Progress("a", (101, 102, 103), len(PROMPT) + 3)
    instance.send(m.TurnOver(decode.turn_id, TurnEndReason.QUOTA, (progress,), (), switched=False))
    instance.expect(m.RunTurn)
    world.die()
    world.resume({"a": clients})
    state = members(world.join().expect(m.RunTurn))["a"].state
    assert state is not None
    assert (state.token_ids, state.kv_tokens) == ((*PROMPT, *clients), kv_tokens)


@pytest.mark.parametrize(
    ("generated_ids", "reason"),
    [((100, 101), FinishReason.LENGTH), ((100, EOS), FinishReason.STOP), ((STOP,), FinishReason.STOP)],
)
def test_a_request_that_has_all_its_tokens_is_finished_and_not_run_again(
    world: CoreWorld, generated_ids: tuple[int, ...], reason: FinishReason
):
    instance = world.join()
    world.submit("a", max_new_tokens=2)
    prefill(instance)
    instance.expect(m.RunTurn)
    world.die()
    world.resume({"a": generated_ids})
    assert world.frontend.expect(m.Finished) == m.Finished("a", reason, len(generated_ids))
    world.submit("b")
    assert set(members(world.join().expect(m.RunTurn))) == {"b"}


def test_what_another_driver_began_goes_on_or_is_over(world: CoreWorld):
    world.submit("whole", max_new_tokens=2, generated_ids=(100, 101))
    assert world.frontend.expect(m.Finished) == m.Finished("whole", FinishReason.LENGTH, 2)
    world.submit("begun", max_new_tokens=5, generated_ids=(100, 101))
    state = members(world.join().expect(m.RunTurn))["begun"].state
    assert state is not None
    assert (state.token_ids, state.prompt_tokens, state.kv_tokens) == ((*PROMPT, 100, 101), len(PROMPT), 0)


def test_a_request_that_lost_its_kv_as_its_instance_died_waits_for_what_its_client_has():
    world = CoreWorld(slabs=1)
    instance = world.join()
    world.submit("a", max_new_tokens=2)
    prefill(instance)
    decode = instance.expect(m.RunTurn)
    world.submit("b")
    instance.expect(m.JoinTurn)
    instance.send(m.Prefilled(decode.turn_id, m.Progress("b", (7,), len(PROMPT))))
    instance.send(m.NeedBlocks(decode.turn_id, "a", 15 * 16))
    assert instance.expect(m.Forget).request_ids == ("b",)
    world.die()
    world.resume({"a": (100, 101), "b": (7, 11, 12)})
    state = members(world.join().expect(m.RunTurn))["b"].state
    assert state is not None
    assert (state.token_ids, state.kv_tokens) == ((*PROMPT, 7, 11, 12), 16)  # a block was kept


@pytest.mark.parametrize("prefilled_first", [True, False])
def test_a_request_whose_forgetting_was_under_way_at_the_death_is_not_waited_for(prefilled_first: bool):
    world = CoreWorld()
    instance = world.join()
    world.submit("a")
    turn = instance.expect(m.RunTurn)
    world.frontend.send(m.Cancel("a"))
    instance.expect(m.Forget)
    if prefilled_first:
        instance.send(m.Prefilled(turn.turn_id, m.Progress("a", (100,), len(PROMPT))))
    world.die()
    world.await_restart()
    world.join()
    assert world.kv.counts.used_bytes == 0


def test_a_frontend_that_goes_takes_its_requests_with_it_also_those_it_owes_an_answer_for(world: CoreWorld):
    instance = world.join()
    gone = world.attach("g")
    gone.send(m.AttachFrontend("g", "nowhere"))
    world.submit("theirs", frontend=gone, frontend_id="g")
    prefill(instance)
    instance.expect(m.RunTurn)
    world.die()
    gone.expect(m.Interrupted)
    gone.send(m.DetachFrontend("g"))
    world.await_restart()
    world.join()
    assert world.kv.counts.used_bytes == 0


@pytest.mark.parametrize("attached", [True, False])
def test_a_frontend_that_dies_without_a_word_is_cancelled(world: CoreWorld, attached: bool):
    instance = world.join()
    gone = world.attach("g")
    if attached:
        gone.send(m.AttachFrontend("g", "nowhere"))
    world.submit("theirs", frontend=gone, frontend_id="g")
    instance.expect(m.RunTurn)
    world.driver.tell(i.FrontendLost("g"))
    assert instance.expect(m.DetachFrontend).frontend_id == "g"
    assert instance.expect(m.Forget).request_ids == ("theirs",)
    gone.send(m.Cancel("theirs"))  # what it had said before is for nobody
    assert not instance.has(m.Forget)


# --- who is suspected -------------------------------------------------------------------------------------------------


def dies_in_a_step(world: CoreWorld, instance: Peer, turn: m.RunTurn, *attempt: str, have: int = 0) -> Peer:
    """The instance dies in a step of these requests, or, where there are none, as it binds the model. The next one."""
    instance.send(m.Attempt(turn.turn_id, attempt))
    world.die()
    world.resume({name: tuple(range(100, 100 + have)) for name in members(turn)})
    return world.join()


def test_a_request_that_two_instances_died_of_runs_alone_and_then_fails_and_its_model_goes_on(world: CoreWorld):
    for name in ("a", "poison", "b"):
        world.submit(name)
    instance = world.join()
    for _ in range(2):
        turn = instance.expect(m.RunTurn)
        assert {"a", "poison", "b"} == set(members(turn))
        instance = dies_in_a_step(world, instance, turn, "poison")
    alone = instance.expect(m.RunTurn)
    while set(members(alone)) != {"poison"}:  # the others may go first, but not with it
        assert "poison" not in members(alone)
        instance.send(m.TurnOver(alone.turn_id, TurnEndReason.QUOTA, (), tuple(members(alone)), switched=False))
        alone = instance.expect(m.RunTurn)
    assert alone.quota_s is not None  # the others do not wait for its end
    assert members(alone)["poison"].state is not None
    instance = dies_in_a_step(world, instance, alone, "poison")
    failed = world.frontend.expect(m.Failed)
    assert failed.request_id == "poison"
    assert "3 instances died" in failed.reason
    assert "killed" in failed.reason
    assert set(members(instance.expect(m.RunTurn))) == {"a", "b"}
    world.submit("c")
    assert [world.frontend.expect(m.Accepted).request_id for _ in range(4)][-1] == "c"
    assert not [x for x in world.frontend.inbox if isinstance(x, m.ModelState)]


def test_a_suspect_does_not_join_a_turn_of_others_nor_they_its_own(world: CoreWorld):
    instance = world.join()
    world.submit("suspect")
    for _ in range(2):
        instance = dies_in_a_step(world, instance, instance.expect(m.RunTurn), "suspect")
    alone = instance.expect(m.RunTurn)
    world.submit("late")
    world.frontend.expect(m.Accepted)
    progress = m.Progress("suspect", tuple(range(100, 110)), len(PROMPT) + 9)
    instance.send(m.Prefilled(alone.turn_id, progress))  # it got somewhere: it is not suspected any more
    instance.send(m.TurnOver(alone.turn_id, TurnEndReason.QUOTA, (m.Progress("suspect", (), 29),), (), False))
    later = instance.expect(m.RunTurn)
    assert not [x for x in instance.inbox if isinstance(x, m.JoinTurn) and x.turn_id == alone.turn_id]
    seen = set(members(later))
    while seen != {"suspect", "late"}:
        seen |= {member.request_id for member in instance.expect(m.JoinTurn).prefill}


def test_kills_from_outside_speak_neither_against_requests_that_get_on_nor_against_their_model(world: CoreWorld):
    instance = world.join()
    world.submit("a")
    for kill in range(6):
        turn = instance.expect(m.RunTurn)
        instance = dies_in_a_step(world, instance, turn, "a", have=8 * kill)
    assert set(members(instance.expect(m.RunTurn))) == {"a"}
    assert not [x for x in world.frontend.inbox if isinstance(x, m.ModelState | m.Failed)]


def test_who_was_in_the_turn_but_not_in_the_step_is_not_suspected(world: CoreWorld):
    for name in ("a", "b"):
        world.submit(name)
    instance = world.join()
    for _ in range(2):
        instance = dies_in_a_step(world, instance, instance.expect(m.RunTurn), "a")
    turns = [instance.expect(m.RunTurn)]
    assert len(members(turns[0])) == 1
    instance = dies_in_a_step(world, instance, turns[0], *members(turns[0]))
    assert "b" in members(instance.expect(m.RunTurn))


def test_a_model_that_instances_die_of_as_they_bind_it_is_failed_and_no_other(world: CoreWorld):
    world.submit("a")
    instance = world.join()
    for _ in range(2):
        instance = dies_in_a_step(world, instance, instance.expect(m.RunTurn))
    instance.send(m.Attempt(instance.expect(m.RunTurn).turn_id, ()))
    world.die()
    assert world.frontend.expect(m.ModelState).model == "one"
    assert world.frontend.expect(m.Rejected).request_id == "a"
    world.submit("other", "two")
    assert world.join().expect(m.RunTurn).model == "two"


def test_a_turn_that_never_reached_its_instance_speaks_against_nobody(world: CoreWorld):
    """What ended before the death is read after it, and the scheduler gives the dead one a turn."""
    world.submit("a")
    instance = world.join()
    for _ in range(4):
        turn = instance.expect(m.RunTurn)
        over = m.TurnOver(turn.turn_id, TurnEndReason.QUOTA, (), tuple(members(turn)), switched=False)
        world.die(over)
        world.resume({"a": ()})
        instance = world.join()
    world.submit("b")
    seen: set[str] = set(members(instance.expect(m.RunTurn)))
    while seen != {"a", "b"}:
        seen |= {member.request_id for member in instance.expect(m.JoinTurn).prefill}


def test_a_name_that_is_used_again_is_not_taken_for_the_request_that_was_interrupted(world: CoreWorld):
    world.submit("a")
    world.submit("b")
    assert set(members(world.join().expect(m.RunTurn))) == {"a", "b"}
    world.die()
    assert {world.frontend.expect(m.Interrupted).request_id for _ in range(2)} == {"a", "b"}
    world.frontend.send(m.Cancel("a"))
    world.submit("a")
    world.frontend.send(m.Cancel("b"))
    world.await_restart()
