"""Who may begin at a full slab cache, and how often it is asked."""

from __future__ import annotations

from itertools import count

import pytest

from aegaeon.core.instance import Role
from aegaeon.core.request import Request
from aegaeon.scheduler.facts import model_facts
from aegaeon.scheduler.job import Job, JobPhase
from aegaeon.scheduler.policies.slack.agenda import Agenda
from aegaeon.scheduler.policies.slack.prompt_gate import PromptGate
from aegaeon.scheduler.policies.slack.slack_job import SlackJob
from aegaeon.scheduler.policies.slack.slack_model import SlackModel
from aegaeon.scheduler.slab_budget import SlabBudget
from tests.worlds.toy_world import ToyWorld, make_costs, make_instance, make_limits, make_models

FACTS = model_facts(make_models(2))


class Cache:
    """A gate at a cache of 8 slabs of 10 blocks; two requests decode, so that KV will be freed."""

    def __init__(self) -> None:
        self.models = {name: SlackModel(facts, order, 0.02) for order, (name, facts) in enumerate(FACTS.items())}
        self.orders = count()
        self.agenda = Agenda(lambda model, _: float(model.order))
        self.gate = PromptGate(SlabBudget(make_limits(slabs=8)), {}, self.agenda)
        self.holder = self.decoding("m0.holder", prompt=500)
        self.other = self.decoding("m0.other", prompt=16)

    def decoding(self, name: str, prompt: int) -> SlackJob:
        member, model = self.queued(name, prompt), self.models["m0"]
        self.gate.enter(member)
        model.waiting.discard(member)
        member.phase = JobPhase.DECODING
        model.decoding.add(member)
        self.agenda.update(model, 0.0)
        return member

    def queued(self, name: str, prompt: int, arrival_s: float = 0.0) -> SlackJob:
        model = self.models[name.split(".")[0]]
        request = Request(name, model.name, arrival_s, prompt, 16)
        member = SlackJob(request, model.facts, (arrival_s, next(self.orders)), prompt)
        model.waiting.add(member)
        return member

    def may_begin(self, model: str, now_s: float = 1.0) -> list[str]:
        """Those who are admitted, of those who may ask."""
        candidates = self.gate.candidates(self.models[model], now_s)
        return [member.request_id for member in candidates if self.gate.admits(member)]

    def finish(self, member: SlackJob) -> None:
        self.models["m0"].decoding.discard(member)
        self.agenda.update(self.models["m0"], 0.0)
        self.gate.release(member)


def test_who_does_not_fit_keeps_nobody_out_but_once_many_do_not_nobody_is_asked_until_kv_has_been_freed() -> None:
    cache = Cache()
    cache.queued("m0.large", prompt=900)
    cache.queued("m1.small", prompt=16)
    assert cache.may_begin("m0") == []
    assert cache.may_begin("m1") == ["m1.small"]
    for index in range(40):
        cache.queued(f"m0.large-{index}", prompt=900)
    assert cache.may_begin("m0") == []
    assert cache.may_begin("m1") == []
    cache.finish(cache.holder)
    assert len(cache.may_begin("m0")) == 41
    assert cache.may_begin("m1") == ["m1.small"]


def test_once_kv_has_been_freed_nobody_waits_for_one_that_was_refused_before() -> None:
    cache = Cache()
    cache.queued("m0.larger", prompt=1200)
    cache.queued("m1.small", prompt=16)
    assert cache.may_begin("m0") == []
    cache.finish(cache.other)
    assert cache.may_begin("m1") == ["m1.small"]
    assert cache.may_begin("m0") == []


def test_one_that_holds_kv_may_always_go_on() -> None:
    cache = Cache()
    begun = cache.queued("m1.begun", prompt=100)
    cache.gate.enter(begun)
    cache.gate.wait(begun)
    cache.queued("m0.large", prompt=900)
    assert cache.may_begin("m0") == []
    assert cache.may_begin("m1") == ["m1.begun"]
    cache.models["m1"].waiting.discard(begun)
    cache.gate.leave(begun)
    assert cache.may_begin("m1") == []


def test_where_nothing_could_free_kv_anybody_may_begin() -> None:
    cache = Cache()
    cache.queued("m1.large", prompt=2000)
    assert cache.may_begin("m1") == []
    cache.finish(cache.holder)
    assert cache.may_begin("m1") == []
    cache.finish(cache.other)
    assert cache.may_begin("m1") == ["m1.large"]


@pytest.mark.parametrize("roles", [[Role.MIXED] * 3, [Role.PREFILL] * 2 + [Role.DECODE] * 2])
def test_a_decision_at_a_full_cache_asks_few_of_those_who_wait(
    roles: list[Role], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    has_room = SlabBudget.has_room

    def counted(slabs: SlabBudget, job: Job) -> bool:
        asked.append(job.request_id)
        return has_room(slabs, job)

    monkeypatch.setattr(SlabBudget, "has_room", counted)
    models = make_models(30)
    toy = ToyWorld(models, make_limits(slabs=10), make_costs(models), policy="slack")
    for index, role in enumerate(roles):
        toy.join(make_instance(f"i{index}", role, max_resident_models=3))
    toy.deliver_all()
    for index in range(300):
        toy.arrive(f"m{index % 30}.{index}", f"m{index % 30}", prompt=100, max_new=20)
    most = _most_asked_at_once(toy, asked)
    while toy.unfinished():
        for name in toy.instances:
            toy.step(name)
            most = max(most, _most_asked_at_once(toy, asked))
    assert most < 30


def _most_asked_at_once(toy: ToyWorld, asked: list[str]) -> int:
    most = 0
    while toy.mailbox:
        asked.clear()
        toy.deliver()
        most = max(most, len(asked))
    return most
