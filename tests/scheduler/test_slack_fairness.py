"""A model that yielded too often goes before others; one that yielded a little does not."""

from __future__ import annotations

import pytest

from aegaeon.core.request import Request
from aegaeon.scheduler.facts import model_facts
from aegaeon.scheduler.policies.slack.account import Account
from aegaeon.scheduler.policies.slack.slack_job import SlackJob
from aegaeon.scheduler.policies.slack.slack_model import SlackModel
from aegaeon.scheduler.policies.slack.tuning import Tuning
from aegaeon.scheduler.policies.slack.urgency import Urgency
from tests.worlds.toy_world import make_costs, make_models

MODELS = make_models(2)
FACTS = model_facts(MODELS)
STEP_S = 0.02


def account(late: int, live: int, seconds: float) -> Account:
    """Of a model that had so many requests under way for so long, so many of them late."""
    found = Account()
    for second in range(round(seconds)):
        found.add(late, live, second + 1.0)
    return found


def model_with(requests: int, missed: Account, of_all: Account | None = None) -> SlackModel:
    facts = FACTS["m0"]
    model = SlackModel(facts, 0, STEP_S, account=missed, of_all=of_all or Account())
    urgency = Urgency(make_costs(MODELS), Tuning(), STEP_S)
    for index in range(requests):
        member = SlackJob(Request(f"r{index}", "m0", 0.0, 16, 100), facts, (0.0, index), 16)
        urgency.note(member, STEP_S)
        model.waiting.add(member)
    return model


def key_s(model: SlackModel, **tuning: float) -> float:
    return Urgency(make_costs(MODELS), Tuning(**tuning), STEP_S).key_s(model, 9.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(("late", "live", "low", "high"), [(0, 10, 0.0, 0.0), (5, 10, 0.45, 0.5), (10, 10, 0.9, 1.0)])
def test_the_missed_share_is_that_of_requests_that_are_late_over_time(
    late: int, live: int, low: float, high: float
) -> None:
    assert low <= account(late, live, 120.0).missed_share <= high


def test_the_first_request_to_be_late_does_not_decide() -> None:
    assert account(late=1, live=1, seconds=1.0).missed_share < Tuning().tolerated_share


def test_what_was_long_ago_fades() -> None:
    missed = account(late=10, live=10, seconds=60.0)
    before = missed.missed_share
    missed.add(late_s=0.0, live_s=1800.0, now_s=240.0)
    assert missed.missed_share < before / 5


def test_what_is_tolerated_changes_nothing() -> None:
    assert key_s(model_with(3, account(1, 10, 60.0))) == key_s(model_with(3, Account()))


def test_one_request_of_a_model_that_lost_half_goes_before_several_of_another() -> None:
    poor, rich = model_with(1, account(5, 10, 60.0)), model_with(5, account(1, 10, 60.0))
    assert key_s(poor) < key_s(rich)
    assert key_s(poor, fairness=0.0) > key_s(rich, fairness=0.0), "by what a turn gains it is the other way round"


def test_where_everybody_loses_only_who_loses_far_more_than_others_goes_first() -> None:
    none, half, most = Account(), account(5, 10, 60.0), account(9, 10, 60.0)
    plain = key_s(model_with(3, none))
    assert key_s(model_with(3, half, none)) < plain
    assert key_s(model_with(3, half, account(4, 10, 60.0))) == plain, "others lost nearly as much"
    assert key_s(model_with(3, most, account(4, 10, 60.0))) < plain


def test_what_a_model_loses_counts_for_it_and_for_all() -> None:
    of_all = Account()
    models = [SlackModel(FACTS[name], order, STEP_S, of_all=of_all) for order, name in enumerate(FACTS)]
    late = SlackJob(Request("late", "m0", -100.0, 16, 100), FACTS["m0"], (0.0, 0), 16)
    early = SlackJob(Request("early", "m1", 0.0, 16, 100), FACTS["m1"], (0.0, 1), 16)
    for model, member in zip(models, (late, early), strict=True):
        model.waiting.add(member)
        model.note_late(5.0)
    shares = [model.account.missed_share for model in models]
    assert shares == [0.5, 0.0], "5 s late, beside 5 s that are taken for granted"
    assert of_all.missed_share == pytest.approx(5.0 / 15.0)
